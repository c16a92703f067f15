"""The training step of CSBSR-PSPNet: `python benchmarks/training_step.py [--quick]`.

KBPN and PSPNet in the joint phase at 224 x 224 pixels: degradation, forward pass, losses, backward pass and update on
one drawn batch, in turn with the plain formulation (`plain_step.py`): in float32, where losses and gradients must be
equal up to rounding; under bfloat16 autocast, with recomputed activations, and compiled, where losses must come near.
Then what each needs of memory, in a process of its own. `gpu.py` times batches of 6 to the largest that fits a GPU.
"""

import argparse
import gc
import json
import subprocess
import sys
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from accelerate.state import AcceleratorState
from harness import Limit, Pair, Result, command
from machine import ROOT
from model_sizes import sizes
from plain_step import PlainStep
from torch import Tensor

from cssr.config.loading import load_config
from cssr.config.schedules import Progress
from cssr.config.schema import Config
from cssr.data.batch import Batch
from cssr.data.sampler import draw_seed
from cssr.data.transforms import signed_distance
from cssr.dataset_preparation.synthesis import render
from cssr.degradations import DEGRADATIONS
from cssr.models.joint import build_model
from cssr.training.log import memory_gib
from cssr.training.step import Stepper
from cssr.training.task import Task
from cssr.utils import distributed as engines

SIDE, SMALL, SEED = 224, 64, 0  # pixels of an HR image; in a quick run
JOINT, TOTAL = 600_000, 4_200_000  # samples seen, in the joint phase, of a run
VARIANTS: dict[str, tuple[str, list[str]]] = {  # precision, settings
    "float32": ("no", []),
    "bfloat16": ("bf16", []),
    "bfloat16, not channels_last": ("bf16", ["train.channels_last=false"]),
    "bfloat16, recomputed": ("bf16", ["train.recompute=true"]),
    "bfloat16, compiled": ("bf16", ["train.compile=true"]),
}
TINY = [  # networks: processors without bfloat16 take ten times as long in it
    "model.sr.stages=2", "model.sr.width=16", "model.sr.features=16", "model.seg.width=8",
    "model.seg.encoder=resnet10t", "model.seg.encoder_args={channels: [16, 32, 64, 64]}",
]  # fmt: skip
PLAIN = "kernel maps at full size, samples one by one, scipy, float32"
# Relative difference of all gradients that is rounding: the plain formulation by one thread and by two is 0.010 from
# itself at full size (fresh weights; 34 layers and four rounds of projections amplify it), losses 1e-6.
ROUNDING = 0.03
ASKED = {"float32": 1.4, "bfloat16": 2.5}  # times as fast, at full size
BATCHES = (6, 12, 24, 48, 96, 192, 384)


def main() -> None:
    """Command line."""
    options = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    options.add_argument("--memory")  # of one way, for a process of its own
    options.add_argument("--side", type=int, default=SIDE)
    known, rest = options.parse_known_args()
    if known.memory:
        print(json.dumps(memory(known.memory, known.side)))
    else:
        command(__doc__, pairs, rest)


def pairs(quick: bool) -> Iterable[Pair | Result]:
    """The step in all variants, then its memory; `quick`: small images, no compilation."""
    side, rounds = (SMALL, 1) if quick else (SIDE, 3)
    names = [name for name in VARIANTS if not (quick and "compiled" in name)]
    for name in names:
        yield pair(name, side, rounds)
        gc.collect()  # hooks and their modules refer to each other
    yield from memory_results(side)


# ---- in turn ----


def pair(name: str, side: int, rounds: int) -> Pair:
    """The plain step and one of ours; float32 must give its losses and gradients, bfloat16 comes near its losses."""
    exact = name == "float32"
    plain, ours = Step("plain", side, keep=exact), Step(name, side, keep=exact)
    macs = sizes(settings(side).model, side)[1]
    return Pair(
        f"step of {side} x {side}, {name}", PLAIN, plain, ours, tolerance=ROUNDING if exact else 0.1,
        differ=difference if exact else loss_difference, asked=ASKED.get(name) if side == SIDE else None, rounds=rounds,
        limit=Limit(flops=3 * 2 * macs, precision="float32" if exact else "bfloat16", device=device().type),
    )  # fmt: skip


def loss_difference(plain: dict[str, Tensor], ours: dict[str, Tensor]) -> float:
    """Largest relative difference of a loss."""
    both = ((float(plain[name]), float(ours[name])) for name in ("loss", "sr_loss", "seg_loss"))
    return max(abs(a - b) / abs(a) for a, b in both)


def difference(plain: dict[str, Tensor], ours: dict[str, Tensor]) -> float:
    """`loss_difference`, or the norm of the difference of all gradients relative to theirs where that is larger."""
    a, b = plain["gradients"], ours["gradients"]
    return max(loss_difference(plain, ours), float((a - b).norm() / a.norm()))


# ---- memory ----


def memory_results(side: int) -> Iterable[Result]:
    """Peak GiB of some steps, beyond what the imports take, each variant in a process of its own."""
    plain = alone("plain", side)
    for name in ("float32", "bfloat16", "bfloat16, recomputed"):
        asked = 2.0 if name == "bfloat16, recomputed" and side == SIDE else None
        yield Result(
            f"memory of a step of {side} x {side}, {name}", PLAIN, plain, alone(name, side), asked, "GiB", "batch of 1"
        )


def alone(name: str, side: int) -> float:
    words = [sys.executable, __file__, "--memory", name, "--side", str(side)]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{name}: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def memory(name: str, side: int) -> float:
    """Peak GiB of this process during two steps, beyond the imports; on a GPU, of what is allocated there."""
    before = 0.0 if device().type == "cuda" else memory_gib(device())
    step = Step(name, side)
    for _ in range(2):
        step()
    return max(memory_gib(device()) - before, 1 / 1024)  # imports may have needed more than small networks do


# ---- a step ----


def settings(side: int, *overrides: str) -> Config:
    """Settings of the recipe, the encoder from scratch; small networks for small images."""
    words = [f"data.crop={side}", "model.seg.pretrained=false", *(TINY if side == SMALL else []), *overrides]
    return load_config(ROOT / "configs" / "csbsr_pspnet.yaml", words)


def device() -> torch.device:
    """The device on which training would run."""
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def drawn(count: int, side: int) -> Batch:
    """A batch as the loader gives it: drawn photographs, masks and their distance maps."""
    photos, masks = zip(*(render(SEED, n, side, empty_share=0) for n in range(count)))
    masks = [mask.astype(np.uint8) for mask in masks]
    distance = torch.from_numpy(np.stack([signed_distance(mask) for mask in masks])[:, None])
    hr = torch.from_numpy(np.stack(photos).transpose(0, 3, 1, 2).copy())
    keys = [str(n) for n in range(count)]
    return Batch(hr, torch.from_numpy(np.stack(masks)[:, None]), distance, torch.arange(count), keys)


class Step:
    """Steps on one batch, ours or the plain ones; where asked, the gradients of the first are kept to be compared."""

    def __init__(self, name: str, side: int, count: int = 1, keep: bool = False):
        precision, overrides = VARIANTS.get(name, ("no", []))
        config = settings(side, f"train.batch_size={count}", *overrides)
        torch.manual_seed(SEED)
        task = Task(build_model(config.model), config).train()
        degrade = DEGRADATIONS.build(config.degradation, scale=config.model.scale)
        self.model, self.batch, self.taken = task.model, drawn(count, side), 0
        self.gradients: Tensor | None = None
        if name == "plain":
            plain = PlainStep(task, degrade, config.optim.lr, device())
            self.optimizer = plain.optimizer
            self._take = lambda progress: plain(self.batch, progress, draw_seed(SEED, JOINT, 0, 0))
        else:
            AcceleratorState._reset_state(True)  # an engine has one precision
            engine = engines.start_engine(mixed_precision=precision)
            stepper = Stepper(task, config, engine, degrade, count, 1)
            self.optimizer, self._take = engines.base_optimizer(stepper.optimizer), self._ours(stepper)
        if keep:
            self._hook = self.optimizer.register_step_pre_hook(self._keep)

    def __call__(self) -> dict[str, Tensor]:
        """One step: losses, and the gradients of the first step."""
        losses = self._take(Progress(JOINT, TOTAL))
        self.taken += 1
        return {**losses, **({} if self.gradients is None else {"gradients": self.gradients})}

    def _ours(self, stepper: Stepper) -> Callable[[Progress], dict[str, Tensor]]:
        def take(progress: Progress) -> dict[str, Tensor]:
            losses = stepper.step(iter([self.batch]), progress, self.taken + 1)
            stepper.settle()
            return losses

        return take

    def _keep(self, *_: Any) -> None:
        """Called once, before the first update."""
        self._hook.remove()
        self.gradients = torch.cat([p.grad.detach().flatten().cpu() for p in self.model.parameters()])


if __name__ == "__main__":
    main()
