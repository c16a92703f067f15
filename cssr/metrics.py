"""What is measured, in pure functions: counts at 99 thresholds, IoU, PSNR, SSIM, and their aggregation over a set.

A pixel is called crack where `prob > threshold`, both in float32, at the 99 thresholds 0.01, 0.02, ..., 0.99. Every
figure is finite on an empty mask; only the PSNR of identical images is infinite. `definitions()` says in words what
each reported number is, and belongs in every results file.

Sources: the protocol of CSBSR (per-image IoU at 99 thresholds, smoothing 1e-5); Wang et al. 2004 (SSIM). The surface
distances are in `cssr/distances.py`.
"""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

THRESHOLDS = torch.tensor([i * 0.01 for i in range(1, 100)], dtype=torch.float32)
SMOOTH = 1e-5
Numbers = torch.Tensor | np.ndarray | Sequence
KEYS = (
    "iou_max",
    "iou_max_threshold",
    "aiu",
    "hd95_min",
    "ahd95",
    "msd_min",
    "amsd",
    "psnr",
    "psnr_infinite",
    "ssim",
    "kernel_psnr",
    "precision",
    "recall",
    "f1",
)
IMAGE_KEYS = ("psnr", "psnr_infinite", "ssim", "kernel_psnr")
SEGMENTATION_KEYS = tuple(key for key in KEYS if key not in IMAGE_KEYS)


# ---- counts and what follows from them ----


class Counts(NamedTuple):
    """Pixels per sample and threshold, (B, 99) int64 each, on the device of `prob`; their sum is H*W."""

    tp: torch.Tensor
    fp: torch.Tensor
    fn: torch.Tensor
    tn: torch.Tensor


def thresholds_below(prob: torch.Tensor) -> torch.Tensor:
    """How many thresholds lie strictly below each value, 0..99: crack at threshold number i where this exceeds i."""
    # A comparison with NaN is false, so NaN is background; bucketize alone would place it above every threshold.
    return torch.bucketize(prob.detach().float().nan_to_num(nan=0.0), THRESHOLDS.to(prob.device))


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
    row = 2 * torch.arange(batch, device=prob.device).view(-1, 1) + (mask.flatten(1) > 0.5)  # sample and class
    index = row * bins + thresholds_below(prob).flatten(1)
    histogram = torch.bincount(index.flatten(), minlength=2 * batch * bins).view(batch, 2, bins)
    above = histogram.flip(-1).cumsum(-1).flip(-1)  # B 2 100; entry k: pixels with at least k thresholds below them
    (fp, tp), (negatives, positives) = above[..., 1:].unbind(1), above[..., :1].unbind(1)
    return Counts(tp, fp, positives - tp, negatives - fp)


def _doubles(*values: Numbers) -> list:
    """The values in float64: tensors stay tensors, all else becomes numpy arrays."""
    return [v.double() if isinstance(v, torch.Tensor) else np.asarray(v, dtype=np.float64) for v in values]


def iou(tp: Numbers, fp: Numbers, fn: Numbers) -> torch.Tensor | np.ndarray:
    """(tp + 1e-5) / (tp + fp + fn + 1e-5) in float64, elementwise; 1 where mask and prediction are both empty.

    Tensors give a tensor, arrays and lists of one shape an array; so do precision, recall and f1.
    """
    tp, fp, fn = _doubles(tp, fp, fn)
    return (tp + SMOOTH) / (tp + fp + fn + SMOOTH)


def _share(part: Numbers, rest: Numbers, other: Numbers | int) -> Numbers:
    """part / (part + rest); where that is 0/0: 1 if `other` is 0 too (both empty), else 0 (one is empty)."""
    empty = part + rest == 0
    return (part + empty * (other == 0)) / (part + rest + empty)


def precision(tp: Numbers, fp: Numbers, fn: Numbers) -> torch.Tensor | np.ndarray:
    """tp / (tp + fp) in float64. Where nothing is predicted: 1 if the mask is empty too, else 0."""
    tp, fp, fn = _doubles(tp, fp, fn)
    return _share(tp, fp, fn)


def recall(tp: Numbers, fp: Numbers, fn: Numbers) -> torch.Tensor | np.ndarray:
    """tp / (tp + fn) in float64. Where the mask is empty: 1 if nothing is predicted either, else 0."""
    tp, fp, fn = _doubles(tp, fp, fn)
    return _share(tp, fn, fp)


def f1(tp: Numbers, fp: Numbers, fn: Numbers) -> torch.Tensor | np.ndarray:
    """2 tp / (2 tp + fp + fn) in float64, without smoothing. Both empty: 1; one empty: 0."""
    tp, fp, fn = _doubles(tp, fp, fn)
    return _share(2 * tp, fp + fn, 0)


# ---- images and kernels ----


def mse(sr: torch.Tensor, hr: torch.Tensor) -> torch.Tensor:
    """Mean squared error over channels and pixels of each sample: (B, C, H, W) twice -> (B,) float64."""
    same_shape(sr, hr)
    return (sr.double() - hr.double()).square().flatten(1).mean(1)


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
    return value.double().flatten(1).mean(1)


# ---- aggregation ----


def _mean(values: Iterable[float | None]) -> float | None:
    """Mean of those neither None nor infinite, exactly the same in any order; None where there is none."""
    kept = [v for v in values if v is not None and v != math.inf]
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


def _segmentation(counts: np.ndarray) -> dict[str, float]:
    curve = _curve(counts)
    best = int(np.argmax(curve))  # the lowest threshold where several are best
    scores = {f.__name__: _mean(f(*counts[:, :, best].T)) for f in (precision, recall, f1)}
    return {"iou_max": curve[best], "iou_max_threshold": round((best + 1) * 0.01, 2), "aiu": _mean(curve), **scores}


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
    pixels, and, each None or absent where it does not apply, psnr (may be infinite), mse, ssim, kernel_psnr, hd95 and
    msd (99 numbers each). What was not computed, or is not defined on pooled pixels, is None. The order of rows changes
    nothing. ValueError where there is none. See `definitions`.
    """
    counted = has_segmentation(rows)
    # A results file has null for an infinite PSNR; its mse of 0 still tells it from one that does not apply.
    values = [math.inf if row.get("psnr") is None and row.get("mse") == 0 else row.get("psnr") for row in rows]
    image, pooled = _psnrs(values), _psnrs([_pooled_psnr(rows)])
    image |= {key: _mean(row.get(key) for row in rows) for key in ("ssim", "kernel_psnr")}
    image["hd95_min"], image["ahd95"] = _distance(rows, "hd95")
    image["msd_min"], image["amsd"] = _distance(rows, "msd")
    if counted:
        counts = _counts(rows)
        image, pooled = image | _segmentation(counts), pooled | _segmentation(counts.sum(0, keepdims=True))
    return {name: {key: values.get(key) for key in KEYS} for name, values in (("image", image), ("pooled", pooled))}


def definitions() -> dict[str, str]:
    """What each reported number is, in words, for the results file: one sentence or two for each key."""
    area = "IoU = (tp + 1e-5) / (tp + fp + fn + 1e-5), 1 where mask and prediction are both empty"
    best = "at iou_max_threshold, without smoothing; both empty gives 1, one empty 0; image: mean over images"
    surface = (
        "pixels, as Google DeepMind's surface-distance library defines it in 2D (contour of pixel corners, "
        "weighted by contour length); 0 where mask and prediction are both empty, max(H, W) where one is; "
        "mean over the images it was computed for, at each threshold; pooled: not defined"
    )
    hd95 = f"Hausdorff distance at percentile 95 (CSBSR's evaluator used 50), greater of both directions, {surface}"
    msd = f"mean surface distance (the average of both directions), {surface}"
    return {
        "image": "each image is measured by itself, and images count equally, whatever their size",
        "pooled": "counts and squared errors are summed over all images first, so that pixels count equally",
        "thresholds": "0.01, 0.02, ..., 0.99; a pixel is crack where prob > threshold in float32; NaN is background",
        "iou_max": f"{area}; mean over images, or of the summed counts (pooled); at the whole set's best threshold",
        "iou_max_threshold": "the threshold of iou_max, chosen on this very set; the lowest one in a tie",
        "aiu": f"{area}; mean over the 99 thresholds of the curve whose maximum is iou_max",
        "hd95_min": f"minimum over the 99 thresholds of the {hd95}",
        "ahd95": f"mean over the 99 thresholds of the {hd95}",
        "msd_min": f"minimum over the 99 thresholds of the {msd}",
        "amsd": f"mean over the 99 thresholds of the {msd}",
        "psnr": "dB, 10 log10(1 / mse) over RGB and all pixels, SR clipped to [0, 1], peak 1; image: mean over the "
        "images whose PSNR is finite; pooled: of the mean mse, weighted by pixels; null where infinite",
        "psnr_infinite": "how many PSNRs were infinite (SR identical to HR) and so left out of psnr",
        "ssim": "11x11 Gaussian window, sigma 1.5, zero padding, C1 = 0.01^2, C2 = 0.03^2, per channel of RGB, SR "
        "clipped to [0, 1]; mean over channels, pixels and images; pooled: not defined",
        "kernel_psnr": "dB, PSNR of the predicted against the true blur kernel, both clipped to [0, 1], peak 1; mean "
        "over images, infinite ones left out; pooled: not defined",
        "precision": f"tp / (tp + fp) {best}",
        "recall": f"tp / (tp + fn) {best}",
        "f1": f"2 tp / (2 tp + fp + fn) {best} (not the F1 of the mean precision and recall)",
    }
