"""Checks before work starts, and what they give: batch sizes, open sets, whether segmentation is measured."""

import os
import shutil
import sysconfig
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from cssr.config.schedules import Progress, breakpoints, build_schedule
from cssr.config.schema import Config, ModelConfig, PhaseConfig, segments
from cssr.data.checks import check_lq, check_sides, is_stored, open_train_sets
from cssr.data.sampler import check_split
from cssr.data.shards import ShardSet, open_sets
from cssr.evaluation.definitions import KEYS, SEGMENTATION_KEYS, UNRANKED_KEYS
from cssr.evaluation.evaluator import measures_segmentation, without_masks
from cssr.losses import LOSSES
from cssr.training.task import Task
from cssr.utils import distributed as engines
from cssr.utils.machine import check_processes, memory

_OF_LOGITS = {"aux_weight", "loss"}  # arguments by which a loss of logits is known: its own, or the loss it wraps


@dataclass(frozen=True)
class RunSetup:
    """Facts of a run that follow from its settings, its data and the engine."""

    micro_batch: int  # samples of a process at a time
    accumulation: int  # micro-batches of an optimizer step
    lq_scale: int | None  # of the LQ images that the shards store; None: HR images are degraded
    train_sets: list[ShardSet]
    val_sets: list[ShardSet]
    validates: bool
    segmentation: bool  # whether validation measures it


def check_run(config: Config, engine: Accelerator) -> RunSetup:
    """Check settings and data before work starts.

    Raises: ValueError, one line: the setting, its value, the remedy.
    """
    world, scale = engine.num_processes, config.model.scale
    micro_batch = config.train.micro_batch or max(config.train.batch_size // world, 1)
    engines.check_compilation(engine)
    per_machine = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) * config.data.workers
    check_processes(per_machine, f"data.workers={config.data.workers}", gib=0.3)
    check_memory(micro_batch, config.data.crop)
    check_split(config.data.lanes, config.train.batch_size, world, config.data.workers, micro_batch)
    check_strategy(config, engines.shards_parameters(engine), engine.device.type)
    lq_scale = scale if is_stored(config.degradation) else None
    train_sets = open_train_sets(config.data, lq_scale)
    check_training(config, train_sets)
    validates = config.train.val_every > 0 and config.data.val is not None
    val_sets = open_sets(config.data.val, "data.val", config.data) if validates else []
    check_sides(val_sets, scale, "data.val")
    check_lq([shards for shards in val_sets if lq_scale or (shards.lq and scale > 1)], scale, "data.val")
    segmentation = measures_segmentation(config.model, val_sets, "data.val")
    check_best(config.train.best, segmentation or not validates)
    accumulation = config.train.batch_size // (world * micro_batch)
    return RunSetup(micro_batch, accumulation, lq_scale, train_sets, val_sets, validates, segmentation)


def check_best(best: str, segmentation: bool) -> None:
    """Refuse a `train.best` that validation does not give; ValueError names the choices."""
    ranked = [key for key in KEYS if key not in UNRANKED_KEYS]
    if best not in ranked:
        raise ValueError(f"train.best: no measure {best!r} by which one is better; choose from {', '.join(ranked)}")
    if best in SEGMENTATION_KEYS and not segmentation:
        raise ValueError(
            f"train.best={best} measures segmentation, but model.seg=none finds no cracks or data.val has no masks: "
            "set train.best=psnr"
        )


def check_memory(micro_batch: int, crop: int) -> None:
    """Refuse micro-batches of which the crops alone (image, mask, distance; float32) exceed this machine's memory."""
    available, needed = memory(), micro_batch * crop**2 * 5 * 4
    if needed > available:
        raise ValueError(
            f"train.micro_batch: {micro_batch} crops of {crop} pixels take {needed / 2**30:.0f} GiB, this machine has "
            f"{available / 2**30:.0f}: lower it (gradients are accumulated to train.batch_size), or data.crop"
        )


def check_training(config: Config, sets: Sequence[ShardSet]) -> None:
    """Refuse to train segmentation without a network for it, or on a set without masks.

    Raises: ValueError, one line, that names the set, what would train, and the remedy.
    """
    bare = without_masks(sets)
    if segments(config.model) and not bare:
        return
    setting = next(_segmentation_settings(config), None)
    if not segments(config.model):
        _check_no_network(config.model, setting)
    setting = setting or next(_pixel_weight_settings(config), None)
    if bare and setting:
        raise ValueError(
            f"data.train: {bare[0].root} has no masks, which {setting} needs: set loss.beta=0 with model.seg=none to "
            "train SR alone, or give shards with masks"
        )


def check_strategy(config: Config, in_parts: bool, device: str) -> None:
    """Refuse what the launch file's strategy cannot do; `in_parts`: ranks hold parts of the parameters only.

    Raises: ValueError, one line.
    """
    if in_parts and config.optim.ema is not None:
        raise ValueError(
            f"optim.ema={config.optim.ema} does not go with ZeRO-3 or FSDP, where a rank has parts of the weights: "
            "launch with launch/zero2.yaml or launch/multi_gpu.yaml, or set optim.ema=null"
        )
    if config.optim.batch_norm == "sync" and device == "cpu":
        raise ValueError("optim.batch_norm=sync needs GPUs: set optim.batch_norm=rank or held")
    for setting in ("compile", "recompute"):
        if in_parts and getattr(config.train, setting):
            raise ValueError(
                f"train.{setting}=true does not go with ZeRO-3 or FSDP, which fetch weights between layers: "
                f"launch with launch/zero2.yaml or launch/multi_gpu.yaml, or set train.{setting}=false"
            )
    if config.train.compile:
        _check_compile(device)


def _check_compile(device: str) -> None:
    """torch.compile writes C++ on a CPU, and C that launches its kernels on a GPU, against Python's headers."""
    variable, default = ("CXX", "g++") if device == "cpu" else ("CC", "gcc")
    compiler = os.environ.get(variable, default).split()[0]
    if shutil.which(compiler) is None:
        raise ValueError(
            f"train.compile=true needs a compiler, {compiler} is not here: apt-get install g++, name another one in "
            f"{variable}, or set train.compile=false"
        )
    if not (Path(sysconfig.get_path("include")) / "Python.h").is_file():
        raise ValueError(
            "train.compile=true needs Python's headers, Python.h is not here: apt-get install python3-dev, or set "
            "train.compile=false"
        )


def check_degradation(config: Config, degrade: Callable, task: Task) -> None:
    """Degrade an empty image: a blur kernel must be there, and of the SR network's size, where the task takes one.

    Raises: ValueError, one line, that names the settings that do not go together.
    """
    side = config.data.crop
    kernel = degrade(torch.zeros(1, 3, side, side), torch.zeros(1, dtype=torch.int64))[1]
    if not task.needs_kernel:
        return
    if kernel is None:
        raise ValueError(
            f"degradation={config.degradation['name']} gives no blur kernel, which loss.sr or a phase's true_kernel "
            "needs; degradation=gaussian gives one"
        )
    size, expected = kernel.shape[-1], getattr(task.model.sr, "kernel_size", kernel.shape[-1])
    if size != expected:
        raise ValueError(
            f"degradation.size={size}, but model.sr predicts kernels of {expected}: "
            f"set degradation.size={expected} or model.sr.kernel_size={size}"
        )


def _check_no_network(model: ModelConfig, setting: str | None) -> None:
    if model.form.get("name") == "seg_then_sr":
        raise ValueError("model.form=seg_then_sr super-resolves masks, model.seg=none finds none: choose a network")
    if setting:
        raise ValueError(
            f"model.seg=none has nothing to train, but {setting}: set loss.beta=0 in every phase to train SR alone, "
            "or choose a segmentation network"
        )


def _segmentation_settings(config: Config) -> Iterator[str]:
    """The settings by which a run trains segmentation, as `name=value`."""
    first = 0
    for phase in config.phases:
        setting, name = (config.loss.beta, "loss.beta") if phase.beta is None else (phase.beta, f"{phase.name}.beta")
        if not _is_zero(setting, first, phase, config):
            yield f"{name}={setting}"
        first = phase.until
    if config.loss.sr_times_seg is not None:
        yield f"loss.sr_times_seg={config.loss.sr_times_seg}"
    for loss in _extra_losses(config):
        if _OF_LOGITS & set(LOSSES.parameters(loss["name"])):
            yield f"loss.extra={loss['name']}"


def _is_zero(setting: Any, first: int, phase: PhaseConfig, config: Config) -> bool:
    """Return whether a schedule is 0 throughout a phase that begins at `first` samples; numbers count in any phase.

    It is evaluated at and beside its breakpoints, and at a thousand positions between.
    """
    if isinstance(setting, (int, float)):
        return setting == 0
    batch, schedule = config.train.batch_size, build_schedule(setting)
    total = config.train.steps * batch
    end = min(phase.until or total, total)
    breaks = [point + offset for point in breakpoints(setting) for offset in (-batch, 0, batch)]
    steps = {
        position // batch * batch for position in (*range(first, end, max((end - first) // 1000, 1)), *breaks, end - 1)
    }
    return all(schedule(Progress(samples, total)) == 0 for samples in steps if first <= samples < end)


def _pixel_weight_settings(config: Config) -> Iterator[str]:
    """The losses of SR with pixels weighed by the mask or by the error of segmentation."""
    of_phases = {f"{phase.name}.sr": phase.sr for phase in config.phases if phase.sr}
    everywhere = {"loss.sr": config.loss.sr, **of_phases} | {
        f"loss.extra={loss['name']}": loss for loss in _extra_losses(config)
    }
    for name, loss in everywhere.items():
        weight = loss.get("pixel_weight") if isinstance(loss, Mapping) else None
        if isinstance(weight, Mapping) and (weight.get("crack") or weight.get("failure")):
            yield f"{name}.pixel_weight"


def _extra_losses(config: Config) -> Iterator[Mapping[str, Any]]:
    """The components of `loss.extra`; the task refuses malformed entries."""
    for entry in config.loss.extra:
        loss = entry.get("loss") if isinstance(entry, Mapping) else None
        loss = {"name": loss} if isinstance(loss, str) else loss
        if isinstance(loss, Mapping) and loss.get("name") in LOSSES.names():
            yield loss
