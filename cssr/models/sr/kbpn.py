"""Kernelised back-projection network (KBPN; Yoshida et al.), the SR network of CSBSR: it predicts the blur it undoes.

Each stage enlarges the features, draws an SR image from them, corrects the blur kernel by what that image shows, blurs
and reduces the image by the kernel as the camera is thought to have done, and feeds back where the result differs from
the LQ image. The kernel also modulates the LQ features (SFT).

Compared with golden vectors: x4, 4 stages, deconvolution, LQ error added to the HR features, SFT, residual, predicted
kernels of 7 (enlarged to 21) and 21, predicted or given. Unverified against the reference by any test, for lack of
golden vectors: x2 and x8, other numbers of stages, `upsample="pixel_shuffle"`, `error_space="lq"`, `sft=False`,
`residual=False`, `zero_pad_kernel=True` and other kernel sizes. (Run beside the reference's code once, in evaluation
mode with filled weights, each agreed within 2e-5 of the largest SR value.)

Where it differs from the reference on purpose: a given kernel leaves the predictors in the graph, with weight 0; the
choice of `zero_pad_kernel` gets a gradient (the reference's stays as it was drawn); in `error_space="lq"` the last
stage has no error features, which nothing would read; kernel values that sum to exactly 0 (a black image before
training) stay 0 instead of becoming NaN.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from cssr.config.registry import Count, KernelSide
from cssr.models.blocks import (
    PROJECTION,
    BackProjection,
    Modulation,
    conv_prelu,
    conv_relu,
    deconv_prelu,
    exporting,
    init_kaiming,
)
from cssr.models.sr import SR
from cssr.models.sr.kernel_predictors import SLOPE, FirstPredictor, StagePredictor, normalized, predicted_or

Upsample = Literal["deconv", "pixel_shuffle"]
ErrorSpace = Literal["hr", "lq"]
Residual = Literal["stages"] | bool


def blur_and_reduce(image: Tensor, kernel: Tensor, scale: int) -> Tensor:
    """Correlate each image (B C H W) with its kernel (B 1 k k, k odd) at every `scale`-th pixel, zeros outside."""
    weight = kernel.to(image.dtype)
    if exporting():
        return _blur_patches(image, weight, scale)
    folded = rearrange(image, "b c h w -> c b h w")  # the samples are the groups
    blurred = F.conv2d(folded, weight, stride=scale, padding=kernel.shape[-1] // 2, groups=len(kernel))
    return rearrange(blurred, "c b h w -> b c h w")


def _blur_patches(image: Tensor, kernel: Tensor, scale: int) -> Tensor:
    """`blur_and_reduce` by patches, for exports: the groups of a convolution are a fixed number there.

    A convolution by unit kernels gives each reduced pixel the k*k pixels around it.
    """
    batch, side = image.shape[0], kernel.shape[-1]  # `len` would fix the number of images
    units = rearrange(torch.eye(side * side, dtype=image.dtype, device=image.device), "n (y x) -> n 1 y x", y=side)
    patches = F.conv2d(rearrange(image, "b c h w -> (b c) 1 h w"), units, stride=scale, padding=side // 2)
    patches = rearrange(patches, "(b c) n h w -> b c n h w", b=batch)
    return (patches * rearrange(kernel, "b 1 y x -> b 1 (y x) 1 1")).sum(2)


class Layers:
    """Factory of the layers between the two resolutions."""

    def __init__(self, scale: int, width: int, upsample: Upsample):
        self.scale, self.width, self.upsample = scale, width, upsample

    def enlarge(self, inputs: int) -> nn.Sequential:
        """Enlarging layers: B inputs h w -> B width H W."""
        if self.upsample == "deconv":
            return deconv_prelu(inputs, self.width, *PROJECTION[self.scale], bias=False, slope=SLOPE)
        shuffled = conv_prelu(inputs, self.width * self.scale**2, 3, padding=1, bias=False, slope=SLOPE)
        return shuffled.append(nn.PixelShuffle(self.scale))

    def projection(self, inputs: int, up: bool) -> BackProjection:
        """Projection from `inputs * width` channels to `width` at the other resolution."""
        there, back = (self.enlarge, self.reduce) if up else (self.reduce, self.enlarge)
        squeeze = conv_prelu(inputs * self.width, self.width, 1, slope=SLOPE)
        return BackProjection(squeeze, there(self.width), back(self.width), there(self.width))

    def reduce(self, inputs: int) -> nn.Sequential:
        """Reducing layers: B inputs H W -> B width h w."""
        return conv_prelu(inputs, self.width, *PROJECTION[self.scale], bias=False, slope=SLOPE)


class Stage(nn.Module):
    """One stage: LQ features (B C h w) -> HR features (B width H W), corrected kernel, LQ error (B 3 h w)."""

    def __init__(self, layers: Layers, number: int, predictor: StagePredictor, error_space: ErrorSpace):
        super().__init__()
        self.scale = layers.scale
        self.up = layers.projection(max(number - 1, 1), up=True)
        self.image = nn.Conv2d(number * layers.width, 3, 3, padding=1, bias=False)
        self.predictor = predictor
        self.error = layers.enlarge(3) if error_space == "hr" else None

    def forward(
        self,
        low: Tensor,
        highs: tuple[Tensor, ...],
        lq: Tensor,
        kernel: Tensor,
        given: Tensor | None,
        enlarged: Tensor | None,
        valid: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        high = self.up(low)
        sr = self.image(torch.cat((*highs, high), 1))
        sr = sr if enlarged is None else sr + enlarged
        kernel = predicted_or(given, self.predictor, sr, kernel, valid)
        error = blur_and_reduce(sr, kernel, self.scale) - lq
        return (high if self.error is None else high + self.error(error)), kernel, error


class Back(nn.Module):
    """Down-projection between stages: all HR features -> new LQ features, and all LQ features, modulated.

    Args:
        kernel_size: side of the kernel that modulates them; 0 leaves them as they are.
    """

    def __init__(self, layers: Layers, number: int, kernel_size: int, error_space: ErrorSpace):
        super().__init__()
        self.down = layers.projection(number, up=False)
        self.error = nn.Conv2d(3, layers.width, 3, padding=1, bias=False) if error_space == "lq" else None
        self.sft = Modulation(number * layers.width, kernel_size**2) if kernel_size else None

    def forward(
        self, highs: tuple[Tensor, ...], lows: tuple[Tensor, ...], error: Tensor, kernel: Tensor
    ) -> tuple[Tensor, Tensor]:
        """New LQ features, and all of them concatenated, modulated (SFT) by the kernel where there is one."""
        new = self.down(torch.cat(highs, 1))
        new = new if self.error is None else new + self.error(error)
        low = torch.cat((*lows, new), 1)
        return new, low if self.sft is None else self.sft(low, kernel)


class KBPN(nn.Module):
    """Stages of back-projection; each takes all earlier LQ features, the SR image all HR features."""

    predicts_kernel = True
    takes_valid = True

    def __init__(
        self, head: nn.Module, predictor: FirstPredictor, stages: list[Stage], backs: list[Back], residual: Residual
    ):
        super().__init__()
        self.head, self.predictor = head, predictor
        self.stages, self.backs = nn.ModuleList(stages), nn.ModuleList(backs)
        self.tail = nn.Conv2d(stages[-1].image.in_channels, 3, 3, padding=1, bias=False)
        self.scale, self.residual = stages[0].scale, residual
        self.kernel_size = predictor.resize.kernel_size
        init_kaiming(self)
        if residual == "stages":  # every image starts as the bicubic enlargement
            for convolution in (self.tail, *(stage.image for stage in stages)):
                nn.init.zeros_(convolution.weight)

    @property
    def recomputed(self) -> tuple[nn.Module, ...]:
        """Blocks to recompute in the backward pass under `train.recompute`."""
        return self.head, self.predictor, *self.stages, *self.backs

    def forward(self, lq: Tensor, kernel: Tensor | None = None, valid: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """SR image and kernel (B 1 k k float32, sum 1).

        Args:
            lq: B 3 h w, about 0..1.
            kernel: B 1 k k, instead of the predicted ones; divided by its sum.
            valid: B 1 H W, 1 on the pixels from which a kernel is predicted; None: all.
        Raises: ValueError for a given kernel of another shape.
        """
        given = None if kernel is None else self._checked(kernel, len(lq))
        low = self.head(lq)
        low_valid = None if valid is None else (F.avg_pool2d(valid.float(), self.scale) >= 0.5).float()
        kernel = predicted_or(given, self.predictor, low, low_valid)
        highs: tuple[Tensor, ...] = ()  # not lists: a block that is recomputed must find what it was given
        lows: tuple[Tensor, ...] = ()
        enlarged = F.interpolate(lq, scale_factor=self.scale, mode="bicubic") if self.residual else None
        stage_enlarged = enlarged if self.residual == "stages" else None
        for stage, back in zip(self.stages, (*self.backs, None)):
            high, kernel, error = stage(low, highs, lq, kernel, given, stage_enlarged, valid)
            highs = (*highs, high)
            if back is not None:
                new, low = back(highs, lows, error, kernel)
                lows = (*lows, new)
        sr = self.tail(torch.cat(highs, 1)) + 0 * error.mean()  # the last error is in the graph in any space
        return (sr if enlarged is None else sr + enlarged), kernel

    def _checked(self, kernel: Tensor, batch: int) -> Tensor:
        expected = (batch, 1, self.kernel_size, self.kernel_size)
        if kernel.shape != expected:
            raise ValueError(
                f"SR network 'kbpn': a given kernel must be {list(expected)}, got {list(kernel.shape)}; "
                "set model.sr.kernel_size to the degradation's size"
            )
        return normalized(kernel)


@SR.register
def kbpn(
    scale: int,
    stages: Count = 4,
    width: Count = 128,
    features: Count = 64,
    hidden: Count = 32,
    kernel_size: KernelSide = 21,
    predicted_size: KernelSide = 7,
    sft: bool = True,
    residual: Residual = True,
    zero_pad_kernel: bool = False,
    upsample: Upsample = "deconv",
    error_space: ErrorSpace = "hr",
) -> KBPN:
    """KBPN for scale 2, 4 or 8; the defaults are those of CSBSR.

    Args:
        stages: back-projections, at least 1. width: channels of a projection. features: of the first convolutions.
        hidden: channels inside a stage's kernel predictor.
        kernel_size: side of the kernel that is used, given and returned, HR pixels, odd.
        predicted_size: side of the kernel that is predicted and then resized, bicubic, to `kernel_size`.
        sft: whether the kernel modulates the LQ features.
        residual: whether the network adds to the bicubic enlargement. "stages": each stage's own image does too, and
            all start as that (ours, for narrow networks: their features need not carry the whole image then).
        zero_pad_kernel: whether a stage may surround its correction of the kernel by zeros instead of enlarging it.
        upsample: transposed convolution, or convolution and pixel shuffle.
        error_space: whether the LQ error is added to the HR features (enlarged) or to the next LQ features.
    Raises: ValueError for settings that do not go together.
    """
    if scale not in PROJECTION:
        raise ValueError(
            f"SR network 'kbpn': model.scale must be one of {', '.join(map(str, PROJECTION))}, got {scale}"
        )
    _check_kernel(kernel_size, predicted_size, zero_pad_kernel)
    layers = Layers(scale, width, upsample)
    channels = (3, features, features, width, width)
    head = nn.Sequential(*(conv_relu(*pair) for pair in zip(channels, channels[1:])))
    first = FirstPredictor(width, predicted_size, kernel_size)
    predictors = [StagePredictor(hidden, predicted_size, kernel_size, zero_pad_kernel) for _ in range(stages)]
    ups = [Stage(layers, number, predictor, error_space) for number, predictor in enumerate(predictors, 1)]
    backs = [Back(layers, number, kernel_size if sft else 0, error_space) for number in range(1, stages)]
    return KBPN(head, first, ups, backs, residual)


def _check_kernel(kernel_size: int, predicted_size: int, zero_pad: bool) -> None:
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(f"SR network 'kbpn': kernel_size must be odd, got {kernel_size}; its centre is a pixel")
    if zero_pad and (predicted_size >= kernel_size or predicted_size % 2 == 0):
        raise ValueError(
            f"SR network 'kbpn': zero_pad_kernel needs an odd predicted_size below kernel_size ({kernel_size}), "
            f"got {predicted_size}; change it or leave zero_pad_kernel out"
        )
