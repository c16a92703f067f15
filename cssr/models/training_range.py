"""Range of the photographs that a model was trained on, and warnings for a photograph outside it.

`trained_on` in the `config.json` of an export: `brightness` and `contrast` (mean and standard deviation of an
image's values, 0..1; [low, high] that hold 99 in 100 training images), `blur` ([low, high], standard deviation of the
blur kernels, HR pixels) and `smallest` (side of the LQ crops, pixels).
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

_SHARE = 0.5  # percent of the training images beyond either bound
_BEYOND = 0.05  # tolerance, as a share of the width of a range


def training_range(images: Iterable[np.ndarray], degradation: Mapping[str, Any], side: int) -> dict[str, Any]:
    """Ranges of the training images: the value of `trained_on` in an export.

    Args:
        images: H W 3 uint8, of the training set, or a sample of it.
        degradation: the component of that name.
        side: of the LQ crops, pixels.
    """
    values = np.array([(image.mean(), image.std()) for image in images]) / 255
    low, high = np.percentile(values, (_SHARE, 100 - _SHARE), axis=0).round(4).tolist()
    sigma = degradation.get("sigma", [0.2, 4.0]) if degradation.get("name") == "gaussian" else None
    return {
        "brightness": [low[0], high[0]],
        "contrast": [low[1], high[1]],
        "blur": None if sigma is None else [float(value) for value in sigma],
        "smallest": side,
    }


def outside(
    trained_on: Mapping[str, Any], brightness: float, contrast: float, shape: Sequence[int], blur: float | None
) -> list[str]:
    """Warnings where a photograph is outside the training range; [] if it is inside.

    Args:
        trained_on: result of `training_range`; empty for exports without it.
        brightness, contrast: mean and standard deviation of the photograph's values, 0..1.
        shape: height, width, pixels.
        blur: standard deviation of the estimated kernel, HR pixels; None where none is estimated.
    """
    values = {"brightness": brightness, "contrast": contrast, "blur": blur}
    units = {"brightness": "mean value", "contrast": "standard deviation of values", "blur": "estimated, in SR pixels"}
    notes = []
    for name, value in values.items():
        bounds = trained_on.get(name)
        if bounds is None or value is None:
            continue
        low, high = bounds
        margin = _BEYOND * (high - low)
        # A kernel of the largest blur that was seen is estimated below it; beyond, estimates crowd at the bound.
        above = value > high - margin if name == "blur" else value > high + margin
        if above or value < low - margin:
            notes.append(f"{name} {value:.2f} ({units[name]}; trained on {low:.2f} to {high:.2f})")
    smallest = trained_on.get("smallest", 0)
    if min(shape) < smallest:
        notes.append(f"only {shape[1]} x {shape[0]} pixels (trained on {smallest} x {smallest} and more)")
    return notes


def blur_sigma(kernel: torch.Tensor) -> torch.Tensor:
    """Root of the mean variance of kernels (B, 1, k, k) over both axes, pixels: (B,) float64; a Gaussian's is sigma.

    Negative lobes can outweigh the rest: the variance is clamped at 0.
    """
    weight = kernel[:, 0].double()
    axis = torch.arange(weight.shape[-1], dtype=torch.float64, device=kernel.device)
    variances = [_variance(weight.sum(side), axis) for side in (1, 2)]
    return (sum(variances) / 2).clamp(min=0).sqrt()


def _variance(weight: torch.Tensor, axis: torch.Tensor) -> torch.Tensor:
    """Variance of weights (B, k) along an axis (k)."""
    weight = weight / weight.sum(1, keepdim=True)
    centre = (weight @ axis)[:, None]
    return (weight * (axis - centre) ** 2).sum(1)
