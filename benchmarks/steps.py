"""Training steps of CSBSR-PSPNet on one drawn batch, by the settings or by the plain formulation, for `step.py`."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.state import AcceleratorState
from plain_step import PlainStep
from torch import Tensor

from cssr.config.loading import load_config
from cssr.config.schedules import Progress
from cssr.config.schema import Config
from cssr.data.batch import Batch
from cssr.data.sampler import draw_seed
from cssr.data.transforms import signed_distance
from cssr.degradations import DEGRADATIONS
from cssr.models.joint import build_model
from cssr.training.step import Stepper
from cssr.training.task import Task
from cssr.utils import distributed as engines

ROOT = Path(__file__).parents[1]
SIDE, SMALL, SEED = 224, 64, 0  # pixels of an HR image; in a quick run
JOINT, TOTAL = 600_000, 4_200_000  # samples seen, in the joint phase, of a run
VARIANTS: dict[str, tuple[str, list[str]]] = {  # precision, settings
    "float32": ("no", []),
    "bfloat16": ("bf16", []),
    "bfloat16, not channels_last": ("bf16", ["train.channels_last=false"]),
    "bfloat16, recomputed": ("bf16", ["train.recompute=true"]),
    "bfloat16, compiled": ("bf16", ["train.compile=true"]),
}


def settings(side: int, *overrides: str) -> Config:
    """Those of the recipe, the encoder from scratch; narrow networks for small images."""
    narrow = ["model.sr.width=16", "model.sr.features=16", "model.seg.encoder=resnet18"] if side == SMALL else []
    words = [f"data.crop={side}", "model.seg.pretrained=false", *narrow, *overrides]
    return load_config(ROOT / "configs" / "csbsr_pspnet.yaml", words)


def device() -> torch.device:
    """Where training would run."""
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def drawn(count: int, side: int) -> Batch:
    """A batch as the loader gives it: drawn photographs, masks and their distance maps."""
    sys.path.append(str(ROOT / "shards"))
    from cssr.dataset_preparation.synthesis import render

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
            self.optimizer, self._take = plain.optimizer, self._plainly(plain)
        else:
            AcceleratorState._reset_state(True)  # an engine has one precision
            engine = engines.start_engine(mixed_precision=precision)
            stepper = Stepper(task, config, engine, degrade, count, 1, engines.AnyRank(engine))
            self.optimizer, self._take = engines.base_optimizer(stepper.optimizer), self._ours(stepper)
        if keep:
            self._hook = self.optimizer.register_step_pre_hook(self._keep)

    def __call__(self) -> dict[str, Tensor]:
        """One step: losses, and the gradients of the first step."""
        losses = self._take(Progress(JOINT, TOTAL))
        self.taken += 1
        return {**losses, **({} if self.gradients is None else {"gradients": self.gradients})}

    def _plainly(self, plain: PlainStep) -> Callable[[Progress], dict[str, Tensor]]:
        return lambda progress: plain(self.batch, progress, draw_seed(SEED, JOINT, 0, 0))

    def _ours(self, stepper: Stepper) -> Callable[[Progress], dict[str, Tensor]]:
        def take(progress: Progress) -> dict[str, Tensor]:
            found = stepper.step(iter([self.batch]), progress, self.taken + 1)
            return found if isinstance(found, dict) else {"loss": torch.tensor(float("nan"))}

        return take

    def _keep(self, *_: Any) -> None:
        """Called once, before the first update."""
        self._hook.remove()
        self.gradients = torch.cat([p.grad.detach().flatten().cpu() for p in self.model.parameters()])
