"""Segmentation losses of logits: B values, float32.

For an empty mask, weighted BCE is that of the background, Dice and generalised Dice are 1 (Dice is near 0 where all
probabilities are near 0 too), and the boundary loss is 0. `aux_weight` weights the same loss of each auxiliary head.

`pixel_weight` (`cssr/losses/pixel_weights.py`) weights the pixels of all heads, by the errors of the main head.
Cross-entropy and the boundary term are means over pixels and are weighted pixel by pixel; Dice, a ratio of sums, is
multiplied by the mean weight of its sample. The published code does the same for Dice alone, but within Boundary Combo
it divides Dice by the number of pixels, so that it vanishes: a bug that is not reproduced here.
"""

from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from cssr.config.registry import Weight
from cssr.config.schedules import Progress, ScheduleSetting, bounded_schedule
from cssr.data.batch import Batch, Outputs
from cssr.losses import LOSSES
from cssr.losses.pixel_weights import build_weight, mean_weight, weighted_mean

Maps = Sequence[Tensor]
Setting = Mapping[str, Any] | None
Region = Callable[[Tensor, Tensor, Maps], Tensor]
Term = Callable[[Tensor, Batch, Progress, Maps], Tensor]
# CSSR's: 0.01 less each pass of its 9,600 training images
_ALPHA: Mapping[str, Any] = {"name": "staircase", "every": 9600}
_PIXELS = {"batch": (0, 1, 2, 3), "image": (1, 2, 3)}  # the dimensions over which crack pixels are counted


def _over_heads(term: Term, aux_weight: Weight, pixel_weight: Setting, distance: bool = False) -> Callable:
    """Sum a term over the main head and, weighted, the auxiliary heads; `distance`: the term needs distance maps."""
    weight = build_weight(pixel_weight)

    def loss(outputs: Outputs, batch: Batch, progress: Progress) -> Tensor:
        maps = weight(outputs, batch, progress)
        total = term(outputs.logits, batch, progress, maps)
        for logits in outputs.aux:
            if logits.shape != batch.mask.shape:
                raise ValueError(
                    f"loss.seg: auxiliary logits are {list(logits.shape[-2:])}, the mask is "
                    f"{list(batch.mask.shape[-2:])}; model.form=seg_then_sr takes loss.seg={{name: at_lq, loss: ...}}"
                )
            total = total + aux_weight * term(logits, batch, progress, maps)
        return total

    loss.needs_distance = distance or weight.needs_distance
    return loss


def _of_region(region: Region, aux_weight: Weight, pixel_weight: Setting) -> Callable:
    """Loss of logits and mask only, over all heads."""
    return _over_heads(lambda logits, batch, _, maps: region(logits, batch.mask, maps), aux_weight, pixel_weight)


def _with_boundary(region: Region, alpha: Any, aux_weight: Weight, pixel_weight: Setting) -> Callable:
    """Loss alpha * region + (1 - alpha) * boundary over all heads; alpha is a schedule."""
    schedule = bounded_schedule(alpha, 0, 1, "loss.seg.alpha")

    def term(logits: Tensor, batch: Batch, progress: Progress, maps: Maps) -> Tensor:
        share = schedule(progress)
        boundary_loss = boundary_term(logits, batch.distance, maps)
        return share * region(logits, batch.mask, maps) + (1 - share) * boundary_loss

    return _over_heads(term, aux_weight, pixel_weight, distance=True)


@LOSSES.register
def bce(weight: Sequence[float] = (1.0, 1.0), aux_weight: Weight = 0.4, pixel_weight: Setting = None) -> Callable:
    """Weighted binary cross-entropy; `weight`: of crack and of background pixels."""
    _check_pair("weight", weight)
    return _of_region(lambda logits, mask, maps: weighted_bce(logits, mask, weight, maps), aux_weight, pixel_weight)


@LOSSES.register
def dice(aux_weight: Weight = 0.4, pixel_weight: Setting = None) -> Callable:
    """Dice loss with squared denominators (Milletari et al. 2016, V-Net)."""
    return _of_region(dice_term, aux_weight, pixel_weight)


@LOSSES.register
def generalized_dice(aux_weight: Weight = 0.4, pixel_weight: Setting = None) -> Callable:
    """Generalised Dice loss of the crack class (Sudre et al. 2017)."""
    return _of_region(generalized_dice_term, aux_weight, pixel_weight)


@LOSSES.register
def combo(
    weight: Sequence[float] = (1.0, 1.0),
    mix: Sequence[float] = (1.0, 1.0),
    aux_weight: Weight = 0.4,
    pixel_weight: Setting = None,
) -> Callable:
    """Weighted mean of BCE and Dice, in the proportions `mix`."""
    return _of_region(_combo(weight, mix, dice_term), aux_weight, pixel_weight)


@LOSSES.register
def boundary(aux_weight: Weight = 0.4, pixel_weight: Setting = None) -> Callable:
    """Boundary loss (Kervadec et al. 2019); not to be used alone: far from cracks it only lowers probabilities."""

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
    """Loss of CSSR: alpha * combo + (1 - alpha) * boundary."""
    return _with_boundary(_combo(weight, mix, dice_term), alpha, aux_weight, pixel_weight)


@LOSSES.register
def generalized_boundary_combo(
    weight: Sequence[float] = (1.0, 1.0),
    mix: Sequence[float] = (1.0, 1.0),
    alpha: ScheduleSetting = _ALPHA,
    aux_weight: Weight = 0.4,
    pixel_weight: Setting = None,
) -> Callable:
    """Boundary Combo with generalised Dice in place of Dice."""
    return _with_boundary(_combo(weight, mix, generalized_dice_term), alpha, aux_weight, pixel_weight)


@LOSSES.register
def boundary_generalized_dice(
    alpha: ScheduleSetting = _ALPHA, aux_weight: Weight = 0.4, pixel_weight: Setting = None
) -> Callable:
    """Loss alpha * generalised Dice + (1 - alpha) * boundary (Kervadec et al. 2019)."""
    return _with_boundary(generalized_dice_term, alpha, aux_weight, pixel_weight)


def _combo(weight: Sequence[float], mix: Sequence[float], dice: Callable) -> Region:
    _check_pair("weight", weight)
    _check_pair("mix", mix)
    return lambda logits, mask, maps: combo_term(logits, mask, weight, mix, dice, maps)


def _check_pair(name: str, values: Any) -> None:
    numbers = isinstance(values, Sequence) and all(isinstance(v, Real) and v >= 0 for v in values)
    if not numbers or len(values) != 2 or not sum(values):
        raise ValueError(f"segmentation loss: {name} needs two numbers, none negative, not both 0; got {values!r}")


def weighted_bce(logits: Tensor, mask: Tensor, weight: Sequence[float] = (1.0, 1.0), maps: Maps = ()) -> Tensor:
    """Weighted binary cross-entropy divided by the sum of both weights: B values."""
    crack, background = weight
    return weighted_mean(cross_entropy(logits, mask, crack, background), maps) / (crack + background)


def cross_entropy(logits: Tensor, mask: Tensor, crack: Tensor | float, background: Tensor | float) -> Tensor:
    """Weighted binary cross-entropy of each pixel, B 1 H W."""
    return -crack * mask * F.logsigmoid(logits) - background * (1 - mask) * F.logsigmoid(-logits)


def dice_term(logits: Tensor, mask: Tensor, maps: Maps = ()) -> Tensor:
    """Dice loss 1 - (2 sum(p t) + 1e-6) / (sum(p^2) + sum(t^2) + 1e-6) (Milletari et al. 2016, V-Net): B values."""
    prob = logits.sigmoid()
    overlap = (prob * mask).sum((1, 2, 3))
    total = prob.square().sum((1, 2, 3)) + mask.square().sum((1, 2, 3))
    return mean_weight(maps) * (1 - (2 * overlap + 1e-6) / (total + 1e-6))


def generalized_dice_term(logits: Tensor, mask: Tensor, maps: Maps = ()) -> Tensor:
    """Generalised Dice of the crack class, weight 1 / (sum(t) + 1e-10)^2, smoothing 1e-5 (Sudre et al.): B values."""
    prob, area = logits.sigmoid(), mask.sum((1, 2, 3))
    weight = 1 / (area + 1e-10).square()
    overlap = weight * (prob * mask).sum((1, 2, 3))
    total = weight * (prob.sum((1, 2, 3)) + area)
    return mean_weight(maps) * (1 - 2 * (overlap + 1e-5) / (total + 1e-5))


def normalized_distance(distance: Tensor) -> Tensor:
    """Signed distance (B 1 H W, pixels) scaled to -1..1 for each sample, 0 on the inner boundary, as CSSR does."""
    outside, inside = distance.clamp(min=0), distance.clamp(max=0)
    outside = outside / outside.amax((1, 2, 3), keepdim=True).clamp(min=1e-6)
    inside = inside / inside.amin((1, 2, 3), keepdim=True).clamp(max=-1e-6).abs()
    on_boundary = (distance < 0) & (distance > -1.2)  # -1 exactly; the next distance is -sqrt(2)
    return (outside + inside).masked_fill(on_boundary, 0)


def boundary_term(logits: Tensor, distance: Tensor, maps: Maps = ()) -> Tensor:
    """Mean of probability times normalised signed distance (Kervadec et al. 2019): B values, the lower the better."""
    return weighted_mean(logits.sigmoid() * normalized_distance(distance), maps)


def combo_term(
    logits: Tensor, mask: Tensor, weight: Sequence[float], mix: Sequence[float], dice: Callable, maps: Maps = ()
) -> Tensor:
    """Weighted BCE and a Dice term in the proportions `mix`: B values."""
    bce_share, dice_share = mix
    total = bce_share * weighted_bce(logits, mask, weight, maps) + dice_share * dice(logits, mask, maps)
    return total / (bce_share + dice_share)


@LOSSES.register
def crackformer_side(
    balance: Literal["batch", "image"] = "batch",
    background: Weight = 1.1,
    aux_weight: Weight = 0.4,
    pixel_weight: Mapping[str, Any] | None = None,
) -> Callable:
    """Balanced cross-entropy of the main logits plus `aux_weight` times its mean over the auxiliary maps.

    A crack pixel's weight is the share of background, a background pixel's is `background` times the share of crack
    (Liu et al., CrackFormer; Liu et al., RCF). Values are per sample; their batch mean is the published number.
    Without crack pixels all weights are 0 and so is the loss: such images have no effect on their own.

    Args:
        balance: pixels over which the shares are computed: the micro-batch (`batch`, as published: the loss then
            depends on its size, and an empty mask is weighted by the other samples' cracks) or each `image`.
        background: factor on background pixels.
        aux_weight: weight of the mean over auxiliary maps.
        pixel_weight: see `cssr/losses/pixel_weights.py`.
    """
    weight = build_weight(pixel_weight)

    def loss(outputs: Outputs, batch: Batch, progress: Progress) -> Tensor:
        maps = weight(outputs, batch, progress)
        total = balanced(outputs.logits, batch.mask, maps)
        if outputs.aux:
            total = total + aux_weight * torch.stack([balanced(x, batch.mask, maps) for x in outputs.aux]).mean(0)
        return total

    def balanced(logits: Tensor, mask: Tensor, maps: Maps) -> Tensor:
        share = mask.mean(_PIXELS[balance], keepdim=True)
        return weighted_mean(cross_entropy(logits, mask, 1 - share, background * share), maps)

    loss.needs_distance = weight.needs_distance
    return loss
