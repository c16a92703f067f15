"""Joint training: `accelerate launch [--config_file launch/X.yaml] cssr/train.py configs/Y.yaml [a.b=c ...]`.

The whole program, in order: settings, data, model, engine, resume, loop (step, log, validate, save), export. To resume,
run the same command again. Progress is counted in steps for people and in samples seen for everything that changes.
"""

import dataclasses
import math
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import ProjectConfiguration
from timm.utils import ModelEmaV3
from torch import Tensor

from cssr import checkpoint as store
from cssr import metrics
from cssr.batch import Batch
from cssr.checks import check_best, check_degradation, check_training, measures_segmentation
from cssr.config import Config, changed_settings, describe, load_config, save_config, to_dict
from cssr.data import Damage, eval_stream, train_stream
from cssr.degradations import DEGRADATIONS
from cssr.engine import AnyRank, average_buffers, start_engine
from cssr.evaluate import evaluate, gather_rows
from cssr.lanes import check_split, draw_seed
from cssr.log import Console, append_line, memory_gib, trackers, truncate_lines
from cssr.models.joint import build_model
from cssr.optim import Hold, LearningRate, build_optimizer, held_groups
from cssr.schedules import Progress
from cssr.sets import check_kernels, check_lq, is_stored, open_train_sets
from cssr.tars import open_sets
from cssr.task import Task
from cssr.visualize import sample_panels, save_picture, strip


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or {"-h", "--help"} & set(arguments):
        print(f"{__doc__}\nSettings, their defaults and meaning:\n\n{describe()}")
        return
    try:
        recipe = None if "=" in arguments[0] else arguments[0]
        run = Run(load_config(recipe, arguments[recipe is not None :]))
    except ValueError as error:  # every rank finds the same mistake: one tells
        sys.exit(f"error: {error}" if os.environ.get("RANK", "0") == "0" else 1)
    try:
        run.train()
    except ValueError as error:
        sys.exit(f"error: {error}")


class Run:
    """A training run: what its stages share."""

    def __init__(self, config: Config):
        self.config, self.dir = config, Path(config.train.run_dir)
        writes = not config.train.dry_run
        self.engine = start_engine(
            log_with=trackers(config.train, self.dir) if writes else None,
            project_config=ProjectConfiguration(project_dir=str(self.dir), logging_dir=str(self.dir / "tensorboard")),
        )
        self.step, self.best, self.changed, self.stopping = 0, None, [], False
        self.progress, self.any_rank = self._progress(0), AnyRank(self.engine)
        self._check_settings()
        self._build(resumes=writes and bool(store.checkpoints(self.dir)))

    def _check_settings(self) -> None:
        """Find every mistake of the user that settings and data show, before anything is built or written."""
        config, world = self.config, self.engine.num_processes
        self.micro_batch = config.train.micro_batch or max(config.train.batch_size // world, 1)
        check_split(config.data.lanes, config.train.batch_size, world, config.data.workers, self.micro_batch)
        self.accumulation = config.train.batch_size // (world * self.micro_batch)
        scale = config.model.scale
        self.lq_scale = scale if is_stored(config.degradation) else None  # of the LQ images that the shards store
        self.train_sets = open_train_sets(config.data, self.lq_scale)[0]
        check_training(config, self.train_sets)
        self.validates = config.train.val_every > 0 and config.data.val is not None
        val_sets = open_sets(config.data.val, "data.val", config.data) if self.validates else []
        check_lq([shards for shards in val_sets if self.lq_scale or (shards.lq and scale > 1)], scale, "data.val")
        self.segmentation = measures_segmentation(config.model, val_sets, "data.val")
        check_best(config.train.best, self.segmentation or not self.validates)

    def _build(self, resumes: bool) -> None:
        """Model, losses, degradation, optimizer and average; the engine gets the task and the optimizer."""
        config = self.config
        start = None if resumes else config.train.init_from
        fresh = not resumes and not (start and store.holds_segmentation(start))
        torch.manual_seed(config.train.seed)
        model = build_model(config.model, fresh)
        config.model.sr = getattr(model.sr, "settings", config.model.sr)  # from here on no weight file is needed
        if start:
            store.init_from(model, start)
        self.task = Task(model, config)
        self.degrade = DEGRADATIONS.build(config.degradation, scale=config.model.scale)
        self.learning_rate = LearningRate(config)
        self.model, self.optimizer = model, build_optimizer(model, config)
        if self.lq_scale is None:
            check_degradation(config, self.degrade, self.task)
        elif self.task.needs_kernel:
            check_kernels(self.train_sets, getattr(model.sr, "kernel_size", None), "data.train")
        self.hold = Hold(model, self.optimizer)
        self.engine_task, self.engine_optimizer = self.engine.prepare(self.task, self.optimizer)
        settings = config.optim
        self.ema = ModelEmaV3(model, decay=settings.ema, use_warmup=settings.ema_warmup) if settings.ema else None

    # ---- the run ----

    def train(self) -> None:
        """Resume, or begin; then step until the end."""
        config, engine = self.config, self.engine
        if config.train.dry_run:
            return self._dry_run()
        self._resume()
        if self.step >= config.train.steps and (self.dir / "export").is_dir():
            if engine.is_main_process:
                print(
                    f"{self.dir} is finished: {self.step} steps, export in {self.dir / 'export'}. "
                    "For more, raise train.steps; for another run, choose another train.run_dir."
                )
            return None
        self._begin()
        signal.signal(signal.SIGTERM, self._stop)
        stream = self._stream()
        with closing(stream):
            while self.step < config.train.steps and not self.any_rank(self.stopping):
                self._log(self._train_step(stream))
                if self._due(config.train.val_every) and self.validates:
                    self._validate()
                if self._due(config.train.save_every):
                    self._save()
                self.console.step()
        self._save()
        if self.step >= config.train.steps:
            self._export()
        else:
            self.console.line(
                f"stopped at step {self.step} on SIGTERM, checkpoint written; the same command goes on from here"
            )
        self.console.close()
        engine.end_training()
        return None

    def _train_step(self, stream: Iterator[Batch]) -> dict[str, float]:
        """One optimizer step over the global batch; returns its mean losses over all ranks, where they are logged."""
        config, engine = self.config, self.engine
        self.progress = self._progress(self.step)
        phase = self.task.phase(self.progress)
        held = held_groups(phase)
        self.task.hold_still(held)
        self.hold.groups = held
        self.lr = self.learning_rate.apply(self.optimizer, self.progress, phase)
        totals: dict[str, Tensor] = {}
        for micro in range(self.accumulation):
            batch = self._next(stream)
            last = micro == self.accumulation - 1
            # Dropout depends on (seed, samples seen, rank) alone: a resumed run draws what an uninterrupted one does.
            torch.manual_seed(draw_seed(config.train.seed, self.progress.samples, engine.process_index, micro))
            with nullcontext() if last else engine.no_sync(self.engine_task):
                terms = self.engine_task(batch, self.progress)
                engine.backward(terms["loss"] / self.accumulation)
            totals = {name: totals.get(name, 0) + value.detach() / self.accumulation for name, value in terms.items()}
        if config.optim.clip_norm is not None:
            engine.clip_grad_norm_(self.engine_task.parameters(), config.optim.clip_norm)
        self.engine_optimizer.step()
        self.engine_optimizer.zero_grad()
        self.step += 1
        if self.ema:
            self.ema.update(self.model, step=self.step)
        return totals

    def _next(self, stream: Iterator[Batch]) -> Batch:
        """The next micro-batch on the device, degraded; the wait for it is counted."""
        began = time.monotonic()
        batch = next(stream)
        self.waited += time.monotonic() - began
        batch = batch.to(self.engine.device)
        if batch.lq is not None:
            return batch
        with torch.no_grad():
            lq, kernel = self.degrade(batch.hr, batch.seed)
        return dataclasses.replace(batch, lq=lq, kernel=kernel)

    # ---- what is logged, validated and saved ----

    def _log(self, totals: dict[str, Tensor]) -> None:
        if not self._due(self.config.train.log_every) and self.step != 1:
            return
        names = list(totals)
        values = self.engine.reduce(torch.stack([totals[name] for name in names]), "mean").tolist()
        now = time.monotonic()
        steps = self.step - self.logged_step
        found: dict[str, Any] = dict(zip(names, values)) | {
            "beta": float(self.task.beta(self.progress)),
            "lr": self.lr,
            "phase": self.task.phase(self.progress).name,
            "images_per_s": steps * self.config.train.batch_size / max(now - self.logged_at, 1e-9),
            "data_wait": self.waited / steps,
            "memory_gib": memory_gib(self.engine.device),
        }
        self.waited, self.logged_at, self.logged_step = 0.0, now, self.step
        if self.engine.is_main_process:
            self.engine.log({"samples": self.step * self.config.train.batch_size, **found}, step=self.step)
            self.console.metrics(self.step, found)
        if not math.isfinite(found["loss"]):
            raise ValueError(
                f"the loss is {found['loss']} at step {self.step}; lower optim.lr or set optim.clip_norm "
                f"(checkpoints before it are in {self.dir / 'checkpoints'})"
            )

    def _validate(self) -> None:
        """Measure the model that would be exported, draw the fixed samples, keep the best checkpoint."""
        began, config, engine = time.monotonic(), self.config, self.engine
        average_buffers(self.engine, *self._models())
        model = self.ema.module if self.ema and config.train.export_ema else self.model
        model.eval()
        panels: list[dict] = []

        def show(batch: Batch, outputs: Any) -> None:
            wanted = config.train.sample_count - len(panels) if engine.is_main_process else 0
            new = range(min(wanted, len(batch)))
            panels.extend(sample_panels(batch, outputs, i, self.segmentation) for i in new)

        stream = eval_stream(
            config.data.val,
            config.model.scale,
            config.eval.batch_size,
            config.eval.seed,
            engine.process_index,
            engine.num_processes,
            config.eval.limit,
            config.data.workers,
            data=config.data,
        )
        how = {"tile": config.eval.tile, "show": show, "segmentation": self.segmentation}
        rows = gather_rows(evaluate(model, stream, self.degrade, engine.device, **how))
        self.task.train()
        found = metrics.aggregate(rows)["image"]
        if engine.is_main_process:
            self._record_validation(found, panels, time.monotonic() - began)
        self._keep_best(found[config.train.best])
        self.logged_at += time.monotonic() - began

    def _record_validation(self, found: dict[str, Any], panels: list[dict], seconds: float) -> None:
        shown = {name: value for name, value in found.items() if value is not None}
        append_line(
            self.dir / "validation.jsonl", {"step": self.step, "samples": self._progress(self.step).samples, **shown}
        )
        for tracker in self.engine.trackers:
            if tracker.name != "jsonl":
                tracker.log({f"val/{name}": value for name, value in shown.items()}, step=self.step)
        if panels:
            save_picture(strip(panels), self.dir / "samples" / f"step_{self.step:08d}.png")
        text = "  ".join(f"{name} {shown[name]:.4g}" for name in ("iou_max", "aiu", "psnr", "ssim") if name in shown)
        self.console.line(f"validation at step {self.step}: {text}  ({seconds:.0f} s)")

    def _keep_best(self, value: float | None) -> None:
        if value is None:
            return
        sign = -1 if self.config.train.best.startswith(("hd95", "ahd95", "msd", "amsd")) else 1
        if self.best is None or sign * value > sign * self.best:
            self.best = value
            # Named before it is written: a run killed in between validates this step again, and names it again.
            if self.engine.is_main_process:
                store.write_best(self.dir, self.step, self.config.train.best, value)
            self._save()

    def _save(self) -> None:
        average_buffers(self.engine, *self._models())
        if self.engine.is_main_process:
            store.save_checkpoint(
                self.dir,
                self.step,
                self._progress(self.step).samples,
                self.config,
                self.model,
                self.optimizer,
                self.ema.module if self.ema else None,
            )
            store.rotate(self.dir, self.config.train.keep)
        self.engine.wait_for_everyone()

    def _export(self) -> None:
        if not self.engine.is_main_process:
            return
        best = store.read_best(self.dir) if self.config.train.export_best else None
        path = store.choose(self.dir, "best" if best else "last")
        store.export(self.dir, self.config, path, self.degrade.resampler)
        why = f" (best {best['measure']} {best['value']:.4g})" if best else ""
        self.console.line(f"finished: {self.dir / 'export'} holds {path.name}{why}")

    # ---- beginning and resuming ----

    def _resume(self) -> None:
        """Take up the newest checkpoint, and drop what was logged after it."""
        there = store.checkpoints(self.dir)
        if there:
            state = store.load_checkpoint(there[-1], self.model, self.optimizer, self.ema.module if self.ema else None)
            if state["samples"] != state["step"] * self.config.train.batch_size:
                raise ValueError(
                    f"train.batch_size={self.config.train.batch_size}: {self.dir} was trained with "
                    f"{state['samples'] // state['step']}; use that, or another train.run_dir with train.init_from"
                )
            self.step = state["step"]
            best = store.read_best(self.dir)
            known = best and best["measure"] == self.config.train.best and best["checkpoint"] in {p.name for p in there}
            self.best = best["value"] if known else None
            self.changed = changed_settings(state["config"], to_dict(self.config))
        if self.engine.is_main_process:
            for name in ("metrics.jsonl", "validation.jsonl"):
                truncate_lines(self.dir / name, self.step)

    def _begin(self) -> None:
        engine, config = self.engine, self.config
        if engine.is_main_process:
            self.dir.mkdir(parents=True, exist_ok=True)
            save_config(config, self.dir / "config.yaml")
        engine.init_trackers(
            "cssr" if not config.train.wandb else config.train.wandb,
            config=None,
            init_kwargs={"tensorboard": {"purge_step": self.step + 1}},
        )
        self.console = Console(config.train.steps, self.step, self.dir / "log.txt", engine.is_main_process)
        self.waited, self.logged_at, self.logged_step = 0.0, time.monotonic(), self.step
        self.console.line(
            f"{self.dir}: {config.train.steps} steps of {config.train.batch_size} samples on "
            f"{engine.num_processes} x {engine.device.type} ({engine.mixed_precision}), micro-batch "
            f"{self.micro_batch} x {self.accumulation}; parameters: {_millions(self._sizes())}"
        )
        if self.step:
            self.console.line(f"resumed from step {self.step}" + "".join(f"; changed: {c}" for c in self.changed))
        self.task.train()

    def _stream(self) -> Iterator[Batch]:
        engine, config = self.engine, self.config
        return train_stream(
            config.data,
            config.train.seed,
            self._progress(self.step).samples,
            self.micro_batch,
            engine.process_index,
            engine.num_processes,
            self.task.needs_distance,
            Damage(),
            lambda message: print(f"rank {engine.process_index}: {message}", file=sys.stderr),
            self.lq_scale,
        )

    def _dry_run(self) -> None:
        """One batch, forward and backward: prints what would be trained, writes nothing."""
        self.waited = 0.0
        batch = self._next(self._stream())
        self.task.train()
        terms = self.engine_task(batch, self.progress)
        self.engine.backward(terms["loss"])
        if self.engine.is_main_process:
            tensors = {name: getattr(batch, name) for name in ("lq", "hr", "mask", "kernel")}
            print(f"dry run: parameters {_millions(self._sizes())}")
            print(f"  micro-batch {self.micro_batch} x accumulation {self.accumulation} on {self.engine.device}")
            print("  " + "  ".join(f"{name} {tuple(t.shape)}" for name, t in tensors.items() if t is not None))
            print("  " + "  ".join(f"{name} {value.item():.4g}" for name, value in terms.items()))
            print(f"  memory {memory_gib(self.engine.device):.2f} GiB")

    # ---- small things ----

    def _progress(self, step: int) -> Progress:
        batch = self.config.train.batch_size
        return Progress(samples=step * batch, total=self.config.train.steps * batch)

    def _sizes(self) -> dict[str, int]:
        parameters = dict(self.model.named_parameters())
        return {group: sum(parameters[n].numel() for n in names) for group, names in self.model.groups().items()}

    def _models(self) -> list[torch.nn.Module]:
        return [self.model, self.ema.module] if self.ema else [self.model]

    def _due(self, every: int) -> bool:
        return every > 0 and (self.step % every == 0 or self.step == self.config.train.steps)

    def _stop(self, *_: Any) -> None:
        self.stopping = True


def _millions(sizes: dict[str, int]) -> str:
    return ", ".join(f"{name} {count / 1e6:.2f} M" for name, count in sizes.items())


if __name__ == "__main__":
    main()
