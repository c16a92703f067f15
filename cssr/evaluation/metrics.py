"""Measures of one image, pure functions: counts at 99 thresholds and the scores that follow from them, PSNR, SSIM.

A pixel is called crack where `prob > threshold`, both in float32, at the 99 thresholds 0.01, 0.02, ..., 0.99. Every
figure is finite on an empty mask; only the PSNR of identical images is infinite. `DEFINITIONS` says in words what
each reported number is, and belongs in every results file.

Sources: the protocol of CSBSR (per-image IoU at 99 thresholds, smoothing 1e-5); Wang et al. 2004 (SSIM). The surface
distances are in `cssr/evaluation/surface_distance.py`.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange, reduce

THRESHOLDS = torch.tensor([i * 0.01 for i in range(1, 100)], dtype=torch.float32)
_FRAMED = torch.cat([torch.tensor([-torch.inf]), THRESHOLDS, torch.tensor([torch.inf])])  # threshold i at place i
SMOOTH = 1e-5
Numbers = torch.Tensor | np.ndarray | Sequence


# ---- counts and what follows from them ----


class Counts(NamedTuple):
    """Pixels per sample and threshold, (B, 99) int64 each, on the device of `prob`; their sum is H*W."""

    tp: torch.Tensor
    fp: torch.Tensor
    fn: torch.Tensor
    tn: torch.Tensor


def thresholds_below(prob: torch.Tensor) -> torch.Tensor:
    """Count of thresholds strictly below each value, 0..99 as int32: crack at threshold i where this exceeds i."""
    # A comparison with NaN is false, so NaN is background. Thresholds are so even that the nearest one follows from
    # the value, and one comparison with it decides: a third of a binary search's time.
    prob = prob.detach().float().contiguous().nan_to_num(nan=0.0).clamp_(0, 1)
    position = torch.add(0.5, prob, alpha=100)
    nearest = position.to(torch.int32)
    torch.index_select(_FRAMED.to(prob.device), 0, nearest.flatten(), out=position.view(-1))
    return nearest.add_(prob <= position, alpha=-1)


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

    Peak value 1. Values are not clipped: clip a super-resolved image to [0, 1] before.
    """
    return -10 * mse(sr, hr).log10()


def kernel_psnr(pred: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """PSNR of blur kernels (B, 1, k, k), both clipped to [0, 1] first, peak value 1 -> (B,) float64."""
    return psnr(pred.clamp(0, 1), target.clamp(0, 1))


def _blur(x: torch.Tensor) -> torch.Tensor:
    """11x11 Gaussian window of sigma 1.5, zero padding, on (..., H, W), as shifted sums in two passes."""
    # Not conv2d: on a CPU that is fourteen times slower, on a GPU its TF32 would drown the variances E[x^2] - E[x]^2.
    taps = [math.exp(-((i - 5) ** 2) / (2 * 1.5**2)) for i in range(11)]
    taps, (height, width) = [t / sum(taps) for t in taps], x.shape[-2:]
    x = F.pad(x, (5, 5, 5, 5))
    for axis, side in ((-1, width), (-2, height)):
        total = taps[0] * x.narrow(axis, 0, side)
        for i, tap in enumerate(taps[1:], 1):
            total.add_(x.narrow(axis, i, side), alpha=tap)  # one pass over memory, where a product and a sum take two
        x = total
    return x


def ssim(sr: torch.Tensor, hr: torch.Tensor) -> torch.Tensor:
    """Structural similarity (Wang et al. 2004) per sample: (B, C, H, W) twice -> (B,) float64, at most 1.

    Window as in `_blur`, C1 = 0.01^2, C2 = 0.03^2, each channel by itself, mean over channels and all pixels (the zero
    padded rim too). Values are not clipped: clip a super-resolved image to [0, 1] before.
    """
    same_shape(sr, hr)
    x, y, c1, c2 = sr.float(), hr.float(), 0.01**2, 0.03**2
    mx, my, xx, yy, xy = _blur(torch.stack([x, y, x * x, y * y, x * y]))
    vx, vy, cov = xx - mx * mx, yy - my * my, xy - mx * my
    value = (2 * mx * my + c1) * (2 * cov + c2) / ((mx * mx + my * my + c1) * (vx + vy + c2))
    return reduce(value.double(), "b c h w -> b", "mean")


# ---- scores of counts, of their shape, in float64; finite on an empty mask ----


def _doubles(*values: Numbers) -> list:
    """The values in float64: tensors stay tensors, all else becomes numpy arrays."""
    return [v.double() if isinstance(v, torch.Tensor) else np.asarray(v, dtype=np.float64) for v in values]


def iou(tp: Numbers, fp: Numbers, fn: Numbers) -> torch.Tensor | np.ndarray:
    """(tp + 1e-5) / (tp + fp + fn + 1e-5) in float64, elementwise; 1 where mask and prediction are both empty.

    Tensors give a tensor, arrays and lists of one shape an array; so do precision, recall and f1.
    """
    tp, fp, fn = _doubles(tp, fp, fn)
    return (tp + SMOOTH) / (tp + fp + fn + SMOOTH)


def _ratio(part: Numbers, remainder: Numbers, counterpart: Numbers | int) -> Numbers:
    """part / (part + remainder); where that is 0/0: 1 if `counterpart` is 0 too (both empty), else 0 (one is empty)."""
    empty = part + remainder == 0
    return (part + empty * (counterpart == 0)) / (part + remainder + empty)


def precision(tp: Numbers, fp: Numbers, fn: Numbers) -> torch.Tensor | np.ndarray:
    """tp / (tp + fp) in float64. Where nothing is predicted: 1 if the mask is empty too, else 0."""
    tp, fp, fn = _doubles(tp, fp, fn)
    return _ratio(tp, fp, fn)


def recall(tp: Numbers, fp: Numbers, fn: Numbers) -> torch.Tensor | np.ndarray:
    """tp / (tp + fn) in float64. Where the mask is empty: 1 if nothing is predicted either, else 0."""
    tp, fp, fn = _doubles(tp, fp, fn)
    return _ratio(tp, fn, fp)


def f1(tp: Numbers, fp: Numbers, fn: Numbers) -> torch.Tensor | np.ndarray:
    """2 tp / (2 tp + fp + fn) in float64, without smoothing. Both empty: 1; one empty: 0."""
    tp, fp, fn = _doubles(tp, fp, fn)
    return _ratio(2 * tp, fp + fn, 0)


def specificity(tn: Numbers, fp: Numbers, fn: Numbers) -> torch.Tensor | np.ndarray:
    """tn / (tn + fp) in float64. Where all pixels are crack: 1 if all are predicted to be, else 0."""
    tn, fp, fn = _doubles(tn, fp, fn)
    return _ratio(tn, fp, fn)


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
