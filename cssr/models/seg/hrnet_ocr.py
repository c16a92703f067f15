"""HRNet with object-contextual representations (OCR); on HRNet-W48 one of CSBSR's segmentation networks.

Wang et al., "Deep High-Resolution Representation Learning for Visual Recognition", PAMI 2021; Yuan et al.,
"Object-Contextual Representations for Semantic Segmentation", ECCV 2020.

OCR's attention says how much each pixel is made of each class of object. The crack is the only class here, so the share
is 1 at every pixel: the published layers that compute it, of pixels and of objects, change nothing and learn nothing,
and are left out. As published, the encoder's branches are enlarged bilinearly, where timm repeats pixels.

Without pretrained weights the encoder starts as timm's do (Kaiming-normal, fan out), where the published one always
starts from ImageNet weights. All other layers start as PyTorch's do, as published.
"""

from collections.abc import Sequence

import timm
import torch
import torch.nn.functional as F
from einops import reduce, repeat
from timm.models import load_state_dict
from torch import Tensor, nn

from cssr.config.registry import Count, Share, did_you_mean
from cssr.models.encoders import EncoderDecoder, timm_encoder
from cssr.models.seg import SEG

_USUAL = ("hrnet_w18_small", "hrnet_w18", "hrnet_w32", "hrnet_w48")  # what an error message offers
_BRANCHES = {"feature_location": "", "out_indices": (1, 2, 3, 4)}  # no stem, no layers of the classifier


class ObjectContext(nn.Module):
    """Features (B C h w) joined, at every pixel, with what the crack of their image looks like: B C h w again.

    The crack's look is the mean of the features, weighted by the softmax over pixels of coarse logits (B 1 h w).
    """

    def __init__(self, channels: int, hidden: int, dropout: float):
        super().__init__()
        self.down = _conv_bn_relu(channels, hidden, 1)
        self.up = _conv_bn_relu(hidden, channels, 1)
        self.merge = _conv_bn_relu(2 * channels, channels, 1).append(nn.Dropout2d(dropout))

    def forward(self, x: Tensor, logits: Tensor) -> Tensor:
        self._check_batch(x.shape[0])  # exports: `len` would fix the number of images
        share = logits.float().flatten(2).softmax(2).view_as(logits)  # B 1 h w, sums to 1 over the pixels
        crack = reduce(x * share, "b c h w -> b c 1 1", "sum").to(x.dtype)  # summed in float32
        # A full-size map all the same: BatchNorm's running variance depends on how many values there are.
        context = self.up(repeat(self.down(crack), "b c 1 1 -> b c h w", h=x.shape[-2], w=x.shape[-1]))
        return self.merge(torch.cat((context, x), 1))

    def _check_batch(self, images: int) -> None:
        norm = self.down[1]
        if norm.training and images < 2 and isinstance(norm, nn.BatchNorm2d):  # not one that is synchronised
            raise ValueError(
                "segmentation network 'hrnet_ocr': training needs 2 images or more in a forward pass (BatchNorm takes "
                f"its statistics of one value per image), got {images}; set train.micro_batch accordingly"
            )


class HRNetOCR(EncoderDecoder):
    """Four branches at a fourth to a 32nd of the size, joined; coarse logits (`aux`) say where the context is taken."""

    def __init__(self, encoder: nn.Module, width: int, hidden: int, dropout: float):
        super().__init__()
        channels, (largest, *_, smallest) = sum(encoder.feature_info.channels()), encoder.feature_info.reduction()
        self.stride = smallest
        self.encoder = encoder
        self.aux = _conv_bn_relu(channels, channels, 3).append(nn.Conv2d(channels, 1, 1))
        self.squeeze = _conv_bn_relu(channels, width, 3)
        self.context = ObjectContext(width, hidden, dropout)
        self.enlarge = nn.Upsample(scale_factor=largest, mode="bilinear", align_corners=True)
        self.head = nn.Sequential(nn.Conv2d(width, 1, 1), self.enlarge)

    def decode(self, maps: Sequence[Tensor], size: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Features for `head` (B width H/4 W/4) and auxiliary logits (B 1 H W)."""
        first, *others = maps
        same_size = (F.interpolate(other, first.shape[-2:], mode="bilinear", align_corners=True) for other in others)
        joined = torch.cat((first, *same_size), 1)
        coarse = self.aux(joined)
        return self.context(self.squeeze(joined), coarse), self.enlarge(coarse)


def _conv_bn_relu(inputs: int, outputs: int, size: int) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, size, padding=size // 2)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


@SEG.register
def hrnet_ocr(
    encoder: str = "hrnet_w48",
    pretrained: bool | str = False,
    width: Count = 512,
    hidden: Count = 256,
    dropout: Share = 0.05,
) -> HRNetOCR:
    """HRNet with OCR: x (B 3 H W, H and W multiples of 32) -> crack logits and auxiliary logits (B 1 H W each).

    Training needs 2 images or more in a forward pass, and the context learns from how they differ: with few, little.

    Args:
        encoder: an HRNet of timm, `hrnet_w18_small` to `hrnet_w64`; a tag chooses the pretrained weights.
        pretrained: its weights: from the hub (True; the published network starts from these), a local file (path), or
            none (False).
        width: channels of the features that the head sees.
        hidden: channels of the context before it joins the features.
        dropout: share of whole channels of the features dropped.
    Raises:
        ValueError: one line: an encoder that is no HRNet, weights that do not fit, a width, hidden or dropout out of
            range; in training, a forward pass of one image.
    """
    _check(encoder, width, hidden, dropout)
    net = _published_fusion(timm_encoder(encoder, None, pretrained, _BRANCHES))
    if isinstance(pretrained, str):
        # timm itself would leave those that are missing as drawn
        weights = load_state_dict(pretrained)
        missing = [key for key, _ in net.named_parameters() if key not in weights]
        if missing:
            raise ValueError(
                f"model.seg.pretrained: {pretrained} lacks {len(missing)} weights of {encoder}, {missing[0]} the first"
            )
    return HRNetOCR(net, width, hidden, dropout)


def _check(encoder: str, width: int, hidden: int, dropout: float) -> None:
    where = "segmentation network 'hrnet_ocr':"
    if encoder.split(".")[0] not in timm.list_models(module="hrnet"):
        raise ValueError(f"{where} encoder must be an HRNet of timm, got {encoder!r}{did_you_mean(encoder, _USUAL)}")
    if min(width, hidden) < 1:
        raise ValueError(f"{where} width and hidden must be at least 1, got width={width}, hidden={hidden}")
    if not isinstance(dropout, (int, float)) or not 0 <= dropout < 1:
        raise ValueError(f"{where} dropout must be a number in [0, 1), got {dropout!r}")


def _published_fusion(encoder: nn.Module) -> nn.Module:
    """Bilinear enlargement, corners aligned, wherever a smaller branch is added to a larger one."""
    for layer in encoder.modules():
        if isinstance(layer, nn.Upsample):
            layer.mode, layer.align_corners = "bilinear", True
    return encoder
