"""Checkpoints: consolidated, by parameter name, and in place only when whole.

A checkpoint is a directory `checkpoints/step_00001000` with `model.safetensors`, `ema.safetensors` (where there is an
average), `optimizer.safetensors` (moments as `parameter/moment`) and `state.json` (step, samples seen, settings,
versions). It holds no generator state: all randomness is a function of the seed and the samples seen. It appears by one
rename, so a directory of that name is complete.
"""

import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from cssr import __version__
from cssr.config import Config, from_dict, to_dict
from cssr.models.export import assign_state, load_weights, read_export, read_tensors
from cssr.models.joint import JointModel, build_model

_PARTIAL = ".partial"


def _name(step: int) -> str:
    return f"step_{step:08d}"


def write_atomic(path: Path, text: str) -> None:
    """Write a file that is either the old or the new one, never a part."""
    temporary = path.with_name(f"{path.name}{_PARTIAL}-{os.getpid()}")
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def save_checkpoint(
    run_dir: Path,
    step: int,
    samples: int,
    config: Config,
    model: JointModel,
    optimizer: torch.optim.Optimizer,
    ema: nn.Module | None,
) -> Path:
    """Write `run_dir/checkpoints/step_N`; what is there under that name already stays."""
    final = run_dir / "checkpoints" / _name(step)
    if final.is_dir():
        return final
    partial = final.with_name(f"{final.name}{_PARTIAL}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    moments, rest = _optimizer_state(model, optimizer)
    tensors = {"model": model.state_dict(), "optimizer": moments} | ({"ema": ema.state_dict()} if ema else {})
    for name, state in tensors.items():
        save_file(
            {key: value.detach().cpu().contiguous() for key, value in state.items()}, partial / f"{name}.safetensors"
        )
    state = {
        "step": step,
        "samples": samples,
        "optimizer": rest,
        "config": to_dict(config),
        "versions": {"cssr": __version__, "torch": torch.__version__},
    }
    (partial / "state.json").write_text(json.dumps(state, indent=2), encoding="utf-8")
    _sync(partial)
    os.rename(partial, final)
    _sync(final.parent)
    return final


def _sync(directory: Path) -> None:
    """Have a directory and the files in it on disk before going on."""
    for path in [*(p for p in directory.iterdir() if p.is_file()), directory]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The optimizer's tensors as `parameter/key`; and its kind and other values; `groups.K/step` counts a group's."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    entries = {f"{names[p]}/{key}": value for p, state in optimizer.state.items() for key, value in state.items()}
    entries |= {f"groups.{k}/step": group["step"] for k, group in enumerate(optimizer.param_groups) if "step" in group}
    tensors = {key: value for key, value in entries.items() if isinstance(value, Tensor)}
    scalars = {key: value for key, value in entries.items() if key not in tensors}
    return tensors, {"kind": type(optimizer).__name__, "scalars": scalars}


def load_checkpoint(
    path: Path, model: JointModel, optimizer: torch.optim.Optimizer, ema: nn.Module | None
) -> dict[str, Any]:
    """Fill model, optimizer and average from a checkpoint; returns its state (step, samples, config).

    Raises: ValueError, one line, where it is of another architecture or has no average that the run wants.
    """
    state = read_state(path)
    load_weights(model, path / "model.safetensors")
    if ema is not None:
        if not (path / "ema.safetensors").is_file():
            raise ValueError(
                f"optim.ema is set, but {path} holds no average: use another train.run_dir, or train.init_from"
            )
        load_weights(ema, path / "ema.safetensors")
    rest, kind = state["optimizer"], type(optimizer).__name__
    if rest["kind"] != kind:
        raise ValueError(
            f"optim.optimizer: {path} was trained with {rest['kind']}, the settings say {kind}: "
            "use that, or another train.run_dir with train.init_from"
        )
    _fill_optimizer(model, optimizer, {**read_tensors(path / "optimizer.safetensors"), **rest["scalars"]})
    return state


def _fill_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, entries: Mapping[str, Any]) -> None:
    names = {parameter: name for name, parameter in model.named_parameters()}
    ordered = [names[p] for group in optimizer.param_groups for p in group["params"]]
    by_name: dict[str, dict[str, Any]] = {}
    for key, value in entries.items():
        name, _, moment = key.rpartition("/")
        by_name.setdefault(name, {})[moment] = value
    state_dict = optimizer.state_dict()
    state_dict["state"] = {index: by_name[name] for index, name in enumerate(ordered) if name in by_name}
    optimizer.load_state_dict(state_dict)
    for k, group in enumerate(optimizer.param_groups):
        group |= by_name.get(f"groups.{k}", {})


def read_state(path: Path) -> dict[str, Any]:
    """The `state.json` of a checkpoint; ValueError if it is damaged."""
    try:
        state = json.loads((path / "state.json").read_text(encoding="utf-8"))
        whole = {"step", "samples", "optimizer", "config"} <= state.keys()
    except (OSError, ValueError, AttributeError):
        whole = False
    if not whole:
        raise ValueError(f"checkpoint {path} is damaged: delete it to go on from the one before")
    return state


def checkpoints(run_dir: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    found = (run_dir / "checkpoints").glob("step_*")
    return sorted(path for path in found if path.is_dir() and path.name[5:].isdigit())


def read_best(run_dir: Path) -> dict[str, Any] | None:
    """{"checkpoint", "measure", "value"} of the best checkpoint, or None."""
    path = run_dir / "checkpoints" / "best.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def write_best(run_dir: Path, step: int, measure: str, value: float) -> None:
    """Name the checkpoint of a step as the best; rotation spares it."""
    (run_dir / "checkpoints").mkdir(parents=True, exist_ok=True)
    best = {"checkpoint": _name(step), "measure": measure, "value": value}
    write_atomic(run_dir / "checkpoints" / "best.json", json.dumps(best))


def rotate(run_dir: Path, keep: int) -> None:
    """Delete all checkpoints but the newest `keep` and the best, and what an interrupted write has left."""
    best = read_best(run_dir)
    spared = {path.name for path in checkpoints(run_dir)[-keep:]} | ({best["checkpoint"]} if best else set())
    for path in checkpoints(run_dir):
        if path.name not in spared:
            shutil.rmtree(path)
    for path in (run_dir / "checkpoints").glob(f"*{_PARTIAL}*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def choose(run_dir: Path, which: str) -> Path:
    """The checkpoint `last`, `best` or of a step; ValueError lists what there is."""
    there = checkpoints(run_dir)
    best = read_best(run_dir)
    names = {path.name: path for path in there}
    if which == "last" and there:
        return there[-1]
    if which == "best" and best and best["checkpoint"] in names:
        return names[best["checkpoint"]]
    if which.isdigit() and _name(int(which)) in names:
        return names[_name(int(which))]
    raise ValueError(f"no checkpoint {which!r} in {run_dir}; there are: {', '.join(names) or 'none'}")


def export(run_dir: Path, config: Config, path: Path, resampler: str) -> Path:
    """Write `run_dir/export` from a checkpoint: weights, settings, and where they come from."""
    state = read_state(path)
    averaged = config.train.export_ema and (path / "ema.safetensors").is_file()
    model = build_model(config.model)
    load_weights(model, path / ("ema.safetensors" if averaged else "model.safetensors"))
    partial, final = run_dir / f"export{_PARTIAL}", run_dir / "export"
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(
        partial,
        imports=config.imports,
        degradation=config.degradation,
        resampler=resampler,
        step=state["step"],
        samples=state["samples"],
        averaged_weights=averaged,
    )
    _sync(partial)
    shutil.rmtree(final, ignore_errors=True)
    os.rename(partial, final)
    return final


def load_model(path: str | Path, which: str = "export") -> JointModel:
    """The model of a run or of an export, in evaluation mode; nothing is downloaded.

    Args:
        path: run directory or export directory.
        which: of a run: `export`, `best`, `last`, or a step; a checkpoint gives the weights that it would export.
    """
    path = Path(path)
    if which == "export":
        return JointModel.from_pretrained(_export_in(path))
    checkpoint = choose(path, which)
    config = run_config(checkpoint)
    averaged = config.train.export_ema and (checkpoint / "ema.safetensors").is_file()
    model = build_model(config.model)
    load_weights(model, checkpoint / ("ema.safetensors" if averaged else "model.safetensors"))
    return model.eval()


def init_from(model: JointModel, source: str) -> None:
    """Fill a new model from a run, an export or a safetensors file (fine-tuning); ValueError if it does not fit.

    A network, SR or segmentation, of which the source has nothing keeps its initial weights; a segmentation network
    that BlurSkip has wrapped since takes its place inside.
    """
    state, own = _source_state(source), model.state_dict()
    if _wrapped(own) and not _wrapped(state):
        state = {re.sub(r"^seg\.", "seg.net.", name): value for name, value in state.items()}
    there = {_network(name) for name in state}
    fresh = {name: value for name, value in own.items() if _network(name) not in there}
    assign_state(model, {**fresh, **state}, source)


def holds_segmentation(source: str) -> bool:
    """Whether a source of `init_from` has weights for the segmentation network; ValueError if it cannot be read."""
    return any(name.startswith("seg.") for name in _source_state(source))


def _source_state(source: str) -> Mapping[str, Tensor]:
    return read_tensors(source) if Path(source).is_file() else load_model(source).state_dict()


def _wrapped(state: Mapping[str, Tensor]) -> bool:
    return any(name.startswith("seg.net.") for name in state)


def _network(name: str) -> str:
    return "blur_skip" if ".blur_skip." in name else name.split(".")[0]


def run_config(checkpoint: Path) -> Config:
    """The settings with which a checkpoint was written."""
    return from_dict(read_state(checkpoint)["config"])


def degradation_of(path: str | Path, which: str = "export") -> Mapping[str, Any]:
    """The degradation with which a run or export was trained."""
    if which == "export":
        return read_export(_export_in(Path(path))).get("degradation") or {"name": "downsample"}
    return run_config(choose(Path(path), which)).degradation


def _export_in(path: Path) -> Path:
    if not path.exists():
        raise ValueError(f"no run or export at {path}")
    if not (path / "config.json").is_file() and (path / "config.yaml").is_file() and not (path / "export").is_dir():
        raise ValueError(f"{path} has no export yet: its training has not finished; choose --checkpoint last or best")
    return path / "export" if (path / "export").is_dir() else path
