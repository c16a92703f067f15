"""The accelerate engine that training and evaluation run on, and the little that ranks tell each other."""

import os
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from torch import nn


def start_engine(**arguments: Any) -> Accelerator:
    """The engine; without a GPU (and without DeepSpeed) it is asked for the CPU, which launch files cannot do.

    Buffers are not broadcast from rank 0 before each forward pass: `average_buffers` takes every rank's into account.
    Raises: ValueError where the world is not the one that the launcher promised.
    """
    deepspeed = os.environ.get("ACCELERATE_USE_DEEPSPEED", "false") == "true"
    handlers = [DistributedDataParallelKwargs(broadcast_buffers=False)]
    cpu = not torch.accelerator.is_available() and not deepspeed
    engine = Accelerator(cpu=cpu, kwargs_handlers=handlers, **arguments)
    promised = int(os.environ.get("WORLD_SIZE", "1"))
    if engine.num_processes != promised:
        raise ValueError(
            f"the launcher promised {promised} processes, accelerate runs {engine.num_processes}: "
            "use one of the launch files in launch/"
        )
    return engine


def average_buffers(engine: Accelerator, *modules: nn.Module) -> None:
    """The mean over ranks of floating-point buffers: BatchNorm statistics, which each rank has of its own samples."""
    if engine.num_processes == 1:
        return
    for buffer in (b for module in modules for b in module.buffers() if b.is_floating_point()):
        buffer.copy_(engine.reduce(buffer, "mean"))


class AnyRank:
    """Whether something holds on any rank; asked over the CPUs, so that no device has to be waited for."""

    def __init__(self, engine: Accelerator):
        self.group = torch.distributed.new_group(backend="gloo") if engine.num_processes > 1 else None

    def __call__(self, here: bool) -> bool:
        """The same answer on all ranks; all must ask."""
        if self.group is None:
            return here
        flag = torch.tensor(int(here))
        torch.distributed.all_reduce(flag, group=self.group)
        return bool(flag)
