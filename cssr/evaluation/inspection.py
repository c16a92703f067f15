"""What an inspector asks of a predicted mask: how wrong are the widths and the length of an image's cracks."""

import numpy as np
import torch

from cssr.cracks.measure import measure_cracks
from cssr.evaluation.definitions import CRACK_KEYS, LINES_THRESHOLD
from cssr.evaluation.metrics import same_shape


def inspection(prob: torch.Tensor, mask: torch.Tensor) -> dict[str, list[float]]:
    """Errors of mean and greatest crack width and of length of each sample, by `CRACK_KEYS`, B numbers each, pixels.

    prob (B, 1, H, W) floating point, crack where it exceeds 0.5, NaN being background; mask (B, 1, H, W) in {0, 1}.
    An image without cracks has widths and length 0, so that every error is finite. Raises ValueError where the shapes
    differ. Runs on the CPU, some 20 ms for 448x448.
    """
    same_shape(prob, mask)
    pairs = [x[:, 0].cpu().numpy() for x in (prob > LINES_THRESHOLD, mask > 0.5)]
    found = [_totals(pred) - _totals(true) for pred, true in zip(*pairs)]
    errors = {
        name: [float(values[k]) for values in map(np.abs, found)]
        for k, name in enumerate(("width_error", "max_width_error", "length_error"))
    }
    biases = {name: [float(values[k]) for values in found] for k, name in ((0, "width_bias"), (2, "length_bias"))}
    return {name: (errors | biases)[name] for name in CRACK_KEYS}


def _totals(mask: np.ndarray) -> np.ndarray:
    """Mean width, weighted by length, greatest width, and length of all cracks: 3 float64."""
    cracks = measure_cracks(mask)
    if not cracks:
        return np.zeros(3)
    length = sum(crack.length for crack in cracks)
    width = sum(crack.length * crack.mean_width for crack in cracks) / length
    return np.array([width, max(crack.max_width for crack in cracks), length])
