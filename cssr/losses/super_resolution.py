"""Losses of the SR network's outputs, mean over pixels and channels; samples without cracks are treated alike."""

from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Any

import torch
from kornia.losses import MS_SSIMLoss
from torch import Tensor

from cssr.config.schedules import Progress
from cssr.data.batch import Batch, Outputs
from cssr.degradations.ops import Method, Padding, blur, check_padding, resampler
from cssr.losses import LOSSES
from cssr.losses.pixel_weights import build_weight, weighted_mean


@LOSSES.register
def l1(pixel_weight: Mapping[str, Any] | None = None) -> Callable:
    """Mean absolute error of SR against HR, per sample; `pixel_weight`: `cssr/losses/pixel_weights.py`."""
    return _of_error(Tensor.abs, pixel_weight)


@LOSSES.register
def l2(pixel_weight: Mapping[str, Any] | None = None) -> Callable:
    """Mean squared error of SR against HR, per sample; `pixel_weight`: `cssr/losses/pixel_weights.py`."""
    return _of_error(Tensor.square, pixel_weight)


def _of_error(measure: Callable[[Tensor], Tensor], pixel_weight: Mapping[str, Any] | None) -> Callable:
    weight = build_weight(pixel_weight)

    def loss(outputs: Outputs, batch: Batch, progress: Progress) -> Tensor:
        return weighted_mean(measure(outputs.sr - batch.hr), weight(outputs, batch, progress))

    loss.needs_distance = weight.needs_distance
    return loss


@LOSSES.register
def ms_ssim(alpha: float = 0.84) -> Callable:
    """alpha (1 - MS-SSIM) + (1 - alpha) L1 weighed by a Gaussian, of SR against HR (Zhao et al. 2017): B values.

    Scales are Gaussian windows (sigma 0.5 to 8 pixels), so that images of any size go. SR is clipped to 0..1.

    Args:
        alpha: share of structural similarity, 0..1; the authors' is 0.84.
    Raises: ValueError for an alpha outside of 0..1.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"loss 'ms_ssim': alpha must be in 0..1, got {alpha}")
    measure = MS_SSIMLoss(alpha=alpha, compensation=1.0, reduction="none")

    def loss(outputs: Outputs, batch: Batch, progress: Progress) -> Tensor:
        errors = measure.to(batch.hr.device)(outputs.sr.clamp(0, 1), batch.hr)  # B H W
        return errors.flatten(1).mean(1)

    return loss


@LOSSES.register
def task_perceptual(levels: int | None = None) -> Callable:
    """Mean absolute difference of feature maps of SR and HR, each map's over the mean absolute value of HR's: B values.

    Kim et al., "Beyond Image Super-Resolution for Image Recognition with Task-Driven Perceptual Loss" (SR4IR), CVPR
    2024. As there, HR's maps are constants, and the task network is fixed for this loss, which trains SR alone: an
    encoder that learnt from it would become blind to what SR lacks. There each network is updated in turn, too; a
    phase's `alternate` does that.

    Args:
        levels: how many maps, from the deepest up; None: all.
    Raises:
        ValueError: levels below 1; from the loss, without features; from the task, a network without an encoder.
    """
    if levels is not None and (isinstance(levels, bool) or not isinstance(levels, int) or levels < 1):
        raise ValueError(f"loss 'task_perceptual': levels must be a whole number of at least 1, got {levels!r}")

    def loss(outputs: Outputs, batch: Batch, progress: Progress) -> Tensor:
        if not outputs.sr_features:
            raise ValueError("loss 'task_perceptual' needs features of the segmentation network's encoder")
        pairs = list(zip(outputs.sr_features, outputs.hr_features))[-(levels or 0) :]
        terms = []
        for of_sr, of_hr in pairs:  # B C h w each
            others = tuple(range(1, of_hr.dim()))
            terms.append((of_sr - of_hr).abs().mean(others) / (of_hr.abs().mean(others) + 1e-6))
        return torch.stack(terms).mean(0)

    loss.needs_features = True
    return loss


@LOSSES.register
def mask_l1() -> Callable:
    """Mean absolute error of the super-resolved mask against the mask, per sample (segmentation before SR).

    Raises: ValueError, from the loss, where the model super-resolves no mask.
    """

    def loss(outputs: Outputs, batch: Batch, progress: Progress) -> Tensor:
        if outputs.mask_sr is None:
            raise ValueError("loss 'mask_l1' needs a model that super-resolves the mask: model.form=seg_then_sr")
        return (outputs.mask_sr - batch.mask).abs().mean((1, 2, 3))

    return loss


@LOSSES.register
def blind(
    weights: Sequence[float] = (0.4, 0.4, 0.2),
    method: Method = "bicubic",
    antialias: bool = True,
    padding: Padding = "zero",
    pixel_weight: Mapping[str, Any] | None = None,
) -> Callable:
    """KBPN's loss: L1 of SR, L1 of SR blurred by the predicted kernel and reduced, against LQ, and MSE of the kernel.

    Args:
        weights: of the three terms, as the papers mean them; by a slip the released code has 0.0 for the kernel.
            [0, 0, 1] trains the kernel predictor by its own error alone.
        method, antialias, padding: how SR is degraded again; the same as in the `degradation` setting.
        pixel_weight: on the first two terms, for LQ reduced bilinearly: `cssr/losses/pixel_weights.py`.
    Raises:
        ValueError: where the SR network predicts no kernel, or the degradation has none.
    """
    numbers = isinstance(weights, Sequence) and all(isinstance(w, Real) and w >= 0 for w in weights)
    if not numbers or len(weights) != 3:
        raise ValueError(f"loss 'blind': weights needs three numbers (SR, LQ, kernel), none negative; got {weights}")
    of_sr, of_lq, of_kernel = weights
    check_padding(padding)
    resampler(1, method, antialias)  # refuses an unknown method
    weight = build_weight(pixel_weight)

    def loss(outputs: Outputs, batch: Batch, progress: Progress) -> Tensor:
        _check(outputs, batch)
        maps = weight(outputs, batch, progress)
        scale = batch.hr.shape[-1] // batch.lq.shape[-1]
        again = resampler(scale, method, antialias)[0](blur(outputs.sr, outputs.kernel, padding))
        return (
            of_sr * weighted_mean((outputs.sr - batch.hr).abs(), maps)
            + of_lq * weighted_mean((again - batch.lq).abs(), maps)
            + of_kernel * (outputs.kernel - batch.kernel).square().mean((1, 2, 3))
        )

    loss.needs_distance, loss.needs_kernel = weight.needs_distance, True
    return loss


def _check(outputs: Outputs, batch: Batch) -> None:
    if outputs.kernel is None:
        raise ValueError("loss.sr=blind needs an SR network that predicts a blur kernel: model.sr=kbpn")
    if batch.kernel is None:
        raise ValueError("loss.sr=blind needs a degradation with a blur kernel: degradation=gaussian")
    if outputs.kernel.shape != batch.kernel.shape:
        raise ValueError(
            f"model.sr predicts kernels of {outputs.kernel.shape[-1]} pixels, the degradation's have "
            f"{batch.kernel.shape[-1]}: give model.sr.kernel_size and degradation.size the same value"
        )
