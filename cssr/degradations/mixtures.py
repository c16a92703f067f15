"""Blurs made of blurs."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cssr.config.registry import KernelSide
from cssr.degradations.blurs import BLURS, Blur, blur_kind, check_size, normalized
from cssr.degradations.draws import Rngs, check_weights, choices

Component = str | Mapping[str, Any]


@blur_kind
def compound(first: Component = "motion", second: Component = "gaussian", size: KernelSide = 21) -> Blur:
    """One blur after the other, as a single kernel: their convolution, cropped to `size` and normalised.

    CSBSR's code calls this `all_rand` for `first: motion`, `second: {name: random_blur, blurs: [gaussian, disk]}`.

    Args:
        first, second: any blurs, without `size`: theirs is this one's. Two that both fill it are cut at the border.
    """
    check_size("compound", size)
    parts = [BLURS.build(part, size=size) for part in (first, second)]
    label = f"({parts[0].label} convolved with {parts[1].label})"
    return Blur(size, label, lambda rngs: convolved(parts[0].kernels(rngs), parts[1].kernels(rngs)))


@blur_kind
def random_blur(
    blurs: Sequence[Component] = ("gaussian", "motion", "disk"),
    weights: Sequence[float] | None = None,
    size: KernelSide = 21,
) -> Blur:
    """One of several blurs, drawn for each sample.

    Args:
        blurs: any blurs, without `size`: theirs is this one's.
        weights: in proportion to these; equal if not given.
    """
    check_size("random_blur", size)
    if not isinstance(blurs, Sequence) or isinstance(blurs, str) or not blurs:
        raise ValueError(f"degradation 'random_blur': blurs needs a list of blurs, found {blurs!r}")
    parts = [BLURS.build(part, size=size) for part in blurs]
    weights = [1] * len(parts) if weights is None else weights
    check_weights("random_blur", "weights", weights, len(parts))

    def kernels(rngs: Rngs) -> Tensor:
        return _chosen(parts, choices(rngs, weights), rngs, size)

    return Blur(size, f"({' or '.join(part.label for part in parts)})", kernels)


def _chosen(parts: Sequence[Blur], chosen: Sequence[int], rngs: Rngs, size: int) -> Tensor:
    found = torch.empty(len(rngs), size, size, dtype=torch.float64)
    for number, part in enumerate(parts):
        rows = [row for row, choice in enumerate(chosen) if choice == number]
        if rows:
            found[rows] = part.kernels([rngs[row] for row in rows])
    return found


def convolved(first: Tensor, second: Tensor) -> Tensor:
    """The convolution of kernels pair by pair, B k k each, the middle k x k of it normalised."""
    half = first.shape[-1] // 2
    return normalized(F.conv2d(first[None], second.flip(1, 2)[:, None], padding=half, groups=len(first))[0])
