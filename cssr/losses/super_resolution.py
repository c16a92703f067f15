"""Losses of what super-resolution gives, mean over pixels and channels; an empty mask is nothing special to them."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from cssr.config.schedules import Progress
from cssr.data.batch import Batch, Outputs
from cssr.losses import LOSSES
from cssr.losses.weights import build_weight, weighted_mean


@LOSSES.register
def l1(pixel_weight: Mapping[str, Any] | None = None) -> Callable:
    """Mean absolute error of SR against HR, per sample; `pixel_weight`: `cssr/losses/weights.py`."""
    return _of_error(Tensor.abs, pixel_weight)


@LOSSES.register
def l2(pixel_weight: Mapping[str, Any] | None = None) -> Callable:
    """Mean squared error of SR against HR, per sample; `pixel_weight`: `cssr/losses/weights.py`."""
    return _of_error(Tensor.square, pixel_weight)


def _of_error(measure: Callable[[Tensor], Tensor], pixel_weight: Mapping[str, Any] | None) -> Callable:
    weight = build_weight(pixel_weight)

    def loss(outputs: Outputs, batch: Batch, progress: Progress) -> Tensor:
        return weighted_mean(measure(outputs.sr - batch.hr), weight(outputs, batch, progress))

    loss.needs_distance = weight.needs_distance
    return loss


@LOSSES.register
def mask_l1() -> Callable:
    """Mean absolute error of the super-resolved mask against the mask, per sample (segmentation before SR).

    Raises: ValueError, from the loss, where the model super-resolves no mask.
    """

    def loss(outputs: Outputs, batch: Batch, progress: Progress) -> Tensor:
        if outputs.mask_sr is None:
            raise ValueError("loss 'mask_l1' needs a model that super-resolves the mask: model.form=seg_then_sr")
        return (outputs.mask_sr - batch.mask).abs().mean((1, 2, 3))

    return loss
