"""Forecast of training on many GPUs: bytes that ranks exchange in a step, images a second (see docs/scaling.md).

Everything here is a closed form of its arguments; `benchmarks/scaling.py --predict` prints the table.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from cssr.utils.text import markdown_table

FLOAT = 4  # bytes of a gradient and of a parameter, under autocast too
BACKWARD = 2 / 3  # of a step's arithmetic: gradients of inputs and of weights, each as much as the forward pass
LINKS = {  # bytes a second that a rank can send around the ring
    "NVLink": 450e9,
    "InfiniBand": 400e9 / 8,
    "Ethernet": 25e9 / 8,
}
PLACES = (("NVLink", 8), ("Ethernet", 8), ("InfiniBand", 64), ("Ethernet", 64))
# How often all gradients, or all parameters, go around: twice in an all-reduce (reduce-scatter, all-gather). ZeRO-1 and
# 2 gather parameters instead in the latter half, ZeRO-3 gathers them for the forward and for the backward pass.
PASSES = {"ddp": 2, "zero1": 2, "zero2": 2, "zero3": 3}


def exchanged(strategy: str, parameters: float, ranks: int) -> float:
    """Bytes that each rank sends in a step in the least case; `parameters` of the model, float32."""
    return PASSES[strategy] * (ranks - 1) / ranks * FLOAT * parameters


def step_seconds(alone: float, exchange: float, overlaps: bool) -> float:
    """Seconds of a step of several ranks.

    Args:
        alone: seconds of a step of one rank alone.
        exchange: seconds that the bytes take.
        overlaps: whether the backward pass continues meanwhile; the forward pass and the update cannot.
    """
    return alone + max(0.0, exchange - BACKWARD * alone * overlaps)


def arithmetic_seconds(macs: float, batch: int, peak: float, share: float) -> float:
    """Seconds of a step of `batch` samples of so many multiply-accumulates in a forward pass, which training triples.

    `peak`: FLOP/s of the device; `share` of it that is reached, 0..1.
    """
    return 3 * 2 * macs * batch / (peak * share)


@dataclass(frozen=True)
class Prediction:
    """Images a second of so many GPUs in a ring over a link; seconds are of a step."""

    gpus: int
    link: str
    alone: float
    exchange: float
    batch: int

    def images(self, overlaps: bool) -> float:
        """Images a second of all GPUs."""
        return self.gpus * self.batch / step_seconds(self.alone, self.exchange, overlaps)

    def share(self, overlaps: bool) -> float:
        """Share of the images/s that as many GPUs would reach without waiting for each other, 0..1."""
        return self.alone / step_seconds(self.alone, self.exchange, overlaps)


def predict(alone: Sequence[float], batch: int, parameters: float, strategy: str = "ddp") -> list[Prediction]:
    """Predictions for each place and each step time (seconds, of a micro-batch of `batch` samples on one GPU)."""
    return [
        Prediction(gpus, link, seconds, exchanged(strategy, parameters, gpus) / LINKS[link], batch)
        for link, gpus in PLACES
        for seconds in alone
    ]


def markdown(predictions: Sequence[Prediction]) -> list[str]:
    """Predictions as the lines of a Markdown table."""
    headings = ["GPUs", "ring over", "step alone, ms", "exchange, ms", "images/s, no overlap", "images/s, overlap"]
    return markdown_table(headings, [*map(_cells, predictions)], right=(0, 2, 3, 4, 5)).splitlines()


def _cells(forecast: Prediction) -> list[str]:
    both = [f"{forecast.images(overlaps):,.0f} ({100 * forecast.share(overlaps):.0f} %)" for overlaps in (False, True)]
    return [str(forecast.gpus), forecast.link, f"{1e3 * forecast.alone:.1f}", f"{1e3 * forecast.exchange:.1f}", *both]
