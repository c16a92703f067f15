"""Pixel weights of losses (CSBSR): larger near cracks, or where the segmentation is wrong.

A loss takes them as `pixel_weight={crack: 2.0, failure: 1.0, begin: 180000}`: two amplitudes, each off at 0.0 and
multiplied where both are set, and the samples seen from which on they are applied.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cssr.config.registry import Samples, Weight, did_you_mean
from cssr.config.schedules import Progress
from cssr.data.batch import Batch, Outputs
from cssr.utils.annotations import described, fits, shortened


@dataclass(frozen=True)
class PixelWeight:
    """Pixel weights: the product of 2 exp(-crack d) and exp(failure |prob - mask|), each only where it is set.

    d is the distance to the crack in pixels, 0 inside. For an empty mask it is 0 everywhere, so that all weights are 2,
    as in the published system. `prob` is that of the main head, detached.
    """

    crack: float = 0.0  # fall of the crack-oriented weight, per pixel
    failure: float = 0.0  # rise of the failure-oriented weight, from 1 to exp(failure)
    begin: int = 0  # samples seen from which on the weights are applied; 1 before

    @property
    def needs_distance(self) -> bool:
        """True if the weights need the batch's distance map."""
        return self.crack > 0

    def __call__(self, outputs: Outputs, batch: Batch, progress: Progress) -> tuple[Tensor, ...]:
        """Weight maps that multiply the loss, up to two of B 1 H W float32; none where all weights are 1."""
        if progress.samples < self.begin:
            return ()
        maps = []
        if self.crack:
            maps.append(2 * torch.exp(-self.crack * batch.distance.clamp(min=0)))
        if self.failure:
            maps.append(torch.exp(self.failure * (outputs.logits.detach().sigmoid() - batch.mask).abs()))
        return tuple(maps)


def build_weight(setting: Mapping[str, Any] | None) -> PixelWeight:
    """Build the weights of a `pixel_weight` setting; None: all weights are 1.

    Raises:
        ValueError: for anything but a mapping, an unknown name, or a value that is no number of the range allowed.
    """
    if setting is None:
        return PixelWeight()
    known = [f.name for f in fields(PixelWeight)]
    if not isinstance(setting, Mapping):
        raise ValueError(f"pixel_weight is null or a mapping of {', '.join(known)}; got {setting!r}")
    for name, value in setting.items():
        if name not in known:
            raise ValueError(f"pixel_weight does not take {name!r}{did_you_mean(name, known)}")
        kind = Samples if name == "begin" else Weight
        if not fits(value, kind):
            raise ValueError(f"pixel_weight: {name} must be {described(kind)}, got {shortened(value)}")
    return PixelWeight(**setting)


def weighted_mean(values: Tensor, maps: Sequence[Tensor] = ()) -> Tensor:
    """Mean of `values` times all maps over channels and pixels: B values.

    Args:
        values: B C H W, or B C h w at LQ size, to which each map is then reduced (bilinear, no antialias).
        maps: B 1 H W each.
    """
    size = values.shape[-2:]
    for weight in maps:
        if weight.shape[-2:] != size:
            weight = F.interpolate(weight, size=size, mode="bilinear", align_corners=False)
        values = values * weight
    return values.mean((1, 2, 3))


def mean_weight(maps: Sequence[Tensor]) -> Tensor | float:
    """Mean over pixels of the product of all maps: B values, or 1.0 without maps."""
    return weighted_mean(maps[0], maps[1:]) if maps else 1.0
