"""PSPNet on a dilated timm ResNet, with an auxiliary head; on ResNet-34 it is CSBSR's segmentation network.

Zhao et al., "Pyramid Scene Parsing Network", CVPR 2017.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cssr.config.registry import Count, Share, did_you_mean
from cssr.models.encoders import EncoderDecoder, timm_encoder
from cssr.models.seg import SEG

_STRIDE = 8  # of the dilated encoder; the decoder doubles the size three times
_WHERE = "segmentation network 'pspnet':"
_USUAL = ("resnet18", "resnet34", "resnet50", "resnet101", "tf_efficientnet_lite0")  # what an error message offers


class PyramidPooling(nn.Module):
    """Means over grids of several sizes, each behind its own 1x1 convolution, beside the features themselves."""

    def __init__(self, channels: int, outputs: int, sizes: Sequence[int]):
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(size), nn.Conv2d(channels, channels, 1, bias=False)) for size in sizes
        )
        self.merge = nn.Sequential(nn.Conv2d(channels * (len(sizes) + 1), outputs, 1), nn.ReLU(inplace=True))

    def forward(self, x: Tensor) -> Tensor:
        means = [F.interpolate(branch(x), x.shape[-2:], mode="bilinear") for branch in self.branches]
        return self.merge(torch.cat((*means, x), 1))


class PSPNet(EncoderDecoder):
    """Pyramid pooling of the deepest features, then three doublings of the size; the last stage but one feeds `aux`."""

    stride = _STRIDE

    def __init__(self, encoder: nn.Module, sizes: Sequence[int], width: int, dropout: Sequence[float]):
        super().__init__()
        *_, shallow, deep = encoder.feature_info.channels()
        after_pooling, after_doubling, in_aux = dropout
        self.encoder = encoder
        self.pyramid = PyramidPooling(deep, 16 * width, sizes)
        self.drop = nn.Dropout2d(after_pooling)
        widths = (16 * width, 4 * width, width, width)
        self.decoder = nn.Sequential(*(_double(*channels, after_doubling) for channels in pairwise(widths)))
        self.head = nn.Conv2d(width, 1, 1)
        self.aux = _aux_head(shallow, 4 * width, in_aux)

    def decode(self, maps: Sequence[Tensor], size: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Features for `head` (B width H W) and auxiliary logits (B 1 H W)."""
        *_, shallow, deep = maps  # B C H/8 W/8 each
        return self.decoder(self.drop(self.pyramid(deep))), _enlarge(self.aux(shallow), size)


def _double(inputs: int, outputs: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(
        nn.Upsample(scale_factor=2, mode="bilinear"),
        nn.Conv2d(inputs, outputs, 3, padding=1),
        nn.BatchNorm2d(outputs),
        nn.PReLU(),
        nn.Dropout2d(dropout),
    )


def _aux_head(inputs: int, width: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
        nn.Dropout2d(dropout),
        nn.Conv2d(width, 1, 1),
    )


def _enlarge(logits: Tensor, size: Sequence[int]) -> Tensor:
    """Enlarge probabilities bilinearly and return their logits: the published head enlarges after its sigmoid.

    log p - log(1 - p), each enlarged by itself in float32, since 1 - p rounds to 0 beyond logits of about 17; the bound
    of 30 (a probability of 1e-13) keeps both logarithms finite.
    """
    logits = logits.float().clamp(-30, 30)
    crack, rest = (
        F.interpolate(part.sigmoid(), size, mode="bilinear", align_corners=True) for part in (logits, -logits)
    )
    return crack.log() - rest.log()


@SEG.register
def pspnet(
    encoder: str = "resnet34",
    pretrained: bool | str = False,
    sizes: Sequence[Count] = (1, 2, 3, 6),
    width: Count = 64,
    dropout: Sequence[Share] = (0.3, 0.15, 0.1),
    encoder_args: dict[str, Any] | None = None,
) -> PSPNet:
    """PSPNet: x (B 3 H W, H and W multiples of 8) -> crack logits and auxiliary logits (B 1 H W each).

    Args:
        encoder: a timm model that can keep its deepest two feature maps at an eighth of the size: ResNets and their
            relatives, EfficientNets, MobileNetV3, ... A tag chooses the pretrained weights: the published network
            starts from torchvision's, `resnet34.tv_in1k`.
        sizes: cells along a side of each pooling grid.
        width: channels at full size; 16 and 4 times as many before, 4 times as many in the auxiliary head.
        dropout: share of whole channels dropped after the pyramid, after each doubling, and in the auxiliary head.
        encoder_args: further arguments of the timm model.
    Raises:
        ValueError: one line: an encoder that cannot be dilated, or a size, width or dropout out of range.
    """
    if len(dropout) != 3 or not all(0 <= share < 1 for share in dropout):
        raise ValueError(f"{_WHERE} dropout must be three numbers in [0, 1), got {dropout}")
    arguments = {**(encoder_args or {}), "output_stride": _STRIDE}
    if encoder.split(".")[0] not in timm.list_models(module="resnet"):
        return PSPNet(_dilated(encoder, pretrained, arguments), sizes, width, dropout)
    # Every block starts with all of its weights at work, as published; timm by itself would start them as identities.
    resnet = timm_encoder(encoder, None, pretrained, {"zero_init_last": False, **arguments})
    return PSPNet(_published_dilation(resnet), sizes, width, dropout)


def _dilated(encoder: str, pretrained: bool | str, arguments: dict[str, Any]) -> nn.Module:
    """An encoder that is no ResNet, as timm dilates it."""
    try:
        body = timm_encoder(encoder, None, pretrained, arguments)
    except ValueError as error:
        raise ValueError(f"{_WHERE} {error}{did_you_mean(encoder, _USUAL)}") from None
    strides = body.feature_info.reduction()
    if strides[-2:] != [_STRIDE, _STRIDE]:
        raise ValueError(
            f"{_WHERE} encoder {encoder} gives features at strides {strides}, the last two must be {_STRIDE}: "
            f"take one that can be dilated, as {', '.join(_USUAL)}"
        )
    return body


def _published_dilation(encoder: nn.Module) -> nn.Module:
    """Undo timm's dilation in the first block of the stages that no longer reduce: the published ones have none."""
    for stage in (encoder.layer3, encoder.layer4):
        for layer in stage[0].modules():
            if isinstance(layer, nn.Conv2d) and layer.dilation != (1, 1):
                layer.dilation = (1, 1)
                layer.padding = tuple(side // 2 for side in layer.kernel_size)
    return encoder
