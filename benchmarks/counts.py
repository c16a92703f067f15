"""Operations counted, which do not vary from run to run: `python benchmarks/counts.py [--write]`.

GMAC of a forward pass of the main recipes for an HR image of 224 x 224; and of a training step of a small CSBSR (blur,
reduction, forward and backward pass, update, average; the second step, as the first one makes the optimizer's state):
operations that PyTorch is asked for, of which each is a kernel's launch on a GPU, and bytes that the forward pass keeps
for the backward pass, weights not counted. `--write` stores them in
tests/benchmarks/counts.json, which test_counts.py beside it compares with.
"""

import argparse
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from accelerate import Accelerator
from harness import write
from machine import ROOT
from model_sizes import sizes
from scaling import SMALL, STEADY
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode

from cssr.config.loading import load_config
from cssr.config.schedules import Progress
from cssr.config.schema import Config
from cssr.data.batch import Batch
from cssr.degradations import DEGRADATIONS
from cssr.models.joint import build_model
from cssr.training.step import Stepper
from cssr.training.task import Task

STORED = ROOT / "tests" / "benchmarks" / "counts.json"
RECIPES = ("cssr", "csbsr_pspnet", "csbsr_hrnet_ocr", "csbsr_blurskip", "dsrl", "srcnet")
BATCH, CROP = 2, 64
ALLOCATIONS = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "detach", "alias")


class Launches(TorchDispatchMode):
    """Context that counts operations by name, without views and allocations, which launch no kernel."""

    def __init__(self):
        super().__init__()
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: Mapping | None = None) -> Any:
        name = func.overloadpacket.__name__
        if not func.is_view and name not in ALLOCATIONS:
            self.names[name] += 1
        return func(*args, **(kwargs or {}))


class Kept(saved_tensors_hooks):
    """Context that counts the bytes of storages saved by autograd, each once, except those of `excluded`."""

    def __init__(self, excluded: Iterable[torch.Tensor]):
        self.sizes: dict[int, int] = {}
        self._excluded = {tensor.untyped_storage().data_ptr() for tensor in excluded}
        super().__init__(self._keep, lambda tensor: tensor)

    def _keep(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._excluded:
            self.sizes[storage.data_ptr()] = storage.nbytes()
        return tensor


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="store them in tests/benchmarks/counts.json")
    options = parser.parse_args()
    counted = counts()
    print(json.dumps(counted, indent=1))
    if options.write:
        write(counted, STORED)


def counts() -> dict[str, Any]:
    """All figures."""
    return {
        "torch": torch.__version__.partition("+")[0],
        "macs": {name: macs(name) for name in RECIPES},
        "step": step(),
    }


def macs(recipe: str) -> int:
    """Multiply-accumulates of a forward pass."""
    return sizes(load_config(ROOT / "configs" / f"{recipe}.yaml", ["model.seg.pretrained=false"]).model)[1]


def step() -> dict[str, int]:
    """Launches and kept bytes of a training step."""
    settings = [setting for setting in STEADY if not setting.startswith("optim.ema")]
    config = load_config(None, [*SMALL, *settings, "optim.ema=0.99", f"data.crop={CROP}"])
    torch.manual_seed(0)
    task = Task(build_model(config.model).train(), config)
    stepper = stepping(task, config)
    stepper.step(iter([batch()]), Progress(0, 1000), 1)
    kept = Kept((*task.parameters(), *task.buffers()))
    with Launches() as launches, kept:
        stepper.step(iter([batch()]), Progress(BATCH, 1000), 2)
    return {"launches": launches.names.total(), "bytes_kept": sum(kept.sizes.values())}


def stepping(task: Task, config: Config) -> Stepper:
    """Stepper of a single process on the CPU, in float32."""
    degrade = DEGRADATIONS.build(config.degradation, scale=config.model.scale)
    return Stepper(task, config, Accelerator(cpu=True, mixed_precision="no"), degrade, BATCH, 1)


def batch() -> Batch:
    """Deterministic batch in the format of the loader."""
    generator = torch.Generator().manual_seed(0)
    hr = torch.randint(0, 256, (BATCH, 3, CROP, CROP), dtype=torch.uint8, generator=generator)
    mask = (torch.rand(BATCH, 1, CROP, CROP, generator=generator) > 0.9).to(torch.uint8)
    return Batch(hr, mask, torch.ones(mask.shape), torch.arange(BATCH), ["a", "b"][:BATCH])


if __name__ == "__main__":
    main()
