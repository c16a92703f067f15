"""What segmentation losses are made of: functions of one head's logits, one value a sample (float32).

`maps` are weights on the pixels (B 1 H W each). Cross-entropy and the boundary term are means over pixels, weighted
pixel by pixel; Dice is a ratio of sums, not a mean, and is multiplied by the mean weight of its sample. The published
code does that for Dice alone; within Boundary Combo it takes the mean of a map whose sum is Dice, which divides Dice by
the number of pixels, so that it vanishes: a slip that is not repeated here.
"""

from collections.abc import Callable, Sequence

import torch.nn.functional as F
from torch import Tensor

from cssr.losses.weights import mean_weight, weighted_mean

Maps = Sequence[Tensor]


def weighted_bce(logits: Tensor, mask: Tensor, weight: Sequence[float] = (1.0, 1.0), maps: Maps = ()) -> Tensor:
    """Binary cross-entropy, crack and background weighted, divided by the sum of the weights: B values."""
    crack, background = weight
    return weighted_mean(cross_entropy(logits, mask, crack, background), maps) / (crack + background)


def cross_entropy(logits: Tensor, mask: Tensor, crack: Tensor | float, background: Tensor | float) -> Tensor:
    """Binary cross-entropy of each pixel (B 1 H W), times the weights of crack and background."""
    return -crack * mask * F.logsigmoid(logits) - background * (1 - mask) * F.logsigmoid(-logits)


def dice_term(logits: Tensor, mask: Tensor, maps: Maps = ()) -> Tensor:
    """1 - (2 sum(p t) + 1e-6) / (sum(p^2) + sum(t^2) + 1e-6) (Milletari et al., V-Net): B values."""
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
    """Mean of probability times normalised signed distance (Kervadec et al.): B values, negative where it is good."""
    return weighted_mean(logits.sigmoid() * normalized_distance(distance), maps)


def combo_term(
    logits: Tensor, mask: Tensor, weight: Sequence[float], mix: Sequence[float], dice: Callable, maps: Maps = ()
) -> Tensor:
    """Weighted BCE and a Dice term in the proportions `mix`: B values."""
    bce_share, dice_share = mix
    both = bce_share * weighted_bce(logits, mask, weight, maps) + dice_share * dice(logits, mask, maps)
    return both / (bce_share + dice_share)
