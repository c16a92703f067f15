"""A perceptual loss of the SR image: multi-scale SSIM with L1, by kornia."""

from collections.abc import Callable

from kornia.losses import MS_SSIMLoss
from torch import Tensor

from cssr.config.schedules import Progress
from cssr.data.batch import Batch, Outputs
from cssr.losses import LOSSES


@LOSSES.register
def ms_ssim(alpha: float = 0.84) -> Callable:
    """alpha (1 - MS-SSIM) + (1 - alpha) L1 weighed by a Gaussian, of SR against HR (Zhao et al. 2017): B values.

    Scales are Gaussian windows (sigma 0.5 to 8 pixels), so that images of any size go. SR is clipped to 0..1.

    Args:
        alpha: share of structural similarity, 0..1; the authors' is 0.84.
    Raises: ValueError for an alpha outside of 0..1.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"loss 'ms_ssim': alpha must lie in 0..1, found {alpha}")
    measure = MS_SSIMLoss(alpha=alpha, compensation=1.0, reduction="none")

    def loss(outputs: Outputs, batch: Batch, progress: Progress) -> Tensor:
        errors = measure.to(batch.hr.device)(outputs.sr.clamp(0, 1), batch.hr)  # B H W
        return errors.flatten(1).mean(1)

    return loss
