"""CrackFormer's loss of its fused map and its side maps: cross-entropy balanced by what is rare."""

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from cssr.config.registry import Weight
from cssr.config.schedules import Progress
from cssr.data.batch import Batch, Outputs
from cssr.losses import LOSSES
from cssr.losses.terms import Maps, cross_entropy
from cssr.losses.weights import build_weight, weighted_mean

_PIXELS = {"batch": (0, 1, 2, 3), "image": (1, 2, 3)}  # the dimensions over which crack pixels are counted


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
    Where nothing is crack, all weights are 0 and so is the loss: such images alone teach nothing.

    Args:
        balance: over what the shares are taken: the `batch` that a process sees at once (published; the loss then
            depends on the micro-batch, and an empty mask counts by the other samples' cracks), or each `image`.
        background: the factor on background pixels.
        aux_weight: of the auxiliary maps together.
        pixel_weight: `cssr/losses/weights.py`.
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
