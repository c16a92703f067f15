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
from dataclasses import asdict
from pathlib import Path
from typing import Any

from accelerate import init_empty_weights

from cssr.config.loading import model_config
from cssr.config.schema import Config
from cssr.models.joint import JointModel, build_model
from cssr.models.load import checkpoints, exported_model, name_of, read_best, read_state
from cssr.utils.files import PARTIAL, identity, sync, write_atomic

_DAMAGED = ".damaged"


def newest(run_dir: Path) -> Path | None:
    """The newest checkpoint that is whole, for one rank to find out before a run begins.

    Damaged ones are told of, and moved aside; what interrupted writes have left is removed.
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
    """What is wrong with a checkpoint, by sizes and checksums."""
    try:
        files = read_state(path)["files"]
    except ValueError:
        return "state.json"
    for name, expected in files.items():
        there = (path / name).is_file() and (path / name).stat().st_size == expected["bytes"]
        if not there or identity(path / name) != expected:
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
        again = build_model(model_config(asdict(model.config), config.imports)).state_dict()
    own = model.state_dict()
    differs = sorted({*own, *again} - {name for name in own if name in again and own[name].shape == again[name].shape})
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
