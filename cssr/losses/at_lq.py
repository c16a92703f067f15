"""A segmentation loss at low resolution, for models that segment first and super-resolve the mask."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from cssr.config.schedules import Progress
from cssr.data.batch import Batch, Outputs
from cssr.degradations.ops import Method, resampler
from cssr.losses import LOSSES


@LOSSES.register
def at_lq(
    loss: str | Mapping[str, Any] = "boundary_combo", method: Method = "bicubic", antialias: bool = True
) -> Callable:
    """`loss` of the LQ logits (B 1 h w) against the mask reduced to LQ size.

    The mask's values are then shares, 0 to 1; its distance map is the mean of each block, in LQ pixels. An empty mask
    stays empty, and gives what `loss` says.

    Args:
        loss: any segmentation loss, with its settings: `{name: at_lq, loss: {name: dice}}`.
        method, antialias: how the mask is reduced.
    Raises:
        ValueError: an unknown or impossible loss or method; from the loss, where the model gives no LQ logits.
    """
    resampler(1, method, antialias)  # refuses an unknown method
    inner = LOSSES.build(loss)

    def at_low_resolution(outputs: Outputs, batch: Batch, progress: Progress) -> Tensor:
        if outputs.lq_logits is None:
            raise ValueError("loss 'at_lq' needs a model that segments the LQ image: model.form=seg_then_sr")
        scale = batch.mask.shape[-1] // outputs.lq_logits.shape[-1]
        mask = resampler(scale, method, antialias)[0](batch.mask).clamp(0, 1)
        distance = batch.distance
        if distance is not None:
            distance = resampler(scale, "area", False)[0](distance) / scale
        reduced = replace(batch, mask=mask, distance=distance)
        return inner(replace(outputs, logits=outputs.lq_logits), reduced, progress)

    at_low_resolution.needs_distance = getattr(inner, "needs_distance", False)
    return at_low_resolution
