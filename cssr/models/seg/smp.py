"""Every architecture of segmentation_models_pytorch, on any of its encoders (`tu-NAME` for timm's)."""

import inspect
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from cssr.config.registry import did_you_mean
from cssr.models.encoders import PACKAGE, EncoderDecoder, load_encoder
from cssr.models.seg import SEG
from cssr.models.shipped import is_shipped


class SMP(EncoderDecoder):
    """A segmentation_models_pytorch model with our interface: its head is taken out, an identity in its place."""

    def __init__(self, model: nn.Module, stride: int):
        super().__init__()
        self.model, self.stride = model, stride
        self.head, model.segmentation_head = model.segmentation_head, nn.Identity()

    @property
    def encoder(self) -> nn.Module:
        """The library's encoder; its parameters keep that name."""
        return self.model.encoder

    def decode(self, maps: Sequence[Any], size: Sequence[int]) -> tuple[Tensor]:
        """Features for `head` (B C h w), at the decoder's resolution."""
        with_tokens = isinstance(maps[0], (list, tuple))  # dpt: maps, and the tokens that are no part of the image
        return (self.model.decoder(*maps) if with_tokens else self.model.decoder(list(maps)),)


@SEG.register
def smp(architecture: str = "unet", encoder: str = "resnet34", pretrained: bool | str = False, **arguments: Any) -> SMP:
    """A model of segmentation_models_pytorch (an optional extra: `pip install cssr[smp]`).

    Args:
        architecture: unet, unetplusplus, fpn, pspnet, deeplabv3plus, linknet, manet, pan, upernet, segformer, dpt, ...
        encoder: one of the library's encoders, or `tu-` and a timm model's name.
        pretrained: True for the encoder's ImageNet weights (downloaded), "package" for those of an installed package,
            the path of a local file, or the name of other weights that the library knows.
        arguments: further ones of the architecture, e.g. `decoder_channels`.
    """
    try:
        import segmentation_models_pytorch as library
    except ImportError:
        raise ValueError("model.seg=smp needs segmentation_models_pytorch: pip install 'cssr[smp]'") from None
    _check_names(library, architecture, encoder, arguments)
    local = pretrained == PACKAGE or is_shipped(pretrained) or (isinstance(pretrained, str) and _is_path(pretrained))
    weights = "imagenet" if pretrained is True else None if local else pretrained or None
    try:
        model = library.create_model(
            architecture, encoder, encoder_weights=weights, in_channels=3, classes=1, **arguments
        )
    except Exception as error:  # the library and the encoders' libraries refuse settings in every way
        settings = {"architecture": architecture, "encoder": encoder, "pretrained": pretrained, **arguments}
        listed = ", ".join(f"{name}={value}" for name, value in settings.items())
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise ValueError(
            f"model.seg: segmentation_models_pytorch refuses {listed}: {reason} (unet and fpn take most encoders, dpt "
            "vision transformers, with dynamic_img_size: true)"
        ) from error
    if local:
        load_encoder(getattr(model.encoder, "model", model.encoder), encoder.removeprefix("tu-"), pretrained)
    return SMP(model, max(32, getattr(model.encoder, "output_stride", 32)))


def _check_names(library: Any, architecture: str, encoder: str, arguments: Mapping[str, Any]) -> None:
    """Refuse an unknown architecture or encoder, and arguments that the library would drop silently.

    Those that an architecture does not take are the encoder's, of which only timm's (`tu-`) are given any.
    """
    known = library.MODEL_ARCHITECTURES_MAPPING
    if architecture.lower() not in known:
        raise ValueError(f"model.seg.architecture: unknown {architecture!r}{did_you_mean(architecture, known)}")
    encoders = library.encoders.get_encoder_names()
    if encoder not in encoders and not encoder.startswith("tu-"):
        close = did_you_mean(encoder, encoders) if get_close_matches(encoder, encoders) else ""
        raise ValueError(f"model.seg.encoder: unknown {encoder!r}{close}; timm's are written tu-{encoder}")
    fixed = {"encoder_name", "encoder_weights", "in_channels", "classes", "kwargs"}
    settable = [name for name in inspect.signature(known[architecture.lower()]).parameters if name not in fixed]
    for name in arguments:
        misspelt = get_close_matches(name, settable, cutoff=0.8) or not encoder.startswith("tu-")
        if name in fixed or (name not in settable and misspelt):
            raise ValueError(f"model.seg: {architecture} does not take {name!r}{did_you_mean(name, settable)}")


def _is_path(pretrained: str) -> bool:
    """True for a file path, not a name of weights in the library (imagenet, instagram, ...)."""
    return Path(pretrained).suffix in (".safetensors", ".pth", ".pt", ".bin") or "/" in pretrained
