"""Layers shared by several networks."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

exporting = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)  # the former from torch 2.7 on


def conv_prelu(
    inputs: int, outputs: int, size: int, stride: int = 1, padding: int = 0, bias: bool = True, slope: float = 0.25
) -> nn.Sequential:
    """Convolution, then PReLU with one slope, which starts at `slope`."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, size, stride, padding, bias=bias), nn.PReLU(init=slope))


def deconv_prelu(
    inputs: int, outputs: int, size: int, stride: int, padding: int, bias: bool = True, slope: float = 0.25
) -> nn.Sequential:
    """Transposed convolution, then PReLU with one slope, which starts at `slope`."""
    return nn.Sequential(nn.ConvTranspose2d(inputs, outputs, size, stride, padding, bias=bias), nn.PReLU(init=slope))


def conv_relu(inputs: int, outputs: int) -> nn.Sequential:
    """3x3 convolution that keeps the size, then ReLU."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU(inplace=True))


PROJECTION = {2: (6, 2, 2), 4: (8, 4, 2), 8: (12, 8, 2)}  # scale: kernel, stride, padding of a projection's layers


class BackProjection(nn.Module):
    """Up- or down-projection with feedback of the reconstruction error (Haris et al. 2018, eqs. 1-10).

    Args:
        squeeze: from the input channels to the width of the projection.
        there, back, again: to the other resolution, back, and, for the error, to the other resolution.
    """

    def __init__(self, squeeze: nn.Module, there: nn.Module, back: nn.Module, again: nn.Module):
        super().__init__()
        self.squeeze, self.there, self.back, self.again = squeeze, there, back, again

    def forward(self, x: Tensor) -> Tensor:
        x = self.squeeze(x)
        first = self.there(x)
        return first + self.again(self.back(first) - x)


def init_kaiming(module: nn.Module) -> nn.Module:
    """Initialise all convolutions with Kaiming-normal weights (fan in) and zero biases, as published."""
    for layer in module.modules():
        if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.kaiming_normal_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return module


def pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """Pad images (B C H W) by their edge pixels at the right and bottom to multiples of `multiple`.

    In exports, whose control flow is the same for all sizes, it also pads by 0 pixels.
    """
    height, width = x.shape[-2:]
    # No remainders of negative numbers, which ONNX rounds towards 0 in what follows from these sizes.
    pad = [(side + multiple - 1) // multiple * multiple - side for side in (width, height)]
    padded = multiple > 1 and (exporting() or any(pad))
    return F.pad(x, (0, pad[0], 0, pad[1]), mode="replicate") if padded else x


def constant_map(vector: Tensor, size: tuple[int, int], border: int) -> Tensor:
    """Expand vectors (B C 1 1) to a constant map of H x W, cropped to at most 2 `border` + 1 rows and columns.

    Size-preserving convolutions with zero padding and a total reach of at most `border` change a constant map near its
    edges only: `stretch` turns their result on this map into that on the whole H x W map.
    """
    height, width = (min(side, 2 * border + 1) for side in size)
    return vector.expand(-1, -1, height, width)


def stretch(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Enlarge B C h w (odd sides) to B C H W by repeating the middle row and column; sides long enough are kept."""
    for dim, side in zip((2, 3), size):
        middle = x.shape[dim] // 2
        if side > x.shape[dim]:
            before, between, after = x.split((middle, 1, middle), dim)
            shape = [-1] * 4
            shape[dim] = side - 2 * middle
            x = torch.cat((before, between.expand(shape), after), dim)
    return x


class JoinedConv2d(nn.Conv2d):
    """Convolution of `x` (B C H W) concatenated with a `constant_map` (B D h w), which is not expanded to H x W.

    Equal to `nn.Conv2d` of both concatenated, up to rounding. `border` must include the reach of this convolution.
    """

    def forward(self, x: Tensor, constant: Tensor) -> Tensor:
        x_weight, constant_weight = self.weight.split((x.shape[1], constant.shape[1]), 1)
        offset = F.conv2d(constant, constant_weight, None, self.stride, self.padding)
        return F.conv2d(x, x_weight, self.bias, self.stride, self.padding) + stretch(offset, x.shape[-2:])


class JoinedBranch(nn.Module):
    """Two convolutions of features (B C h w) concatenated with a vector (B D 1 1) at every pixel: B C h w."""

    def __init__(self, channels: int, conditions: int, activation: Callable[[], nn.Module]):
        super().__init__()
        self.first = JoinedConv2d(channels + conditions, channels + conditions, 3, padding=1)
        self.act = activation()
        self.second = nn.Conv2d(channels + conditions, channels, 3, padding=1)

    def forward(self, features: Tensor, vector: Tensor) -> Tensor:
        condition = constant_map(vector, features.shape[-2:], border=1)
        return self.second(self.act(self.first(features, condition)))


class VectorBranch(nn.Module):
    """Two convolutions of a vector (B D 1 1) at every pixel: B C h w; of the features only the size is used."""

    def __init__(self, channels: int, conditions: int, activation: Callable[[], nn.Module]):
        super().__init__()
        self.first = nn.Conv2d(conditions, conditions, 3, padding=1)
        self.act = activation()
        self.second = nn.Conv2d(conditions, channels, 3, padding=1)

    def forward(self, features: Tensor, vector: Tensor) -> Tensor:
        size = features.shape[-2:]
        return stretch(self.second(self.act(self.first(constant_map(vector, size, border=2)))), size)


_LEAKY = partial(nn.LeakyReLU, 0.1)


class Modulation(nn.Module):
    """Spatial feature transform (SFT): scale and shift features (B C h w) depending on a kernel (B 1 k k).

    Wang et al., "Recovering Realistic Texture in Image Super-resolution by Deep Spatial Feature Transform", CVPR 2018.

    Args:
        channels: of the features. conditions: number of kernel values, k * k.
        branch: network of the scale (before its sigmoid) and of the shift: `JoinedBranch` or `VectorBranch`.
        activation: factory of the activation between the two convolutions of a branch.
    """

    def __init__(
        self,
        channels: int,
        conditions: int,
        branch: type[nn.Module] = JoinedBranch,
        activation: Callable[[], nn.Module] = _LEAKY,
    ):
        super().__init__()
        self.scale, self.shift = (branch(channels, conditions, activation) for _ in range(2))

    def forward(self, features: Tensor, kernel: Tensor) -> Tensor:
        vector = rearrange(kernel, "b 1 y x -> b (y x) 1 1").to(features.dtype)
        return features * self.scale(features, vector).sigmoid() + self.shift(features, vector)


def mean_where(x: Tensor, valid: Tensor | None) -> Tensor:
    """Spatial mean (B C 1 1) of B C H W over the pixels where `valid` (B 1 H W) is 1; None: over all."""
    if valid is None:
        return x.mean((2, 3), keepdim=True)
    valid = valid.to(x.dtype)
    return (x * valid).sum((2, 3), keepdim=True) / valid.sum((2, 3), keepdim=True).clamp(min=1)


class MeanConv2d(nn.Conv2d):
    """Spatial mean (B C 1 1) of a size-preserving 3x3 convolution, computed from nine sums instead of the whole map.

    With `valid` (B 1 H W, 0 or 1) it is the mean over those pixels, of the whole map.
    """

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        if valid is not None:
            return mean_where(F.conv2d(x, self.weight, self.bias, padding=1), valid)
        sums = _tap_sums(_tap_sums(x, 2), 3)  # B C 3 3: input sum under each tap of the kernel
        return F.conv2d(sums / (x.shape[2] * x.shape[3]), self.weight, self.bias)


def _tap_sums(x: Tensor, dim: int) -> Tensor:
    total = x.sum(dim, keepdim=True)
    return torch.cat((total - x.narrow(dim, -1, 1), total, total - x.narrow(dim, 0, 1)), dim)
