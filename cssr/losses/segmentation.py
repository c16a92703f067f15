"""Segmentation losses, from logits, one value a sample (float32).

On an empty mask: weighted BCE is that of the background; Dice and generalised Dice are 1 (nearly 0 for Dice where every
probability vanishes too); the boundary loss is 0. `aux_weight` adds the same loss of each auxiliary head.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from cssr.batch import Batch, Outputs
from cssr.losses import LOSSES
from cssr.schedules import Progress, build_schedule

Term = Callable[[Tensor, Batch, Progress], Tensor]
_ALPHA: Mapping[str, Any] = {
    "name": "staircase",
    "every": 9600,
}  # CSSR's: 0.01 less each pass of its 9,600 training images


def _over_heads(term: Term, aux_weight: float, distance: bool = False) -> Callable[[Outputs, Batch, Progress], Tensor]:
    """A loss from what one head's logits (B 1 H W) give; `distance` says that it needs the batch's distance map."""

    def loss(outputs: Outputs, batch: Batch, progress: Progress) -> Tensor:
        total = term(outputs.logits, batch, progress)
        for logits in outputs.aux:
            total = total + aux_weight * term(logits, batch, progress)
        return total

    loss.needs_distance = distance
    return loss


def weighted_bce(logits: Tensor, mask: Tensor, weight: Sequence[float] = (1.0, 1.0)) -> Tensor:
    """Binary cross-entropy, crack and background weighted, divided by the sum of the weights: B values."""
    crack, background = weight
    terms = crack * mask * F.logsigmoid(logits) + background * (1 - mask) * F.logsigmoid(-logits)
    return -terms.mean((1, 2, 3)) / (crack + background)


def dice_term(logits: Tensor, mask: Tensor) -> Tensor:
    """1 - (2 sum(p t) + 1e-6) / (sum(p^2) + sum(t^2) + 1e-6) (Milletari et al., V-Net): B values."""
    prob = logits.sigmoid()
    overlap = (prob * mask).sum((1, 2, 3))
    return 1 - (2 * overlap + 1e-6) / (prob.square().sum((1, 2, 3)) + mask.square().sum((1, 2, 3)) + 1e-6)


def generalized_dice_term(logits: Tensor, mask: Tensor) -> Tensor:
    """Generalised Dice of the crack class, weight 1 / (sum(t) + 1e-10)^2, smoothing 1e-5 (Sudre et al.): B values."""
    prob, area = logits.sigmoid(), mask.sum((1, 2, 3))
    weight = 1 / (area + 1e-10).square()
    overlap = weight * (prob * mask).sum((1, 2, 3))
    return 1 - 2 * (overlap + 1e-5) / (weight * (prob.sum((1, 2, 3)) + area) + 1e-5)


def normalized_distance(distance: Tensor) -> Tensor:
    """Signed distance (B 1 H W, pixels) scaled to -1..1 for each sample, 0 on the inner boundary, as CSSR does."""
    outside, inside = distance.clamp(min=0), distance.clamp(max=0)
    outside = outside / outside.amax((1, 2, 3), keepdim=True).clamp(min=1e-6)
    inside = inside / inside.amin((1, 2, 3), keepdim=True).clamp(max=-1e-6).abs()
    on_boundary = (distance < 0) & (distance > -1.2)  # -1 exactly; the next distance is -sqrt(2)
    return (outside + inside).masked_fill(on_boundary, 0)


def boundary_term(logits: Tensor, distance: Tensor) -> Tensor:
    """Mean of probability times normalised signed distance (Kervadec et al.): B values, negative where it is good."""
    return (logits.sigmoid() * normalized_distance(distance)).mean((1, 2, 3))


def _combo_term(logits: Tensor, mask: Tensor, weight: Sequence[float], mix: Sequence[float], dice: Callable) -> Tensor:
    bce_share, dice_share = mix
    return (bce_share * weighted_bce(logits, mask, weight) + dice_share * dice(logits, mask)) / (bce_share + dice_share)


def _with_boundary(region: Callable[[Tensor, Tensor], Tensor], alpha: Any, aux_weight: float) -> Callable:
    """alpha region + (1 - alpha) boundary, alpha a schedule."""
    schedule = build_schedule(alpha)

    def term(logits: Tensor, batch: Batch, progress: Progress) -> Tensor:
        share = schedule(progress)
        return share * region(logits, batch.mask) + (1 - share) * boundary_term(logits, batch.distance)

    return _over_heads(term, aux_weight, distance=True)


@LOSSES.register
def bce(weight: Sequence[float] = (1.0, 1.0), aux_weight: float = 0.4) -> Callable:
    """Weighted BCE; `weight` is that of crack and background pixels."""
    return _over_heads(lambda logits, batch, _: weighted_bce(logits, batch.mask, weight), aux_weight)


@LOSSES.register
def dice(aux_weight: float = 0.4) -> Callable:
    """Dice with squared denominators."""
    return _over_heads(lambda logits, batch, _: dice_term(logits, batch.mask), aux_weight)


@LOSSES.register
def generalized_dice(aux_weight: float = 0.4) -> Callable:
    """Generalised Dice of the crack class."""
    return _over_heads(lambda logits, batch, _: generalized_dice_term(logits, batch.mask), aux_weight)


@LOSSES.register
def combo(weight: Sequence[float] = (1.0, 1.0), mix: Sequence[float] = (1.0, 1.0), aux_weight: float = 0.4) -> Callable:
    """Weighted BCE and Dice, in the proportions `mix`."""
    return _over_heads(lambda logits, batch, _: _combo_term(logits, batch.mask, weight, mix, dice_term), aux_weight)


@LOSSES.register
def boundary(aux_weight: float = 0.4) -> Callable:
    """The boundary loss alone (it has no lower bound on what lies far from cracks: combine it)."""
    return _over_heads(lambda logits, batch, _: boundary_term(logits, batch.distance), aux_weight, distance=True)


@LOSSES.register
def boundary_combo(
    weight: Sequence[float] = (1.0, 1.0),
    mix: Sequence[float] = (1.0, 1.0),
    alpha: Any = _ALPHA,
    aux_weight: float = 0.4,
) -> Callable:
    """CSSR's loss: alpha Combo + (1 - alpha) Boundary."""
    return _with_boundary(lambda logits, mask: _combo_term(logits, mask, weight, mix, dice_term), alpha, aux_weight)


@LOSSES.register
def generalized_boundary_combo(
    weight: Sequence[float] = (1.0, 1.0),
    mix: Sequence[float] = (1.0, 1.0),
    alpha: Any = _ALPHA,
    aux_weight: float = 0.4,
) -> Callable:
    """Boundary Combo with generalised Dice for Dice."""
    return _with_boundary(
        lambda logits, mask: _combo_term(logits, mask, weight, mix, generalized_dice_term), alpha, aux_weight
    )


@LOSSES.register
def boundary_generalized_dice(alpha: Any = _ALPHA, aux_weight: float = 0.4) -> Callable:
    """alpha generalised Dice + (1 - alpha) Boundary (Kervadec et al.)."""
    return _with_boundary(generalized_dice_term, alpha, aux_weight)
