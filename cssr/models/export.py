"""Exports, `model.safetensors` (float32) and `config.json`: write, read, and check weights against a model.

`config.json` contains its format number, the version of cssr that wrote it, and the sha256 of the weights, which is
checked whenever they are read. Older exports without these keys are read too.
"""

import hashlib
import json
import warnings
from collections.abc import Mapping
from itertools import takewhile
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from cssr import __version__
from cssr.utils.files import identity, naming_path, write_together
from cssr.utils.json_files import misfit, parse_json, read_bytes
from cssr.utils.text import message_of

WEIGHTS, SETTINGS = "model.safetensors", "config.json"
FORMAT = 1  # of config.json; higher for a change that older versions would misread

_LARGEST_SETTINGS = 1 << 22  # bytes of a config.json
# errors that a damaged config.json can cause
_DAMAGE = (RecursionError, OverflowError, ValueError, KeyError, TypeError)


def write_export(model: nn.Module, settings: Mapping[str, Any], directory: str | Path, half: bool = False) -> None:
    """Write weights and settings to `directory`, which is created; both files appear atomically.

    Added to the settings: `format`, `cssr_version`, `sha256` (of the weights). With `half`, weights of two and more
    dimensions are float16; biases and normalisation parameters stay float32.
    """
    directory = Path(directory)
    with naming_path(directory):
        directory.mkdir(parents=True, exist_ok=True)
    weights = save({name: _as_written(value, half) for name, value in model.state_dict().items()})
    facts = {"format": FORMAT, "cssr_version": __version__, "sha256": hashlib.sha256(weights).hexdigest()}
    text = json.dumps({**settings, **facts}, indent=2) + "\n"
    write_together({directory / WEIGHTS: weights, directory / SETTINGS: text})


def _as_written(value: Tensor, half: bool) -> Tensor:
    value = value.detach().cpu().contiguous()
    if not value.is_floating_point():
        return value
    return value.half() if half and value.dim() > 1 else value.float()


_RANGES = ("brightness", "contrast", "blur")
# What is read of `config.json` beside the model's settings, which have a check of their own.
_FACTS = {
    "?imports": list[str],
    "?degradation": dict | None,
    "trained_on": {**{f"?{name}": list[float] | None for name in _RANGES}, "?smallest": float},
}


def read_export(directory: str | Path) -> dict[str, Any]:
    """Read the `config.json` of an export.

    Raises: ValueError, one line, if it is missing, damaged, or of an unknown format. A file of a newer version in a
    known format is read with a warning.
    """
    path = Path(directory) / SETTINGS
    if not path.is_file():
        raise ValueError(f"no export in {directory} ({SETTINGS} is missing)")
    try:
        settings = parse_json(read_bytes(path, _LARGEST_SETTINGS), str(path))
        settings = {**settings, "model": dict(settings["model"])}
        number, version = int(settings.get("format", 0)), str(settings.get("cssr_version", "unknown"))[:40]
    except _DAMAGE:
        raise ValueError(f"{path} is damaged: it holds no model settings; fetch or export it again") from None
    _check_version(path, number, version)
    ranges = settings.get("trained_on") or {}
    fault = misfit({**settings, "trained_on": ranges}, _FACTS)
    odd = None if fault else next((name for name in _RANGES if len(ranges.get(name) or (0, 0)) != 2), None)
    if fault or odd:
        fault = fault or f"trained_on.{odd} must be two numbers, got {ranges[odd]}"
        raise ValueError(f"{path} is damaged, or was changed: {fault}; fetch or export it again")
    return settings


def _check_version(path: Path, number: int, version: str) -> None:
    if number > FORMAT:
        raise ValueError(
            f"{path} is of format {number}, written by cssr {version}; cssr {__version__} reads formats up to "
            f"{FORMAT}: install a newer cssr (pip install --upgrade cssr)"
        )
    if _release(version) > _release(__version__):
        warnings.warn(
            f"{path} was written by cssr {version}, newer than the installed {__version__}: if its settings are "
            "refused, install a newer cssr (pip install --upgrade cssr)",
            stacklevel=3,
        )


def _release(version: str) -> tuple[int, ...]:
    """Release numbers of a version: (1, 2, 0) for `1.2.0` or `1.2.0.dev3`; () for anything else."""
    return tuple(map(int, takewhile(str.isdecimal, version.split("."))))


def load_export(model: nn.Module, directory: str | Path, sha256: str | None) -> None:
    """Load the weights of an export into `model`; `sha256`: from its `config.json` (None in older exports).

    Raises: ValueError, one line: weights that are missing, damaged, of another model, or not finite.
    """
    path = Path(directory) / WEIGHTS
    load_weights(model, path)
    if sha256 is not None and identity(path)["sha256"] != sha256:
        raise ValueError(
            f"{path} is damaged or was changed: its sha256 is not the one in {SETTINGS}; export or download it again"
        )
    bad = next((name for name, value in model.named_parameters() if not value.isfinite().all()), None)
    if bad is not None:
        raise ValueError(f"{path} holds weights that are not finite ({bad}): export another checkpoint of the run")


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Load a safetensors file into `model`; ValueError names keys that are missing or do not fit."""
    assign_state(model, read_tensors(path), str(path))


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file; ValueError, one line, if it is missing or damaged."""
    if not Path(path).is_file():
        raise ValueError(f"no weights at {path}")
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError, AttributeError) as error:
        raise ValueError(
            f"{path} cannot be read as safetensors: {message_of(error)}; fetch or export it again"
        ) from None


def assign_state(model: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Load a state dict; ValueError of one line, before anything is loaded, if any tensor does not fit.

    Floating-point dtypes are interchangeable, but not with integer dtypes.
    """
    own = model.state_dict()
    both = [(key, state[key], value) for key, value in own.items() if key in state]
    faults = {
        "missing": sorted(own.keys() - state.keys()),
        "extra": sorted(state.keys() - own.keys()),
        "misshapen": [f"{k} {list(x.shape)} instead of {list(v.shape)}" for k, x, v in both if x.shape != v.shape],
        "mistyped": [f"{k} {_type(x)} instead of {_type(v)}" for k, x, v in both if _kind(x) != _kind(v)],
    }
    if any(faults.values()):
        parts = [
            f"{len(keys)} {kind} ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})"
            for kind, keys in faults.items()
            if keys
        ]
        raise ValueError(f"{source} is of another architecture than the settings: {'; '.join(parts)}")
    model.load_state_dict(state)


def _kind(value: Tensor) -> tuple[bool, bool]:
    return value.is_floating_point(), value.is_complex()


def _type(value: Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")
