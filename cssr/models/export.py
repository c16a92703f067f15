"""The two files of an export, `model.safetensors` (float32) and `config.json`, and weights that fit or say why not."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from cssr import __version__

WEIGHTS, SETTINGS = "model.safetensors", "config.json"


def write_export(model: nn.Module, settings: Mapping[str, Any], directory: str | Path) -> None:
    """Write the weights and the settings, to which the version is added, to `directory`, which is made."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    weights = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    save_file({name: v.float() if v.is_floating_point() else v for name, v in weights.items()}, directory / WEIGHTS)
    text = json.dumps({**settings, "cssr_version": __version__}, indent=2)
    (directory / SETTINGS).write_text(text + "\n", encoding="utf-8")


def read_export(directory: str | Path) -> dict[str, Any]:
    """The `config.json` of an export; ValueError if it is not there or damaged."""
    path = Path(directory) / SETTINGS
    if not path.is_file():
        raise ValueError(f"no export in {directory} ({SETTINGS} is missing)")
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
        return {**settings, "model": dict(settings["model"])}
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path} is damaged: it holds no model settings") from None


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Fill `model` from a safetensors file; ValueError names the keys that are missing, extra or misshapen."""
    assign_state(model, read_tensors(path), str(path))


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file; ValueError, one line, if it is missing or damaged."""
    if not Path(path).is_file():
        raise ValueError(f"no weights at {path}")
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as safetensors: {' '.join(str(error).split())}") from None


def assign_state(model: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """`load_state_dict` with an error of one line; nothing is loaded unless everything fits."""
    own = model.state_dict()
    faults = {
        "missing": sorted(own.keys() - state.keys()),
        "extra": sorted(state.keys() - own.keys()),
        "misshapen": [
            f"{k} {list(state[k].shape)} instead of {list(v.shape)}"
            for k, v in own.items()
            if k in state and state[k].shape != v.shape
        ],
    }
    if any(faults.values()):
        parts = [
            f"{len(keys)} {kind} ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})"
            for kind, keys in faults.items()
            if keys
        ]
        raise ValueError(f"{source} is of another architecture than the settings: {'; '.join(parts)}")
    model.load_state_dict(state)
