"""Scores that follow from pixel counts: IoU, precision, recall and their like, elementwise, and curves' summaries.

Counts of one shape give scores of that shape, in float64. Every score is finite on an empty mask.
"""

from collections.abc import Sequence

import numpy as np
import torch

SMOOTH = 1e-5
Numbers = torch.Tensor | np.ndarray | Sequence


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


def specificity(tn: Numbers, fp: Numbers, fn: Numbers) -> torch.Tensor | np.ndarray:
    """tn / (tn + fp) in float64. Where all pixels are crack: 1 if all are predicted to be, else 0."""
    tn, fp, fn = _doubles(tn, fp, fn)
    return _share(tn, fp, fn)


def accuracy(tp: Numbers, tn: Numbers, fp: Numbers, fn: Numbers) -> torch.Tensor | np.ndarray:
    """(tp + tn) / (tp + tn + fp + fn) in float64: the share of pixels that are right."""
    tp, tn, fp, fn = _doubles(tp, tn, fp, fn)
    return (tp + tn) / (tp + tn + fp + fn)


def average_precision(tp: np.ndarray, fp: np.ndarray, fn: np.ndarray) -> np.ndarray:
    """Area under the precision-recall curve: (..., T) counts at rising thresholds -> (...,) float64.

    The sum of (rise of recall) x precision from the greatest threshold, above which recall is 0, down to the least;
    nothing is interpolated, nor added below the least. NaN where the mask is empty.
    """
    tp, fp, fn = _doubles(tp, fp, fn)
    cracks = (tp + fn)[..., 0]
    rises = tp - np.concatenate([tp[..., 1:], np.zeros_like(tp[..., :1])], -1)
    area = (rises * tp / np.maximum(tp + fp, 1)).sum(-1)
    return np.where(cracks > 0, area / np.maximum(cracks, 1), np.nan)
