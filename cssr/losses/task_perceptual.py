"""Task-driven perceptual loss: SR and HR compared by the feature maps of the segmentation network's encoder.

Kim et al., "Beyond Image Super-Resolution for Image Recognition with Task-Driven Perceptual Loss" (SR4IR), CVPR 2024.
As there, the task network is fixed for this loss, which trains SR alone: an encoder that learnt from it would become
blind to what SR lacks. There each network is updated in turn, too; a phase's `alternate` does that.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from cssr.config.schedules import Progress
from cssr.data.batch import Batch, Outputs
from cssr.losses import LOSSES

_EPSILON = 1e-6


@LOSSES.register
def task_perceptual(levels: int | None = None) -> Callable:
    """Mean absolute difference of feature maps of SR and HR, each map's over the mean absolute value of HR's: B values.

    HR's are constants. An empty mask is nothing special to it.

    Args:
        levels: how many maps, from the deepest up; None: all.
    Raises:
        ValueError: levels below 1; from the loss, without features; from the task, a network without an encoder.
    """
    if levels is not None and (isinstance(levels, bool) or not isinstance(levels, int) or levels < 1):
        raise ValueError(f"loss 'task_perceptual': levels must be a whole number of at least 1, found {levels!r}")

    def loss(outputs: Outputs, batch: Batch, progress: Progress) -> Tensor:
        if not outputs.sr_features:
            raise ValueError("loss 'task_perceptual' needs features of the segmentation network's encoder")
        pairs = list(zip(outputs.sr_features, outputs.hr_features))[-(levels or 0) :]
        terms = []
        for of_sr, of_hr in pairs:  # B C h w each
            others = tuple(range(1, of_hr.dim()))
            terms.append((of_sr - of_hr).abs().mean(others) / (of_hr.abs().mean(others) + _EPSILON))
        return torch.stack(terms).mean(0)

    loss.needs_features = True
    return loss
