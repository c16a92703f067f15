"""DBPN x4 for inference on a CPU: blocks of 4 x 4 pixels of HR features are kept as channels.

The transposed convolutions of 8 x 8 at stride 4 and their counterparts are then convolutions of 2 x 2 at the size of
the LQ image, equal up to rounding, that fill vector units; over HR pixels they would fill them with few channels only.

Block (j, i) of the (h + 1) x (w + 1) blocks has the HR pixels from row 4 j - 2 and column 4 i - 2 on, as the layers'
padding of 2 has it; pixels outside the image are zero. Channels are ordered (row in the block, column, feature).
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from cssr.models.blocks import BackProjection
from cssr.models.sr.dbpn import DBPN

SCALE = 4
_NHWC = torch.channels_last


class FoldedDBPN(nn.Module):
    """`DBPN` for scale 4 in evaluation: the same input and output (B 3 h w -> B 3 4h 4w, None), no gradient."""

    def __init__(self, network: DBPN):
        super().__init__()
        if network.scale != SCALE:
            raise ValueError(f"a DBPN for scale {SCALE} is needed, got one for {network.scale}")
        self.scale, self.residual, self.head = network.scale, network.residual, network.head
        self.ups, self.downs = (nn.ModuleList(map(_Projection, part)) for part in (network.ups, network.downs))
        width = network.tail.in_channels // len(network.ups)
        weights = (_fixed(_over_blocks(_shifted(part))) for part in network.tail.weight.detach().split(width, 1))
        self.tail = nn.ParameterList(nn.Parameter(weight, requires_grad=False) for weight in weights)
        self.register_buffer("tail_bias", network.tail.bias.detach().repeat_interleave(SCALE**2))

    def forward(self, lq: Tensor, kernel: Tensor | None = None) -> tuple[Tensor, None]:
        x = self.head(lq.contiguous(memory_format=_NHWC))
        highs, low = [self.ups[0].up(x)], None
        for up, down in zip(self.ups[1:], self.downs):
            new = down.down(highs)
            low = new if low is None else torch.cat((new, low), 1)
            highs.insert(0, up.up(low))
        sr = F.conv2d(highs[0], self.tail[0], self.tail_bias)
        for high, weight in zip(highs[1:], self.tail[1:]):
            sr = sr + F.conv2d(high, weight)
        sr = F.pixel_shuffle(sr, SCALE)
        return (sr + F.interpolate(lq, scale_factor=SCALE, mode="bicubic") if self.residual else sr), None


class _Projection(nn.Module):
    """A `BackProjection` between LQ size and blocks."""

    def __init__(self, projection: BackProjection):
        super().__init__()
        self.squeeze = projection.squeeze
        self.there, self.back, self.again = map(_Layer, (projection.there, projection.back, projection.again))

    def up(self, x: Tensor) -> Tensor:
        x = self.squeeze(x)
        first = self.there(x)
        return first.add_(self.again(self.back(first).sub_(x)))

    def down(self, highs: list[Tensor]) -> Tensor:
        x = self._squeezed(highs)
        first = self.there(x)
        return first.add_(self.again(self.back(first).sub_(x)))

    def _squeezed(self, highs: list[Tensor]) -> Tensor:
        """Apply `squeeze` to HR features (blocks) without concatenating them."""
        if isinstance(self.squeeze, nn.Identity):
            return highs[0]
        conv, activation = self.squeeze
        batch, _, rows, columns = highs[0].shape
        pixels = [rearrange(x, "b (p c) h w -> (b h w p) c", p=SCALE**2) for x in highs]
        first, *rest = conv.weight.flatten(1).split(pixels[0].shape[1], 1)
        total = F.linear(pixels[0], first, conv.bias)
        for part, weight in zip(pixels[1:], rest):
            total = total + F.linear(part, weight)
        total = F.leaky_relu(total, activation.weight.item(), inplace=True)
        return _within(rearrange(total, "(b h w p) c -> b (p c) h w", b=batch, h=rows, w=columns))


class _Layer(nn.Module):
    """(Transposed) convolution of 8 x 8, stride 4, padding 2, and PReLU with one slope, to or from blocks."""

    def __init__(self, layer: nn.Sequential):
        super().__init__()
        conv, activation = layer
        self.slope, self.enlarges = activation.weight.item(), isinstance(conv, nn.ConvTranspose2d)
        weight, bias = conv.weight.detach(), conv.bias.detach()
        if self.enlarges:  # pixel p of block j: tap p of LQ pixel j, tap 4 + p of the one before
            weight = rearrange(weight, "i o (a y) (b x) -> (y x o) i a b", y=SCALE, x=SCALE).flip(-2, -1)
            bias = bias.repeat(SCALE**2)
        else:
            weight = _over_blocks(weight)
        self.weight, self.bias = (nn.Parameter(x, requires_grad=False) for x in (_fixed(weight), bias))

    def forward(self, x: Tensor) -> Tensor:
        if not self.enlarges:
            return F.leaky_relu(F.conv2d(x, self.weight, self.bias), self.slope, inplace=True)
        return _within(F.leaky_relu(F.conv2d(x, self.weight, self.bias, padding=1), self.slope, inplace=True))


def _within(x: Tensor) -> Tensor:
    """Set the pixels of blocks that are outside the image to 0, in place."""
    blocks, half = x.unflatten(1, (SCALE, SCALE, -1)), SCALE // 2  # b y x c h w
    blocks[:, :half, ..., 0, :] = blocks[:, half:, ..., -1, :] = 0
    blocks[:, :, :half, ..., 0] = blocks[:, :, half:, ..., -1] = 0
    return x


def _over_blocks(weight: Tensor) -> Tensor:
    """Rearrange weights over 8 x 8 pixels (o i 8 8) to weights over 2 x 2 blocks."""
    return rearrange(weight, "o i (a y) (b x) -> o (y x i) a b", y=SCALE, x=SCALE)


def _shifted(weight: Tensor) -> Tensor:
    """Expand 3 x 3 weights of padding 1 (o i 3 3) to 8 x 8 weights for each of the 4 x 4 pixels of a block."""
    shifted = weight.new_zeros(weight.shape[0], SCALE, SCALE, weight.shape[1], 2 * SCALE, 2 * SCALE)
    for y in range(SCALE):
        for x in range(SCALE):
            shifted[:, y, x, :, y + 1 : y + 4, x + 1 : x + 4] = weight
    return rearrange(shifted, "o y x i h w -> (o y x) i h w")


def _fixed(weight: Tensor) -> Tensor:
    return weight.contiguous(memory_format=_NHWC)
