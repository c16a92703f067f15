"""Count what ranks send each other in a step; started in place of `cssr/train.py` under `accelerate launch`.

    CSSR_TRAFFIC=FILE accelerate launch [--config_file launch/X.yaml] benchmarks/traffic.py configs/Y.yaml [a.b=c ...]

Every collective passes PyTorch's dispatcher, whoever calls it (DDP's C++ reducer, DeepSpeed, accelerate): there its
payload is written down. FILE is JSON: the number of ranks and, for each step, payloads in bytes by collective; in the
first two DDP still arranges its buckets. What is logged between steps does not count.
"""

import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness import write
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cssr import train
from cssr.training import trainer
from cssr.training.step import Stepper

# The collectives of torch.ops.c10d by what they do; a payload is the largest of the tensors that a rank hands in or
# gets: what is reduced, or what is gathered by then.
KINDS = {
    "allreduce_": "all_reduce",
    "allreduce_coalesced_": "all_reduce",
    "reduce_scatter_": "reduce_scatter",
    "_reduce_scatter_base_": "reduce_scatter",
    "reduce_scatter_tensor_coalesced_": "reduce_scatter",
    "allgather_": "all_gather",
    "_allgather_base_": "all_gather",
    "allgather_coalesced_": "all_gather",
    "allgather_into_tensor_coalesced_": "all_gather",
    "broadcast_": "broadcast",
    "reduce_": "reduce",
    "gather_": "gather",
    "scatter_": "scatter",
    "alltoall_": "all_to_all",
    "alltoall_base_": "all_to_all",
}
SILENT = ("barrier", "monitored_barrier_")


class Payloads(TorchDispatchMode):
    """Within it, `bytes` by collective are added up."""

    def __init__(self):
        super().__init__()
        self.bytes: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: Mapping | None = None) -> Any:
        namespace, name = func.name().split(".")[0].split("::")
        if namespace == "c10d" and name not in SILENT:
            self.bytes[KINDS[name]] += max(map(_bytes, (*args, *(kwargs or {}).values())))
        return func(*args, **(kwargs or {}))


def _bytes(argument: Any) -> int:
    """Bytes of all tensors in an argument of a collective."""
    return sum(leaf.numel() * leaf.element_size() for leaf in tree_leaves(argument) if isinstance(leaf, Tensor))


class CountedStepper(Stepper):
    """Writes down the traffic of its steps."""

    traffic: list[dict[str, int]] = []  # of the one run in this process

    def step(self, *arguments: Any) -> Any:
        """A step, counted."""
        with Payloads() as payloads:
            losses = super().step(*arguments)
        self.traffic.append(dict(payloads.bytes))
        return losses


def main() -> None:
    """Train, and have rank 0 write what was counted."""
    trainer.Stepper = CountedStepper
    train.main()
    traffic = {"ranks": int(os.environ.get("WORLD_SIZE", "1")), "steps": CountedStepper.traffic}
    if os.environ.get("RANK", "0") == "0":
        write(traffic, Path(os.environ["CSSR_TRAFFIC"]))


if __name__ == "__main__":
    main()
