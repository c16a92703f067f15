"""Dual super-resolution learning (DSRL): one encoder, from which one decoder segments and another super-resolves.

Wang et al., "Dual Super-Resolution Learning for Semantic Segmentation", CVPR 2020, on DeepLabv3+ (Chen et al., ECCV
2018): a dilated ResNet, atrous spatial pyramid pooling, and for each task a decoder that joins the result with the
encoder's shallow features. Training draws the two outputs together by the likeness of their features.

Compared with golden vectors: `upsample="deconv"`, x4, on an image so small that dilations of 2 and more all do the
same. Unverified against the reference by any test, for lack of golden vectors: the values of the dilations,
`upsample="bilinear"`, deconv at x2 and x8 (the reference has no x8), and every other encoder. (Run beside the
reference's code once, in evaluation mode with filled weights: deconv x2 and x4 and bilinear x4 at 320 x 304 and 36 x 52
LQ pixels, and bilinear x3 at the latter, agreed within 2e-6 of the range of SR and of features and 1e-5 of that of the
probabilities; deconv x4 also in training mode without dropout, its gradients within 4e-6.)

Where it differs from the reference on purpose: logits instead of probabilities; encoder weights are fetched only if
`pretrained` says so; sizes that the doublings cannot meet are refused. As in the reference, the encoder takes the LQ
image as it is, without the normalisation of its pretrained weights.
"""

from collections.abc import Sequence
from typing import Any, Literal, get_args

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.segmentation.deeplabv3 import ASPP
from torchvision.ops import Conv2dNormActivation

from cssr.config.registry import did_you_mean
from cssr.models.encoders import timm_encoder

Upsample = Literal["deconv", "bilinear"]

_SHALLOW, _DEEP = 4, 16  # LQ pixels per pixel of the encoder's two feature maps
_NATIVE = 2  # scale of the network under the bilinear enlargement
_USUAL = ("resnet18", "resnet34", "resnet50", "resnet101")  # what an error message offers


class Decoder(nn.Module):
    """DeepLabv3+ decoder: deep (B C h/16 w/16) and shallow features (B D h/4 w/4) -> B outputs h/4 w/4."""

    def __init__(self, shallow: int, width: int, hidden: int, outputs: int, dropout: Sequence[float]):
        super().__init__()
        deep = 16 * width
        self.squeeze = Conv2dNormActivation(shallow, 3 * width, 1)
        self.layers = nn.Sequential(
            Conv2dNormActivation(deep + 3 * width, deep, 3),
            nn.Dropout(dropout[0]),
            Conv2dNormActivation(deep, hidden, 3),
            nn.Dropout(dropout[1]),
            nn.Conv2d(hidden, outputs, 1),
        )

    def forward(self, deep: Tensor, shallow: Tensor) -> Tensor:
        return self.layers(torch.cat((_enlarge(deep, shallow.shape[-2:]), self.squeeze(shallow)), 1))


class Doubling(nn.Module):
    """Transposed convolution to twice the size (B C h w -> B D 2h 2w), then a residual block."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.up = nn.ConvTranspose2d(inputs, outputs, 2, stride=2)
        middle = (nn.Conv2d(outputs, outputs, 3, padding=1), nn.ReLU(inplace=True))
        self.body = nn.Sequential(*middle, nn.Conv2d(outputs, outputs, 3, padding=1))
        self.skip = nn.Conv2d(outputs, outputs, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(x)
        return self.body(x) + self.skip(x)


class DSRL(nn.Module):
    """DSRL network at its native scale, with bilinear enlargement to `scale` where they differ.

    LQ sides must be multiples of `stride`: the doublings start from a quarter of the LQ size.
    """

    stride = _SHALLOW

    def __init__(
        self, encoder: nn.Module, scale: int, native: int, width: int, rates: Sequence[int], dropout: Sequence[float]
    ):
        super().__init__()
        shallow, deep = encoder.feature_info.channels()
        in_pyramid, *in_decoders = dropout
        self.scale, self.native = scale, native
        self.encoder = encoder
        self.aspp = ASPP(deep, rates, 16 * width)
        self.aspp.project[-1].p = in_pyramid
        self.seg_decoder = Decoder(shallow, width, 16 * width, 1, in_decoders)
        self.sr_decoder = Decoder(shallow, width, 8 * width, 4 * width, in_decoders)
        for part in (self.aspp, self.seg_decoder, self.sr_decoder):
            part.apply(_init)
        # The last doubling comes first, so that networks of different scales share the names of what they share.
        self.doublings = nn.ModuleList(
            Doubling(width * min(4, 2 ** (n + 1)), width * min(4, 2**n))
            for n in range((_SHALLOW * native).bit_length() - 1)
        )
        self.tail = nn.Conv2d(width, 3, 1)
        self.pointwise = Conv2dNormActivation(1, 3, 1, bias=True)

    def forward(self, lq: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
        """SR image, crack logits, and the features of segmentation and of SR.

        Args:
            lq: B 3 h w float, about 0..1; h and w multiples of `stride`.
        Returns:
            sr (B 3 H W, unclipped), logits (B 1 H W float32), and two features of B 3 h*native w*native: the
            probabilities in three learned channels, and the SR image itself, both before any bilinear enlargement.
        Raises: ValueError, one line, for other sizes, or a single sample in training.
        """
        self._check(lq)
        shallow, deep = self.encoder(lq)
        deep = self.aspp(deep)
        probs = self._probabilities(self.seg_decoder(deep, shallow), lq)
        sr = self.sr_decoder(deep, shallow)
        for double in reversed(self.doublings):
            sr = double(sr)
        sr = self.tail(sr)
        features = (self.pointwise(probs[:, :1]), sr)
        if self.scale != self.native:
            sr, probs = (_enlarge(x, [self.scale * side for side in lq.shape[-2:]]) for x in (sr, probs))
        crack, rest = probs.log().chunk(2, 1)
        return sr, crack - rest, features

    def _probabilities(self, logits: Tensor, lq: Tensor) -> Tensor:
        """Logits (B 1 h/4 w/4) to probabilities of crack and of no crack (B 2 h*native w*native, float32).

        The published network enlarges probabilities, in two steps. Of both, since 1 - p rounds to 0 beyond logits of
        about 17; the bound of 30 (a probability of 1e-13) keeps both logarithms finite.
        """
        logits = logits.float().clamp(-30, 30)
        probs = _enlarge(torch.cat((logits, -logits), 1).sigmoid(), lq.shape[-2:])
        return _enlarge(probs, [self.native * side for side in lq.shape[-2:]])

    def _check(self, lq: Tensor) -> None:
        height, width = lq.shape[-2:]
        if height % self.stride or width % self.stride:
            raise ValueError(
                f"network 'dsrl': the sides of an LQ image must be multiples of {self.stride}, "
                f"got {height} x {width}; pad it, and crop what comes out"
            )
        pooled_norm = self.aspp.convs[-1][2]  # not of a SyncBatchNorm: it uses all processes' samples
        if pooled_norm.training and len(lq) == 1 and isinstance(pooled_norm, nn.BatchNorm2d):
            raise ValueError(
                "network 'dsrl': training needs at least 2 samples per process, since it normalises the means of whole "
                "images over the samples; got 1: raise the batch size"
            )


def _enlarge(x: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(x, size, mode="bilinear", align_corners=True)


def _init(layer: nn.Module) -> None:
    """Initialise a convolution with Kaiming-normal weights (fan in) and PyTorch's default bias."""
    if isinstance(layer, nn.Conv2d):
        nn.init.kaiming_normal_(layer.weight)


def dsrl(
    scale: int,
    upsample: Upsample = "deconv",
    encoder: str = "resnet101",
    pretrained: bool | str = False,
    width: int = 16,
    rates: Sequence[int] = (6, 12, 18),
    dropout: Sequence[float] = (0.5, 0.5, 0.1),
    encoder_args: dict[str, Any] | None = None,
) -> DSRL:
    """DSRL: lq (B 3 h w) -> sr (B 3 H W), crack logits (B 1 H W), two features; H = scale * h, W = scale * w.

    Args:
        scale: a power of two from 2 with deconv; any whole number from 2 with bilinear.
        upsample: doublings by transposed convolution all the way, or the x2 network with enlarged outputs.
        encoder: a ResNet of timm (its relatives too). A tag chooses the pretrained weights: the published network
            starts from torchvision's, `resnet101.tv_in1k`.
        pretrained: the encoder's weights: from the hub (True), a local file (path), or none (False).
        width: channels of the SR branch at the end; 4 times as many at its start, 8 and 16 times in the decoders.
        rates: dilations of the pyramid's convolutions.
        dropout: share of values dropped after the pyramid, and at the two places in each decoder.
        encoder_args: further arguments of the timm model.
    Raises:
        ValueError: one line: an impossible scale, an encoder that is no ResNet, or a setting out of range.
    """
    _check_scale(scale, upsample)
    _check_rest(encoder, width, rates, dropout)
    # Every block starts with all of its weights at work, as published; timm by itself would start them as identities.
    arguments = {"zero_init_last": False, **(encoder_args or {}), "output_stride": _DEEP, "out_indices": (1, 4)}
    body = _multi_grid(timm_encoder(encoder, None, pretrained, arguments))
    return DSRL(body, scale, scale if upsample == "deconv" else _NATIVE, width, rates, dropout)


def _check_scale(scale: int, upsample: str) -> None:
    if upsample not in get_args(Upsample):
        raise ValueError(f"network 'dsrl': upsample must be one of {', '.join(get_args(Upsample))}, got {upsample!r}")
    if not isinstance(scale, int) or scale < 2:
        raise ValueError(f"network 'dsrl': model.scale must be a whole number from 2, got {scale!r}")
    if upsample == "deconv" and scale.bit_count() != 1:
        raise ValueError(
            f"network 'dsrl': upsample=deconv doubles the size, so model.scale must be 2, 4, 8, ..., got {scale}; "
            "upsample=bilinear takes any scale from 2"
        )


def _check_rest(encoder: str, width: int, rates: Sequence[int], dropout: Sequence[float]) -> None:
    where = "network 'dsrl':"
    if encoder.split(".")[0] not in timm.list_models(module="resnet"):
        raise ValueError(f"{where} encoder must be a ResNet of timm, got {encoder!r}{did_you_mean(encoder, _USUAL)}")
    if width < 1:
        raise ValueError(f"{where} width must be at least 1, got {width}")
    if not isinstance(rates, Sequence) or min(rates, default=1) < 1:
        raise ValueError(f"{where} rates must be a list of numbers from 1, got {rates}")
    if not isinstance(dropout, Sequence) or len(dropout) != 3 or not all(0 <= share < 1 for share in dropout):
        raise ValueError(f"{where} dropout must be three numbers in [0, 1), got {dropout}")


def _multi_grid(encoder: nn.Module) -> nn.Module:
    """Set the dilations of the last stage's blocks to 2, 4, 8, where timm has 1 or 2."""
    for number, block in enumerate(encoder.layer4):
        for layer in block.modules():
            if isinstance(layer, nn.Conv2d) and layer.kernel_size == (3, 3):
                layer.dilation = layer.padding = (2 ** (number + 1),) * 2
    return encoder
