"""Degradations without random blur: bicubic reduction (CSSR's), and LQ images and kernels stored in shards."""

from collections.abc import Callable

from torch import Tensor

from cssr.degradations import DEGRADATIONS
from cssr.degradations.ops import Method, resampler


@DEGRADATIONS.register
def downsample(scale: int, method: Method = "bicubic", antialias: bool = True) -> Callable:
    """Reduction of HR by `scale` without blur or noise; scale 1: HR itself.

    The released CSSR code has `method=bilinear, antialias=False` (torchvision's default for tensors at that time).
    """
    reduce, name = resampler(scale, method, antialias)

    def degrade(hr: Tensor, seeds: Tensor | None = None) -> tuple[Tensor, None]:
        return (hr if scale == 1 else reduce(hr)), None

    degrade.resampler = name if scale > 1 else "none (scale 1)"
    return degrade


@DEGRADATIONS.register
def stored() -> Callable:
    """LQ images (and kernels) stored in the shards: a frozen benchmark, or real pairs.

    Batches already contain them; the callable raises ValueError, since they cannot be computed from HR.
    """

    def degrade(hr: Tensor, seeds: Tensor | None = None) -> tuple[Tensor, None]:
        raise ValueError(
            "degradation=stored takes LQ images from shards that store them, here are none: choose another degradation"
        )

    degrade.resampler = "stored"
    return degrade
