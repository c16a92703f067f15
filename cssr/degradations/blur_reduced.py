"""Blur and reduction in one: both are linear, so that away from the border one strided correlation is both."""

from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor

from cssr.degradations.pixels import BORDERS, Padding, blur, check_border, without_denormals

Reduce = Callable[[Tensor], Tensor]


def blurring(scale: int, reduce: Reduce, padding: Padding) -> Callable[[Tensor, Tensor], Tensor]:
    """`reduce(blur(hr, kernel, padding))` as a function of both, equal up to rounding, in a third to half of the time.

    Only pixels of the result are computed. Within reach of the border, where the resampler's weights are others, it is
    done the plain way, on four strips.

    Args:
        scale: 2 or more. reduce: a resampler by it, linear, and separable along both sides.
        padding: as for `blur`.
    """
    row, reach = _taps(scale, reduce)
    row_on = cache(lambda device, dtype: row.to(device, dtype))  # no copy to a device in every step

    def blur_reduced(hr: Tensor, kernel: Tensor) -> Tensor:
        half, edge = kernel.shape[-1] // 2, -(-reach // scale)  # edge: rows of the result that the border touches
        strip = -(-(scale * edge + reach + half) // scale) * scale  # rows of `hr` that they depend on
        if edge and min(hr.shape[-2:]) < 2 * strip:
            return reduce(blur(hr, kernel, padding))
        composed = _composed(kernel, row_on(hr.device, hr.dtype))
        inner = _correlate(hr, composed, padding, reach + half - scale * edge, scale)
        if not edge:
            return inner
        return _framed(inner, hr, lambda part: reduce(blur(part, kernel, padding)), strip, edge)

    return blur_reduced


def _taps(scale: int, reduce: Reduce) -> tuple[Tensor, int]:
    """A resampler's weights far from the border (n), float32; how many lie beyond the `scale` pixels on either side."""
    side, middle, width = 16 * scale, 8, 2 * scale  # torch 2.14 gets results of a single column wrong
    unit = repeat(torch.eye(side), "c h -> 1 c h w", w=width)
    row = reduce(unit)[0, :, middle, 0]  # what each pixel gives to this one of the result
    places = row.nonzero().flatten().tolist()
    reach = max(scale * middle - places[0], places[-1] - scale * (middle + 1) + 1, 0)
    return row[scale * middle - reach : scale * (middle + 1) + reach], reach


def _composed(kernel: Tensor, row: Tensor) -> Tensor:
    """B 1 k k, and n weights along each side -> B 1 k+n-1 k+n-1: correlation by one, then by the other."""
    size = kernel.shape[-1]
    band = torch.stack([F.pad(row, (n, size - 1 - n)) for n in range(size)], 1)  # k+n-1 k
    return band @ kernel.to(row.dtype) @ band.T


def _correlate(hr: Tensor, kernel: Tensor, padding: Padding, margin: int, scale: int) -> Tensor:
    """Each image of B C H W by its own kernel, at every `scale`th pixel."""
    batch, channels = hr.shape[:2]
    check_border(hr, margin, padding)
    padded = rearrange(F.pad(hr, (margin,) * 4, mode=BORDERS[padding]), "b c h w -> 1 (b c) h w")
    weight = repeat(without_denormals(kernel), "b 1 y x -> (b c) 1 y x", c=channels)
    reduced = F.conv2d(padded, weight, stride=scale, groups=batch * channels)
    return rearrange(reduced, "1 (b c) h w -> b c h w", b=batch)


def _framed(inner: Tensor, hr: Tensor, plain: Reduce, strip: int, edge: int) -> Tensor:
    """`inner` within a frame of `edge` pixels, which `plain` makes from strips of `hr`."""
    top, bottom = plain(hr[..., :strip, :])[..., :edge, :], plain(hr[..., -strip:, :])[..., -edge:, :]
    left, right = plain(hr[..., :strip])[..., :edge], plain(hr[..., -strip:])[..., -edge:]
    middle = torch.cat([left[..., edge:-edge, :], inner, right[..., edge:-edge, :]], -1)
    return torch.cat([top, middle, bottom], -2)
