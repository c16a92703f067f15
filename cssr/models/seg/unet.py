"""U-Net on a timm encoder; with VGG16 and pixel shuffle it is CSSR's segmentation network."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from cssr.config.registry import Count
from cssr.models.blocks import conv_relu
from cssr.models.encoders import EncoderDecoder, check_pyramid, timm_encoder
from cssr.models.seg import SEG

Upsample = Literal["pixel_shuffle", "deconv", "bilinear"]


def _deconv(inputs: int, outputs: int) -> nn.Sequential:
    middle = outputs * 4
    return nn.Sequential(conv_relu(inputs, middle), nn.ConvTranspose2d(middle, outputs, 4, 2, 1), nn.ReLU(inplace=True))


def _bilinear(inputs: int, outputs: int) -> nn.Sequential:
    enlarge = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)
    return nn.Sequential(enlarge, conv_relu(inputs, outputs * 4), conv_relu(outputs * 4, outputs))


_UPSAMPLE: dict[str, Callable[[int, int], nn.Sequential]] = {
    "pixel_shuffle": lambda inputs, outputs: nn.Sequential(
        conv_relu(inputs, outputs * 4), nn.PixelShuffle(2), nn.ReLU(inplace=True)
    ),
    "deconv": _deconv,
    "bilinear": _bilinear,
}


class UNet(EncoderDecoder):
    """Decoder from the deepest features upwards: double the size, append the encoder's features, until full size."""

    def __init__(self, encoder: nn.Module, width: int, upsample: str):
        super().__init__()
        self.encoder = encoder
        skips = dict(zip(encoder.feature_info.reduction(), encoder.feature_info.channels()))
        self.stride = max(skips)
        channels, reduction = skips[self.stride], self.stride
        self.decoder = nn.ModuleList()
        while reduction > 1:
            reduction //= 2
            outputs = width * min(2 * reduction, 8)
            self.decoder.append(_UPSAMPLE[upsample](channels, outputs))
            channels = outputs + skips.get(reduction, 0)
        self.head = nn.Sequential(conv_relu(channels, width), nn.Conv2d(width, 1, 1))

    def decode(self, maps: Sequence[Tensor], size: Sequence[int]) -> tuple[Tensor]:
        """Features for `head` (B C H W)."""
        features = dict(zip(self.encoder.feature_info.reduction(), maps))
        reduction = self.stride
        x = features[reduction]
        for block in self.decoder:
            reduction //= 2
            x = block(x)
            x = torch.cat((x, features[reduction]), 1) if reduction in features else x
        return (x,)


@SEG.register
def unet(
    encoder: str = "vgg16",
    depth: Count | None = None,
    width: Count = 32,
    upsample: Upsample = "pixel_shuffle",
    pretrained: bool | str = False,
    encoder_args: dict[str, Any] | None = None,
) -> UNet:
    """U-Net.

    Args:
        encoder: any timm model with `features_only`; `depth` of its feature maps are used (vgg: 5, others: all).
        width: channels at full size; 2, 4, 8 and 8 times as many below, as in CSSR.
        upsample: pixel shuffle (CSSR), transposed convolution, or bilinear.
        encoder_args: further arguments of the timm model, e.g. {norm_layer: groupnorm1}.
    """
    if upsample not in _UPSAMPLE:
        raise ValueError(
            f"segmentation network 'unet': upsample must be one of {', '.join(_UPSAMPLE)}, got {upsample!r}"
        )
    body = timm_encoder(encoder, depth, pretrained, encoder_args or {})
    check_pyramid(body, encoder)
    return UNet(body, width, upsample)
