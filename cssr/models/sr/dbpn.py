"""Deep back-projection network (Haris et al., CVPR 2018), the SR network of CSSR."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cssr.config.registry import Count
from cssr.models.blocks import PROJECTION, BackProjection, conv_prelu, deconv_prelu, init_kaiming
from cssr.models.sr import SR


def _projection(width: int, scale: int, inputs: int, up: bool) -> BackProjection:
    """Projection from `inputs * width` channels to `width` at the other resolution."""
    there, back = (deconv_prelu, conv_prelu) if up else (conv_prelu, deconv_prelu)
    geometry = (width, width, *PROJECTION[scale])
    squeeze = conv_prelu(inputs * width, width, 1) if inputs > 1 else nn.Identity()
    return BackProjection(squeeze, there(*geometry), back(*geometry), there(*geometry))


class DBPN(nn.Module):
    """Alternating up- and down-projections; each takes all earlier ones of the other resolution, the SR all HR ones."""

    def __init__(self, scale: int, stages: int, width: int, features: int, residual: bool, channels: int = 3):
        super().__init__()
        self.scale, self.residual = scale, residual
        self.head = nn.Sequential(conv_prelu(channels, features, 3, padding=1), conv_prelu(features, width, 1))
        self.ups = nn.ModuleList(_projection(width, scale, max(k, 1), up=True) for k in range(stages))
        self.downs = nn.ModuleList(_projection(width, scale, k + 1, up=False) for k in range(stages - 1))
        self.tail = nn.Conv2d(stages * width, channels, 3, padding=1)
        init_kaiming(self)
        if residual:
            nn.init.zeros_(self.tail.weight)

    def forward(self, lq: Tensor, kernel: Tensor | None = None) -> tuple[Tensor, None]:
        high = self.ups[0](self.head(lq))
        low = None
        for up, down in zip(self.ups[1:], self.downs):
            new = down(high)
            low = new if low is None else torch.cat((new, low), 1)
            high = torch.cat((up(low), high), 1)
        sr = self.tail(high)
        return (sr + F.interpolate(lq, scale_factor=self.scale, mode="bicubic") if self.residual else sr), None


@SR.register
def dbpn(
    scale: int, stages: Count = 6, width: Count = 64, features: Count = 256, residual: bool = False, channels: Count = 3
) -> DBPN:
    """DBPN for scale 2, 4 or 8.

    Args:
        stages: up-projections (the papers use 2, 4, 6, 7, 8, 10); at least 2.
        width: channels of a projection. features: channels of the first convolution.
        residual: whether the network adds to the bicubic enlargement, starting from it (ours, for short runs; the
            published network does not).
        channels: of what is enlarged.
    """
    if scale not in PROJECTION:
        raise ValueError(
            f"SR network 'dbpn': model.scale must be one of {', '.join(map(str, PROJECTION))}, got {scale}"
        )
    if stages < 2 or width < 1 or features < 1:
        raise ValueError(
            f"SR network 'dbpn': needs stages >= 2 and positive widths, got stages={stages}, width={width}"
        )
    return DBPN(scale, stages, width, features, residual, channels)
