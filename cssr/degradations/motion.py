"""Linear motion blur."""

import math
from collections.abc import Sequence

import torch
from einops import einsum
from torch import Tensor

from cssr.config.registry import KernelSide
from cssr.degradations.blurs import Blur, axis, blur_kind, check_fits, check_size, normalized
from cssr.degradations.draws import Rngs, check_range, uniform


@blur_kind
def motion(length: Sequence[float] = (2.0, 20.0), theta: Sequence[float] = (0.0, 180.0), size: KernelSide = 21) -> Blur:
    """Even motion along a straight line while the shutter is open.

    Args:
        length: range of the way travelled, HR pixels, drawn evenly; `size` - 1 at most. n equal pixels in a row, as
            CSBSR's code draws, are about a length of n.
        theta: range of the direction, degrees, counter-clockwise as seen, drawn evenly.
        size: side of the kernel, odd, HR pixels.
    """
    check_size("motion", size)
    check_range("motion", "length", length, low=0)
    check_range("motion", "theta", theta)
    check_fits("motion", f"length={length[1]:g}", length[1] + 1, size)

    def kernels(rngs: Rngs) -> Tensor:
        return motion_kernel(uniform(rngs, length, theta), size)

    return Blur(size, "motion", kernels)


def motion_kernel(parameters: Tensor, size: int) -> Tensor:
    """The mean of the image, linearly interpolated, along a line through the pixel.

    Args: parameters: B 2 float64: length, pixels, and direction, degrees.
    Returns: B size size float64, each summing to 1; second moments are right to 1/4 pixel^2, the product's exactly.
    """
    length, degrees = parameters[:, :1], parameters[:, 1:] * math.pi / 180
    points = 16 * size  # at most 1/16 pixel apart
    way = ((torch.arange(points, dtype=torch.float64) + 0.5) / points - 0.5) * length  # B points
    x, y = way * torch.cos(degrees), -way * torch.sin(degrees)
    across, down = (_interpolation(position, size) for position in (x, y))
    return normalized(einsum(down, across, "b point y, b point x -> b y x"))


def _interpolation(position: Tensor, size: int) -> Tensor:
    """The weight of each pixel of an axis in the value at `position` (B points): B points size."""
    return (1 - (position[..., None] - axis(size)).abs()).clamp(min=0)
