"""The published systems' weight files as ours: `python -m cssr.convert FILE.pth --recipe R.yaml --out DIR`."""

import argparse
import pickle
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from cssr.config import ModelConfig, load_config
from cssr.models.joint import assign_state, build_model

_VGG16_FIRST = {
    "1": 0,
    "2": 5,
    "3": 10,
    "4": 17,
    "5": 24,
}  # index of a VGG block's first layer in torchvision's numbering
_DECODER = {"center": 0, "dec4": 1, "dec3": 2, "dec2": 3}
_PROJECTION_PARTS = {"1": "there", "2": "back", "3": "again"}
_SEGNET_DEPTH = {"1": 2, "2": 2, "3": 3, "4": 3, "5": 3}  # convolutions of each stage
_LAYER = {"conv": "0", "deconv": "0", "layer": "0", "act": "1"}
_KERNEL_UPDATE = {"0": "join", "1": "mix.0", "2": "delta"}
_SFT_PARTS = {"0": "first", "1": "second"}

Rule = tuple[str, Callable[[re.Match], str | None]]

# Each network's rules: a pattern of the published key, and the key that we give it (None: a duplicate to leave out).
_DBPN: list[Rule] = [
    (r"feat([01])\.(conv|act)\.(\w+)", lambda m: f"head.{m[1]}.{_LAYER[m[2]]}.{m[3]}"),
    (r"(up|down)(\d+)\.conv\.(conv|act)\.(\w+)", lambda m: f"{m[1]}s.{int(m[2]) - 1}.squeeze.{_LAYER[m[3]]}.{m[4]}"),
    (
        r"(up|down)(\d+)\.\1_conv([123])\.(conv|deconv|act)\.(\w+)",
        lambda m: f"{m[1]}s.{int(m[2]) - 1}.{_PROJECTION_PARTS[m[3]]}.{_LAYER[m[4]]}.{m[5]}",
    ),
    (r"output_conv\.conv\.(\w+)", lambda m: f"tail.{m[1]}"),
]
_KBPN: list[Rule] = [
    (r"feat\.([0246])\.(\w+)", lambda m: f"head.{int(m[1]) // 2}.0.{m[2]}"),
    (r"predictor\.feat_ext\.(\d)\.(layer|act)\.(\w+)", lambda m: f"predictor.layers.{m[1]}.{_LAYER[m[2]]}.{m[3]}"),
    (
        r"back_projection_stages\.(\d+)\.(up|down)\.(conv|\2_conv([123]))\.(layer|act)\.(\w+)",
        lambda m: (
            f"{'stages' if m[2] == 'up' else 'backs'}.{m[1]}.{m[2]}."
            f"{_PROJECTION_PARTS[m[4]] if m[4] else 'squeeze'}.{_LAYER[m[5]]}.{m[6]}"
        ),
    ),
    (r"back_projection_stages\.(\d+)\.kb\.sr_reconst\.layer\.(\w+)", lambda m: f"stages.{m[1]}.image.{m[2]}"),
    (
        r"back_projection_stages\.(\d+)\.kb\.up_conv1\.(layer|act)\.(\w+)",
        lambda m: f"stages.{m[1]}.error.{_LAYER[m[2]]}.{m[3]}",
    ),
    (r"back_projection_stages\.(\d+)\.kb\.conv\.layer\.(\w+)", lambda m: f"backs.{m[1]}.error.{m[2]}"),
    (
        r"back_projection_stages\.(\d+)\.kb\.kernel_predictor\.fe_(SR|kernel)\.(\d)\.layer\.(\w+)",
        lambda m: f"stages.{m[1]}.predictor.of_{'image' if m[2] == 'SR' else 'kernel'}.{m[3]}.0.{m[4]}",
    ),
    (
        r"back_projection_stages\.(\d+)\.kb\.kernel_predictor\.fe_cat\.([012])\.layer\.(\w+)",
        lambda m: f"stages.{m[1]}.predictor.{_KERNEL_UPDATE[m[2]]}.{m[3]}",
    ),
    (
        r"back_projection_stages\.(\d+)\.kb\.kernel_predictor\.pad_descriminator\.(\d)\.(\w+)",
        lambda m: f"stages.{m[1]}.predictor.resize.gate.{m[2]}.{m[3]}",
    ),
    (
        r"back_projection_stages\.(\d+)\.sft\.SFT_(scale|shift)_conv([01])\.(\w+)",
        lambda m: f"backs.{m[1]}.sft.{m[2]}.{_SFT_PARTS[m[3]]}.{m[4]}",
    ),
    (r"output_conv\.layer\.(\w+)", lambda m: f"tail.{m[1]}"),
]
_UNET: list[Rule] = [
    (r"encoder\.\d+\.\w+", lambda m: None),  # the same tensors as conv1 to conv5, which the reference loads last
    (r"conv([1-5])\.(\d)\.(\w+)", lambda m: f"encoder.features_{_VGG16_FIRST[m[1]] + int(m[2])}.{m[3]}"),
    (r"(center|dec[234])\.block\.(\d)\.conv\.(\w+)", lambda m: f"decoder.{_DECODER[m[1]]}.{m[2]}.0.{m[3]}"),
    (r"(center|dec[234])\.block\.(\d)\.(\w+)", lambda m: f"decoder.{_DECODER[m[1]]}.{m[2]}.{m[3]}"),
    (r"dec1\.conv\.(\w+)", lambda m: f"head.0.0.{m[1]}"),
    (r"final\.(\w+)", lambda m: f"head.1.{m[1]}"),
]
_PSPNET: list[Rule] = [
    (r"feats\.(.+)", lambda m: f"encoder.{m[1]}"),
    (r"psp\.stages\.(\d)\.1\.weight", lambda m: f"pyramid.branches.{m[1]}.1.weight"),
    (r"psp\.bottleneck\.(\w+)", lambda m: f"pyramid.merge.0.{m[1]}"),
    (r"up_([123])\.conv\.([012])\.(\w+)", lambda m: f"decoder.{int(m[1]) - 1}.{int(m[2]) + 1}.{m[3]}"),
    (r"final\.0\.(\w+)", lambda m: f"head.{m[1]}"),
    (r"aux\.([014])\.(\w+)", lambda m: f"aux.{m[1]}.{m[2]}"),
]
_SEGNET: list[Rule] = [
    (r"BNDe11\.\w+", lambda m: None),  # published, but never applied
    (
        r"(Conv|BN)En([1-5])([123])\.(\w+)",
        lambda m: f"encoder.{int(m[2]) - 1}.{3 * int(m[3]) - 3 + (m[1] == 'BN')}.{m[4]}",
    ),
    (
        r"(Conv|BN)De([1-5])([123])\.(\w+)",
        lambda m: f"decoder.{5 - int(m[2])}.{3 * (_SEGNET_DEPTH[m[2]] - int(m[3])) + (m[1] == 'BN')}.{m[4]}",
    ),
]
RULES = {"dbpn": _DBPN, "kbpn": _KBPN, "unet": _UNET, "pspnet": _PSPNET, "segnet": _SEGNET}


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
