"""Predictors of the blur kernel in KBPN: the first from LQ features, then corrections from each stage's SR image.

A kernel is one vector for the whole image. Where the reference convolves it as a full-size map, these compute the part
near the border and one pixel of the inside, which are all the values that such a map can have.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from cssr.models.blocks import JoinedConv2d, MeanConv2d, constant_map, conv_prelu, mean_where

SLOPE = 0.01  # of PReLU at the start, and of the stage predictors' leaky ReLU


def normalized(kernel: Tensor) -> Tensor:
    """Divide kernels (B 1 k k) by their sums, in float32; a kernel of sum 0 is unchanged."""
    kernel = kernel.float()
    total = kernel.sum((2, 3), keepdim=True)
    return kernel / (total + (total == 0))  # exactly the sum, or 1; a number to choose would be sent to the device


def predicted_or(given: Tensor | None, predict: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """Output of `predict`, or the `given` kernel, which keeps the predictor in the graph, weight 0."""
    if given is None:
        return predict(*inputs)
    return given + 0 * predict(*inputs) if torch.is_grad_enabled() else given


def _conv_leaky(inputs: int, outputs: int, size: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, size, padding=size // 2, bias=False), nn.LeakyReLU(SLOPE))


class Resize(nn.Module):
    """Kernel values as B p*p 1 1 to kernels B 1 k k, bicubic; nothing but the shape changes where k = p."""

    def __init__(self, predicted_size: int, kernel_size: int):
        super().__init__()
        self.predicted_size, self.kernel_size = predicted_size, kernel_size

    def forward(self, values: Tensor) -> Tensor:
        kernel = self.shaped(values)
        if self.predicted_size == self.kernel_size:
            return kernel
        return F.interpolate(kernel, self.kernel_size, mode="bicubic")

    def shaped(self, values: Tensor) -> Tensor:
        return rearrange(values, "b (y x) 1 1 -> b 1 y x", y=self.predicted_size)


class ResizeOrPad(Resize):
    """Each sample's kernel is either enlarged or surrounded by zeros, as a small network decides from its values."""

    def __init__(self, predicted_size: int, kernel_size: int):
        super().__init__(predicted_size, kernel_size)
        hidden = (nn.Linear(predicted_size**2, 8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 8), nn.ReLU())
        self.gate = nn.Sequential(*hidden, nn.Dropout(0.2), nn.Linear(8, 1), nn.Sigmoid())

    def forward(self, values: Tensor) -> Tensor:
        enlarged = super().forward(values)
        padded = F.pad(self.shaped(values), [(self.kernel_size - self.predicted_size) // 2] * 4)
        share = rearrange(self.gate(rearrange(values, "b n 1 1 -> b n")), "b 1 -> b 1 1 1")
        choice = (share >= 0.5).to(share.dtype) + (share - share.detach())  # 0 or 1, with the gradient of the share
        return padded + choice * (enlarged - padded)


class FirstPredictor(nn.Module):
    """LQ features (B C h w) -> the first kernel (B 1 k k, sum 1): the mean over the image of a map of kernel values.

    With `valid` (B 1 h w, 0 or 1), over these pixels of the image.
    """

    def __init__(self, width: int, predicted_size: int, kernel_size: int):
        super().__init__()
        outputs = (width, width, predicted_size**2)
        self.layers = nn.Sequential(*(conv_prelu(width, n, 3, padding=1, bias=False, slope=SLOPE) for n in outputs))
        self.resize = Resize(predicted_size, kernel_size)

    def forward(self, features: Tensor, valid: Tensor | None = None) -> Tensor:
        return normalized(self.resize(mean_where(self.layers(features), valid)))


class StagePredictor(nn.Module):
    """SR image of a stage (B 3 H W) and the kernel before it (B 1 k k) -> the corrected kernel, sum 1.

    The correction is the mean over the image, or its `valid` pixels (B 1 H W), of a map of kernel values.
    """

    def __init__(self, hidden: int, predicted_size: int, kernel_size: int, zero_pad: bool):
        super().__init__()
        values = predicted_size**2
        self.of_image = nn.Sequential(
            nn.Sequential(nn.Conv2d(3, values, 3, padding=1, bias=False), nn.ReLU()),
            _conv_leaky(values, hidden, 1),
            *(_conv_leaky(hidden, n, 3) for n in (hidden, hidden, values)),
        )
        self.of_kernel = nn.Sequential(_conv_leaky(kernel_size**2, values, 3), _conv_leaky(values, values, 3))
        self.join = JoinedConv2d(2 * values, hidden, 1, bias=False)
        self.mix = _conv_leaky(hidden, hidden, 3)
        self.delta = MeanConv2d(hidden, values, 3, padding=1, bias=False)
        self.resize = (ResizeOrPad if zero_pad else Resize)(predicted_size, kernel_size)

    def forward(self, sr: Tensor, kernel: Tensor, valid: Tensor | None = None) -> Tensor:
        vector = rearrange(kernel, "b 1 y x -> b (y x) 1 1").to(sr.dtype)
        of_kernel = self.of_kernel(constant_map(vector, sr.shape[-2:], border=2))
        joined = F.leaky_relu(self.join(self.of_image(sr), of_kernel), SLOPE)
        return normalized(kernel + self.resize(self.delta(self.mix(joined), valid)))
