"""Reduction without blur: CSSR's degradation."""

from collections.abc import Callable

from torch import Tensor

from cssr.degradations import DEGRADATIONS
from cssr.degradations.pixels import Method, resampler


@DEGRADATIONS.register
def downsample(scale: int, method: Method = "bicubic", antialias: bool = True) -> Callable:
    """HR reduced by `scale`; scale 1 leaves it as it is.

    CSSR as released: `method=bilinear, antialias=False` (torchvision's tensor default of its day).
    """
    reduce, name = resampler(scale, method, antialias)

    def degrade(hr: Tensor, seeds: Tensor | None = None) -> tuple[Tensor, None]:
        return (hr if scale == 1 else reduce(hr)), None

    degrade.resampler = name if scale > 1 else "none (scale 1)"
    return degrade
