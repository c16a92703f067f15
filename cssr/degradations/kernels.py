"""Random blur kernels: Gaussian (of CSBSR), generalised Gaussian, plateau, disk, motion, sinc, and mixtures."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from einops import einsum
from torch import Tensor

from cssr.config.registry import KernelSide
from cssr.degradations.blurs import BLURS, Blur, axis, blur_kind, check_fits, check_size, normalized
from cssr.degradations.draws import Rngs, chances, check_range, check_weights, choices, uniform

Component = str | Mapping[str, Any]


@blur_kind
def gaussian(
    sigma: Sequence[float] = (0.2, 4.0),
    theta: Sequence[float] = (0.0, 180.0),
    isotropic: bool = False,
    size: KernelSide = 21,
) -> Blur:
    """Anisotropic Gaussian of random widths and direction; the defaults are those of CSBSR.

    Args:
        sigma: range of both standard deviations, HR pixels, uniform and independent. 4 sigma + 1 may be `size` at most:
            beyond two standard deviations on each side is less than a tenth of the mass.
        theta: range of the direction of the first standard deviation, degrees, uniform.
        isotropic: use one draw for both standard deviations.
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
    """Generalised Gaussian exp(-q^shape / 2), q the squared distance in standard deviations (Liu et al. 2020).

    As in Real-ESRGAN.

    Args:
        sigma, theta, isotropic, size: as for `gaussian`.
        shape: range of the exponent, which contains 1: below 1 heavy tails, 1 the Gaussian, above 1 a flat top. Half of
            the draws are below 1, half above.
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
    """Plateau-shaped kernel 1 / (1 + q^shape), as `generalized_gaussian`; its heavy tails are cut at `size`."""
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
        raise ValueError(f"degradation {name!r}: shape needs low <= 1 <= high, got {shape}")

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
    """Function that draws the parameters of `gaussian_kernel`; ValueError for invalid settings."""
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
        size: side, odd, pixels.
    Returns: B 1 size size float64, each summing to 1: exp(-(a x^2 + 2 b x y + c y^2)), x to the right, y downwards.
    """
    return normalized(torch.exp(-_quadratic_form(parameters, size)))[:, None]


def _quadratic_form(parameters: Tensor, size: int) -> Tensor:
    """Quadratic form a x^2 + 2 b x y + c y^2, half the squared distance in standard deviations: B size size."""
    s1, s2, degrees = parameters.double().unbind(1)
    cos, sin = torch.cos(degrees * math.pi / 180), torch.sin(degrees * math.pi / 180)
    p, q = 1 / (2 * s1**2), 1 / (2 * s2**2)
    a, b, c = (cos**2 * p + sin**2 * q, sin * cos * (q - p), sin**2 * p + cos**2 * q)
    y, x = torch.meshgrid(axis(size), axis(size), indexing="ij")
    a, b, c = (v[:, None, None] for v in (a, b, c))
    return a * x**2 + 2 * b * x * y + c * y**2


@blur_kind
def disk(radius: Sequence[float] = (1.0, 10.0), size: KernelSide = 21) -> Blur:
    """Disk, the circle of confusion of a lens out of focus; edge pixels are weighted by the area covered.

    Args:
        radius: range of the radius, HR pixels, uniform; the diameter may be `size` at most.
        size: side of the kernel, odd, HR pixels.
    """
    check_size("disk", size)
    check_range("disk", "radius", radius, above=0)
    check_fits("disk", f"radius={radius[1]:g}", 2 * radius[1], size)

    def kernels(rngs: Rngs) -> Tensor:
        return disk_kernel(uniform(rngs, radius)[:, 0], size)

    return Blur(size, "disk", kernels)


def disk_kernel(radius: Tensor, size: int) -> Tensor:
    """Exact shares of a disk's area (radius: B float64, pixels) within each pixel: B size size float64."""
    edges = torch.cat([axis(size) - 0.5, axis(size)[-1:] + 0.5])
    corners = _area(edges[None, :, None], edges[None, None, :], radius.double()[:, None, None])
    return normalized(corners.diff(dim=1).diff(dim=2).clamp(min=0))


def _area(y: Tensor, x: Tensor, radius: Tensor) -> Tensor:
    """Signed area of the disk between the axes and (x, y); second differences over pixels are the areas covered."""
    sign, x, y = x.sign() * y.sign(), x.abs().minimum(radius), y.abs().minimum(radius)
    bend = (radius**2 - y**2).clamp(min=0).sqrt().minimum(x)  # up to here the rectangle is within the circle
    return sign * (bend * y + _under_circle(x, radius) - _under_circle(bend, radius))


def _under_circle(x: Tensor, radius: Tensor) -> Tensor:
    """Integral of sqrt(radius^2 - t^2) for t from 0 to x."""
    return (x * (radius**2 - x**2).clamp(min=0).sqrt() + radius**2 * torch.asin((x / radius).clamp(max=1))) / 2


@blur_kind
def compound(first: Component = "motion", second: Component = "gaussian", size: KernelSide = 21) -> Blur:
    """Convolution of two blurs as one kernel, cropped to `size` and normalised.

    `all_rand` of the CSBSR code is `first: motion`, `second: {name: random_blur, blurs: [gaussian, disk]}`.

    Args:
        first, second: any blurs, without `size`, which is that of both. The result is cropped if both fill it.
    """
    check_size("compound", size)
    parts = [BLURS.build(part, size=size) for part in (first, second)]
    label = f"({parts[0].label} convolved with {parts[1].label})"
    return Blur(size, label, lambda rngs: convolved(parts[0].kernels(rngs), parts[1].kernels(rngs)))


@blur_kind
def random_blur(
    blurs: Sequence[Component] = ("gaussian", "motion", "disk"),
    weights: Sequence[float] | None = None,
    size: KernelSide = 21,
) -> Blur:
    """Random choice between several blurs for each sample.

    Args:
        blurs: any blurs, without `size`, which is that of all.
        weights: probabilities are proportional to them; None: equal.
    """
    check_size("random_blur", size)
    if not isinstance(blurs, Sequence) or isinstance(blurs, str) or not blurs:
        raise ValueError(f"degradation 'random_blur': blurs needs a list of blurs, got {blurs!r}")
    parts = [BLURS.build(part, size=size) for part in blurs]
    weights = [1] * len(parts) if weights is None else weights
    check_weights("random_blur", "weights", weights, len(parts))

    def kernels(rngs: Rngs) -> Tensor:
        drawn, chosen = torch.empty(len(rngs), size, size, dtype=torch.float64), choices(rngs, weights)
        for number, part in enumerate(parts):
            rows = [row for row, choice in enumerate(chosen) if choice == number]
            if rows:
                drawn[rows] = part.kernels([rngs[row] for row in rows])
        return drawn

    return Blur(size, f"({' or '.join(part.label for part in parts)})", kernels)


def convolved(first: Tensor, second: Tensor) -> Tensor:
    """Convolve kernels pair by pair (B k k each), crop to k x k and normalise."""
    half = first.shape[-1] // 2
    return normalized(F.conv2d(first[None], second.flip(1, 2)[:, None], padding=half, groups=len(first))[0])


@blur_kind
def motion(length: Sequence[float] = (2.0, 20.0), theta: Sequence[float] = (0.0, 180.0), size: KernelSide = 21) -> Blur:
    """Linear motion blur of constant speed.

    Args:
        length: range of the path length, HR pixels, uniform; `size` - 1 at most. The CSBSR code draws n equal pixels in
            a row, which is a length of about n.
        theta: range of the direction, degrees, counter-clockwise on the screen, uniform.
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
    """Motion kernels: the mean of the bilinearly interpolated image along a line centred on the pixel.

    Args: parameters: B 2 float64: length, pixels, and direction, degrees.
    Returns: B size size float64, each summing to 1. Variances are exact to 1/4 pixel^2, the covariance is exact.
    """
    length, degrees = parameters[:, :1], parameters[:, 1:] * math.pi / 180
    points = 16 * size  # at most 1/16 pixel apart
    path = ((torch.arange(points, dtype=torch.float64) + 0.5) / points - 0.5) * length  # B points
    x, y = path * torch.cos(degrees), -path * torch.sin(degrees)
    across, down = ((1 - (p[..., None] - axis(size)).abs()).clamp(min=0) for p in (x, y))  # bilinear: B points size
    return normalized(einsum(down, across, "b point y, b point x -> b y x"))


@blur_kind
def sinc(cutoff: Sequence[float] = (1 / 3, 1.0), size: KernelSide = 21) -> Blur:
    """Circular low-pass filter, which causes ringing and overshoot (Real-ESRGAN); its kernel has negative lobes.

    Args:
        cutoff: range of the cutoff frequency as a share of the Nyquist frequency, 0..1, uniform.
        size: side of the kernel, odd, HR pixels; the lobes beyond are cut.
    """
    check_size("sinc", size)
    check_range("sinc", "cutoff", cutoff, above=0, high=1)

    def kernels(rngs: Rngs) -> Tensor:
        return sinc_kernel(uniform(rngs, cutoff)[:, 0], size)

    return Blur(size, "sinc", kernels)


def sinc_kernel(cutoff: Tensor, size: int) -> Tensor:
    """Circular sinc w J1(w r) / (2 pi r) with w = pi cutoff (B float64), normalised: B size size float64."""
    y, x = torch.meshgrid(axis(size), axis(size), indexing="ij")
    w, r = math.pi * cutoff.double()[:, None, None], torch.hypot(x, y)
    r[size // 2, size // 2] = 1  # any value: the centre is set to the limit below
    kernels = w * torch.special.bessel_j1(w * r) / (2 * math.pi * r)
    kernels[:, size // 2, size // 2] = w[:, 0, 0] ** 2 / (4 * math.pi)
    return normalized(kernels)
