"""Every architecture of segmentation_models_pytorch, on any of its encoders (`tu-NAME` for timm's)."""

from typing import Any

from torch import Tensor, nn

from cssr.models.seg import SEG


class SMP(nn.Module):
    """A segmentation_models_pytorch model behind our contract: its own head comes out of it, and does nothing there."""

    def __init__(self, model: nn.Module, stride: int):
        super().__init__()
        self.model, self.stride = model, stride
        self.head, model.segmentation_head = model.segmentation_head, nn.Identity()

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (self.head(*self.features(x)),)

    def features(self, x: Tensor) -> tuple[Tensor]:
        """Features for `head` (B C h w), at the decoder's resolution, of the image x (B 3 H W)."""
        return (self.model(x),)


@SEG.register
def smp(architecture: str = "unet", encoder: str = "resnet34", pretrained: bool | str = False, **arguments: Any) -> SMP:
    """A model of segmentation_models_pytorch (an optional extra: `pip install cssr[smp]`).

    Args:
        architecture: unet, unetplusplus, fpn, pspnet, deeplabv3plus, linknet, manet, pan, upernet, segformer, dpt, ...
        encoder: one of the library's encoders, or `tu-` and a timm model's name.
        pretrained: True for the encoder's ImageNet weights, or the name of others that the library knows.
        arguments: further ones of the architecture, e.g. `decoder_channels`.
    """
    try:
        import segmentation_models_pytorch as library
    except ImportError:
        raise ValueError("model.seg=smp needs segmentation_models_pytorch: pip install 'cssr[smp]'") from None
    weights = "imagenet" if pretrained is True else pretrained or None
    try:
        model = library.create_model(
            architecture, encoder, encoder_weights=weights, in_channels=3, classes=1, **arguments
        )
    except (KeyError, TypeError, ValueError, RuntimeError, OSError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(
            f"model.seg: segmentation_models_pytorch refuses architecture={architecture}, encoder={encoder}, "
            f"pretrained={pretrained}: {reason}"
        ) from error
    return SMP(model, max(32, getattr(model.encoder, "output_stride", 32)))
