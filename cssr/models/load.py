"""Load models from runs, exports and weight files: choice of the checkpoint, settings, weights.

Runs and exports are read here only; `cssr/training/checkpoint.py` writes them.
"""

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from cssr.config.loading import from_dict
from cssr.config.schema import Config
from cssr.models.export import assign_state, load_weights, read_export, read_tensors
from cssr.models.hub import fetch, is_hub_name
from cssr.models.joint import JointModel, build_model
from cssr.models.shipped import is_shipped, shipped_directory, shipped_models
from cssr.utils.files import digest
from cssr.utils.json_files import read_json

_STATE = {"step": int, "samples": int, "optimizer": dict, "config": dict, "files": dict[str, dict[str, Any]]}


def name_of(step: int) -> str:
    """Directory name of the checkpoint of a step."""
    return f"step_{step:08d}"


def read_state(path: Path) -> dict[str, Any]:
    """Read the `state.json` of a checkpoint; ValueError if it is damaged."""
    try:
        state = read_json(path / "state.json", {"sha256": str, **_STATE})
        sound = state.pop("sha256") == digest(state)
    except ValueError:
        sound = False
    if not sound:
        raise ValueError(f"checkpoint {path} is damaged: delete it to continue from the one before")
    return state


def checkpoints(run_dir: Path) -> list[Path]:
    """Directories of the complete checkpoints of a run, oldest first."""
    directories = (run_dir / "checkpoints").glob("step_*")
    return sorted(path for path in directories if path.is_dir() and path.name[5:].isdigit())


def read_best(run_dir: Path) -> dict[str, Any] | None:
    """Read the record of the best checkpoint: "checkpoint", "measure", "value", perhaps "measured_on"; None if none."""
    path = run_dir / "checkpoints" / "best.json"
    shape = {"checkpoint": str, "measure": str, "value": float, "?measured_on": str}
    return read_json(path, shape, "delete it: the next validation writes another") if path.exists() else None


def choose(run_dir: Path, which: str) -> Path:
    """Checkpoint `last`, `best` or of a step; ValueError lists the existing ones."""
    existing = checkpoints(run_dir)
    best = read_best(run_dir)
    names = {path.name: path for path in existing}
    if which == "last" and existing:
        return existing[-1]
    if which == "best" and best and best["checkpoint"] in names:
        return names[best["checkpoint"]]
    if which.isdigit() and name_of(int(which)) in names:
        return names[name_of(int(which))]
    raise ValueError(f"no checkpoint {which!r} in {run_dir}; there are: {', '.join(names) or 'none'}")


def exported_model(run_dir: Path, config: Config, path: Path) -> tuple[JointModel, bool]:
    """Model that a checkpoint exports, calibrated by its validation, and whether its weights are the EMA."""
    averaged = config.train.export_ema and (path / "ema.safetensors").is_file()
    temperature = _fitted_temperature(run_dir, int(path.name[5:])) if config.train.calibrate else None
    model = build_model(replace(config.model, temperature=temperature or config.model.temperature))
    load_weights(model, path / ("ema.safetensors" if averaged else "model.safetensors"))
    return model, averaged


def _fitted_temperature(run_dir: Path, step: int) -> float | None:
    """Temperature fitted by the validation at a step; None without a validation."""
    path, temperature = run_dir / "validation.jsonl", None
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        with suppress(ValueError, AttributeError):  # the last line of a run that was killed may be half a line
            values = json.loads(line)
            temperature = values.get("temperature") if values.get("step") == step else temperature
    return temperature


def load_model(path: str | Path, which: str = "export") -> JointModel:
    """Load the model of a run or an export, in evaluation mode; nothing is downloaded.

    Args:
        path: run directory, export directory, the name of a model of the package, or `owner/name` of one in this
            machine's cache of the Hub.
        which: of a run: `export`, `best`, `last`, or a step; of a checkpoint, the model that it would export.
    """
    path = Path(path)
    if which == "export":
        return JointModel.from_pretrained(export_in(path))
    checkpoint = choose(path, which)
    return exported_model(path, run_config(checkpoint), checkpoint)[0].eval()


def init_from(model: JointModel, source: str) -> None:
    """Initialise a model from a run, an export or a safetensors file (fine-tuning); ValueError if it does not fit.

    A network (SR or segmentation) without weights in the source keeps its initial weights. Weights of a segmentation
    network that is now wrapped by BlurSkip are loaded into the wrapped network.
    """
    state, own = _source_state(source), model.state_dict()
    if _wrapped(own) and not _wrapped(state):
        state = {re.sub(r"^seg\.", "seg.net.", name): value for name, value in state.items()}
    loaded = {_network(name) for name in state}
    fresh = {name: value for name, value in own.items() if _network(name) not in loaded}
    assign_state(model, {**fresh, **state}, source)


def holds_segmentation(source: str) -> bool:
    """True if a source of `init_from` has weights of a segmentation network; ValueError if it is unreadable."""
    return any(name.startswith("seg.") for name in _source_state(source))


def _source_state(source: str) -> Mapping[str, Tensor]:
    return read_tensors(source) if Path(source).is_file() else load_model(source).state_dict()


def _wrapped(state: Mapping[str, Tensor]) -> bool:
    return any(name.startswith("seg.net.") for name in state)


def _network(name: str) -> str:
    return "blur_skip" if ".blur_skip." in name else name.split(".")[0]


def run_config(checkpoint: Path) -> Config:
    """Settings of the run that wrote a checkpoint."""
    return from_dict(read_state(checkpoint)["config"])


def degradation_of(path: str | Path, which: str = "export") -> Mapping[str, Any]:
    """Degradation setting with which a run or export was trained."""
    if which == "export":
        return read_export(export_in(Path(path))).get("degradation") or {"name": "downsample"}
    return run_config(choose(Path(path), which)).degradation


def is_model(path: Path) -> bool:
    """True if a path is a run or an export, or the name of a model of the package."""
    return is_shipped(path) or any((path / name).exists() for name in ("config.json", "config.yaml", "export"))


def export_in(path: Path) -> Path:
    """Export directory of a run, an export, a model of the package or of the Hub's cache; ValueError if none."""
    if is_shipped(path):
        return shipped_directory(path)
    if is_hub_name(path):
        return fetch(str(path))
    if not path.exists():
        shipped = f"; models of the package: {', '.join(shipped_models())}" if shipped_models() else ""
        raise ValueError(f"no run or export at {path}{shipped}")
    if not (path / "config.json").is_file() and (path / "config.yaml").is_file() and not (path / "export").is_dir():
        raise ValueError(f"{path} has no export yet: its training has not finished; choose --checkpoint last or best")
    return path / "export" if (path / "export").is_dir() else path
