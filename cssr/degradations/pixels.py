"""The pixel work that degradations share: blur by one kernel a sample, reduction by a named resampler, JPEG."""

from collections.abc import Callable
from typing import Literal

import kornia.filters
import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from kornia.enhance import jpeg_codec_differentiable
from torch import Tensor

Method = Literal["bicubic", "bilinear", "area", "strided"]
Padding = Literal["zero", "reflect", "replicate"]
BORDERS = {"zero": "constant", "reflect": "reflect", "replicate": "replicate"}
_NOTHING = 1e-20  # a kernel's weight below this is lost in any sum of float32


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
    """The kernel without weights of next to nothing: the tails of a narrow Gaussian.

    Among them are denormal numbers, with which a processor calculates several times more slowly. The gradient passes.
    """
    return kernel - torch.where(kernel.abs() < _NOTHING, kernel, 0).detach()


def blur_strided(hr: Tensor, kernel: Tensor, padding: Padding, scale: int) -> Tensor:
    """`blur(...)[..., ::scale, ::scale]` without computing the pixels that go: `blur`'s arguments and the stride."""
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
    """Refuse a padding that `blur` does not know."""
    if padding not in BORDERS:
        raise ValueError(f"degradation: padding must be one of {', '.join(BORDERS)}, found {padding!r}")


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
    raise ValueError(f"degradation: method must be bicubic, bilinear, area or strided, found {method!r}")


def _strided(x: Tensor, scale: int) -> Tensor:
    _reduced(x, scale)
    return x[..., ::scale, ::scale]


def _reduced(x: Tensor, scale: int) -> tuple[int, int]:
    height, width = x.shape[-2:]
    assert height % scale == 0 and width % scale == 0, f"{height}x{width} is not a multiple of {scale}"
    return height // scale, width // scale


def jpeg(x: Tensor, quality: Tensor) -> Tensor:
    """What JPEG (4:2:0, the standard's tables) leaves of each image; gradients pass through (Reich et al. 2024).

    On average one to two grey levels from libjpeg's result, which is about six from the image at quality 30 to 60.
    Where rounding moves a coefficient across the middle between two steps of the quantiser, devices differ by that
    step (times 3/4).

    Args:
        x: B 3 H W float32, clipped to 0..1. quality: B, 1..100, on any device; fractions are fine.
    Returns: B 3 H W float32 0..1.
    """
    with torch.autocast(x.device.type, enabled=False):
        quality = quality.to(x.device, torch.float32)  # kornia below 0.9 does not move it
        return jpeg_codec_differentiable(x.float().clamp(0, 1), quality).clamp(0, 1)
