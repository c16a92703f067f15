"""Random draws of degradations from each sample's seed, in numpy on the CPU, so that every device gets the same."""

import math
from collections.abc import Sequence
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cssr.config.registry import Share
from cssr.utils.annotations import fits

BLUR, NOISE, JPEG, FIRST, SECOND, FINAL, CLEAN = range(7)  # streams: drawing from one leaves the others as they were
Rngs = Sequence[np.random.Generator]  # one a sample


def generators(seeds: Tensor, stream: int = BLUR) -> list[np.random.Generator]:
    """A generator for each of `seeds` (B int64, none negative), of its own for each stage of a degradation."""
    return [np.random.Generator(np.random.Philox(key=seed + (stream << 64))) for seed in seeds.tolist()]


def uniform(rngs: Rngs, *ranges: Sequence[float]) -> Tensor:
    """Values drawn evenly from each [low, high]: B len(ranges) float64."""
    low, high = np.array(ranges, dtype=np.float64).T
    return torch.from_numpy(np.stack([low + rng.random(len(ranges)) * (high - low) for rng in rngs]))


def choices(rngs: Rngs, weights: Sequence[float]) -> list[int]:
    """An index for each sample, drawn in proportion to `weights`."""
    edges = np.cumsum(weights) / np.sum(weights)
    return [int(np.searchsorted(edges[:-1], rng.random(), side="right")) for rng in rngs]


def chances(rngs: Rngs, probability: float) -> Tensor:
    """B bool, true with `probability`."""
    return torch.tensor([rng.random() < probability for rng in rngs])


def normal(rngs: Rngs, sizes: Sequence[tuple[int, int]], canvas: tuple[int, int], gray: Sequence[bool]) -> Tensor:
    """Standard normal noise in the top left corner of each canvas, B 3 H W float32; zero beyond.

    About 8 ns a value on one core: 2 ms for 8 colour images of 112 x 112.

    Args:
        sizes: height and width of each sample's part. canvas: H and W.
        gray: whether a sample's three channels are alike.
    """
    noise = np.zeros((len(rngs), 3, *canvas), np.float32)
    for values, rng, (height, width), alike in zip(noise, rngs, sizes, gray):
        values[:, :height, :width] = rng.standard_normal((1 if alike else 3, height, width), np.float32)
    return torch.from_numpy(noise)


def check_range(
    name: str, setting: str, value: Any, low: float = -math.inf, high: float = math.inf, above: float = -math.inf
) -> None:
    """Refuse anything but [smallest, largest] within low..high, both greater than `above`."""
    rule = f"{low:g} <= low <= high" if low > -math.inf else "[low, high], low <= high"
    rule = f"{above:g} < low <= high" if above > -math.inf else rule
    rule += f" <= {high:g}" if high < math.inf else ""
    is_range = fits(value, Sequence[float]) and len(value) == 2 and value[0] <= value[1]
    if not is_range or value[0] < low or value[0] <= above or value[1] > high:
        raise ValueError(f"degradation {name!r}: {setting} needs {rule}, got {value}")


def check_share(name: str, setting: str, value: Any) -> None:
    """Refuse values outside 0..1."""
    if not fits(value, Share):
        raise ValueError(f"degradation {name!r}: {setting} needs a probability, 0 to 1, got {value}")


def check_weights(name: str, setting: str, value: Any, count: int) -> None:
    """Refuse anything but `count` weights of a choice."""
    numbers = isinstance(value, Sequence) and len(value) == count and all(isinstance(v, Real) for v in value)
    if not numbers or min(value) < 0 or not 0 < sum(value) < math.inf:
        raise ValueError(
            f"degradation {name!r}: {setting} needs {count} numbers, none negative, not all 0; got {value}"
        )
