"""Losses of SR outputs, means over pixels and channels; samples without cracks are not treated differently."""

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
    return _error_loss(Tensor.abs, pixel_weight)


@LOSSES.register
def l2(pixel_weight: Mapping[str, Any] | None = None) -> Callable:
    """Mean squared error of SR against HR, per sample; `pixel_weight`: `cssr/losses/pixel_weights.py`."""
    return _error_loss(Tensor.square, pixel_weight)


def _error_loss(measure: Callable[[Tensor], Tensor], pixel_weight: Mapping[str, Any] | None) -> Callable:
    weight = build_weight(pixel_weight)

    def loss(outputs: Outputs, batch: Batch, progress: Progress) -> Tensor:
        return weighted_mean(measure(outputs.sr - batch.hr), weight(outputs, batch, progress))

    loss.needs_distance = weight.needs_distance
    return loss


@LOSSES.register
def ms_ssim(alpha: float = 0.84) -> Callable:
    """MS-SSIM loss: alpha (1 - MS-SSIM) + (1 - alpha) L1 under a Gaussian, SR against HR (Zhao et al. 2017): B values.

    Scales are Gaussian windows (sigma 0.5 to 8 pixels), so that images may have any size. SR is clipped to 0..1.

    Args:
        alpha: weight of the MS-SSIM term, 0..1; published: 0.84.
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
    """Relative mean absolute difference between feature maps of SR and HR in the segmentation encoder: B values.

    Each map's difference is divided by the mean absolute value of HR's map. Source: Kim et al., "Beyond Image
    Super-Resolution for Image Recognition with Task-Driven Perceptual Loss" (SR4IR), CVPR 2024. As in the paper, HR's
    maps are detached and the loss trains the SR network only: an encoder trained by it would learn to ignore what SR
    lacks. The paper also updates both networks alternately, which is the setting `alternate` of a phase.

    Args:
        levels: number of maps, from the deepest up; None: all.
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
        for sr_map, hr_map in pairs:  # B C h w each
            dims = tuple(range(1, hr_map.dim()))
            terms.append((sr_map - hr_map).abs().mean(dims) / (hr_map.abs().mean(dims) + 1e-6))
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
    """Loss of KBPN: L1 of SR, L1 of the SR image degraded by the predicted kernel against LQ, MSE of the kernel.

    Args:
        weights: of the three terms, as in the papers; the released code has 0.0 for the kernel by mistake. [0, 0, 1]
            trains the kernel predictor by its own error only.
        method, antialias, padding: degradation of the SR image; the same as in the `degradation` setting.
        pixel_weight: weights of the first two terms, reduced bilinearly for LQ: `cssr/losses/pixel_weights.py`.
    Raises:
        ValueError: for invalid weights or an unknown method or padding; from the loss, where the SR network predicts no
            kernel, the degradation has none, or their sizes differ.
    """
    numbers = isinstance(weights, Sequence) and all(isinstance(w, Real) and w >= 0 for w in weights)
    if not numbers or len(weights) != 3:
        raise ValueError(f"loss 'blind': weights needs three numbers (SR, LQ, kernel), none negative; got {weights}")
    sr_weight, lq_weight, kernel_weight = weights
    check_padding(padding)
    resampler(1, method, antialias)  # refuses an unknown method
    weight = build_weight(pixel_weight)

    def loss(outputs: Outputs, batch: Batch, progress: Progress) -> Tensor:
        _check_kernels(outputs, batch)
        maps = weight(outputs, batch, progress)
        scale = batch.hr.shape[-1] // batch.lq.shape[-1]
        degraded = resampler(scale, method, antialias)[0](blur(outputs.sr, outputs.kernel, padding))
        return (
            sr_weight * weighted_mean((outputs.sr - batch.hr).abs(), maps)
            + lq_weight * weighted_mean((degraded - batch.lq).abs(), maps)
            + kernel_weight * (outputs.kernel - batch.kernel).square().mean((1, 2, 3))
        )

    loss.needs_distance, loss.needs_kernel = weight.needs_distance, True
    return loss


def _check_kernels(outputs: Outputs, batch: Batch) -> None:
    if outputs.kernel is None:
        raise ValueError("loss.sr=blind needs an SR network that predicts a blur kernel: model.sr=kbpn")
    if batch.kernel is None:
        raise ValueError("loss.sr=blind needs a degradation with a blur kernel: degradation=gaussian")
    if outputs.kernel.shape != batch.kernel.shape:
        raise ValueError(
            f"model.sr predicts kernels of {outputs.kernel.shape[-1]} pixels, the degradation's have "
            f"{batch.kernel.shape[-1]}: give model.sr.kernel_size and degradation.size the same value"
        )
