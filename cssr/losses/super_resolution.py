"""Losses of the SR image, mean over pixels and channels."""

from torch import Tensor

from cssr.batch import Batch, Outputs
from cssr.losses import LOSSES
from cssr.schedules import Progress


@LOSSES.register
def l1():
    """Mean absolute error of SR against HR, per sample."""

    def loss(outputs: Outputs, batch: Batch, progress: Progress) -> Tensor:
        return (outputs.sr - batch.hr).abs().mean((1, 2, 3))

    return loss


@LOSSES.register
def l2():
    """Mean squared error of SR against HR, per sample."""

    def loss(outputs: Outputs, batch: Batch, progress: Progress) -> Tensor:
        return (outputs.sr - batch.hr).square().mean((1, 2, 3))

    return loss
