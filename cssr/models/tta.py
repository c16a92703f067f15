"""Test-time augmentation: the mean of a network's probabilities over flips and quarter turns of its input."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

ORIENTATIONS = 8  # of a rectangle: four quarter turns, each as it is and mirrored
_SIDES = (-2, -1)


def turned(x: Tensor, number: int) -> Tensor:
    """Rotate images or kernels (... H W) by `number` % 4 quarter turns, mirrored first from 4 on (0..7)."""
    mirrored = x.flip(-1) if number >= 4 else x
    return torch.rot90(mirrored, number % 4, _SIDES)


def turned_back(x: Tensor, number: int) -> Tensor:
    """Inverse of `turned`."""
    upright = torch.rot90(x, -number % 4, _SIDES)
    return upright.flip(-1) if number >= 4 else upright


def mean_logits(
    network: Callable[[Tensor, Tensor | None], Tensor], x: Tensor, kernel: Tensor | None, count: int
) -> Tensor:
    """Logits (float32) of the mean probability over the first `count` orientations (1..8), each turned back.

    Args:
        network: image (B C H W) and kernel (B 1 k k, or None) to logits (B 1 H' W').
    """
    # In logarithms, as probabilities near 0 and 1 lose their digits: logit of the mean = log(sum p) - log(sum (1 - p)).
    crack = background = None
    for number in range(count):
        part = turned(x, number), None if kernel is None else turned(kernel, number)
        logits = turned_back(network(*part).float(), number)
        p, q = F.logsigmoid(logits), F.logsigmoid(-logits)
        crack = p if crack is None else torch.logaddexp(crack, p)
        background = q if background is None else torch.logaddexp(background, q)
    return crack - background
