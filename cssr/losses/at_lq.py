"""Segmentation loss at LQ resolution, for models that segment first and super-resolve the mask."""

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
    """Any segmentation loss of the LQ logits (B 1 h w) against the mask reduced to LQ size.

    The reduced mask is soft, 0..1; its distance map is the mean over each block, in LQ pixels. An empty mask stays
    empty: the result is that of `loss`.

    Args:
        loss: segmentation loss with its settings: `{name: at_lq, loss: {name: dice}}`.
        method, antialias: resampler that reduces the mask.
    Raises:
        ValueError: for an unknown or invalid loss or method; from the loss, where the model returns no LQ logits.
    """
    resampler(1, method, antialias)  # refuses an unknown method
    segmentation_loss = LOSSES.build(loss)

    def at_low_resolution(outputs: Outputs, batch: Batch, progress: Progress) -> Tensor:
        if outputs.lq_logits is None:
            raise ValueError("loss 'at_lq' needs a model that segments the LQ image: model.form=seg_then_sr")
        scale = batch.mask.shape[-1] // outputs.lq_logits.shape[-1]
        mask = resampler(scale, method, antialias)[0](batch.mask).clamp(0, 1)
        distance = batch.distance
        if distance is not None:
            distance = resampler(scale, "area", False)[0](distance) / scale
        reduced_batch = replace(batch, mask=mask, distance=distance)
        return segmentation_loss(replace(outputs, logits=outputs.lq_logits), reduced_batch, progress)

    at_low_resolution.needs_distance = getattr(segmentation_loss, "needs_distance", False)
    return at_low_resolution
