"""How sure the measures of a set are: bootstrap intervals, from images drawn again and again out of those there are."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from cssr.evaluation.calibration import expected_calibration_error
from cssr.evaluation.definitions import CRACK_KEYS, LINE_KEYS
from cssr.evaluation.scores import f1, iou

RESAMPLES = 1000
LEVEL = 95  # percent
_CURVES = {"hd95": ("hd95_min", "ahd95"), "msd": ("msd_min", "amsd")}
_NUMBERS = ("psnr", "ssim", "ece", "kernel_psnr", "lq_psnr", *LINE_KEYS, *CRACK_KEYS)
_PLACES = 1 << 24  # numbers of a part of the draws, so that memory does not grow with the set
Samples = dict[str, np.ndarray]  # a measure's value in each resample


def intervals(rows: Sequence[dict[str, Any]], seed: int = 0) -> dict[str, dict[str, list[float]]] | None:
    """{"image": {measure: [low, high]}, "pooled": {...}}, for measures that rows have; None of fewer than two rows.

    Rows are as `metrics.aggregate` takes them; every measure is computed anew in each resample, so that the best
    threshold is chosen again. The seed alone decides which images are drawn, whatever the order of rows.
    """
    if len(rows) < 2:
        return None
    rows = sorted(rows, key=lambda row: row["key"])
    parts = [_measured(rows, draws) for draws in _draws(len(rows), seed)]
    return {
        kind: {key: _interval(np.concatenate([part[kind][key] for part in parts])) for key in parts[0][kind]}
        for kind in ("image", "pooled")
    }


def _draws(images: int, seed: int) -> Iterator[np.ndarray]:
    """How often each image is drawn in each resample: (resamples of this part, images) float64."""
    rng, size = np.random.default_rng(seed), max(1, _PLACES // images)
    for begin in range(0, RESAMPLES, size):
        number = min(size, RESAMPLES - begin)
        yield rng.multinomial(images, np.full(images, 1 / images), number).astype(np.float64)


def _interval(values: np.ndarray) -> list[float]:
    """The percentiles between which LEVEL percent lie, of the resamples in which the measure is defined."""
    tail = (100 - LEVEL) / 2
    return np.nanpercentile(values, (tail, 100 - tail)).tolist()


def _measured(rows: Sequence[dict[str, Any]], draws: np.ndarray) -> dict[str, Samples]:
    image, pooled = {}, {}
    if "tp" in rows[0]:
        counts = np.array([[row[name] for row in rows] for name in ("tp", "fp", "fn")], dtype=np.float64)  # 3 N 99
        image = _segmentation(*(draws @ score(*counts) / len(rows) for score in (iou, f1)))
        summed = draws @ counts  # 3 resamples 99
        pooled = _segmentation(iou(*summed), f1(*summed))
        if all("histogram" in row for row in rows):
            histograms = np.array([row["histogram"] for row in rows], dtype=np.float64)
            pooled["ece"] = expected_calibration_error(np.tensordot(draws, histograms, 1))
    for name, (least, average) in _CURVES.items():
        if any(row.get(name) is not None for row in rows):
            curve = _means(rows, name, draws)
            image |= {least: curve.min(1), average: curve.mean(1)}
    numbers = [name for name in _NUMBERS if any(_known(row.get(name)) for row in rows)]
    return {"image": image | {name: _means(rows, name, draws)[:, 0] for name in numbers}, "pooled": pooled}


def _segmentation(ious: np.ndarray, f1s: np.ndarray) -> Samples:
    """Of curves (resamples, 99); F1 at the threshold that is best for the IoU in that resample."""
    best = ious.argmax(1)[:, None]
    at_best = {key: np.take_along_axis(curve, best, 1)[:, 0] for key, curve in (("iou_max", ious), ("f1", f1s))}
    return {**at_best, "aiu": ious.mean(1), "ods": f1s.max(1)}


def _known(value: Any) -> bool:
    return value is not None and bool(np.isfinite(value).all())


def _means(rows: Sequence[dict[str, Any]], name: str, draws: np.ndarray) -> np.ndarray:
    """Mean over the drawn images that have the measure, (resamples, 1 or 99); NaN where none has."""
    have = [i for i, row in enumerate(rows) if _known(row.get(name))]
    values = np.array([np.atleast_1d(rows[i][name]) for i in have], dtype=np.float64)
    drawn = draws[:, have]
    with np.errstate(invalid="ignore"):
        return drawn @ values / drawn.sum(1, keepdims=True)
