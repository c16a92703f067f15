"""Checkpoints of a run, and its export.

A checkpoint is a directory `checkpoints/step_00001000` with `model.safetensors`, `ema.safetensors` (where there is an
average), `optimizer.safetensors` (moments as `parameter/moment`) and `state.json` (step, samples seen, settings,
versions, and the size and sha256 of the other files). It holds no generator state: all randomness is a function of the
seed and the samples seen. It appears by one rename, so a directory of that name was whole when it was written.
"""

import json
import os
import shutil
import sys
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from safetensors.torch import save_file
from torch import Tensor, nn

from cssr import __version__
from cssr.config.loading import model_config, to_dict
from cssr.config.schema import Config
from cssr.models.export import load_weights, read_tensors
from cssr.models.joint import JointModel, build_model
from cssr.models.load import checkpoints, exported_model, name_of, read_best, read_state
from cssr.training.sharded_state import all_finite, copy_to_cpu, gather_moments, gather_weights, scatter_moments
from cssr.utils.files import PARTIAL, digest, identity, sync, write_atomic
from cssr.utils.text import message_of

_DAMAGED = ".damaged"


def newest_intact(run_dir: Path) -> Path | None:
    """The newest checkpoint that is not damaged; called on one rank, before a run begins.

    Damaged ones are reported and moved aside; what interrupted writes have left is removed.
    """
    for path in (run_dir / "checkpoints").glob(f"*{PARTIAL}*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for path in reversed(checkpoints(run_dir)):
        fault = _fault(path)
        if fault is None:
            return path
        aside = path.with_name(f"{path.name}{_DAMAGED}")
        print(f"warning: {path} is damaged ({fault}); it is now {aside.name}, the one before is used", file=sys.stderr)
        shutil.rmtree(aside, ignore_errors=True)
        os.rename(path, aside)
    return None


def _fault(path: Path) -> str | None:
    """Name what is wrong with a checkpoint, by sizes and checksums; None if nothing is."""
    try:
        files = read_state(path)["files"]
    except ValueError:
        return "state.json"
    for name, expected in files.items():
        complete = (path / name).is_file() and (path / name).stat().st_size == expected["bytes"]
        if not complete or identity(path / name) != expected:
            return name
    return None


def write_best(run_dir: Path, step: int, measure: str, value: float, measured_on: str | None = None) -> None:
    """Name the checkpoint of a step as the best; rotation spares it. `measured_on`: digest, as of `Validation`."""
    (run_dir / "checkpoints").mkdir(parents=True, exist_ok=True)
    best = {"checkpoint": name_of(step), "measure": measure, "value": value}
    best |= {} if measured_on is None else {"measured_on": measured_on}
    write_atomic(run_dir / "checkpoints" / "best.json", json.dumps(best))


def rotate(run_dir: Path, keep: int) -> None:
    """Delete all checkpoints but the newest `keep` and the best."""
    best = read_best(run_dir)
    spared = {path.name for path in checkpoints(run_dir)[-keep:]} | ({best["checkpoint"]} if best else set())
    for path in checkpoints(run_dir):
        if path.name not in spared:
            shutil.rmtree(path)


def check_exportable(model: JointModel, config: Config) -> None:
    """Refuse a model that its own settings do not build again, before it is trained.

    Raises: ValueError, one line.
    """
    json.dumps(asdict(model.config))
    with init_empty_weights(include_buffers=True):
        rebuilt = build_model(model_config(asdict(model.config), config.imports)).state_dict()
    own = model.state_dict()
    differs = sorted(
        {*own, *rebuilt} - {name for name in own if name in rebuilt and own[name].shape == rebuilt[name].shape}
    )
    if differs:
        raise ValueError(
            f"the model cannot be exported: built from its settings again, {len(differs)} of its tensors are missing "
            f"or of another shape ({', '.join(differs[:3])}); its networks must depend on their settings alone"
        )


def export(
    run_dir: Path, config: Config, path: Path, resampler: str, trained_on: Mapping[str, Any] | None = None
) -> Path:
    """Write `run_dir/export` from a checkpoint: weights, settings, and where they come from."""
    state = read_state(path)
    model, averaged = exported_model(run_dir, config, path)
    partial, final = run_dir / f"export{PARTIAL}", run_dir / "export"
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(
        partial,
        imports=config.imports,
        degradation=config.degradation,
        resampler=resampler,
        step=state["step"],
        samples=state["samples"],
        averaged_weights=averaged,
        trained_on=trained_on or {},
    )
    sync(partial)
    shutil.rmtree(final, ignore_errors=True)
    os.rename(partial, final)
    return final


@dataclass(frozen=True)
class Snapshot:
    """Content of a checkpoint, copied to the CPU's memory.

    `tensors`: `model`, `optimizer` and perhaps `ema`, each by name; `optimizer`: its kind, and what is no tensor.
    """

    step: int
    samples: int
    config: dict[str, Any]
    tensors: dict[str, dict[str, Tensor]] = field(repr=False)
    optimizer: dict[str, Any]


def take_snapshot(
    step: int,
    samples: int,
    config: Config,
    model: JointModel,
    optimizer: Any,
    ema: nn.Module | None = None,
    module: nn.Module | None = None,
    keep: bool = True,
) -> Snapshot | None:
    """A snapshot of a run; all ranks must ask, those that do not `keep` it get None.

    Args:
        optimizer, module: the prepared optimizer and task (None: there is no engine).
        ema: the average, a module of its own, whole on every rank.
    """
    moments, scalars = gather_moments(module or model, model, optimizer)
    tensors = {"model": copy_to_cpu(gather_weights(model), keep), "optimizer": copy_to_cpu(moments, keep)}
    if ema is not None:
        tensors["ema"] = copy_to_cpu(ema.state_dict().items(), keep)
    if not keep:
        return None
    return Snapshot(step, samples, to_dict(config), tensors, {"kind": config.optim.optimizer, "scalars": scalars})


def write(run_dir: Path, snapshot: Snapshot) -> Path:
    """Write `run_dir/checkpoints/step_N`, unless it is there already.

    Raises: ValueError, one line, for weights that are not finite, and where the disk is full.
    """
    final = run_dir / "checkpoints" / name_of(snapshot.step)
    if final.is_dir():
        return final
    if not all_finite(snapshot.tensors.values()):
        raise ValueError(
            f"the weights are not finite at step {snapshot.step}, no checkpoint is written of them: lower optim.lr, or "
            f"set optim.clip_norm, and run the same command again, which continues from {run_dir}'s last checkpoint"
        )
    partial = final.with_name(f"{final.name}{PARTIAL}")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        _write_files(partial, snapshot)
        os.rename(partial, final)
        sync(final.parent)
    except Exception as error:  # safetensors has exceptions of its own for a full disk
        shutil.rmtree(partial, ignore_errors=True)
        free = shutil.disk_usage(final.parent).free / 2**30
        raise ValueError(
            f"train.run_dir: {final} cannot be written: {message_of(error)} ({free:.1f} GiB are free "
            "there); make room, and run the same command again"
        ) from error
    return final


def _write_files(directory: Path, snapshot: Snapshot) -> None:
    for name, tensors in snapshot.tensors.items():
        save_file(tensors, directory / f"{name}.safetensors")
    state = {
        "step": snapshot.step,
        "samples": snapshot.samples,
        "optimizer": snapshot.optimizer,
        "config": snapshot.config,
        "versions": {"cssr": __version__, "torch": torch.__version__},
        "files": {path.name: identity(path) for path in sorted(directory.iterdir())},
    }
    (directory / "state.json").write_text(json.dumps({**state, "sha256": digest(state)}, indent=2), encoding="utf-8")
    sync(directory)


class Saver:
    """Writes checkpoints in a thread, one at a time, during training; then removes the superseded ones."""

    def __init__(self, run_dir: Path, keep: int):
        self._dir, self._keep = run_dir, keep
        self._thread, self._pending = ThreadPoolExecutor(1, "checkpoint"), None

    def save(self, snapshot: Snapshot | None) -> None:
        """Start to write a snapshot, if there is one, after the pending write."""
        if snapshot is None:
            return
        self.wait()
        self._pending: Future | None = self._thread.submit(self._write, snapshot)

    def check(self) -> None:
        """Raise the error of a write that has ended in the meantime."""
        if self._pending and self._pending.done():
            self.wait()

    def wait(self) -> None:
        """Wait until the pending checkpoint is on disk; raises its error (ValueError)."""
        pending, self._pending = self._pending, None
        if pending:
            pending.result()

    def _write(self, snapshot: Snapshot) -> None:
        write(self._dir, snapshot)
        rotate(self._dir, self._keep)


def restore(
    path: Path,
    config: Config,
    model: JointModel,
    optimizer: Any,
    ema: nn.Module | None = None,
    module: nn.Module | None = None,
) -> dict[str, Any]:
    """Fill optimizer and average from a checkpoint, and the model if there is no engine; returns the state.

    Engines copy or partition a model's weights when they are prepared: the model must be filled before that.

    Args: as for `take_snapshot`.
    Raises: ValueError, one line, where it is of another architecture or has no average that the run wants.
    """
    state = read_state(path)
    if module is None:
        load_weights(model, path / "model.safetensors")
    if ema is not None:
        if not (path / "ema.safetensors").is_file():
            raise ValueError(
                f"optim.ema is set, but {path} holds no average: use another train.run_dir, or train.init_from"
            )
        load_weights(ema, path / "ema.safetensors")
    optimizer_state, kind = state["optimizer"], config.optim.optimizer
    if optimizer_state["kind"] != kind:
        raise ValueError(
            f"optim.optimizer: {path} was trained with {optimizer_state['kind']}, the settings say {kind}: "
            "use that, or another train.run_dir with train.init_from"
        )
    scatter_moments(
        module or model,
        model,
        optimizer,
        {**read_tensors(path / "optimizer.safetensors"), **optimizer_state["scalars"]},
    )
    return state
