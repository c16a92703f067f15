"""One optimizer step over the global batch, under any engine: batches, forward, backward, update, average."""

import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from cssr.config.schedules import Progress
from cssr.config.schema import Config
from cssr.data.batch import Batch
from cssr.data.sampler import draw_seed
from cssr.training.activation_checkpointing import recompute_blocks
from cssr.training.optim import Hold, LearningRate, build_optimizer, held_groups
from cssr.training.task import Task
from cssr.utils import distributed as engines


@dataclass
class Refused:
    """A step that was not taken, as its loss is not finite on some rank: {rank, loss, finite, keys} of each."""

    ranks: list[dict[str, Any]]


class Stepper:
    """Takes steps on the task's weights, which from here on are the engine's.

    Args:
        task: with the weights with which training begins or resumes.
        degrade: HR to (LQ, kernel), from the registry.
        micro_batch, accumulation: samples of a forward pass on this rank, and how many of them make a step.
        any_rank: to agree with the other ranks.
    """

    def __init__(
        self,
        task: Task,
        config: Config,
        engine: Accelerator,
        degrade: Callable,
        micro_batch: int,
        accumulation: int,
        any_rank: engines.AnyRank,
    ):
        self.task, self.model, self._config, self._engine = task, task.model, config, engine
        self._groups = [*task.model.groups()]
        self._degrade, self._accumulation, self._any_rank = degrade, accumulation, any_rank
        self._layout = torch.channels_last if config.train.channels_last else torch.contiguous_format
        if not engines.flattens(engine):
            engines.lay_out(self.model, self._layout)
        optimizer = build_optimizer(self.model, config)
        engines.configure_deepspeed(engine, optimizer, micro_batch, accumulation, config.optim.clip_norm)
        self.module, self.optimizer = engine.prepare(task, optimizer)
        self._base = engines.base_optimizer(self.optimizer)
        self._hold, self._learning_rate = Hold(self.model, self._base), LearningRate(config)
        decay, warmup = config.optim.ema, config.optim.ema_warmup
        self._average = ModelEmaV3(self.model, decay=decay, use_warmup=warmup) if decay else None
        self.lr, self.waited = 0.0, 0.0  # of the last step; seconds spent waiting for data so far
        if config.train.recompute:  # after the average is copied, which never is in a backward pass
            recompute_blocks(self.model)
        if config.train.compile:
            # No cutting of the graph at the ends of DDP's buckets, which recomputed blocks do not allow.
            torch._dynamo.config.optimize_ddp = not config.train.recompute
            task.compile_model()

    @property
    def ema(self) -> nn.Module | None:
        """The model of averaged weights, where there is one."""
        return self._average.module if self._average else None

    def step(self, stream: Iterator[Batch], progress: Progress, number: int) -> dict[str, Tensor] | Refused:
        """Step `number` of the run, at `progress`; returns this rank's mean losses."""
        self._begin_phase(progress)
        totals: dict[str, Tensor] = {}
        for micro in range(self._accumulation):
            terms = self._micro_step(self.next(stream), progress, micro)
            if isinstance(terms, Refused):
                self._drop(stream, self._accumulation - micro - 1)
                return terms
            for name, value in terms.items():
                totals[name] = totals.get(name, 0) + value.detach() / self._accumulation
        self._update(number)
        return totals

    def next(self, stream: Iterator[Batch]) -> Batch:
        """The next micro-batch on the device, degraded; the wait for it is counted."""
        began = time.monotonic()
        batch = next(stream)
        self.waited += time.monotonic() - began
        batch = batch.to(self._engine.device)
        if batch.lq is None:
            with torch.no_grad():
                lq, kernel = self._degrade(batch.hr, batch.seed)
            batch = dataclasses.replace(batch, lq=lq, kernel=kernel)
        hr, lq = (image.contiguous(memory_format=self._layout) for image in (batch.hr, batch.lq))
        return dataclasses.replace(batch, hr=hr, lq=lq)

    def _begin_phase(self, progress: Progress) -> None:
        phase, step = self.task.phase(progress), progress.samples // self._config.train.batch_size
        self._hold.groups = held_groups(self._groups, phase, step)
        self.task.hold_still(self._hold.groups if phase.hold_batch_norm else frozenset())
        self.lr = self._learning_rate.apply(self._base, progress, phase)

    def _micro_step(self, batch: Batch, progress: Progress, micro: int) -> dict[str, Tensor] | Refused:
        """Forward and backward of a micro-batch; no backward where the loss of any rank is not finite."""
        engine = self._engine
        # Dropout depends on (seed, samples seen, rank) alone: a resumed run draws what an uninterrupted one does.
        torch.manual_seed(draw_seed(self._config.train.seed, progress.samples, engine.process_index, micro))
        with engines.accumulating(engine, self.module, micro == self._accumulation - 1):
            terms = self.module(batch, progress)
            loss = terms["loss"].item()  # the one number in a step that the host waits for
            if self._any_rank(not math.isfinite(loss)):
                mine = {"rank": engine.process_index, "loss": str(loss), "finite": math.isfinite(loss)}
                return Refused(gather_object([{**mine, "keys": batch.key}]))
            engines.backward(engine, terms["loss"], self._accumulation)
        return terms

    def _drop(self, stream: Iterator[Batch], rest: int) -> None:
        """Forget what the step has gathered; the rest of its samples count as seen."""
        engines.drop_gradients(self.module, self.optimizer)
        for _ in range(rest):
            next(stream)

    def _update(self, number: int) -> None:
        if self._config.optim.clip_norm is not None:
            self._engine.clip_grad_norm_(self.module.parameters(), self._config.optim.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self._average:
            self._average.update(self.model, step=number)
