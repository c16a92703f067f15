"""One optimizer step over the global batch, under any engine: batches, forward, backward, update, average.

The host queues a step without waiting for its results. A flag on the device says whether all losses are finite; the
update does nothing otherwise. The host reads the flag before it queues the next step.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
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
from cssr.training.optim import Hold, LearningRate, build_optimizer, held_groups, skipping_part
from cssr.training.task import BATCH_NORMS, Task
from cssr.utils import distributed as engines


@dataclass(frozen=True)
class Outcome:
    """Result of a step, the same on all ranks.

    Attributes:
        losses: means over the ranks.
        skipped: {rank, loss, finite, keys} of each rank, of the first micro-batch with a loss that is not finite on
            some rank, for which the step was skipped; None for a step that was taken.
        stop: whether a rank asks for the end of the run.
    """

    losses: dict[str, float]
    skipped: list[dict[str, Any]] | None
    stop: bool


@dataclass
class Queued:
    """A step that the host has queued: losses and sample keys of this rank's micro-batches, and what ranks sum up."""

    number: int
    stop: bool
    terms: list[dict[str, Tensor]] = field(default_factory=list)
    keys: list[list[str]] = field(default_factory=list)
    sums: engines.RankSum | None = None

    @cached_property
    def means(self) -> dict[str, Tensor]:
        """Mean losses of this rank."""
        return {name: sum(terms[name] / len(self.terms) for terms in self.terms) for name in self.terms[0]}

    def summands(self) -> Tensor:
        """1 for each micro-batch with a loss that is not finite, 1 to stop, and the mean losses; float32."""
        losses = torch.stack([terms["loss"] for terms in self.terms])
        flags = (~losses.isfinite()).float()
        return torch.cat([flags, flags.new_full((1,), self.stop), torch.stack([*self.means.values()])])


class Stepper:
    """Take optimizer steps on the task's weights, which the engine owns from here on.

    Args:
        task: with the weights with which training begins or resumes.
        degrade: HR to (LQ, kernel), from the registry.
        micro_batch, accumulation: samples of a forward pass on this rank, and how many of them make a step.
    """

    def __init__(
        self,
        task: Task,
        config: Config,
        engine: Accelerator,
        degrade: Callable,
        micro_batch: int,
        accumulation: int,
    ):
        self.task, self.model, self._config, self._engine = task, task.model, config, engine
        self._groups = [*task.model.groups()]
        self._degrade, self._accumulation = degrade, accumulation
        self._layout = torch.channels_last if config.train.channels_last else torch.contiguous_format
        if not engines.flattens(engine):
            engines.set_memory_format(self.model, self._layout)
        optimizer = build_optimizer(self.model, config)
        engines.configure_deepspeed(engine, optimizer, micro_batch, accumulation, config.optim.clip_norm)
        self.module, self.optimizer = engine.prepare(task, optimizer)
        self._base = engines.base_optimizer(self.optimizer)
        self._skipped_by = skipping_part(engine, self._base)
        self._queued: Queued | None = None
        norms = (module for module in self.model.modules() if isinstance(module, BATCH_NORMS))
        self._statistics = [buffer for norm in norms for buffer in norm.buffers()]
        self._saved_statistics = [buffer.clone() for buffer in self._statistics]
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

    def step(self, stream: Iterator[Batch], progress: Progress, number: int, stop: bool = False) -> dict[str, Tensor]:
        """Queue step `number` of the run, at `progress`; `settle` has its outcome.

        Args:
            stop: whether this rank asks for the end of the run.
        Returns: this rank's mean losses, on the device.
        """
        self.settle()
        phase, step = self.task.phase(progress), progress.samples // self._config.train.batch_size
        self._hold.groups = held_groups(self._groups, phase, step)
        self.task.hold_still(self._hold.groups if phase.hold_batch_norm else frozenset())
        self.lr = self._learning_rate.apply(self._base, progress, phase)
        if self._statistics:
            torch._foreach_copy_(self._saved_statistics, self._statistics)
        queued = Queued(number, stop)
        for _ in range(self._accumulation):
            self._micro_step(self.next(stream), progress, queued)
        self._update(queued)
        self._queued = queued
        return queued.means

    def settle(self) -> Outcome | None:
        """Finish the queued step on the host, and return its outcome; None where no step is queued.

        The host waits for the forward pass, while a GPU has the backward pass and the update to do.
        """
        queued, self._queued = self._queued, None
        if queued is None:
            return None
        sums, world = queued.sums.read(), self._engine.num_processes
        flags, stop, losses = sums[: self._accumulation], sums[self._accumulation], sums[self._accumulation + 1 :]
        skipped = self._skip(queued, flags) if any(flags) else None
        if self._average and not skipped:
            self._average.update(self.model, step=queued.number)
        return Outcome({name: loss / world for name, loss in zip(queued.terms[0], losses)}, skipped, stop > 0)

    def next(self, stream: Iterator[Batch]) -> Batch:
        """The next micro-batch on the device, degraded; the time spent waiting is added to `waited`."""
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

    def _micro_step(self, batch: Batch, progress: Progress, queued: Queued) -> None:
        """Forward and backward of a micro-batch; ranks sum up the losses of a step beside its last backward pass."""
        engine, micro = self._engine, len(queued.terms)
        last = micro == self._accumulation - 1
        # Dropout depends on (seed, samples seen, rank) alone: a resumed run draws what an uninterrupted one does.
        torch.manual_seed(draw_seed(self._config.train.seed, progress.samples, engine.process_index, micro))
        with engines.accumulating(engine, self.module, last):
            terms = self.module(batch, progress)
            queued.terms.append({name: value.detach() for name, value in terms.items()})
            queued.keys.append(batch.key)
            if last:
                queued.sums = engines.RankSum(engine, queued.summands())
            loss = terms["loss"]
            if self._skipped_by == "engine":  # DeepSpeed and loss scaling skip a step with gradients that are nan
                loss = loss * torch.where(loss.detach().isfinite(), 1.0, math.nan)
            engines.backward(engine, loss, self._accumulation)

    def _update(self, queued: Queued) -> None:
        """Update of the weights, which does nothing where a loss of any rank is not finite."""
        if self._skipped_by == "host" and any(queued.sums.read()[: self._accumulation]):
            self.optimizer.zero_grad()
            return
        if self._skipped_by == "device":
            self._base.found_inf = queued.sums.on_device()[: self._accumulation].sum().clamp(max=1)
        if self._config.optim.clip_norm is not None:
            self._engine.clip_grad_norm_(self.module.parameters(), self._config.optim.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def _skip(self, queued: Queued, flags: list[float]) -> list[dict[str, Any]]:
        """Restore the BatchNorm statistics, and gather the first micro-batch with a bad loss from each rank."""
        if self._statistics:
            torch._foreach_copy_(self._statistics, self._saved_statistics)
        micro = next(micro for micro, flag in enumerate(flags) if flag)
        loss = queued.terms[micro]["loss"].item()
        facts = {"rank": self._engine.process_index, "loss": str(loss), "finite": math.isfinite(loss)}
        return gather_object([{**facts, "keys": queued.keys[micro]}])
