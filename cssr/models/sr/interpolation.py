"""The SR networks without weights: `bicubic` (the baseline) and `none` (the HR upper bound)."""

import torch.nn.functional as F
from torch import Tensor, nn

from cssr.config.registry import Count
from cssr.models.sr import SR


class Bicubic(nn.Module):
    """Bicubic enlargement (a = -0.75, corners not aligned)."""

    def __init__(self, scale: int):
        super().__init__()
        self.scale = scale

    def forward(self, lq: Tensor, kernel: Tensor | None = None) -> tuple[Tensor, None]:
        return F.interpolate(lq, scale_factor=self.scale, mode="bicubic"), None


class Unchanged(nn.Module):
    """Identity."""

    def forward(self, lq: Tensor, kernel: Tensor | None = None) -> tuple[Tensor, None]:
        return lq, None


@SR.register
def bicubic(scale: int, channels: Count = 3) -> Bicubic:
    """Bicubic enlargement of any number of channels, without parameters."""
    return Bicubic(scale)


@SR.register
def none(scale: int) -> Unchanged:
    """No super-resolution: segmentation of the HR image itself, at scale 1."""
    return Unchanged()
