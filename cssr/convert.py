"""The published systems' weight files as ours: `python -m cssr.convert FILE.pth --recipe R.yaml --out DIR`."""

import argparse
import pickle
import re
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from cssr.config import ModelConfig, load_config
from cssr.models.export import assign_state
from cssr.models.joint import build_model
from cssr.published import RULES, Rule


def convert_state(state: Mapping[str, Tensor], network: str) -> dict[str, Tensor]:
    """A published network's state_dict under our keys.

    Args:
        state: its tensors; keys may begin with `module.`.
        network: the zoo name of the network they belong to.
    Raises: ValueError for a network without rules, or naming the keys that no rule knows.
    """
    if network not in RULES:
        raise ValueError(f"no conversion for {network!r}; there is one for {', '.join(RULES)}")
    converted, unknown = {}, []
    for key, value in state.items():
        ours = _translate(key.removeprefix("module."), RULES[network])
        if ours == "":
            unknown.append(key)
        elif ours is not None:
            converted[ours] = value
    if unknown:
        raise ValueError(
            f"{len(unknown)} keys do not belong to {network}: {', '.join(unknown[:3])}{', ...' * (len(unknown) > 3)}"
        )
    return converted


def _translate(key: str, rules: list[Rule]) -> str | None:
    for pattern, ours in rules:
        if match := re.fullmatch(pattern, key):
            return ours(match)
    return ""


def convert_joint(state: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """A published joint model's state_dict (`sr_model.*`, `segmentation_model.*`) under the keys of our joint model."""
    state = {key.removeprefix("module."): value for key, value in state.items()}
    converted: dict[str, Tensor] = {}
    for prefix, group, network in (
        ("sr_model.", "sr", config.sr["name"]),
        ("segmentation_model.", "seg", config.seg["name"]),
    ):
        part = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        if part:
            converted |= {f"{group}.{key}": value for key, value in convert_state(part, network).items()}
    stray = [key for key in state if not key.startswith(("sr_model.", "segmentation_model."))]
    if stray:
        raise ValueError(f"not a published joint checkpoint: {len(stray)} other keys ({', '.join(stray[:3])})")
    return converted


def _read(path: Path) -> Mapping[str, Tensor]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise ValueError(f"{path} cannot be read as a state_dict: {str(error).splitlines()[0]}") from None
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{path} holds no state_dict (tensors by name)")
    return state


def main(arguments: list[str] | None = None) -> None:
    """Command line: a published joint checkpoint to an export."""
    parser = argparse.ArgumentParser(prog="python -m cssr.convert", description=__doc__)
    parser.add_argument("file", type=Path, help="checkpoint of the authors (.pth)")
    parser.add_argument("--recipe", required=True, help="recipe whose model settings it has")
    parser.add_argument("--out", type=Path, required=True, help="export directory to write")
    options = parser.parse_args(arguments)
    try:
        if not options.file.is_file():
            raise ValueError(f"no file at {options.file}")
        model = build_model(load_config(options.recipe).model)
        state = _read(options.file)
        assign_state(model, convert_joint(state, model.config), str(options.file))
    except ValueError as error:
        sys.exit(f"error: {error}")
    model.save_pretrained(options.out, source=options.file.name)
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
