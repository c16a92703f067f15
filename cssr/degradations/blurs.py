"""Blur kinds: each draws its kernels; all else of a blur degradation is here.

Contract: a function `name(size, **settings)` decorated with `blur_kind` returns a `Blur`, and raises ValueError for
settings that make no kernel of `size` x `size`. The decorator registers it twice: in BLURS, so that `compound` and
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
    """Random blur kernels."""

    size: int  # side, pixels
    label: str  # a word or two, for the results
    kernels: Callable[[Rngs], Tensor]  # a generator a sample -> B size size float64, each summing to 1, on the CPU


def blur_kind(factory: Callable[..., Blur]) -> Callable[..., Blur]:
    """Decorator: make `factory` a blur and a degradation of that name."""
    shared = inspect.signature(_degradation).parameters
    own = inspect.signature(factory).parameters

    def degradation(scale: int, **settings) -> Callable:
        of_all = {key: settings.pop(key) for key in shared if key in settings}
        return _degradation(factory.__name__, factory(**settings), scale, **of_all)

    later = [p for p in shared.values() if p.default is not p.empty]
    degradation.__name__ = factory.__name__
    degradation.__doc__ = factory.__doc__
    degradation.__signature__ = inspect.Signature([shared["scale"], *own.values(), *later])
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
    """Blur, then reduce by `scale`, then add noise, then compress.

    Args:
        method, antialias: of the reduction. padding: beyond the image's border, `zero` as published.
        noise: range of the standard deviation of white Gaussian noise, 0..1 as the image.
        jpeg: range of the quality, 1 to 100. After noise or JPEG, `lq` is clipped to 0..1.
        clean: share of the samples that get neither, so that one network learns both.
    """
    check_padding(padding)
    lower, resampled = _lowering(scale, method, antialias, padding)
    spoil, spoilt = _spoiler(name, noise, jpeg, clean)

    def degrade(hr: Tensor, seeds: Tensor) -> tuple[Tensor, Tensor]:
        kernel = blurring.kernels(generators(seeds))[:, None]
        kernel = send(kernel, hr.device, torch.float32)
        with torch.autocast(hr.device.type, enabled=False):
            lq = lower(hr, kernel)
        return spoil(lq, seeds), kernel

    degrade.resampler = f"{blurring.size}x{blurring.size} {blurring.label}, {padding} padding, then {resampled}{spoilt}"
    return degrade


def _lowering(scale: int, method: Method, antialias: bool, padding: Padding) -> tuple[Callable, str]:
    """(hr, kernel) -> blurred and reduced, and the resampler's name."""
    reduce, resampled = resampler(scale, method, antialias)
    if scale == 1:
        return lambda hr, kernel: blur(hr, kernel, padding), resampled
    if method == "strided":
        return lambda hr, kernel: blur_strided(hr, kernel, padding, scale), resampled
    return blurring(scale, reduce, padding), resampled


def _spoiler(
    name: str, noise: Sequence[float] | None, quality: Sequence[float] | None, clean: float
) -> tuple[Callable, str]:
    """Noise and JPEG, each where its range is given, and how results name them."""
    if noise is not None:
        check_range(name, "noise", noise, low=0)
    if quality is not None:
        check_range(name, "jpeg", quality, low=1, high=100)
    check_share(name, "clean", clean)
    if clean and noise is None and quality is None:
        raise ValueError(
            f"degradation {name!r}: clean={clean:g} leaves out noise and JPEG, and there are none; set noise or jpeg"
        )

    def spoil(lq: Tensor, seeds: Tensor) -> Tensor:
        spoilt = lq
        if noise is not None:
            spoilt = _noised(spoilt, generators(seeds, NOISE), noise)
        if quality is not None:
            spoilt = jpeg(spoilt, uniform(generators(seeds, JPEG), quality)[:, 0])
        if not clean:
            return spoilt
        keep = chances(generators(seeds, CLEAN), clean)[:, None, None, None]
        return torch.where(send(keep, lq.device), lq, spoilt)

    steps = [step for step, taken in (("noise", noise), ("JPEG", quality)) if taken is not None]
    share = f" ({1 - clean:.0%} of the samples)" if clean and steps else ""
    return spoil, "".join(f", then {step}" for step in steps) + share


def _noised(lq: Tensor, rngs: Rngs, level: Sequence[float]) -> Tensor:
    size = tuple(lq.shape[-2:])
    deviation = uniform(rngs, level).float()[..., None, None]  # B 1 1 1
    noise = normal(rngs, [size] * len(rngs), size, [False] * len(rngs))
    return (lq + send(deviation * noise, lq.device)).clamp(0, 1)


def check_size(name: str, size: int) -> None:
    """Refuse a kernel of even side, which has no central pixel."""
    if not isinstance(size, int) or size % 2 == 0 or size < 1:
        raise ValueError(f"degradation {name!r}: size must be odd, got {size}; its centre is a pixel")


def check_fits(name: str, what: str, needed: float, size: int) -> None:
    """Refuse a blur that its kernel would cut: `needed` is its width, pixels."""
    if needed > size + 1e-9:
        side = 2 * math.ceil((needed - 1) / 2 - 1e-9) + 1
        raise ValueError(f"degradation {name!r}: {what} does not fit size={size}; set size={side} or lower it")


def axis(size: int) -> Tensor:
    """Offsets of a kernel's rows (or columns) from its centre, pixels, float64."""
    return torch.arange(size, dtype=torch.float64) - size // 2


def normalized(kernels: Tensor) -> Tensor:
    """B size size, each divided by its sum."""
    return kernels / kernels.sum((1, 2), keepdim=True)
