"""What is measured, in pure functions: counts at 99 thresholds, IoU, PSNR, SSIM, and their aggregation over a set.

A pixel is called crack where `prob > threshold`, both in float32, at the 99 thresholds 0.01, 0.02, ..., 0.99. Every
figure is finite on an empty mask; only the PSNR of identical images is infinite. `definitions()` says in words what
each reported number is, and belongs in every results file.

Sources: the protocol of CSBSR (per-image IoU at 99 thresholds, smoothing 1e-5); Wang et al. 2004 (SSIM). The surface
distances are in `cssr/evaluation/surface_distance.py`.
"""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange, reduce

from cssr.evaluation.calibration import expected_calibration_error
from cssr.evaluation.definitions import CRACK_KEYS as CRACK_KEYS
from cssr.evaluation.definitions import IMAGE_KEYS as IMAGE_KEYS
from cssr.evaluation.definitions import KEYS
from cssr.evaluation.definitions import LINE_KEYS as LINE_KEYS
from cssr.evaluation.definitions import SEGMENTATION_KEYS as SEGMENTATION_KEYS
from cssr.evaluation.definitions import definitions as definitions
from cssr.evaluation.scores import accuracy, average_precision, f1, iou, precision, recall, specificity

THRESHOLDS = torch.tensor([i * 0.01 for i in range(1, 100)], dtype=torch.float32)
_FRAMED = torch.cat([torch.tensor([-torch.inf]), THRESHOLDS, torch.tensor([torch.inf])])  # threshold i at place i


# ---- counts and what follows from them ----


class Counts(NamedTuple):
    """Pixels per sample and threshold, (B, 99) int64 each, on the device of `prob`; their sum is H*W."""

    tp: torch.Tensor
    fp: torch.Tensor
    fn: torch.Tensor
    tn: torch.Tensor


def thresholds_below(prob: torch.Tensor) -> torch.Tensor:
    """How many thresholds lie strictly below each value, 0..99 as int32: crack at threshold i where this exceeds i."""
    # A comparison with NaN is false, so NaN is background. Thresholds lie so evenly that the nearest one follows from
    # the value, and one comparison with it decides: a third of a binary search's time.
    prob = prob.detach().float().contiguous().nan_to_num(nan=0.0).clamp_(0, 1)
    place = torch.add(0.5, prob, alpha=100)
    nearest = place.to(torch.int32)
    torch.index_select(_FRAMED.to(prob.device), 0, nearest.flatten(), out=place.view(-1))
    return nearest.add_(prob <= place, alpha=-1)


def same_shape(a: torch.Tensor, b: torch.Tensor) -> None:
    """ValueError unless both are (B, C, H, W), and of one shape."""
    if a.shape != b.shape or a.dim() != 4:
        raise ValueError(f"expected two tensors of one shape (B, C, H, W), got {tuple(a.shape)} and {tuple(b.shape)}")


def threshold_counts(prob: torch.Tensor, mask: torch.Tensor) -> Counts:
    """Confusion counts at all thresholds, from one histogram of each sample, on any device.

    prob (B, 1, H, W) floating point in [0, 1]; mask (B, 1, H, W) in {0, 1} of any dtype. Raises ValueError where the
    shapes differ. Counts are exact integers, so they do not depend on the order of the pixels.
    """
    same_shape(prob, mask)
    batch, bins = len(prob), len(THRESHOLDS) + 1
    first = 2 * bins * torch.arange(batch, dtype=torch.int32, device=prob.device).view(-1, 1)
    cracks = (mask if mask.dtype == torch.bool else mask > 0.5).flatten(1)
    index = thresholds_below(prob).flatten(1).add_(cracks, alpha=bins).add_(first)  # level, class, sample
    histogram = torch.bincount(index.flatten(), minlength=2 * batch * bins)
    histogram = rearrange(histogram, "(b crack bins) -> b crack bins", b=batch, crack=2)
    above = histogram.flip(-1).cumsum(-1).flip(-1)  # B 2 100; entry k: pixels with at least k thresholds below them
    (fp, tp), (negatives, positives) = above[..., 1:].unbind(1), above[..., :1].unbind(1)
    return Counts(tp, fp, positives - tp, negatives - fp)


# ---- images and kernels ----


def mse(sr: torch.Tensor, hr: torch.Tensor) -> torch.Tensor:
    """Mean squared error over channels and pixels of each sample: (B, C, H, W) twice -> (B,) float64."""
    same_shape(sr, hr)
    return reduce((sr.double() - hr.double()).square(), "b c h w -> b", "mean")


def psnr(sr: torch.Tensor, hr: torch.Tensor) -> torch.Tensor:
    """10 log10(1 / mse) in decibels, per sample: (B, C, H, W) twice -> (B,) float64; infinite for identical images.

    Peak value 1. Both are taken as they come: clip a super-resolved image to [0, 1] before.
    """
    return -10 * mse(sr, hr).log10()


def kernel_psnr(pred: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
    """PSNR of blur kernels (B, 1, k, k), both clipped to [0, 1] first, peak value 1 -> (B,) float64."""
    return psnr(pred.clamp(0, 1), true.clamp(0, 1))


def _blur(x: torch.Tensor) -> torch.Tensor:
    """11x11 Gaussian window of sigma 1.5, zero padding, on (..., H, W), as shifted sums in two passes."""
    # Not conv2d: on a CPU that is three times slower, on a GPU its TF32 would drown the variances E[x^2] - E[x]^2.
    taps = [math.exp(-((i - 5) ** 2) / (2 * 1.5**2)) for i in range(11)]
    taps, (height, width) = [t / sum(taps) for t in taps], x.shape[-2:]
    x = F.pad(x, (5, 5, 5, 5))
    x = sum(t * x[..., i : i + width] for i, t in enumerate(taps))
    return sum(t * x[..., i : i + height, :] for i, t in enumerate(taps))


def ssim(sr: torch.Tensor, hr: torch.Tensor) -> torch.Tensor:
    """Structural similarity (Wang et al. 2004) per sample: (B, C, H, W) twice -> (B,) float64, at most 1.

    Window as in `_blur`, C1 = 0.01^2, C2 = 0.03^2, each channel by itself, mean over channels and all pixels (the zero
    padded rim too). Both are taken as they come: clip a super-resolved image to [0, 1] before.
    """
    same_shape(sr, hr)
    x, y, c1, c2 = sr.float(), hr.float(), 0.01**2, 0.03**2
    mx, my, xx, yy, xy = _blur(torch.stack([x, y, x * x, y * y, x * y]))
    vx, vy, cov = xx - mx * mx, yy - my * my, xy - mx * my
    value = (2 * mx * my + c1) * (2 * cov + c2) / ((mx * mx + my * my + c1) * (vx + vy + c2))
    return reduce(value.double(), "b c h w -> b", "mean")


# ---- aggregation ----

_MEANS = ("ssim", "ece", "kernel_psnr", "lq_psnr", *LINE_KEYS, *CRACK_KEYS)  # of images that have it


def _mean(values: Iterable[float | None]) -> float | None:
    """Mean of those that are finite numbers, exactly the same in any order; None where there is none."""
    kept = [v for v in values if v is not None and math.isfinite(v)]
    return math.fsum(kept) / len(kept) if kept else None


def has_segmentation(rows: Sequence[dict]) -> bool:
    """Whether the rows hold counts, which are there for all or for none; ValueError where there is no row."""
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
    """Place and value of the best threshold: the lowest where several are."""
    best = int(np.argmax(curve))
    return best, round((best + 1) * 0.01, 2)


def _segmentation(counts: np.ndarray, pixels: np.ndarray) -> dict[str, float | None]:
    """The measures that counts (N, 3, 99) of images of so many pixels (N) give; N is 1 for pooled counts."""
    curve = _curve(counts)
    best, threshold = _best(curve)
    found = {"iou_max": curve[best], "iou_max_threshold": threshold, "aiu": _mean(curve)}
    return found | _at(counts[:, :, best], pixels) | _detection(counts)


def set_histogram(rows: Sequence[dict]) -> np.ndarray | None:
    """The histogram of the logits of all images, 2 `LOGIT_BINS` int64; None where a row has none."""
    if not all("histogram" in row for row in rows):
        return None
    return np.sum([row["histogram"] for row in rows], axis=0, dtype=np.int64)


def _at(counts: np.ndarray, pixels: np.ndarray) -> dict[str, float]:
    """Scores of the counts (N, 3) at one threshold."""
    tp, fp, fn = counts.T
    tn = pixels - counts.sum(1)
    found = {f.__name__: _mean(f(tp, fp, fn)) for f in (precision, recall, f1)}
    found |= {"accuracy": _mean(accuracy(tp, tn, fp, fn)), "specificity": _mean(specificity(tn, fp, fn))}
    return found | {"sensitivity": found["recall"]}


def _detection(counts: np.ndarray) -> dict[str, float | None]:
    """ODS, OIS and AP of counts (N, 3, 99)."""
    counts = counts.swapaxes(0, 1)
    scores = f1(*counts)
    curve = [_mean(column) for column in scores.T]
    best, threshold = _best(curve)
    areas = [None if math.isnan(area) else area for area in average_precision(*counts).tolist()]
    return {"ods": curve[best], "ods_threshold": threshold, "ois": _mean(scores.max(1)), "ap": _mean(areas)}


def _pooled(counts: np.ndarray, pixels: np.ndarray) -> dict[str, float | None]:
    found = _segmentation(counts.sum(0, keepdims=True), pixels.sum(keepdims=True))
    own = len(THRESHOLDS) - 1 - f1(*counts.swapaxes(0, 1))[:, ::-1].argmax(1)  # the highest threshold in a tie
    return found | {"ois": float(f1(*counts[np.arange(len(counts)), :, own].sum(0)))}


def _distance(rows: Sequence[dict], key: str) -> tuple[float | None, float | None]:
    """Minimum and mean over thresholds of the mean over the images that have this distance."""
    curve = [_mean(column) for column in zip(*[row[key] for row in rows if row.get(key) is not None])]
    return (min(curve), _mean(curve)) if curve else (None, None)


def _psnrs(values: list[float | None]) -> dict[str, float | int | None]:
    infinite = None if all(v is None for v in values) else values.count(math.inf)
    return {"psnr": _mean(values), "psnr_infinite": infinite}


def _pooled_psnr(rows: Sequence[dict]) -> float | None:
    known = [row for row in rows if row.get("mse") is not None]
    if not known:
        return None
    error = math.fsum(row["mse"] * row["pixels"] for row in known) / sum(row["pixels"] for row in known)
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
