"""Anisotropic Gaussian blur, then reduction: CSBSR's degradation."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cssr.degradations import DEGRADATIONS
from cssr.degradations.pixels import Method, Padding, blur, check_padding, resampler


@DEGRADATIONS.register
def gaussian(
    scale: int,
    sigma: Sequence[float] = (0.2, 4.0),
    theta: Sequence[float] = (0.0, 180.0),
    size: int = 21,
    method: Method = "bicubic",
    antialias: bool = True,
    padding: Padding = "zero",
) -> Callable:
    """Blur with a Gaussian of random widths and direction, then reduce by `scale`.

    Args:
        sigma: range of both standard deviations, HR pixels, drawn evenly and independently.
        theta: range of the direction of the first, degrees, drawn evenly.
        size: side of the kernel, odd, HR pixels.
        method, antialias: of the reduction. padding: beyond the image's border, `zero` as published.
    """
    if size % 2 == 0 or size < 1:
        raise ValueError(f"degradation 'gaussian': size must be odd, found {size}; its centre is a pixel")
    if not _is_range(sigma) or sigma[0] <= 0:
        raise ValueError(f"degradation 'gaussian': sigma needs 0 < low <= high, found {sigma}")
    if not _is_range(theta):
        raise ValueError(f"degradation 'gaussian': theta needs [low, high], degrees, found {theta}")
    check_padding(padding)
    reduce, name = resampler(scale, method, antialias)

    def degrade(hr: Tensor, seeds: Tensor) -> tuple[Tensor, Tensor]:
        draws = np.stack([_draw(int(seed), sigma, theta) for seed in seeds])
        kernel = gaussian_kernel(torch.from_numpy(draws), size).to(hr.device, torch.float32)
        blurred = blur(hr, kernel, padding)
        return (blurred if scale == 1 else reduce(blurred)), kernel

    degrade.resampler = f"{size}x{size} Gaussian, {padding} padding, then {name}"
    return degrade


def _is_range(value: Any) -> bool:
    return isinstance(value, Sequence) and len(value) == 2 and value[0] <= value[1]


def _draw(seed: int, sigma: Sequence[float], theta: Sequence[float]) -> np.ndarray:
    draws = np.random.Generator(np.random.Philox(key=seed)).random(3)
    low = np.array([sigma[0], sigma[0], theta[0]])
    return low + draws * (np.array([sigma[1], sigma[1], theta[1]]) - low)


def gaussian_kernel(parameters: Tensor, size: int) -> Tensor:
    """Anisotropic Gaussian kernels.

    Args:
        parameters: B 3 float64: both standard deviations, pixels, and the direction of the first, degrees.
        size: side, odd.
    Returns: B 1 size size float64, each summing to 1: exp(-(a x^2 + 2 b x y + c y^2)), x to the right, y downwards.
    """
    s1, s2, degrees = parameters.double().unbind(1)
    cos, sin = torch.cos(degrees * math.pi / 180), torch.sin(degrees * math.pi / 180)
    p, q = 1 / (2 * s1**2), 1 / (2 * s2**2)
    a, b, c = (cos**2 * p + sin**2 * q, sin * cos * (q - p), sin**2 * p + cos**2 * q)
    axis = torch.arange(size, dtype=torch.float64) - size // 2
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    a, b, c = (v[:, None, None] for v in (a, b, c))
    kernel = torch.exp(-(a * x**2 + 2 * b * x * y + c * y**2))
    return (kernel / kernel.sum((1, 2), keepdim=True))[:, None]
