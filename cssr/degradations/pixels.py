"""The pixel work that degradations share: blur by one kernel a sample, and reduction by a named resampler."""

from collections.abc import Callable
from typing import Literal

import kornia.filters
import torch.nn.functional as F
from torch import Tensor

Method = Literal["bicubic", "bilinear", "area", "strided"]
Padding = Literal["zero", "reflect", "replicate"]
_BORDER = {"zero": "constant", "reflect": "reflect", "replicate": "replicate"}


def blur(hr: Tensor, kernel: Tensor, padding: Padding = "zero") -> Tensor:
    """Correlate each image with its own kernel, size kept.

    Args:
        hr: B C H W. kernel: B 1 k k, k odd.
        padding: beyond the border; `zero` darkens it, as the published systems do.
    """
    check_padding(padding)
    return kornia.filters.filter2d(hr, kernel[:, 0].to(hr.dtype), border_type=_BORDER[padding])


def check_padding(padding: str) -> None:
    """Refuse a padding that `blur` does not know."""
    if padding not in _BORDER:
        raise ValueError(f"degradation: padding must be one of {', '.join(_BORDER)}, found {padding!r}")


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
