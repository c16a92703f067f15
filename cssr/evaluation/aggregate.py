"""Aggregate the rows of a set: means, pooled measures and bootstrap intervals, and groups of images."""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from cssr.evaluation.calibration import expected_calibration_error
from cssr.evaluation.definitions import CRACK_KEYS, KEYS, LINE_KEYS
from cssr.evaluation.metrics import THRESHOLDS, accuracy, average_precision, f1, iou, precision, recall, specificity

RESAMPLES = 1000
LEVEL = 95  # percent
_CURVES = {"hd95": ("hd95_min", "ahd95"), "msd": ("msd_min", "amsd")}
_NUMBERS = ("psnr", "ssim", "ece", "kernel_psnr", "lq_psnr", *LINE_KEYS, *CRACK_KEYS)
_CHUNK = 1 << 24  # numbers in a chunk of the draws, so that memory does not grow with the set
Samples = dict[str, np.ndarray]  # a measure's value in each resample
MAX_SOURCES = 30  # more are names of photographs rather than of sources


_MEANS = ("ssim", "ece", "kernel_psnr", "lq_psnr", *LINE_KEYS, *CRACK_KEYS)  # of images that have it


def _mean(values: Iterable[float | None]) -> float | None:
    """Mean of the finite numbers, exactly the same in any order; None without any."""
    numbers = [v for v in values if v is not None and math.isfinite(v)]
    return math.fsum(numbers) / len(numbers) if numbers else None


def has_segmentation(rows: Sequence[dict]) -> bool:
    """Return whether the rows hold counts, which are there for all or for none; ValueError where there is no row."""
    if not rows:
        raise ValueError("no image to aggregate: the evaluated set is empty; check its path and its filters")
    counted = {"tp" in row for row in rows}
    assert len(counted) == 1
    return counted.pop()


def _counts(rows: Sequence[dict]) -> np.ndarray:
    """tp, fp, fn of all rows, (N, 3, 99) int64."""
    counts = np.asarray([[row["tp"], row["fp"], row["fn"]] for row in rows], dtype=np.int64)
    if counts.shape[1:] != (3, len(THRESHOLDS)):
        raise ValueError(f"tp, fp and fn need {len(THRESHOLDS)} counts each, got rows of shape {counts.shape[1:]}")
    return counts


def _curve(counts: np.ndarray) -> list[float]:
    return [_mean(column) for column in iou(*counts.swapaxes(0, 1)).T]


def iou_curve(rows: Sequence[dict]) -> dict[str, list[float]]:
    """IoU at each threshold in both aggregations: "thresholds", "image_iou", "pooled_iou", 99 numbers each."""
    counts = _counts(rows)
    thresholds = [round(t, 2) for t in THRESHOLDS.tolist()]
    return {"thresholds": thresholds, "image_iou": _curve(counts), "pooled_iou": _curve(counts.sum(0, keepdims=True))}


def _best(curve: list[float]) -> tuple[int, float]:
    """Index and value of the best threshold, the lowest in a tie."""
    best = int(np.argmax(curve))
    return best, round((best + 1) * 0.01, 2)


def _segmentation(counts: np.ndarray, pixels: np.ndarray) -> dict[str, float | None]:
    """The measures that counts (N, 3, 99) of images of so many pixels (N) give; N is 1 for pooled counts."""
    curve = _curve(counts)
    best, threshold = _best(curve)
    measures = {"iou_max": curve[best], "iou_max_threshold": threshold, "aiu": _mean(curve)}
    return measures | _scores_at(counts[:, :, best], pixels) | _detection(counts)


def set_histogram(rows: Sequence[dict]) -> np.ndarray | None:
    """The histogram of the logits of all images, 2 `LOGIT_BINS` int64; None where a row has none."""
    if not all("histogram" in row for row in rows):
        return None
    return np.sum([row["histogram"] for row in rows], axis=0, dtype=np.int64)


def _scores_at(counts: np.ndarray, pixels: np.ndarray) -> dict[str, float]:
    """Scores of the counts (N, 3) at one threshold."""
    tp, fp, fn = counts.T
    tn = pixels - counts.sum(1)
    scores = {f.__name__: _mean(f(tp, fp, fn)) for f in (precision, recall, f1)}
    scores |= {"accuracy": _mean(accuracy(tp, tn, fp, fn)), "specificity": _mean(specificity(tn, fp, fn))}
    return scores | {"sensitivity": scores["recall"]}


def _detection(counts: np.ndarray) -> dict[str, float | None]:
    """ODS, OIS and AP of counts (N, 3, 99)."""
    counts = counts.swapaxes(0, 1)
    scores = f1(*counts)
    curve = [_mean(column) for column in scores.T]
    best, threshold = _best(curve)
    areas = [None if math.isnan(area) else area for area in average_precision(*counts).tolist()]
    return {"ods": curve[best], "ods_threshold": threshold, "ois": _mean(scores.max(1)), "ap": _mean(areas)}


def _pooled(counts: np.ndarray, pixels: np.ndarray) -> dict[str, float | None]:
    measures = _segmentation(counts.sum(0, keepdims=True), pixels.sum(keepdims=True))
    best = len(THRESHOLDS) - 1 - f1(*counts.swapaxes(0, 1))[:, ::-1].argmax(1)  # the highest threshold in a tie
    return measures | {"ois": float(f1(*counts[np.arange(len(counts)), :, best].sum(0)))}


def _distance(rows: Sequence[dict], key: str) -> tuple[float | None, float | None]:
    """Minimum and mean over thresholds of the mean over the images that have this distance."""
    curve = [_mean(column) for column in zip(*[row[key] for row in rows if row.get(key) is not None])]
    return (min(curve), _mean(curve)) if curve else (None, None)


def _psnrs(values: list[float | None]) -> dict[str, float | int | None]:
    infinite = None if all(v is None for v in values) else values.count(math.inf)
    return {"psnr": _mean(values), "psnr_infinite": infinite}


def _pooled_psnr(rows: Sequence[dict]) -> float | None:
    measured = [row for row in rows if row.get("mse") is not None]
    if not measured:
        return None
    error = math.fsum(row["mse"] * row["pixels"] for row in measured) / sum(row["pixels"] for row in measured)
    return -10 * math.log10(error) if error else math.inf


def aggregate(rows: Sequence[dict]) -> dict[str, dict[str, float | int | None]]:
    """All images' numbers in two aggregations, {"image": {...}, "pooled": {...}}, with the keys of `KEYS`, for JSON.

    A row is one image: tp, fp, fn (99 integers each; absent from all rows where there is no segmentation to measure),
    pixels, and, each None or absent where it does not apply, psnr (may be infinite), mse, ssim, kernel_psnr, lq_psnr,
    ece, histogram (of logits: `calibration.logit_histogram`), those of `LINE_KEYS` and `CRACK_KEYS`, hd95 and msd (99
    numbers each). What was not computed, or is not defined on pooled pixels, is None. The order of rows changes
    nothing. ValueError where there is none. See `definitions`.
    """
    counted = has_segmentation(rows)
    # A results file has null for an infinite PSNR; its mse of 0 still tells it from one that does not apply.
    values = [math.inf if row.get("psnr") is None and row.get("mse") == 0 else row.get("psnr") for row in rows]
    image, pooled = _psnrs(values), _psnrs([_pooled_psnr(rows)])
    image |= {key: _mean(row.get(key) for row in rows) for key in _MEANS}
    image["hd95_min"], image["ahd95"] = _distance(rows, "hd95")
    image["msd_min"], image["amsd"] = _distance(rows, "msd")
    if counted:
        counts, pixels = _counts(rows), np.array([row["pixels"] for row in rows])
        image, pooled = image | _segmentation(counts, pixels), pooled | _pooled(counts, pixels)
        if (histogram := set_histogram(rows)) is not None:
            pooled["ece"] = float(expected_calibration_error(histogram))
    return {name: {key: values.get(key) for key in KEYS} for name, values in (("image", image), ("pooled", pooled))}


# ---- intervals ----


def intervals(rows: Sequence[dict[str, Any]], seed: int = 0) -> dict[str, dict[str, list[float]]] | None:
    """{"image": {measure: [low, high]}, "pooled": {...}}, for measures that rows have; None of fewer than two rows.

    Rows are as `aggregate` takes them; every measure is computed anew in each resample, so that the best
    threshold is chosen again. The seed alone decides which images are drawn, whatever the order of rows.
    """
    if len(rows) < 2:
        return None
    rows = sorted(rows, key=lambda row: row["key"])
    parts = [_resampled_measures(rows, draws) for draws in _draws(len(rows), seed)]
    return {
        kind: {key: _interval(np.concatenate([part[kind][key] for part in parts])) for key in parts[0][kind]}
        for kind in ("image", "pooled")
    }


def _draws(images: int, seed: int) -> Iterator[np.ndarray]:
    """Count of each image in each resample: (resamples of this part, images) float64."""
    rng, size = np.random.default_rng(seed), max(1, _CHUNK // images)
    for begin in range(0, RESAMPLES, size):
        number = min(size, RESAMPLES - begin)
        yield rng.multinomial(images, np.full(images, 1 / images), number).astype(np.float64)


def _interval(values: np.ndarray) -> list[float]:
    """The bounds of the middle LEVEL percent of the resamples in which the measure is defined."""
    tail = (100 - LEVEL) / 2
    return np.nanpercentile(values, (tail, 100 - tail)).tolist()


def _resampled_measures(rows: Sequence[dict[str, Any]], draws: np.ndarray) -> dict[str, Samples]:
    image, pooled = {}, {}
    if "tp" in rows[0]:
        counts = np.array([[row[name] for row in rows] for name in ("tp", "fp", "fn")], dtype=np.float64)  # 3 N 99
        image = _curve_measures(*(draws @ score(*counts) / len(rows) for score in (iou, f1)))
        summed = draws @ counts  # 3 resamples 99
        pooled = _curve_measures(iou(*summed), f1(*summed))
        if all("histogram" in row for row in rows):
            histograms = np.array([row["histogram"] for row in rows], dtype=np.float64)
            pooled["ece"] = expected_calibration_error(np.tensordot(draws, histograms, 1))
    for name, (minimum, average) in _CURVES.items():
        if any(row.get(name) is not None for row in rows):
            curve = _means(rows, name, draws)
            image |= {minimum: curve.min(1), average: curve.mean(1)}
    names = [name for name in _NUMBERS if any(_is_finite(row.get(name)) for row in rows)]
    return {"image": image | {name: _means(rows, name, draws)[:, 0] for name in names}, "pooled": pooled}


def _curve_measures(ious: np.ndarray, f1s: np.ndarray) -> Samples:
    """Measures of curves (resamples, 99); F1 at the threshold that is best for the IoU in that resample."""
    best = ious.argmax(1)[:, None]
    at_best = {key: np.take_along_axis(curve, best, 1)[:, 0] for key, curve in (("iou_max", ious), ("f1", f1s))}
    return {**at_best, "aiu": ious.mean(1), "ods": f1s.max(1)}


def _is_finite(value: Any) -> bool:
    return value is not None and bool(np.isfinite(value).all())


def _means(rows: Sequence[dict[str, Any]], name: str, draws: np.ndarray) -> np.ndarray:
    """Mean over the drawn images that have the measure, (resamples, 1 or 99); NaN where none has."""
    present = [i for i, row in enumerate(rows) if _is_finite(row.get(name))]
    values = np.array([np.atleast_1d(rows[i][name]) for i in present], dtype=np.float64)
    drawn = draws[:, present]
    with np.errstate(invalid="ignore"):
        return drawn @ values / drawn.sum(1, keepdims=True)


def breakdown(rows: Sequence[dict[str, Any]], threshold: float | None) -> dict[str, dict[str, Any] | None]:
    """Measures by source, blur and crack width: {"source": {name: part}, "blur": {range: part}, "crack_width": ...}.

    None where all rows are alike. A part holds `images` (how many), `iou` (mean at `threshold`, the whole set's best
    one, where there is one), and `image` and `pooled` as `aggregate` gives them. Rows are as it takes them, with
    `blur_sigma` and `crack_width` where known.
    """
    sources = _group_by(rows, _source)
    kinds = {
        "source": sources if len(sources) <= MAX_SOURCES else {},
        "blur": _group_by(rows, _blur),
        "crack_width": _group_by(rows, crack_width_class),
    }
    return {
        kind: {name: _part(groups[name], threshold) for name in in_order(groups)} if len(groups) > 1 else None
        for kind, groups in kinds.items()
    }


def in_order(names: Iterable[str]) -> list[str]:
    """Names as they are shown: by the number that they begin with, as blurs do, then as text."""
    number = {name: re.match(r"\d+", name) for name in names}
    return sorted(number, key=lambda name: (int(number[name][0]) if number[name] else math.inf, name))


def _group_by(rows: Sequence[dict[str, Any]], name: Callable[[dict[str, Any]], str]) -> dict[str, list[dict[str, Any]]]:
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(name(row), []).append(row)
    return groups


def _source(row: dict[str, Any]) -> str:
    """`CFD` of `CFD_001`."""
    match = re.match(r"[^\W\d_][^_-]*(?=[_-])", row["key"])
    return match[0] if match else "others"


def _blur(row: dict[str, Any]) -> str:
    """`1-2 px` of 1.7; a kernel of sum 0 has no width."""
    sigma = row.get("blur_sigma")
    if sigma is None or not math.isfinite(sigma):
        return "unknown"
    low = math.floor(sigma)
    return f"{low}-{low + 1} px"


def crack_width_class(row: dict[str, Any]) -> str:
    """`2-4 px` of a mean width of 3.1, classes of doubling width; `no crack` of 0."""
    width = row.get("crack_width")
    if width is None:
        return "unknown"
    if width == 0:
        return "no crack"
    low = next((low for low in (16, 8, 4, 2) if width >= low), 0)
    return f"{low} px or more" if low == 16 else f"{low}-{2 * low or 2} px"


def _part(rows: Sequence[dict[str, Any]], threshold: float | None) -> dict[str, Any]:
    mean_iou = None
    if threshold is not None and has_segmentation(rows):
        best = int(np.abs(THRESHOLDS.numpy() - threshold).argmin())
        tp, fp, fn = ([row[name][best] for row in rows] for name in ("tp", "fp", "fn"))
        mean_iou = math.fsum(iou(tp, fp, fn)) / len(rows)
    return {"images": len(rows), "iou": mean_iou, **aggregate(rows)}
