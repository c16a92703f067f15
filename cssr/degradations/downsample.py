"""Degradations without random blur: bicubic reduction (CSSR's), and LQ images and kernels stored in shards."""

from collections.abc import Callable

from torch import Tensor

from cssr.degradations import DEGRADATIONS
from cssr.degradations.ops import Method, resampler


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


@DEGRADATIONS.register
def stored() -> Callable:
    """Degradation that the set stores: a frozen benchmark, or real pairs. Batches hold it: there is nothing to do.

    The callable refuses to be called: there is no way from an HR image to what a set would store.
    """

    def degrade(hr: Tensor, seeds: Tensor | None = None) -> tuple[Tensor, None]:
        raise ValueError(
            "degradation=stored takes LQ images from shards that store them, here are none: choose another degradation"
        )

    degrade.resampler = "stored"
    return degrade
