"""Weight files of the published systems under the names of our networks.

`RULES[NAME]` holds, for the registered network of that name, pairs of a pattern that a whole published key matches and
a function of the match that gives our key, or None for a tensor to leave out (a duplicate, or one never used).
"""

import pickle
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from cssr.config.schema import ModelConfig

Rule = tuple[str, Callable[[re.Match], str | None]]

RULES: dict[str, list[Rule]] = {}
LAYER = {"conv": "0", "deconv": "0", "layer": "0", "act": "1"}  # of a convolution and its activation
PROJECTION_PARTS = {"1": "there", "2": "back", "3": "again"}  # of a back-projection
_PREFIXES = {"sr_model": "sr", "segmentation_model": "seg", "parallel_model": "sr"}  # of the published joint models
_WEIGHTLESS = ("none", "bicubic")
_REMEDY = {
    "sr": "SR network: add model.sr=bicubic, or model.sr=none model.scale=1, to take the segmentation network alone",
    "seg": "segmentation network: add model.seg=none to take the SR network alone",
}


def convert_state(state: Mapping[str, Tensor], network: str) -> dict[str, Tensor]:
    """Convert the state_dict of a published network to our keys.

    Args:
        state: its tensors; keys may begin with `module.`.
        network: the registered name of the network they belong to.
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
    """Convert a published checkpoint to the keys of our joint model.

    Args:
        state: a joint model's tensors (`sr_model.*`, `segmentation_model.*`, or `parallel_model.*` for DSRL), those of
            one of its networks alone, or those of a bare network; keys may begin with `module.`.
        config: the model that it is to fill.
    Raises: ValueError naming the keys that belong nowhere, or the network of `config` that the file does not have.
    """
    state = {key.removeprefix("module."): value for key, value in state.items()}
    networks = {"sr": "dsrl"} if config.form["name"] == "dsrl" else {"sr": config.sr["name"], "seg": config.seg["name"]}
    parts = _parts(state, networks)
    missing = [group for group, network in networks.items() if network not in _WEIGHTLESS and group not in parts]
    if missing:
        raise ValueError(f"the file holds no {_REMEDY[missing[0]]}")
    converted: dict[str, Tensor] = {}
    for group, part in parts.items():
        ours = convert_state(part, networks[group])
        converted |= {f"{group}.{key}": value for key, value in ours.items()}
    return converted


def _parts(state: Mapping[str, Tensor], networks: Mapping[str, str]) -> dict[str, dict[str, Tensor]]:
    """Group the tensors by network, under our group names."""
    parts: dict[str, dict[str, Tensor]] = {}
    for key, value in state.items():
        prefix, _, rest = key.partition(".")
        group = _PREFIXES.get(prefix) or _owner(key, networks)
        if group not in networks:
            raise ValueError(
                f"not a published checkpoint of this recipe's model: the key {key} belongs to none of its networks "
                f"({', '.join(networks.values())})"
            )
        parts.setdefault(group, {})[rest if prefix in _PREFIXES else key] = value
    return parts


def _owner(key: str, networks: Mapping[str, str]) -> str | None:
    """Group of a key of a single network."""
    return next((g for g, network in networks.items() if _translate(key, RULES.get(network, [])) != ""), None)


def read_published(path: Path) -> Mapping[str, Tensor]:
    """Read the tensors of an authors' checkpoint file; ValueError, one line, for any other file."""
    if not path.is_file():
        raise ValueError(f"no file at {path}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:  # its own text advises to run what the file holds
        raise ValueError(
            f"{path} cannot be read as a state_dict: it is damaged, or holds more than tensors, and code in it is not "
            "run; save the state_dict alone: torch.save(model.state_dict(), FILE)"
        ) from None
    except Exception as error:  # of damaged pickles, of every kind
        reason = (str(error).splitlines() or [""])[0]
        raise ValueError(
            f"{path} cannot be read as a state_dict: {type(error).__name__}: {reason}; give a .pth as it was published"
        ) from None
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{path} holds no state_dict (tensors by name)")
    return state


# ---- dbpn ----

RULES["dbpn"] = [
    (r"feat([01])\.(conv|act)\.(\w+)", lambda m: f"head.{m[1]}.{LAYER[m[2]]}.{m[3]}"),
    (r"(up|down)(\d+)\.conv\.(conv|act)\.(\w+)", lambda m: f"{m[1]}s.{int(m[2]) - 1}.squeeze.{LAYER[m[3]]}.{m[4]}"),
    (
        r"(up|down)(\d+)\.\1_conv([123])\.(conv|deconv|act)\.(\w+)",
        lambda m: f"{m[1]}s.{int(m[2]) - 1}.{PROJECTION_PARTS[m[3]]}.{LAYER[m[4]]}.{m[5]}",
    ),
    (r"output_conv\.conv\.(\w+)", lambda m: f"tail.{m[1]}"),
]

# ---- kbpn ----

_KERNEL_UPDATE = {"0": "join", "1": "mix.0", "2": "delta"}
_SFT_PARTS = {"0": "first", "1": "second"}

RULES["kbpn"] = [
    (r"feat\.([0246])\.(\w+)", lambda m: f"head.{int(m[1]) // 2}.0.{m[2]}"),
    (r"predictor\.feat_ext\.(\d)\.(layer|act)\.(\w+)", lambda m: f"predictor.layers.{m[1]}.{LAYER[m[2]]}.{m[3]}"),
    (
        r"back_projection_stages\.(\d+)\.(up|down)\.(conv|\2_conv([123]))\.(layer|act)\.(\w+)",
        lambda m: (
            f"{'stages' if m[2] == 'up' else 'backs'}.{m[1]}.{m[2]}."
            f"{PROJECTION_PARTS[m[4]] if m[4] else 'squeeze'}.{LAYER[m[5]]}.{m[6]}"
        ),
    ),
    (r"back_projection_stages\.(\d+)\.kb\.sr_reconst\.layer\.(\w+)", lambda m: f"stages.{m[1]}.image.{m[2]}"),
    (
        r"back_projection_stages\.(\d+)\.kb\.up_conv1\.(layer|act)\.(\w+)",
        lambda m: f"stages.{m[1]}.error.{LAYER[m[2]]}.{m[3]}",
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

# ---- srcnet ----

_SRCNET_PARTS = {"fe1": "layers", "attention": "attention", "sconv1": "head", "upscaling": "enlarge", "sconv2": "tail"}

RULES["srcnet"] = [
    (
        r"rir\.res_groups\.(\d+)\.res_blocks\.(\d+)\.(fe1|attention)\.(\d)\.(\w+)",
        lambda m: f"body.layers.{m[1]}.layers.{m[2]}.{_SRCNET_PARTS[m[3]]}.{m[4]}.{m[5]}",
    ),
    (r"rir\.res_groups\.(\d+)\.conv\.(\w+)", lambda m: f"body.layers.{m[1]}.last.{m[2]}"),
    (r"rir\.conv\.(\w+)", lambda m: f"body.last.{m[1]}"),
    (r"(sconv1|upscaling|sconv2)\.(\w+)", lambda m: f"{_SRCNET_PARTS[m[1]]}.{m[2]}"),
]

# ---- unet ----

_VGG16_FIRST = {"1": 0, "2": 5, "3": 10, "4": 17, "5": 24}  # first layer of a VGG block in torchvision
_UNET_DECODER = {"center": 0, "dec4": 1, "dec3": 2, "dec2": 3}

RULES["unet"] = [
    (r"encoder\.\d+\.\w+", lambda m: None),  # the same tensors as conv1 to conv5, which the reference loads last
    (r"conv([1-5])\.(\d)\.(\w+)", lambda m: f"encoder.features_{_VGG16_FIRST[m[1]] + int(m[2])}.{m[3]}"),
    (r"(center|dec[234])\.block\.(\d)\.conv\.(\w+)", lambda m: f"decoder.{_UNET_DECODER[m[1]]}.{m[2]}.0.{m[3]}"),
    (r"(center|dec[234])\.block\.(\d)\.(\w+)", lambda m: f"decoder.{_UNET_DECODER[m[1]]}.{m[2]}.{m[3]}"),
    (r"dec1\.conv\.(\w+)", lambda m: f"head.0.0.{m[1]}"),
    (r"final\.(\w+)", lambda m: f"head.1.{m[1]}"),
]

# ---- pspnet ----

RULES["pspnet"] = [
    (r"feats\.(.+)", lambda m: f"encoder.{m[1]}"),
    (r"psp\.stages\.(\d)\.1\.weight", lambda m: f"pyramid.branches.{m[1]}.1.weight"),
    (r"psp\.bottleneck\.(\w+)", lambda m: f"pyramid.merge.0.{m[1]}"),
    (r"up_([123])\.conv\.([012])\.(\w+)", lambda m: f"decoder.{int(m[1]) - 1}.{int(m[2]) + 1}.{m[3]}"),
    (r"final\.0\.(\w+)", lambda m: f"head.{m[1]}"),
    (r"aux\.([014])\.(\w+)", lambda m: f"aux.{m[1]}.{m[2]}"),
]

# ---- blur_skip ----

_MODULATION = {"0.layer": "first", "0.act": "act", "1.layer": "second"}
_CONV = {"layer": "0", "norm": "1"}


RULES["blur_skip"] = [
    (
        r"blur_skip\.(\d+)\.conv_(scale|shift)\.(0\.layer|0\.act|1\.layer)\.(\w+)",
        lambda m: f"blur_skip.{int(m[1]) // 2}.modulation.{m[2]}.{_MODULATION[m[3]]}.{m[4]}",
    ),
    (r"blur_skip\.(\d+)\.(layer|norm)\.(\w+)", lambda m: f"blur_skip.{int(m[1]) // 2}.conv.{_CONV[m[2]]}.{m[3]}"),
    *((pattern, lambda m, ours=ours: f"net.{ours(m)}") for pattern, ours in RULES["pspnet"]),
]

# ---- hrnet_ocr ----

_CONTEXT = "ocr_distri_head.object_context_block"
_OCR_PARTS = {  # a convolution and its BatchNorm each
    "aux_head": "aux",
    "conv3x3": "squeeze",
    f"{_CONTEXT}.f_down": "context.down",
    f"{_CONTEXT}.f_up": "context.up",
    "ocr_distri_head.conv_bn_dropout": "context.merge",
}

RULES["hrnet_ocr"] = [
    (r"backbone\.(.+)", lambda m: f"encoder.{m[1]}"),
    (rf"{re.escape(_CONTEXT)}\.f_(pixel|object)\..+", lambda m: None),  # of attention, which is 1 with one class
    (rf"({'|'.join(map(re.escape, _OCR_PARTS))})\.(0|1\.0)\.(\w+)", lambda m: f"{_OCR_PARTS[m[1]]}.{m[2][0]}.{m[3]}"),
    (r"aux_head\.2\.(\w+)", lambda m: f"aux.3.{m[1]}"),
    (r"cls_head\.(\w+)", lambda m: f"head.0.{m[1]}"),
]

# ---- crackformer ----

_BLOCK = r"(down|up)([1-5])\.nn([123])\.conv\."
_BOTTLENECK = {"conv1": "squeeze.0", "bn1": "squeeze.1", "conv3": "expand.0", "bn3": "expand.1"}
_MLP = {"fc1": "0.0", "gn1": "0.1", "dwconv.dwconv": "1.0", "gn2": "1.1", "fc2": "3.0", "gn3": "3.1"}


def _block(way: str, stage: str, number: str) -> str:
    """Name of a block here: encoder stages count down from full size, decoder stages up to it."""
    block = f"encoder.{int(stage) - 1}" if way == "down" else f"decoder.{5 - int(stage)}"
    return f"{block}.layers.{int(number) - 1}"


RULES["crackformer"] = [
    (r"down[345]\.nn3\..+", lambda m: None),  # published, but never applied: the second block runs twice
    (_BLOCK + r"bn2\.\w+", lambda m: None),  # published, but never applied
    (r"down1\.nn1\.conv\.(\w+)", lambda m: f"encoder.0.layers.0.0.{m[1]}"),
    (_BLOCK + r"(conv[13]|bn[13])\.(\w+)", lambda m: f"{_block(m[1], m[2], m[3])}.{_BOTTLENECK[m[4]]}.{m[5]}"),
    (_BLOCK + r"(shortcut\.[01]\.\w+)", lambda m: f"{_block(m[1], m[2], m[3])}.{m[4]}"),
    (_BLOCK + r"conv2\.0\.attn\.embedding", lambda m: f"{_block(m[1], m[2], m[3])}.attention.positions.weight"),
    (
        _BLOCK + r"conv2\.0\.attn\.((queries|keys|values)\.[01]\.\w+)",
        lambda m: f"{_block(m[1], m[2], m[3])}.attention.{m[4]}",
    ),
    (
        _BLOCK + r"conv2\.0\.mlp\.(fc[12]|gn[123]|dwconv\.dwconv)\.(\w+)",
        lambda m: f"{_block(m[1], m[2], m[3])}.mlp.{_MLP[m[4]]}.{m[5]}",
    ),
    (r"LABlock_([1-5])\.W_1\.(\d)\.(\w+)", lambda m: f"sides.{5 - int(m[1])}.gate.1.{m[2]}.{m[3]}"),
    (r"LABlock_([1-5])\.psi\.(\d)\.(\w+)", lambda m: f"sides.{5 - int(m[1])}.gate.2.{m[2]}.{m[3]}"),
    (r"fuse([1-5])\.nn\.conv\.(\w+)", lambda m: f"sides.{5 - int(m[1])}.merge.0.{m[2]}"),
    (r"fuse([1-5])\.conv\.(\w+)", lambda m: f"sides.{5 - int(m[1])}.logits.{m[2]}"),
    (r"final\.(\w+)", lambda m: f"head.{m[1]}"),
]

# ---- segnet ----

_SEGNET_DEPTH = {"1": 2, "2": 2, "3": 3, "4": 3, "5": 3}  # convolutions of each stage

RULES["segnet"] = [
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

# ---- dsrl ----

_DECODER_PLACES = {"0": "0.0", "1": "0.1", "4": "2.0", "5": "2.1", "8": "4"}  # dropout and activations hold nothing

RULES["dsrl"] = [
    (r"backbone\.(.+)", lambda m: f"encoder.{m[1]}"),
    (r"aspp\.aspp([1-4])\.(atrous_conv|bn)\.(\w+)", lambda m: f"aspp.convs.{int(m[1]) - 1}.{int(m[2] == 'bn')}.{m[3]}"),
    (r"aspp\.global_avg_pool\.([12])\.(\w+)", lambda m: f"aspp.convs.4.{m[1]}.{m[2]}"),
    (r"aspp\.(conv|bn)1\.(\w+)", lambda m: f"aspp.project.{int(m[1] == 'bn')}.{m[2]}"),
    (r"(sr_)?decoder\.(conv|bn)1\.(\w+)", lambda m: f"{m[1] or 'seg_'}decoder.squeeze.{int(m[2] == 'bn')}.{m[3]}"),
    (
        r"(sr_)?decoder\.last_conv\.([01458])\.(\w+)",
        lambda m: f"{m[1] or 'seg_'}decoder.layers.{_DECODER_PLACES[m[2]]}.{m[3]}",
    ),
    (r"pointwise\.([01])\.(\w+)", lambda m: f"pointwise.{m[1]}.{m[2]}"),
    (r"up_sr_([0-3])\.(\w+)", lambda m: f"doublings.{3 - int(m[1])}.up.{m[2]}"),
    (r"up_edsr_([0-3])\.conv\.([02])\.(\w+)", lambda m: f"doublings.{3 - int(m[1])}.body.{m[2]}.{m[3]}"),
    (r"up_edsr_([0-3])\.residual_upsampler\.0\.weight", lambda m: f"doublings.{3 - int(m[1])}.skip.weight"),
    (r"up_conv_last\.(\w+)", lambda m: f"tail.{m[1]}"),
]
