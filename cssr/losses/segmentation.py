"""Segmentation losses, from logits, one value a sample (float32).

On an empty mask: weighted BCE is that of the background; Dice and generalised Dice are 1 (nearly 0 for Dice where every
probability vanishes too); the boundary loss is 0. `aux_weight` adds the same loss of each auxiliary head.
`pixel_weight` (`cssr/losses/weights.py`) weighs the pixels of all heads, by the errors of the main one; Dice, which is
no mean over pixels, is multiplied by a sample's mean weight.
"""

from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Any

from torch import Tensor

from cssr.config.registry import Weight
from cssr.config.schedules import Progress, ScheduleSetting, bounded_schedule
from cssr.data.batch import Batch, Outputs
from cssr.losses import LOSSES
from cssr.losses.terms import Maps, boundary_term, combo_term, dice_term, generalized_dice_term, weighted_bce
from cssr.losses.weights import build_weight

Setting = Mapping[str, Any] | None
Region = Callable[[Tensor, Tensor, Maps], Tensor]
Term = Callable[[Tensor, Batch, Progress, Maps], Tensor]
_ALPHA: Mapping[str, Any] = {
    "name": "staircase",
    "every": 9600,
}  # CSSR's: 0.01 less each pass of its 9,600 training images


def _over_heads(term: Term, aux_weight: Weight, pixel_weight: Setting, distance: bool = False) -> Callable:
    """A loss from what one head's logits (B 1 H W) give; `distance` says that it needs the batch's distance map."""
    weight = build_weight(pixel_weight)

    def loss(outputs: Outputs, batch: Batch, progress: Progress) -> Tensor:
        maps = weight(outputs, batch, progress)
        total = term(outputs.logits, batch, progress, maps)
        for logits in outputs.aux:
            _check_size(logits, batch.mask)
            total = total + aux_weight * term(logits, batch, progress, maps)
        return total

    loss.needs_distance = distance or weight.needs_distance
    return loss


def _of_region(region: Region, aux_weight: Weight, pixel_weight: Setting) -> Callable:
    """A loss of logits and mask alone."""
    return _over_heads(lambda logits, batch, _, maps: region(logits, batch.mask, maps), aux_weight, pixel_weight)


def _with_boundary(region: Region, alpha: Any, aux_weight: Weight, pixel_weight: Setting) -> Callable:
    """alpha region + (1 - alpha) boundary, alpha a schedule."""
    schedule = bounded_schedule(alpha, 0, 1, "loss.seg.alpha")

    def term(logits: Tensor, batch: Batch, progress: Progress, maps: Maps) -> Tensor:
        share = schedule(progress)
        edge = boundary_term(logits, batch.distance, maps)
        return share * region(logits, batch.mask, maps) + (1 - share) * edge

    return _over_heads(term, aux_weight, pixel_weight, distance=True)


@LOSSES.register
def bce(weight: Sequence[float] = (1.0, 1.0), aux_weight: Weight = 0.4, pixel_weight: Setting = None) -> Callable:
    """Weighted BCE; `weight` is that of crack and background pixels."""
    _check_pair("weight", weight)
    return _of_region(lambda logits, mask, maps: weighted_bce(logits, mask, weight, maps), aux_weight, pixel_weight)


@LOSSES.register
def dice(aux_weight: Weight = 0.4, pixel_weight: Setting = None) -> Callable:
    """Dice with squared denominators."""
    return _of_region(dice_term, aux_weight, pixel_weight)


@LOSSES.register
def generalized_dice(aux_weight: Weight = 0.4, pixel_weight: Setting = None) -> Callable:
    """Generalised Dice of the crack class."""
    return _of_region(generalized_dice_term, aux_weight, pixel_weight)


@LOSSES.register
def combo(
    weight: Sequence[float] = (1.0, 1.0),
    mix: Sequence[float] = (1.0, 1.0),
    aux_weight: Weight = 0.4,
    pixel_weight: Setting = None,
) -> Callable:
    """Weighted BCE and Dice, in the proportions `mix`."""
    return _of_region(_combo(weight, mix, dice_term), aux_weight, pixel_weight)


@LOSSES.register
def boundary(aux_weight: Weight = 0.4, pixel_weight: Setting = None) -> Callable:
    """The boundary loss alone (it has no lower bound on what lies far from cracks: combine it)."""

    def term(logits: Tensor, batch: Batch, progress: Progress, maps: Maps) -> Tensor:
        return boundary_term(logits, batch.distance, maps)

    return _over_heads(term, aux_weight, pixel_weight, distance=True)


@LOSSES.register
def boundary_combo(
    weight: Sequence[float] = (1.0, 1.0),
    mix: Sequence[float] = (1.0, 1.0),
    alpha: ScheduleSetting = _ALPHA,
    aux_weight: Weight = 0.4,
    pixel_weight: Setting = None,
) -> Callable:
    """CSSR's loss: alpha Combo + (1 - alpha) Boundary."""
    return _with_boundary(_combo(weight, mix, dice_term), alpha, aux_weight, pixel_weight)


@LOSSES.register
def generalized_boundary_combo(
    weight: Sequence[float] = (1.0, 1.0),
    mix: Sequence[float] = (1.0, 1.0),
    alpha: ScheduleSetting = _ALPHA,
    aux_weight: Weight = 0.4,
    pixel_weight: Setting = None,
) -> Callable:
    """Boundary Combo with generalised Dice for Dice."""
    return _with_boundary(_combo(weight, mix, generalized_dice_term), alpha, aux_weight, pixel_weight)


@LOSSES.register
def boundary_generalized_dice(
    alpha: ScheduleSetting = _ALPHA, aux_weight: Weight = 0.4, pixel_weight: Setting = None
) -> Callable:
    """alpha generalised Dice + (1 - alpha) Boundary (Kervadec et al.)."""
    return _with_boundary(generalized_dice_term, alpha, aux_weight, pixel_weight)


def _combo(weight: Sequence[float], mix: Sequence[float], dice: Callable) -> Region:
    _check_pair("weight", weight)
    _check_pair("mix", mix)
    return lambda logits, mask, maps: combo_term(logits, mask, weight, mix, dice, maps)


def _check_size(logits: Tensor, mask: Tensor) -> None:
    if logits.shape != mask.shape:
        raise ValueError(
            f"loss.seg: auxiliary logits are {list(logits.shape[-2:])}, the mask is {list(mask.shape[-2:])}; "
            "model.form=seg_then_sr takes loss.seg={name: at_lq, loss: ...}"
        )


def _check_pair(name: str, values: Any) -> None:
    numbers = isinstance(values, Sequence) and all(isinstance(v, Real) and v >= 0 for v in values)
    if not numbers or len(values) != 2 or not sum(values):
        raise ValueError(f"segmentation loss: {name} needs two numbers, none negative, not both 0; found {values!r}")
