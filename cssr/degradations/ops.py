"""Pixel operations of degradations: blur with per-sample kernels, reduction by a resampler, differentiable JPEG."""

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
# kornia 0.9 moves the quality to the device itself
_JPEG_MOVES_QUALITY = hasattr(kornia.core.utils, "_to_device_nonblocking")
_NEGLIGIBLE = 1e-20  # kernel weights below this have no effect on a sum in float32
Reduce = Callable[[Tensor], Tensor]


def blur(hr: Tensor, kernel: Tensor, padding: Padding = "zero") -> Tensor:
    """Correlate each image with its own kernel, size kept.

    Args:
        hr: B C H W. kernel: B 1 k k, k odd.
        padding: of the border; `zero` darkens it, as in the published systems.
    Returns: B C H W, of the dtype of `hr`.
    Raises: ValueError for an unknown padding, or `reflect` with an image smaller than the kernel's reach.
    """
    check_padding(padding)
    check_border(hr, kernel.shape[-1] // 2, padding)
    if torch.is_grad_enabled() and (hr.requires_grad or kernel.requires_grad):
        return _blur_by_fft(hr, kernel, padding)
    return kornia.filters.filter2d(hr, without_denormals(kernel[:, 0]).to(hr.dtype), border_type=BORDERS[padding])


def _blur_by_fft(hr: Tensor, kernel: Tensor, padding: Padding) -> Tensor:
    """`blur` by FFT: equal up to rounding, forward and backward in a sixth of the time on a CPU.

    With 21x21 kernels, 8 crops of 128x128 take 25 ms; the gradient of a grouped convolution alone takes 160 ms.
    """
    half, dtype = kernel.shape[-1] // 2, torch.promote_types(hr.dtype, torch.float32)
    padded = F.pad(hr.to(dtype), (half,) * 4, mode=BORDERS[padding])
    size = padded.shape[-2:]
    spectrum = torch.fft.rfft2(padded) * torch.fft.rfft2(kernel.to(dtype).flip(2, 3), size)
    return torch.fft.irfft2(spectrum, size)[..., 2 * half :, 2 * half :].to(hr.dtype)  # without what wraps around


def without_denormals(kernel: Tensor) -> Tensor:
    """Set negligible kernel weights to 0, as in the tails of a narrow Gaussian; the gradient is unchanged.

    Some of them are denormal numbers, with which a CPU computes several times more slowly.
    """
    return kernel - torch.where(kernel.abs() < _NEGLIGIBLE, kernel, 0).detach()


def blur_strided(hr: Tensor, kernel: Tensor, padding: Padding, scale: int) -> Tensor:
    """Compute only the pixels `blur(hr, kernel, padding)[..., ::scale, ::scale]`; arguments as for `blur`."""
    check_padding(padding)
    reduced_size(hr, scale)
    return _correlate(hr, without_denormals(kernel).to(hr.dtype), padding, kernel.shape[-1] // 2, scale)


def check_padding(padding: str) -> None:
    """Raise ValueError for an unknown padding of `blur`."""
    if padding not in BORDERS:
        raise ValueError(f"degradation: padding must be one of {', '.join(BORDERS)}, got {padding!r}")


def check_border(hr: Tensor, reach: int, padding: Padding) -> None:
    """Raise ValueError if `reflect` pads by more (`reach`, pixels) than the image allows."""
    if padding == "reflect" and min(hr.shape[-2:]) <= reach:
        height, width = hr.shape[-2:]
        raise ValueError(
            f"degradation.padding=reflect: an HR image of {height} x {width} pixels is too small for a kernel that "
            f"reaches {reach}: take larger images, a smaller kernel, or padding=replicate"
        )


def resampler(scale: int, method: Method, antialias: bool) -> tuple[Callable[[Tensor], Tensor], str]:
    """Function that reduces B C H W by `scale`, and its name in results; ValueError for an unknown method."""
    if method in ("bicubic", "bilinear"):
        smoothing = "antialiased" if antialias else "not antialiased"
        name = f"{method} x1/{scale}, {smoothing} (torch interpolate, align_corners=False)"
        return lambda x: F.interpolate(x, size=reduced_size(x, scale), mode=method, antialias=antialias), name
    if method == "area":
        return lambda x: F.interpolate(x, size=reduced_size(x, scale), mode="area"), f"area x1/{scale} (mean of blocks)"
    if method == "strided":
        return lambda x: _strided(x, scale), f"strided x1/{scale} (first pixel of each block)"
    raise ValueError(f"degradation: method must be bicubic, bilinear, area or strided, got {method!r}")


def _strided(x: Tensor, scale: int) -> Tensor:
    reduced_size(x, scale)
    return x[..., ::scale, ::scale]


def reduced_size(x: Tensor, scale: int) -> tuple[int, int]:
    """Height and width of images (... H W) reduced by `scale`, which must divide both."""
    height, width = x.shape[-2:]
    assert height % scale == 0 and width % scale == 0, f"{height}x{width} is not a multiple of {scale}"
    return height // scale, width // scale


def jpeg(x: Tensor, quality: Tensor) -> Tensor:
    """Differentiable JPEG (4:2:0, the tables of the standard) of each image (Reich et al. 2024).

    On average one to two grey levels from the result of libjpeg, which differs from the image by about six at quality
    30 to 60. Where rounding moves a coefficient past the midpoint between two quantisation steps, devices differ by
    3/4 of that step.

    Args:
        x: B 3 H W float32, clipped to 0..1.
        quality: B, 1..100, not only whole numbers; on the CPU, since its range is checked.
    Returns: B 3 H W float32 0..1.
    """
    with torch.autocast(x.device.type, enabled=False):
        quality = quality.float() if _JPEG_MOVES_QUALITY else quality.to(x.device, torch.float32)
        return jpeg_codec_differentiable(x.float().clamp(0, 1), quality).clamp(0, 1)


def blurring(scale: int, reduce: Reduce, padding: Padding) -> Callable[[Tensor, Tensor], Tensor]:
    """Fuse blur and reduction into one strided convolution: `reduce(blur(hr, kernel, padding))` up to rounding.

    Only pixels of the result are computed, in a third to half of the time. Near the border, where the resampler has
    other weights, four strips are blurred and reduced one after the other.

    Args:
        scale: 2 or more. reduce: linear, separable resampler by `scale`.
        padding: as for `blur`.
    Returns: function (hr B C H W, kernel B 1 k k) -> B C H/scale W/scale.
    """
    row, reach = _resampler_taps(scale, reduce)
    row_on = cache(lambda device, dtype: row.to(device, dtype))  # no copy to a device in every step

    def blur_reduced(hr: Tensor, kernel: Tensor) -> Tensor:
        half, edge = kernel.shape[-1] // 2, -(-reach // scale)  # edge: rows of the result that the border touches
        strip = -(-(scale * edge + reach + half) // scale) * scale  # rows of `hr` that they depend on
        if edge and min(hr.shape[-2:]) < 2 * strip:
            return reduce(blur(hr, kernel, padding))
        fused = without_denormals(_fuse(kernel, row_on(hr.device, hr.dtype)))
        inner = _correlate(hr, fused, padding, reach + half - scale * edge, scale)
        if not edge:
            return inner
        return _add_border(inner, hr, lambda part: reduce(blur(part, kernel, padding)), strip, edge)

    return blur_reduced


def _resampler_taps(scale: int, reduce: Reduce) -> tuple[Tensor, int]:
    """Weights of a resampler far from the border (n float32), and how many reach beyond its block on either side."""
    side, middle, width = 16 * scale, 8, 2 * scale  # torch 2.14 gets results of a single column wrong
    impulses = repeat(torch.eye(side), "c h -> 1 c h w", w=width)
    row = reduce(impulses)[0, :, middle, 0]  # weight of each input pixel in the middle pixel of the result
    columns = row.nonzero().flatten().tolist()
    reach = max(scale * middle - columns[0], columns[-1] - scale * (middle + 1) + 1, 0)
    return row[scale * middle - reach : scale * (middle + 1) + reach], reach


def _fuse(kernel: Tensor, row: Tensor) -> Tensor:
    """Convolve kernels (B 1 k k) with n weights along both sides: B 1 k+n-1 k+n-1."""
    size = kernel.shape[-1]
    band = torch.stack([F.pad(row, (n, size - 1 - n)) for n in range(size)], 1)  # k+n-1 k
    return band @ kernel.to(row.dtype) @ band.T


def _correlate(hr: Tensor, kernel: Tensor, padding: Padding, margin: int, scale: int) -> Tensor:
    """Correlate each image (B C H W) with its own kernel (B 1 k k) at every `scale`th pixel, padded by `margin`."""
    batch, channels = hr.shape[:2]
    check_border(hr, margin, padding)
    padded = rearrange(F.pad(hr, (margin,) * 4, mode=BORDERS[padding]), "b c h w -> 1 (b c) h w")
    weight = repeat(kernel, "b 1 y x -> (b c) 1 y x", c=channels)
    reduced = F.conv2d(padded, weight, stride=scale, groups=batch * channels)
    return rearrange(reduced, "1 (b c) h w -> b c h w", b=batch)


def _add_border(inner: Tensor, hr: Tensor, degrade: Reduce, strip: int, edge: int) -> Tensor:
    """Surround `inner` by a border of `edge` pixels, computed by `degrade` from strips of `hr`."""
    top, bottom = degrade(hr[..., :strip, :])[..., :edge, :], degrade(hr[..., -strip:, :])[..., -edge:, :]
    left, right = degrade(hr[..., :strip])[..., :edge], degrade(hr[..., -strip:])[..., -edge:]
    middle = torch.cat([left[..., edge:-edge, :], inner, right[..., edge:-edge, :]], -1)
    return torch.cat([top, middle, bottom], -2)
