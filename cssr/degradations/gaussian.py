"""Gaussian blur (CSBSR's degradation) and its relatives with other tails (Real-ESRGAN's)."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from cssr.config.registry import KernelSide
from cssr.degradations.blurs import Blur, axis, blur_kind, check_fits, check_size, normalized
from cssr.degradations.draws import Rngs, chances, check_range, uniform


@blur_kind
def gaussian(
    sigma: Sequence[float] = (0.2, 4.0),
    theta: Sequence[float] = (0.0, 180.0),
    isotropic: bool = False,
    size: KernelSide = 21,
) -> Blur:
    """Gaussian of random widths and direction; the defaults are CSBSR's.

    Args:
        sigma: range of both standard deviations, HR pixels, drawn evenly and independently. 4 sigma + 1 may be `size`
            at most: with two standard deviations on each side less than a tenth of the mass is cut off.
        theta: range of the direction of the first, degrees, drawn evenly.
        isotropic: a single draw is both standard deviations.
        size: side of the kernel, odd, HR pixels.
    """
    draw = _elliptical("gaussian", sigma, theta, isotropic, size)
    return Blur(size, _label("Gaussian", isotropic), lambda rngs: gaussian_kernel(draw(rngs), size)[:, 0])


@blur_kind
def generalized_gaussian(
    sigma: Sequence[float] = (0.2, 3.0),
    shape: Sequence[float] = (0.5, 4.0),
    theta: Sequence[float] = (0.0, 180.0),
    isotropic: bool = False,
    size: KernelSide = 21,
) -> Blur:
    """exp(-q^shape / 2), where q is the squared distance in standard deviations (Liu et al. 2020, via Real-ESRGAN).

    Args:
        sigma, theta, isotropic, size: as for `gaussian`.
        shape: range of the exponent, 1 within it: below 1 long tails, 1 the Gaussian, above 1 a flat top. One half of
            the draws lies below 1, the other above.
    """
    return _shaped("generalized_gaussian", lambda q, s: torch.exp(-(q**s) / 2), sigma, shape, theta, isotropic, size)


@blur_kind
def plateau(
    sigma: Sequence[float] = (0.2, 3.0),
    shape: Sequence[float] = (1.0, 2.0),
    theta: Sequence[float] = (0.0, 180.0),
    isotropic: bool = False,
    size: KernelSide = 21,
) -> Blur:
    """1 / (1 + q^shape), otherwise as `generalized_gaussian`; the kernel's side cuts its long tails."""
    return _shaped("plateau", lambda q, s: 1 / (1 + q**s), sigma, shape, theta, isotropic, size)


def _shaped(
    name: str,
    profile: Callable[[Tensor, Tensor], Tensor],
    sigma: Sequence[float],
    shape: Sequence[float],
    theta: Sequence[float],
    isotropic: bool,
    size: int,
) -> Blur:
    draw = _elliptical(name, sigma, theta, isotropic, size)
    check_range(name, "shape", shape, above=0)
    if not shape[0] <= 1 <= shape[1]:
        raise ValueError(f"degradation {name!r}: shape needs low <= 1 <= high, found {shape}")

    def kernels(rngs: Rngs) -> Tensor:
        q = 2 * _quadratic_form(draw(rngs), size)
        low, high = uniform(rngs, (shape[0], 1), (1, shape[1])).unbind(1)
        return normalized(profile(q, torch.where(chances(rngs, 0.5), low, high)[:, None, None]))

    return Blur(size, _label(name.replace("_g", " G"), isotropic), kernels)


def _label(form: str, isotropic: bool) -> str:
    return f"isotropic {form}" if isotropic else form


def _elliptical(
    name: str, sigma: Sequence[float], theta: Sequence[float], isotropic: bool, size: int
) -> Callable[[Rngs], Tensor]:
    """The draw of `gaussian_kernel`'s parameters, settings checked."""
    check_size(name, size)
    check_range(name, "sigma", sigma, above=0)
    check_range(name, "theta", theta)
    check_fits(name, f"sigma={sigma[1]:g}", 4 * sigma[1] + 1, size)
    if isotropic:
        return lambda rngs: uniform(rngs, sigma)[:, [0, 0, 0]] * torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64)
    return lambda rngs: uniform(rngs, sigma, sigma, theta)


def gaussian_kernel(parameters: Tensor, size: int) -> Tensor:
    """Anisotropic Gaussian kernels.

    Args:
        parameters: B 3 float64: both standard deviations, pixels, and the direction of the first, degrees.
        size: side, odd.
    Returns: B 1 size size float64, each summing to 1: exp(-(a x^2 + 2 b x y + c y^2)), x to the right, y downwards.
    """
    return normalized(torch.exp(-_quadratic_form(parameters, size)))[:, None]


def _quadratic_form(parameters: Tensor, size: int) -> Tensor:
    """a x^2 + 2 b x y + c y^2: half the squared distance from the centre in standard deviations, B size size."""
    s1, s2, degrees = parameters.double().unbind(1)
    cos, sin = torch.cos(degrees * math.pi / 180), torch.sin(degrees * math.pi / 180)
    p, q = 1 / (2 * s1**2), 1 / (2 * s2**2)
    a, b, c = (cos**2 * p + sin**2 * q, sin * cos * (q - p), sin**2 * p + cos**2 * q)
    y, x = torch.meshgrid(axis(size), axis(size), indexing="ij")
    a, b, c = (v[:, None, None] for v in (a, b, c))
    return a * x**2 + 2 * b * x * y + c * y**2
