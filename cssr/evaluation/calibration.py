"""Calibration of probabilities: expected calibration error, reliability curve, and the temperature that fits best.

All three follow from a histogram of the logits by class, small enough to be kept for each image and summed over a set.
A network is calibrated if a share p of the pixels with probability p is crack (Guo et al. 2017).
"""

from typing import NamedTuple

import numpy as np
import torch
from scipy.special import expit, logit
from torch import Tensor

BINS = 15  # of probability, equally wide
TEMPERATURES = (0.1, 10.0)  # bounds of the fit
_BOUND = 32  # logits are clipped to this
_STEPS = 64  # fine bins of the histogram in a unit of logits; all borders are multiples of 1 / _STEPS
_PER_BIN = 8  # bins of the histogram in one of BINS, but for the outermost two
_TAIL = 24  # bins of the histogram on either side from there to _BOUND


def _bin_edges() -> np.ndarray:
    """Logits between the bins of the histogram: equidistant probabilities, then geometric towards 0 and 1."""
    middle = logit(np.arange(1, BINS * _PER_BIN) / (BINS * _PER_BIN))
    tail = np.geomspace(middle[-1], _BOUND, _TAIL + 1)[1:-1]
    return np.round(np.concatenate([-tail[::-1], middle, tail]) * _STEPS) / _STEPS


_FINE = (np.arange(2 * _BOUND * _STEPS) + 0.5) / _STEPS - _BOUND  # middles of the fine bins, logits
_BIN_OF_FINE = np.searchsorted(_bin_edges(), _FINE)
_SIZES = np.bincount(_BIN_OF_FINE)
_LOGIT, _PROB = (np.bincount(_BIN_OF_FINE, values) / _SIZES for values in (_FINE, expit(_FINE)))  # mean of each bin
_MEMBERS = np.eye(BINS)[(_PROB * BINS).astype(int)]  # histogram bins x BINS
LOGIT_BINS = len(_SIZES)


def logit_histogram(logits: Tensor, mask: Tensor) -> Tensor:
    """Pixels by class (background, crack) and bin of the logit: B 2 `LOGIT_BINS` int64, on the device of the logits.

    logits (B 1 H W, any float; NaN counts as the least); mask (B 1 H W in {0, 1}, any dtype).
    """
    batch, fine = len(logits), len(_FINE)
    clipped = logits.detach().float().nan_to_num(nan=-_BOUND).clamp(-_BOUND, _BOUND - 0.5 / _STEPS)
    index = clipped.add_(_BOUND).mul_(_STEPS).to(torch.int32).flatten(1)
    first = 2 * fine * torch.arange(batch, dtype=torch.int32, device=logits.device).view(-1, 1)
    index.add_((mask > 0.5).flatten(1), alpha=fine).add_(first)  # fine bin, class, sample
    histogram = torch.bincount(index.flatten(), minlength=2 * batch * fine).view(batch, 2, fine)
    bins = torch.from_numpy(_BIN_OF_FINE).to(logits.device)
    return histogram.new_zeros(batch, 2, LOGIT_BINS).index_add_(2, bins, histogram)


class Reliability(NamedTuple):
    """Values by bin of probability, (..., BINS) float64 each."""

    prob: np.ndarray  # mean probability; NaN of an empty bin
    crack: np.ndarray  # share of crack pixels; NaN of an empty bin
    pixels: np.ndarray


def reliability(histogram: np.ndarray) -> Reliability:
    """The reliability curve of a histogram (..., 2, `LOGIT_BINS`)."""
    histogram = np.asarray(histogram, dtype=np.float64)
    all_pixels = histogram.sum(-2)
    pixels, probs, cracks = (values @ _MEMBERS for values in (all_pixels, all_pixels * _PROB, histogram[..., 1, :]))
    with np.errstate(invalid="ignore"):
        return Reliability(probs / pixels, cracks / pixels, pixels)


def expected_calibration_error(histogram: np.ndarray) -> np.ndarray:
    """Mean over pixels of |mean probability - share of crack| of their bin: (..., 2, `LOGIT_BINS`) -> (...) float64."""
    prob, crack, pixels = reliability(histogram)
    return np.nansum(np.abs(prob - crack) * pixels, -1) / pixels.sum(-1)


def fit_temperature(histogram: np.ndarray) -> float:
    """The number by which logits are divided for the least mean negative log-likelihood, within `TEMPERATURES`.

    histogram: 2 `LOGIT_BINS`. Where a class has no pixels there is nothing to fit: 1.
    """
    background, crack = np.asarray(histogram, dtype=np.float64)
    if not (background.any() and crack.any()):
        return 1.0
    from scipy.optimize import minimize_scalar  # slow to import

    def loss(log_temperature: float) -> float:
        scaled = _LOGIT / np.exp(log_temperature)
        return float(background @ np.logaddexp(0, scaled) + crack @ np.logaddexp(0, -scaled))

    return float(np.exp(minimize_scalar(loss, bounds=np.log(TEMPERATURES), method="bounded").x))
