"""The training run: the loop, then logging, validation and checkpoints, then its set-up.

The optimizer step is in `cssr/training/step.py`, the losses in `cssr/training/task.py`, what a run starts or resumes
from in `cssr/training/start.py`. Progress is shown in steps; schedules count samples seen.
"""

import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import ProjectConfiguration

from cssr.config.loading import save_config
from cssr.config.schedules import Progress
from cssr.config.schema import Config
from cssr.data.batch import Batch
from cssr.data.checks import check_kernels, iterate_images
from cssr.data.loader import Damage, train_stream
from cssr.degradations import DEGRADATIONS
from cssr.models.load import choose, read_best
from cssr.models.training_range import training_range
from cssr.training import checkpoint as store
from cssr.training.checkpoint import Saver, restore, take_snapshot
from cssr.training.checks import check_degradation, check_run
from cssr.training.dry_run import dry_run
from cssr.training.fault_tolerance import RunLock, SkippedSteps, StopSignal, Watchdog
from cssr.training.log import (
    Console,
    has_step,
    ignore_tensorboard_errors,
    memory_gib,
    parameter_counts,
    save_tracker_runs,
    tracker_settings,
    trackers,
    truncate_lines,
)
from cssr.training.start import Start, initial_model, resumed
from cssr.training.step import Stepper
from cssr.training.task import Task
from cssr.training.validation import Validation, is_better, record
from cssr.utils import distributed as engines
from cssr.utils.distributed import AnyRank, from_main_process, start_engine
from cssr.utils.files import naming_path
from cssr.utils.machine import keep_freed_memory


class Run:
    """A training run: what its stages share."""

    def train(self) -> None:
        """Train until the end or a signal; then, or after an error, release what the run holds."""
        with closing(self):
            self._train()

    def _train(self) -> None:
        config = self.config
        if not self.writes:
            return dry_run(self.stepper, self._stream(), self.progress, self.engine, self.setup)
        if self.step >= config.train.steps and (self.dir / "export").is_dir():
            return self._print_finished()
        self._begin()
        if self.step and self._unvalidated():
            self._validate()
        stream, self.stopping = self._stream(), self.any_rank(bool(self.stop))
        with closing(stream):
            while self._continues():
                self.watchdog.alive()
                self._step(stream)
                validates = self._due(config.train.val_every) and self.setup.validates
                if validates or self._due(config.train.save_every):
                    self._settle()
                    self._save()
                if validates:  # after the checkpoint, so that an error costs no step
                    self._validate()
                self.saver.check()
                self.console.step()
        self._end()
        return None

    def _continues(self) -> bool:
        """Return whether there is a step to take, the same on all ranks; the one before is settled first."""
        self._settle()
        return self.step < self.config.train.steps and not self.stopping

    def _step(self, stream: Iterator[Batch]) -> None:
        """Queue an optimizer step over the global batch."""
        self.progress = self._progress(self.step)
        self.stepper.step(stream, self.progress, self.step + 1, bool(self.stop))
        self.step += 1

    def _settle(self) -> None:
        """Wait for the outcome of the queued step, if any, and log it."""
        outcome = self.stepper.settle()
        if outcome is None:
            return
        self.stopping = outcome.stop
        if outcome.skipped:
            self.console.line(self.skipped.note(self.step, outcome.skipped, self.engine.is_main_process))
        elif self._due(self.config.train.log_every) or self.step == 1:
            self._log(outcome.losses)

    def _end(self) -> None:
        """The last checkpoint, and the export of a run that is finished."""
        self._save()
        self.saver.wait()
        if self.skipped.count >= self.config.train.steps:
            raise ValueError(
                f"every step was left out, as no loss was finite: nothing was trained, and no export is written; "
                f"look at {self.dir / 'skipped.jsonl'}, lower optim.lr or set optim.clip_norm"
            )
        if self.step >= self.config.train.steps and not self._unvalidated():  # a signal may have ended that
            self._export()
            self.finished = True
        else:
            self.console.line(
                f"stopped at step {self.step} on a signal, checkpoint written; the same command continues from here"
            )
        self.console.close()
        with naming_path(self.dir):
            self.engine.end_training()

    # ---- logging, validation, checkpoints, export ----

    def _log(self, losses: dict[str, float]) -> None:
        now = time.monotonic()
        steps = self.step - self.logged_step
        metrics: dict[str, Any] = losses | {
            "beta": float(self.task.beta(self.progress)),
            "lr": self.stepper.lr,
            "phase": self.task.phase(self.progress).name,
            "images_per_s": steps * self.config.train.batch_size / max(now - self.logged_at, 1e-9),
            "data_wait": self.stepper.waited / steps,
            "memory_gib": memory_gib(self.engine.device),
        }
        self.stepper.waited, self.logged_at, self.logged_step = 0.0, now, self.step
        if self.engine.is_main_process:
            with naming_path(self.dir):
                self.engine.log({"samples": self.step * self.config.train.batch_size, **metrics}, step=self.step)
            self.console.metrics(self.step, metrics)

    def _validate(self) -> None:
        """Measure the model that would be exported, draw the fixed samples, keep the best checkpoint."""
        config, began = self.config, time.monotonic()
        engines.average_batch_norm(self.engine, *self._models())
        model = self.stepper.ema if self.stepper.ema and config.train.export_ema else self.model
        validated = self.validation(model, self._watched)
        self.task.train()
        self.stopping = self.any_rank(bool(self.stop))
        if self.stopping:  # it may have ended early; the resumed run comes here again
            return
        self._keep_best(validated.measures[config.train.best])
        if self.engine.is_main_process:
            with naming_path(self.dir):
                record(validated, self.step, self._progress(self.step).samples, self.dir, self.engine, self.console)
        self.logged_at += time.monotonic() - began

    def _unvalidated(self) -> bool:
        """Return whether the run was stopped between a checkpoint and its validation."""
        if not (self.setup.validates and self._due(self.config.train.val_every)):
            return False
        return self.any_rank(self.engine.is_main_process and not has_step(self.dir / "validation.jsonl", self.step))

    def _watched(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        for batch in batches:
            if self.stop:
                return
            self.watchdog.alive()
            yield batch

    def _keep_best(self, value: float | None) -> None:
        if value is None or not is_better(self.config.train.best, value, self.best):
            return
        self.best = value
        if self.engine.is_main_process:  # the checkpoint is written already, or being written
            store.write_best(self.dir, self.step, self.config.train.best, value, self.validation.measured_on)

    def _save(self) -> None:
        """Take a checkpoint; a thread of rank 0 writes it during training."""
        engines.average_batch_norm(self.engine, *self._models())
        position, engined = (self.step, self._progress(self.step).samples), self._checkpointed()
        self.saver.save(take_snapshot(*position, self.config, *engined, keep=self.engine.is_main_process))

    def _export(self) -> None:
        if not self.engine.is_main_process:
            return
        best = read_best(self.dir) if self.config.train.export_best else None
        path = choose(self.dir, "best" if best else "last")
        side = self.config.data.crop // self.config.model.scale
        trained_on = training_range(iterate_images(self.setup.train_sets), self.config.degradation, side)
        store.export(self.dir, self.config, path, self.degrade.resampler, trained_on)
        reason = f" (best {best['measure']} {best['value']:.4g})" if best else ""
        self.console.line(f"finished: {self.dir / 'export'} holds {path.name}{reason}")

    # ---- set-up ----

    def __init__(self, config: Config):
        self.config, self.dir = config, Path(config.train.run_dir)
        self.writes, timeout = not config.train.dry_run, config.train.hang_timeout
        self.engine = start_engine(
            timeout,
            log_with=trackers(config.train, self.dir) if self.writes else None,
            project_config=ProjectConfiguration(project_dir=str(self.dir), logging_dir=str(self.dir / "tensorboard")),
        )
        if self.engine.device.type == "cpu":
            keep_freed_memory()
        self.start, self.finished = Start(), False
        self.lock, self.watchdog, self.stop, self.saver = None, None, None, None
        self.progress, self.any_rank = self._progress(0), AnyRank(self.engine, timeout)
        self.setup = check_run(config, self.engine)
        checkpoint = None
        if self.writes and from_main_process(self.engine, self.dir.is_dir):
            self.lock = RunLock(self.dir, self.engine, self.any_rank)
            checkpoint = from_main_process(self.engine, lambda: store.newest_intact(self.dir))
        self._build(checkpoint)
        if checkpoint:
            state = restore(checkpoint, config, *self._checkpointed())
            self.start = resumed(config, state, self.validation.measured_on if self.setup.validates else None)
        self.step, self.best = self.start.step, self.start.best

    def _build(self, checkpoint: Path | None) -> None:
        """Model, losses, degradation, optimizer and average; the engine gets the task and the optimizer.

        The model's weights are loaded before, as an engine may copy or partition them.
        """
        config = self.config
        self.model = initial_model(config, checkpoint)
        self.task = Task(self.model, config)
        self.degrade = DEGRADATIONS.build(config.degradation, scale=config.model.scale)
        self._check_kernel()
        self.validation = Validation(config, self.setup.val_sets, self.engine, self.degrade, self.setup.segmentation)
        self._check_inference()
        sizes = self.setup.micro_batch, self.setup.accumulation
        self.stepper = Stepper(self.task, config, self.engine, self.degrade, *sizes)

    def _check_inference(self) -> None:
        """Check export and inference at another image size, before the engine partitions the weights."""
        store.check_exportable(self.model, self.config)
        device = torch.device("cpu") if engines.shards_parameters(self.engine) else self.engine.device
        self.validation.try_out(self.model.to(device), device, self.setup.validates)

    def _check_kernel(self) -> None:
        if self.setup.lq_scale is None:
            check_degradation(self.config, self.degrade, self.task)
        elif self.task.needs_kernel:
            check_kernels(self.setup.train_sets, getattr(self.model.sr, "kernel_size", None), "data.train")

    def _begin(self) -> None:
        engine, config = self.engine, self.config
        self.lock = self.lock or RunLock(self.dir, engine, self.any_rank)
        if engine.is_main_process:
            save_config(config, self.dir / "config.yaml")
            for name in ("metrics.jsonl", "validation.jsonl", "skipped.jsonl"):
                truncate_lines(self.dir / name, self.step)
        engine.wait_for_everyone()
        self.skipped = SkippedSteps(self.dir / "skipped.jsonl", config.train.max_skipped)
        self.saver, self.stop = Saver(self.dir, config.train.keep), StopSignal()
        self.watchdog = Watchdog(config.train.hang_timeout, self.dir / "stacks" / f"rank_{engine.process_index}.txt")
        threading.excepthook = ignore_tensorboard_errors
        with naming_path(self.dir):
            engine.init_trackers(
                "cssr" if not config.train.wandb else config.train.wandb,
                config=None,
                init_kwargs=tracker_settings(self.dir, self.step),
            )
        save_tracker_runs(engine, self.dir)
        self.console = Console(config.train.steps, self.step, self.dir / "log.txt", engine.is_main_process)
        self.logged_at, self.logged_step = time.monotonic(), self.step
        self.console.line(
            f"{self.dir}: {config.train.steps} steps of {config.train.batch_size} samples on "
            f"{engine.num_processes} x {engine.device.type} ({engines.precision(engine)}), micro-batch "
            f"{self.setup.micro_batch} x {self.setup.accumulation}; parameters: {parameter_counts(self.model)}"
        )
        if self.step:
            self.console.line(f"resumed from step {self.step}" + "".join(f"; changed: {c}" for c in self.start.changed))
        self.task.train()

    def _stream(self) -> Iterator[Batch]:
        engine, config = self.engine, self.config
        position = self._progress(self.step).samples, self.setup.micro_batch, engine.process_index, engine.num_processes
        arguments = {"distance": self.task.needs_distance, "scale": self.setup.lq_scale, "damage": Damage()}
        arguments["report"] = lambda message: print(f"rank {engine.process_index}: {message}", file=sys.stderr)
        return train_stream(self.setup.train_sets, config.data, config.train.seed, *position, **arguments)

    def _print_finished(self) -> None:
        if self.engine.is_main_process:
            print(
                f"{self.dir} is finished: {self.step} steps, export in {self.dir / 'export'}. "
                "For more, raise train.steps; for another run, choose another train.run_dir."
            )

    # ---- helpers ----

    def _progress(self, step: int) -> Progress:
        batch = self.config.train.batch_size
        return Progress(samples=step * batch, total=self.config.train.steps * batch)

    def _models(self) -> list[torch.nn.Module]:
        return [self.model, self.stepper.ema] if self.stepper.ema else [self.model]

    def _checkpointed(self) -> tuple[Any, ...]:
        """Model, optimizer, average and module, as a checkpoint is taken of them."""
        stepper = self.stepper
        return self.model, stepper.optimizer, stepper.ema, stepper.module

    def _due(self, every: int) -> bool:
        return every > 0 and (self.step % every == 0 or self.step == self.config.train.steps)

    @property
    def interrupted(self) -> bool:
        """Return whether somebody at a terminal stopped the run before its end."""
        by_hand = self.stop is not None and self.stop.number in (signal.SIGINT, signal.SIGHUP)
        return by_hand and not self.finished

    def close(self) -> None:
        """Finish the pending checkpoint, and release the run directory, signal handlers and watchdog."""
        if self.saver:
            with suppress(ValueError, OSError):  # another error ends the run by now
                self.saver.wait()
        if self.stop is not None:  # false until a signal comes
            self.stop.close()
        if self.watchdog:
            self.watchdog.close()
        if self.lock:
            self.lock.release()
