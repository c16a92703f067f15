"""Encoders from timm, for the networks that stand on one."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn


def timm_encoder(name: str, depth: int | None, pretrained: bool | str, arguments: dict[str, Any]) -> nn.Module:
    """A timm model that returns feature maps.

    Args:
        name: a timm model, with or without the tag of its weights (`resnet34`, `resnet34.tv_in1k`).
        depth: how many feature maps, from the largest down; None: all (vgg: 5, up to the last pooling).
        pretrained: its weights: from the hub (True), a local file (path), or none (False).
        arguments: further ones of the timm model.
    Raises:
        ValueError: one line: an unknown name, weights that cannot be had, or arguments that timm refuses.
    """
    if name.split(".")[0] not in timm.list_models():
        close = timm.list_models(f"*{name.split('.')[0][:6]}*")[:5]
        raise ValueError(
            f"unknown timm encoder {name!r}; close to it: {', '.join(close) or 'nothing, see timm.list_models()'}"
        )
    depth = depth or (5 if name.startswith("vgg") else None)
    options = {"out_indices": tuple(range(depth))} if depth else {}
    if isinstance(pretrained, str):
        options["pretrained_cfg_overlay"] = {"file": str(_weight_file(pretrained))}
    try:
        return timm.create_model(name, features_only=True, pretrained=bool(pretrained), **options, **arguments)
    except (OSError, RuntimeError, TypeError, ValueError, IndexError) as error:
        raise ValueError(_encoder_error(name, pretrained, error)) from error


@torch.no_grad()
def check_pyramid(encoder: nn.Module, name: str) -> None:
    """Refuse an encoder whose feature maps are not each half as large as the one before, or of fixed image size."""
    strides = encoder.feature_info.reduction()
    if any(deep != 2 * shallow for shallow, deep in pairwise(strides)) or strides[0].bit_count() != 1:
        raise ValueError(
            f"encoder {name} gives features at strides {strides}; each must be twice the one before, "
            "as of resnet34, vgg16, convnext_tiny, mobilenetv3_large_100"
        )
    side, mode = 2 * max(strides), encoder.training
    try:
        encoder.eval()(torch.zeros(1, 3, side, side))
    except (AssertionError, RuntimeError) as error:
        raise ValueError(
            f"encoder {name} does not take images of any size: {' '.join(str(error).split())[:200]}"
        ) from None
    finally:
        encoder.train(mode)


def _weight_file(path: str) -> Path:
    if not Path(path).is_file():
        raise ValueError(f"model.seg.pretrained: no weight file at {path}")
    return Path(path)


def _encoder_error(name: str, pretrained: bool | str, error: Exception) -> str:
    reason = " ".join(str(error).split())[:200]
    if pretrained is True:
        return (
            f"model.seg.pretrained=true: the weights of {name} could not be downloaded ({reason}); "
            "give a local weight file (model.seg.pretrained=FILE.safetensors) or train from scratch (=false)"
        )
    return f"encoder {name} cannot be used as it was asked for: {reason}"
