"""Pixel operations of degradations: blur by one kernel a sample, reduction by a named resampler, JPEG."""

from collections.abc import Callable
from functools import cache
from typing import Literal

import kornia.core.utils
import kornia.filters
import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from kornia.enhance import jpeg_codec_differentiable
from torch import Tensor

Method = Literal["bicubic", "bilinear", "area", "strided"]
Padding = Literal["zero", "reflect", "replicate"]
BORDERS = {"zero": "constant", "reflect": "reflect", "replicate": "replicate"}
_JPEG_MOVES = hasattr(kornia.core.utils, "_to_device_nonblocking")  # since kornia 0.9: qualities to the device, itself
_NOTHING = 1e-20  # a kernel's weight below this is lost in any sum of float32
Reduce = Callable[[Tensor], Tensor]


def blur(hr: Tensor, kernel: Tensor, padding: Padding = "zero") -> Tensor:
    """Correlate each image with its own kernel, size kept.

    Args:
        hr: B C H W. kernel: B 1 k k, k odd.
        padding: beyond the border; `zero` darkens it, as the published systems do.
    """
    check_padding(padding)
    check_border(hr, kernel.shape[-1] // 2, padding)
    if torch.is_grad_enabled() and (hr.requires_grad or kernel.requires_grad):
        return _blur_by_fft(hr, kernel, padding)
    return kornia.filters.filter2d(hr, without_denormals(kernel[:, 0]).to(hr.dtype), border_type=BORDERS[padding])


def _blur_by_fft(hr: Tensor, kernel: Tensor, padding: Padding) -> Tensor:
    """`blur` as a product of spectra: equal up to rounding, forward and backward in a sixth of the time on a CPU.

    The gradient of a grouped convolution by 21x21 kernels is what is slow: 8 crops of 128x128 take 160 ms, so 25 ms.
    """
    half, dtype = kernel.shape[-1] // 2, torch.promote_types(hr.dtype, torch.float32)
    padded = F.pad(hr.to(dtype), (half,) * 4, mode=BORDERS[padding])
    size = padded.shape[-2:]
    spectrum = torch.fft.rfft2(padded) * torch.fft.rfft2(kernel.to(dtype).flip(2, 3), size)
    return torch.fft.irfft2(spectrum, size)[..., 2 * half :, 2 * half :].to(hr.dtype)  # what has not wrapped around


def without_denormals(kernel: Tensor) -> Tensor:
    """The kernel without its negligible weights, as in the tails of a narrow Gaussian.

    Among them are denormal numbers, with which a processor calculates several times more slowly. The gradient passes.
    """
    return kernel - torch.where(kernel.abs() < _NOTHING, kernel, 0).detach()


def blur_strided(hr: Tensor, kernel: Tensor, padding: Padding, scale: int) -> Tensor:
    """`blur(...)[..., ::scale, ::scale]` without computing the dropped pixels: `blur`'s arguments and the stride."""
    check_padding(padding)
    _reduced(hr, scale)
    batch, channels = hr.shape[:2]
    half = kernel.shape[-1] // 2
    check_border(hr, half, padding)
    padded = rearrange(F.pad(hr, (half,) * 4, mode=BORDERS[padding]), "b c h w -> 1 (b c) h w")
    weight = repeat(without_denormals(kernel).to(hr.dtype), "b 1 y x -> (b c) 1 y x", c=channels)
    reduced = F.conv2d(padded, weight, stride=scale, groups=batch * channels)
    return rearrange(reduced, "1 (b c) h w -> b c h w", b=batch)


def check_padding(padding: str) -> None:
    """Refuse an unknown padding of `blur`."""
    if padding not in BORDERS:
        raise ValueError(f"degradation: padding must be one of {', '.join(BORDERS)}, got {padding!r}")


def check_border(hr: Tensor, reach: int, padding: Padding) -> None:
    """Refuse to reflect more than an image has; ValueError, one line."""
    if padding == "reflect" and min(hr.shape[-2:]) <= reach:
        height, width = hr.shape[-2:]
        raise ValueError(
            f"degradation.padding=reflect: an HR image of {height} x {width} pixels is too small for a kernel that "
            f"reaches {reach}: take larger images, a smaller kernel, or padding=replicate"
        )


def resampler(scale: int, method: Method, antialias: bool) -> tuple[Callable[[Tensor], Tensor], str]:
    """A function reducing B C H W by `scale`, and the name under which results record it."""
    if method in ("bicubic", "bilinear"):
        smoothing = "antialiased" if antialias else "not antialiased"
        name = f"{method} x1/{scale}, {smoothing} (torch interpolate, align_corners=False)"
        return lambda x: F.interpolate(x, size=_reduced(x, scale), mode=method, antialias=antialias), name
    if method == "area":
        return lambda x: F.interpolate(x, size=_reduced(x, scale), mode="area"), f"area x1/{scale} (mean of blocks)"
    if method == "strided":
        return lambda x: _strided(x, scale), f"strided x1/{scale} (first pixel of each block)"
    raise ValueError(f"degradation: method must be bicubic, bilinear, area or strided, got {method!r}")


def _strided(x: Tensor, scale: int) -> Tensor:
    _reduced(x, scale)
    return x[..., ::scale, ::scale]


def _reduced(x: Tensor, scale: int) -> tuple[int, int]:
    height, width = x.shape[-2:]
    assert height % scale == 0 and width % scale == 0, f"{height}x{width} is not a multiple of {scale}"
    return height // scale, width // scale


def jpeg(x: Tensor, quality: Tensor) -> Tensor:
    """JPEG (4:2:0, the standard's tables) of each image; gradients pass through (Reich et al. 2024).

    On average one to two grey levels from libjpeg's result, which is about six from the image at quality 30 to 60.
    Where rounding moves a coefficient across the middle between two steps of the quantiser, devices differ by that
    step (times 3/4).

    Args:
        x: B 3 H W float32, clipped to 0..1. quality: B, 1..100; fractions are fine. On the CPU: its range is looked at.
    Returns: B 3 H W float32 0..1.
    """
    with torch.autocast(x.device.type, enabled=False):
        quality = quality.float() if _JPEG_MOVES else quality.to(x.device, torch.float32)
        return jpeg_codec_differentiable(x.float().clamp(0, 1), quality).clamp(0, 1)


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
    """A resampler's weights far from the border (n), float32; how many are beyond the `scale` pixels on either side."""
    side, middle, width = 16 * scale, 8, 2 * scale  # torch 2.14 gets results of a single column wrong
    unit = repeat(torch.eye(side), "c h -> 1 c h w", w=width)
    row = reduce(unit)[0, :, middle, 0]  # what each pixel gives to this one of the result
    columns = row.nonzero().flatten().tolist()
    reach = max(scale * middle - columns[0], columns[-1] - scale * (middle + 1) + 1, 0)
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
