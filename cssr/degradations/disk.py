"""Defocus blur."""

from collections.abc import Sequence

import torch
from torch import Tensor

from cssr.config.registry import KernelSide
from cssr.degradations.blurs import Blur, axis, blur_kind, check_fits, check_size, normalized
from cssr.degradations.draws import Rngs, check_range, uniform


@blur_kind
def disk(radius: Sequence[float] = (1.0, 10.0), size: KernelSide = 21) -> Blur:
    """Circle of confusion of a lens out of focus: an even disk, its edge pixels weighted by the area covered.

    Args:
        radius: range of the radius, HR pixels, drawn evenly; the diameter may be `size` at most.
        size: side of the kernel, odd, HR pixels.
    """
    check_size("disk", size)
    check_range("disk", "radius", radius, above=0)
    check_fits("disk", f"radius={radius[1]:g}", 2 * radius[1], size)

    def kernels(rngs: Rngs) -> Tensor:
        return disk_kernel(uniform(rngs, radius)[:, 0], size)

    return Blur(size, "disk", kernels)


def disk_kernel(radius: Tensor, size: int) -> Tensor:
    """The exact share of a disk's area (radius: B float64, pixels) that lies in each pixel: B size size float64."""
    edges = torch.cat([axis(size) - 0.5, axis(size)[-1:] + 0.5])
    corners = _area(edges[None, :, None], edges[None, None, :], radius.double()[:, None, None])
    return normalized(corners.diff(dim=1).diff(dim=2).clamp(min=0))


def _area(y: Tensor, x: Tensor, radius: Tensor) -> Tensor:
    """Signed area of the disk between the axes and (x, y): over pixels, its second difference is what they cover."""
    sign, x, y = x.sign() * y.sign(), x.abs().minimum(radius), y.abs().minimum(radius)
    bend = (radius**2 - y**2).clamp(min=0).sqrt().minimum(x)  # up to here the rectangle lies within the circle
    return sign * (bend * y + _under_circle(x, radius) - _under_circle(bend, radius))


def _under_circle(x: Tensor, radius: Tensor) -> Tensor:
    """Integral of sqrt(radius^2 - t^2) for t from 0 to x."""
    return (x * (radius**2 - x**2).clamp(min=0).sqrt() + radius**2 * torch.asin((x / radius).clamp(max=1))) / 2
