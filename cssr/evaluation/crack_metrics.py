"""Measures of cracks rather than pixels, at one threshold: clDice, clIoU, boundary F1, width and length errors.

Sources: Shit et al. 2021 (clDice); Benz and Rodehorst 2024 (clIoU with a tolerance, on cracks); Csurka et al. 2013
(boundary F1). `DEFINITIONS` says in words how each is computed here.
"""

import cv2
import numpy as np
import torch

from cssr.cracks.measure import TooRagged, measure_cracks
from cssr.cracks.skeleton import thin
from cssr.evaluation.definitions import BOUNDARY_TOLERANCE, CRACK_KEYS, LINES_THRESHOLD, TOLERANCE
from cssr.evaluation.metrics import same_shape

_CROSS = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))


def topology(prob: torch.Tensor, mask: torch.Tensor) -> dict[str, list[float]]:
    """clDice, clIoU and boundary F1 of each sample: "cldice", "cliou", "boundary_f1", B numbers each, 0..1.

    prob (B, 1, H, W) floating point, crack where it exceeds 0.5, NaN being background; mask (B, 1, H, W) in {0, 1}.
    1 where mask and prediction are both empty, 0 where one is. Raises ValueError where the shapes differ. Runs on the
    CPU, some 10 ms for 448x448.
    """
    same_shape(prob, mask)
    pairs = [x[:, 0].to(torch.uint8).cpu().numpy() for x in (prob > LINES_THRESHOLD, mask > 0.5)]
    measures = [_measure(pred, target) for pred, target in zip(*pairs)]
    return {name: [sample[name] for sample in measures] for name in ("cldice", "cliou", "boundary_f1")}


def _measure(pred: np.ndarray, target: np.ndarray) -> dict[str, float]:
    if not (pred.any() and target.any()):
        return dict.fromkeys(("cldice", "cliou", "boundary_f1"), float(pred.any() == target.any()))
    lines = thin(pred), thin(target)
    edges = _boundary(pred), _boundary(target)
    return {
        "cldice": _harmonic(target[lines[0] > 0].mean(), pred[lines[1] > 0].mean()),
        "cliou": _line_iou(*lines),
        "boundary_f1": _harmonic(*(_within(*pair, BOUNDARY_TOLERANCE).mean() for pair in (edges, edges[::-1]))),
    }


def _harmonic(a: float, b: float) -> float:
    return float(2 * a * b / (a + b)) if a + b else 0.0


def _within(points: np.ndarray, others: np.ndarray, tolerance: float) -> np.ndarray:
    """Mark the `points`, in the order of rows, that are within the tolerance of one of `others`: N bool."""
    distance = cv2.distanceTransform(1 - others, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return distance[points > 0] <= tolerance + 1e-3  # float32 rounds; squares of distances are integers


def _line_iou(pred: np.ndarray, target: np.ndarray) -> float:
    hits, missed = _within(pred, target, TOLERANCE), ~_within(target, pred, TOLERANCE)
    return float(hits.sum() / (hits.size + missed.sum()))


def _boundary(mask: np.ndarray) -> np.ndarray:
    """Crack pixels with a neighbour by side that is none; beyond the image is none."""
    return mask - cv2.erode(mask, _CROSS, borderType=cv2.BORDER_CONSTANT, borderValue=0)


def crack_errors(prob: torch.Tensor, mask: torch.Tensor) -> dict[str, list[float | None]]:
    """Errors of mean and greatest crack width and of length of each sample, by `CRACK_KEYS`, B numbers each, pixels.

    Beside them "crack_width", the mean width of the mask's cracks, weighted by length.

    prob (B, 1, H, W) floating point, crack where it exceeds 0.5, NaN being background; mask (B, 1, H, W) in {0, 1}.
    An image without cracks has widths and length 0; None where one is as ragged as noise or has over `MAX_CRACKS`
    cracks, which would take hours. Raises ValueError where the shapes differ. Runs on the CPU, some 20 ms for 448x448.
    """
    same_shape(prob, mask)
    pairs = [x[:, 0].cpu().numpy() for x in (prob > LINES_THRESHOLD, mask > 0.5)]
    targets = [_totals(target) for target in pairs[1]]
    differences = [_totals(pred) - target for pred, target in zip(pairs[0], targets)]
    errors = {
        name: [_or_none(values[k]) for values in map(np.abs, differences)]
        for k, name in enumerate(("width_error", "max_width_error", "length_error"))
    }
    biases = {
        name: [_or_none(values[k]) for values in differences] for k, name in ((0, "width_bias"), (2, "length_bias"))
    }
    return {name: (errors | biases)[name] for name in CRACK_KEYS} | {"crack_width": [_or_none(t[0]) for t in targets]}


def _or_none(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _totals(mask: np.ndarray) -> np.ndarray:
    """Mean width, weighted by length, greatest width, and length of all cracks: 3 float64; NaN where unknown."""
    warnings: list[str] = []
    try:
        cracks = measure_cracks(mask, warn=warnings.append)
    except TooRagged as error:
        warnings.append(str(error))
    if warnings:  # no measure of a part of the image
        return np.full(3, np.nan)
    if not cracks:
        return np.zeros(3)
    length = sum(crack.length for crack in cracks)
    width = sum(crack.length * crack.mean_width for crack in cracks) / length
    return np.array([width, max(crack.max_width for crack in cracks), length])
