"""No degradation: the LQ images, and the kernels, that the shards store."""

from collections.abc import Callable

from torch import Tensor

from cssr.degradations import DEGRADATIONS


@DEGRADATIONS.register
def stored() -> Callable:
    """What the set stores: a frozen benchmark, or real pairs. Batches come with it, so that there is nothing to do.

    The callable refuses to be called: there is no way from an HR image to what a set would store.
    """

    def degrade(hr: Tensor, seeds: Tensor | None = None) -> tuple[Tensor, None]:
        raise ValueError(
            "degradation=stored takes LQ images from shards that store them, here are none: choose another degradation"
        )

    degrade.resampler = "stored"
    return degrade
