"""Registry of blurs, and the degradation made from a blur: reduction, noise, JPEG.

Contract: a function `name(size, **settings)` decorated with `blur_kind` returns a `Blur`, and raises ValueError for
settings whose kernels do not fit into `size` x `size`. The decorator registers it in BLURS, so that `compound` and
`random_blur` can name it, and as the degradation of that name, which takes its settings and those of `_degradation`.
"""

import inspect
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from cssr.config.registry import Registry, Share
from cssr.data.batch import send
from cssr.degradations import DEGRADATIONS
from cssr.degradations.draws import (
    CLEAN,
    JPEG,
    NOISE,
    Rngs,
    chances,
    check_range,
    check_share,
    generators,
    normal,
    uniform,
)
from cssr.degradations.ops import Method, Padding, blur, blur_strided, blurring, check_padding, jpeg, resampler

BLURS = Registry("blur", DEGRADATIONS.package)


class Blur(NamedTuple):
    """Sampler of random blur kernels."""

    size: int  # side, pixels
    label: str  # short description, stored with results
    kernels: Callable[[Rngs], Tensor]  # one generator per sample -> B size size float64 on the CPU, each summing to 1


def blur_kind(factory: Callable[..., Blur]) -> Callable[..., Blur]:
    """Register `factory` as a blur and as the degradation of that name (decorator)."""
    shared = inspect.signature(_degradation).parameters
    own = inspect.signature(factory).parameters

    def degradation(scale: int, **settings) -> Callable:
        shared_settings = {key: settings.pop(key) for key in shared if key in settings}
        return _degradation(factory.__name__, factory(**settings), scale, **shared_settings)

    optional = [p for p in shared.values() if p.default is not p.empty]
    degradation.__name__ = factory.__name__
    degradation.__doc__ = factory.__doc__
    degradation.__signature__ = inspect.Signature([shared["scale"], *own.values(), *optional])
    DEGRADATIONS.register(degradation)
    return BLURS.register(factory)


def _degradation(
    name: str,
    blurring: Blur,
    scale: int,
    method: Method = "bicubic",
    antialias: bool = True,
    padding: Padding = "zero",
    noise: Sequence[float] | None = None,
    jpeg: Sequence[float] | None = None,
    clean: Share = 0.0,
) -> Callable:
    """Degradation: blur, reduce by `scale`, add noise, compress.

    Args:
        method, antialias: resampler of the reduction.
        padding: of the image before the blur; published: `zero`.
        noise: range of the standard deviation of white Gaussian noise, in units of the image, 0..1.
        jpeg: range of the quality, 1 to 100. `lq` is clipped to 0..1 after noise and after JPEG.
        clean: share of samples without noise and JPEG, 0..1.
    Raises: ValueError for an unknown method or padding, or a range or share out of bounds.
    """
    check_padding(padding)
    blur_and_reduce, resampler_name = _blur_and_reduce(scale, method, antialias, padding)
    corrupt, corruption_label = _noise_and_jpeg(name, noise, jpeg, clean)

    def degrade(hr: Tensor, seeds: Tensor) -> tuple[Tensor, Tensor]:
        kernel = blurring.kernels(generators(seeds))[:, None]
        kernel = send(kernel, hr.device, torch.float32)
        with torch.autocast(hr.device.type, enabled=False):
            lq = blur_and_reduce(hr, kernel)
        return corrupt(lq, seeds), kernel

    blur_name = f"{blurring.size}x{blurring.size} {blurring.label}"
    degrade.resampler = f"{blur_name}, {padding} padding, then {resampler_name}{corruption_label}"
    return degrade


def _blur_and_reduce(scale: int, method: Method, antialias: bool, padding: Padding) -> tuple[Callable, str]:
    """Function (hr, kernel) -> lq without noise, and the name of its resampler."""
    reduce, name = resampler(scale, method, antialias)
    if scale == 1:
        return lambda hr, kernel: blur(hr, kernel, padding), name
    if method == "strided":
        return lambda hr, kernel: blur_strided(hr, kernel, padding, scale), name
    return blurring(scale, reduce, padding), name


def _noise_and_jpeg(
    name: str, noise: Sequence[float] | None, quality: Sequence[float] | None, clean: float
) -> tuple[Callable, str]:
    """Function (lq, seeds) -> lq with noise and JPEG, each only if its range is given, and its label for results."""
    if noise is not None:
        check_range(name, "noise", noise, low=0)
    if quality is not None:
        check_range(name, "jpeg", quality, low=1, high=100)
    check_share(name, "clean", clean)
    if clean and noise is None and quality is None:
        raise ValueError(
            f"degradation {name!r}: clean={clean:g} leaves out noise and JPEG, and there are none; set noise or jpeg"
        )

    def corrupt(lq: Tensor, seeds: Tensor) -> Tensor:
        corrupted = lq
        if noise is not None:
            corrupted = _add_noise(corrupted, generators(seeds, NOISE), noise)
        if quality is not None:
            corrupted = jpeg(corrupted, uniform(generators(seeds, JPEG), quality)[:, 0])
        if not clean:
            return corrupted
        keep = chances(generators(seeds, CLEAN), clean)[:, None, None, None]
        return torch.where(send(keep, lq.device), lq, corrupted)

    steps = [step for step, limits in (("noise", noise), ("JPEG", quality)) if limits is not None]
    share = f" ({1 - clean:.0%} of the samples)" if clean and steps else ""
    return corrupt, "".join(f", then {step}" for step in steps) + share


def _add_noise(lq: Tensor, rngs: Rngs, level: Sequence[float]) -> Tensor:
    size = tuple(lq.shape[-2:])
    deviation = uniform(rngs, level).float()[..., None, None]  # B 1 1 1
    noise = normal(rngs, [size] * len(rngs), size, [False] * len(rngs))
    return (lq + send(deviation * noise, lq.device)).clamp(0, 1)


def check_size(name: str, size: int) -> None:
    """Raise ValueError for an even kernel side, which has no central pixel."""
    if not isinstance(size, int) or size % 2 == 0 or size < 1:
        raise ValueError(f"degradation {name!r}: size must be odd, got {size}; its centre is a pixel")


def check_fits(name: str, what: str, needed: float, size: int) -> None:
    """Raise ValueError for a blur wider (`needed`, pixels) than its kernel (`size`, pixels)."""
    if needed > size + 1e-9:
        side = 2 * math.ceil((needed - 1) / 2 - 1e-9) + 1
        raise ValueError(f"degradation {name!r}: {what} does not fit size={size}; set size={side} or lower it")


def axis(size: int) -> Tensor:
    """Offsets of a kernel's rows (or columns) from its centre, pixels, float64."""
    return torch.arange(size, dtype=torch.float64) - size // 2


def normalized(kernels: Tensor) -> Tensor:
    """Kernels (B size size), each divided by its sum."""
    return kernels / kernels.sum((1, 2), keepdim=True)
