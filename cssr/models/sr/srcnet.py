"""The super-resolution half of SrcNet (Bae et al., "Deep super resolution crack network (SrcNet) for improving computer
vision-based automated crack detectability in in situ bridges", Structural Health Monitoring, 2021).

All of its depth works at low resolution: groups of blocks, each group and all of them together with a skip connection,
then one transposed convolution. A block has no skip connection of its own, and its attention, which ends in a ReLU,
sets about half of its channels to 0 at the start.

Compared with golden vectors: x4 with the published sizes. Unverified against the reference by any test, for lack of
golden vectors: x2 and x8. The initial weights are PyTorch's own, as in the reference.
"""

from collections.abc import Iterable

from torch import Tensor, nn

from cssr.config.registry import Count
from cssr.models.blocks import PROJECTION, conv_relu
from cssr.models.sr import SR


class Block(nn.Module):
    """Two convolutions, then a scale for each channel from the means of all: B C h w to the same.

    The scales are at least 0 and have no upper bound.
    """

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.layers = conv_relu(width, width).append(_conv(width, width))
        self.attention = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(width, hidden, 1), nn.Sigmoid(), nn.Conv2d(hidden, width, 1), nn.ReLU()
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.layers(x)
        return self.attention(x) * x


class Residual(nn.Module):
    """Layers and a last convolution, which add to what they are given: B C h w to the same."""

    def __init__(self, layers: Iterable[nn.Module], width: int):
        super().__init__()
        self.layers, self.last = nn.Sequential(*layers), _conv(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.last(self.layers(x))


class SrcNet(nn.Module):
    """First convolution, residual groups, enlargement, last convolution."""

    def __init__(self, scale: int, body: Residual, width: int, enlarged: int, channels: int):
        super().__init__()
        self.head, self.body = _conv(channels, width), body
        self.enlarge = nn.ConvTranspose2d(width, enlarged, *PROJECTION[scale])
        self.tail = _conv(enlarged, channels)

    def forward(self, lq: Tensor, kernel: Tensor | None = None) -> tuple[Tensor, None]:
        return self.tail(self.enlarge(self.body(self.head(lq)))), None


def _conv(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1)


@SR.register
def srcnet(
    scale: int,
    groups: Count = 10,
    blocks: Count = 20,
    width: Count = 64,
    hidden: Count = 32,
    enlarged: Count = 256,
    channels: Count = 3,
) -> SrcNet:
    """SrcNet's SR network for scale 2, 4 or 8; the defaults are the published ones.

    Args:
        groups: residual groups. blocks: in each group.
        width: channels at low resolution. hidden: channels inside a block's attention.
        enlarged: channels at high resolution. channels: of what is enlarged.
    Raises: ValueError for another scale, or a size below 1.
    """
    if scale not in PROJECTION:
        raise ValueError(
            f"SR network 'srcnet': model.scale must be one of {', '.join(map(str, PROJECTION))}, got {scale}"
        )
    sizes = {"groups": groups, "blocks": blocks, "width": width, "hidden": hidden, "enlarged": enlarged}
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"SR network 'srcnet': {name} must be at least 1, got {size}")
    body = Residual((Residual((Block(width, hidden) for _ in range(blocks)), width) for _ in range(groups)), width)
    return SrcNet(scale, body, width, enlarged, channels)
