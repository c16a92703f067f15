"""Measures at 99 thresholds, against doing each threshold anew: `python benchmarks/evaluation.py`.

Drawn cracks of 448x448 pixels with soft probabilities, so that every threshold gives another prediction. The plain way
binarises, counts, and computes two exact distance transforms (scipy) at each threshold. By one thread.
"""

from collections.abc import Iterable

import cv2
import numpy as np
import torch
from harness import Limit, Pair, command
from scipy.ndimage import correlate, distance_transform_edt

from cssr.evaluation import metrics
from cssr.evaluation.metrics import SMOOTH
from cssr.evaluation.surface_distance import surface_distances

THRESHOLDS = metrics.THRESHOLDS.numpy()
CODE = np.array([[8, 4], [2, 1]])  # of the four pixels around a corner
HALF = 0.5**0.5  # of a diagonal
LENGTHS = np.array([0, HALF, HALF, 1, HALF, 1, 2 * HALF, HALF, HALF, 2 * HALF, 1, HALF, 1, HALF, HALF, 0])  # by code


def pairs(quick: bool) -> Iterable[Pair]:
    """The IoU sweep, then HD95 and MSD."""
    side, images = (96, 2) if quick else (448, 8)
    drawings = [drawn(seed, side) for seed in range(images)]
    yield Pair(
        f"IoU at 99 thresholds, {side} x {side}", "numpy, a threshold at a time",
        plain=lambda: [plain_iou(*drawing) for drawing in drawings],
        ours=lambda: [shared_iou(*drawing) for drawing in drawings],
        tolerance=1e-12, asked=None if quick else 10, items=images, threads=1,
        limit=Limit(bytes=5.0 * side**2 * images),
    )  # fmt: skip
    few = drawings[:1] if quick else drawings[:2]
    yield Pair(
        f"HD95 and MSD at 99 thresholds, {side} x {side}", "scipy's maps at each threshold",
        plain=lambda: [plain_distances(*drawing) for drawing in few],
        ours=lambda: [shared_distances(*drawing) for drawing in few],
        tolerance=1e-4, asked=None if quick else 15, items=len(few), rounds=3, threads=1,
    )  # fmt: skip


def drawn(seed: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities (float32) of two cracks that wind across the image, and their mask (bool), size x size."""
    rng = np.random.default_rng(seed)
    mask = np.zeros((size, size), np.uint8)
    for across in (1, -1):
        steps = rng.normal(0, size / 60, (40, 2)) + (size / 40, 0)
        points = np.cumsum(steps, 0) + (0, rng.uniform(0.2, 0.8) * size)
        cv2.polylines(mask, [points[:, ::across].astype(np.int32)], False, 1, int(rng.integers(2, 8)))
    soft = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), 2.5)
    noise = cv2.GaussianBlur(rng.standard_normal((size, size)).astype(np.float32), (0, 0), 3)
    logits = 10 * soft - 5 + 6 * noise * soft.clip(0.05) / noise.std() / 2
    return (1 / (1 + np.exp(-logits))).astype(np.float32), mask > 0


def tensors(prob: np.ndarray, mask: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Both as tensors (1, 1, H, W), as the package takes them."""
    return torch.from_numpy(prob)[None, None], torch.from_numpy(mask)[None, None]


def plain_iou(prob: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """(99,), one threshold at a time, of images of 0 and 1 in float32, as evaluators usually do."""
    true, scores = mask.astype(np.float32), []
    for threshold in THRESHOLDS:
        pred = (prob > threshold).astype(np.float32)
        hits = float((pred * true).sum())
        scores.append((hits + SMOOTH) / (float((pred + true).sum()) - hits + SMOOTH))
    return np.array(scores)


def shared_iou(prob: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """(99,), from one histogram."""
    counts = metrics.threshold_counts(*tensors(prob, mask))
    return metrics.iou(counts.tp, counts.fp, counts.fn)[0].numpy()


def plain_distances(prob: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """(2, 99): HD95 and MSD, one threshold at a time."""
    return np.array([_at_threshold(prob > threshold, mask) for threshold in THRESHOLDS]).T


def _at_threshold(pred: np.ndarray, mask: np.ndarray) -> tuple[float, float]:
    if not (pred.any() and mask.any()):
        return (0.0, 0.0) if pred.any() == mask.any() else (max(mask.shape),) * 2
    rows, columns = (np.flatnonzero((pred | mask).any(axis)) for axis in (1, 0))
    window = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    lengths = [LENGTHS[correlate(np.pad(x[window], 1).astype(int), CODE)[1:, 1:]] for x in (pred, mask)]
    far = [distance_transform_edt(length == 0) for length in lengths]
    sides = [_directed(far[1 - i][lengths[i] > 0], lengths[i][lengths[i] > 0]) for i in (0, 1)]
    return max(sides[0][0], sides[1][0]), (sides[0][1] + sides[1][1]) / 2


def _directed(distance: np.ndarray, length: np.ndarray) -> tuple[float, float]:
    order = np.argsort(distance)
    share = np.cumsum(length[order]) / length.sum()
    return distance[order][np.searchsorted(share, 0.95)], (distance * length).sum() / length.sum()


def shared_distances(prob: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """(2, 99) as `plain_distances`, what thresholds share being done once."""
    distances = surface_distances(*tensors(prob, mask), percentiles=(95,))
    return np.stack([distances["hd95"][0], distances["msd"][0]])


if __name__ == "__main__":
    command(__doc__, pairs)
