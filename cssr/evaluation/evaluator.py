"""Run a model over a set and measure each image against its ground truth, one row per image."""

import dataclasses
import sys
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from torch import Tensor

from cssr.config.schema import ModelConfig, segments
from cssr.data.batch import Batch, Outputs
from cssr.data.shards import ShardSet
from cssr.degradations.ops import blur_strided
from cssr.evaluation import metrics
from cssr.evaluation.calibration import expected_calibration_error, logit_histogram
from cssr.evaluation.crack_metrics import crack_errors, topology
from cssr.evaluation.surface_distance import surface_distances
from cssr.models.joint import JointModel
from cssr.models.training_range import blur_sigma
from cssr.utils.text import one_line


def evaluate(
    model: JointModel,
    batches: Iterable[Batch],
    degrade: Callable,
    device: torch.device,
    distances: bool = False,
    tile: int = 0,
    show: Callable[[Batch, Outputs], None] | None = None,
    segmentation: bool = True,
) -> list[dict[str, Any]]:
    """One row of counts and measures for each sample of `batches`, in order; nothing is exchanged between ranks.

    Args:
        model: in evaluation mode, on `device`.
        degrade: HR to (LQ, kernel), from the registry.
        distances: whether HD95, MSD, clDice, clIoU, boundary F1 and the errors of cracks are computed (slow).
        tile: side, LQ pixels, of the tiles in which larger images are evaluated; 0: never.
        show: called with every batch and its outputs.
        segmentation: whether it is measured: not where the model finds no cracks or the images have no masks.
    """
    rows: list[dict[str, Any]] = []
    with ThreadPoolExecutor(1) as pool:  # a batch is measured while the network works on the next one
        pending: deque[Future] = deque()
        for batch in batches:
            batch, outputs = infer(model, batch, degrade, device, tile)
            outputs = outputs.where_valid(batch)
            pending.append(pool.submit(measure, batch, outputs, distances, segmentation))
            if show:
                show(batch, outputs)
            if len(pending) > 1:
                rows += pending.popleft().result()
        rows += [row for batch in pending for row in batch.result()]
    return rows


@torch.no_grad()
def infer(
    model: JointModel, batch: Batch, degrade: Callable, device: torch.device, tile: int = 0
) -> tuple[Batch, Outputs]:
    """The batch on the device, degraded if it is not yet, and what the model makes of it (float32)."""
    batch = batch.to(device)
    if batch.lq is None:
        lq, kernel = degrade(batch.hr, batch.seed)
        batch = dataclasses.replace(batch, lq=lq, kernel=kernel)
    return batch, model.infer(batch.lq, tile, **({} if batch.valid is None else {"valid": batch.valid})).float()


def measure(batch: Batch, outputs: Outputs, distances: bool, segmentation: bool = True) -> list[dict[str, Any]]:
    """The rows of a batch: key, image measures; of segmentation, pixel counts at every threshold, and on request the
    surface distances, and what is measured of centre lines, boundaries and cracks. Pixels without data count for
    nothing (outputs are `where_valid`); images that have no others give no row.
    """
    sr = outputs.sr.clamp(0, 1)
    pixels = torch.full((len(batch),), batch.mask[0].numel(), dtype=torch.float64)
    valid = pixels if batch.valid is None else batch.valid.double().sum((1, 2, 3)).cpu()
    share = (valid / pixels).clamp(min=1e-12)
    mse, ssim = metrics.mse(sr, batch.hr).cpu() / share, metrics.ssim(sr, batch.hr).cpu()
    columns: dict[str, Sequence[Any]] = {
        "key": batch.key,
        **(_counts(batch, outputs) | _calibration(batch, outputs) if segmentation else {}),
        "pixels": valid.long().tolist(),
        "mse": mse.tolist(),
        "psnr": (-10 * mse.log10()).tolist(),
        "ssim": (ssim if batch.valid is None else 1 - (1 - ssim) / share).tolist(),
        **_kernel_columns(batch, outputs.kernel),
    }
    if distances and segmentation:
        prob = outputs.logits.sigmoid()
        curves = surface_distances(prob, batch.mask, percentiles=(95,))
        columns |= {"hd95": curves["hd95"].tolist(), "msd": curves["msd"].tolist()}
        columns |= topology(prob, batch.mask) | crack_errors(prob, batch.mask)
        for key in (key for key, error in zip(batch.key, columns["width_error"]) if error is None):
            warning = f"warning: {key}: too ragged for the errors of widths and lengths, which are of the other images"
            print(one_line(warning), file=sys.stderr)
    rows = [dict(zip(columns, row)) for row in zip(*columns.values())]
    return [row for row in rows if row["pixels"]]


def _counts(batch: Batch, outputs: Outputs) -> dict[str, list[list[int]]]:
    counts = metrics.threshold_counts(outputs.logits.sigmoid(), batch.mask)
    return {name: getattr(counts, name).tolist() for name in ("tp", "fp", "fn")}


def _calibration(batch: Batch, outputs: Outputs) -> dict[str, list[Any]]:
    """Each image's histogram of logits (2 x bins), and its calibration error."""
    histogram = logit_histogram(outputs.logits, batch.mask).cpu().numpy()
    if batch.valid is not None:  # the rest is certain background, in the first bin
        histogram[:, 0, 0] -= (batch.valid == 0).sum((1, 2, 3)).cpu().numpy()
    with np.errstate(invalid="ignore"):  # of an image without any data, which gives no row
        return {"histogram": list(histogram), "ece": expected_calibration_error(histogram).tolist()}


def _kernel_columns(batch: Batch, predicted: Tensor | None) -> dict[str, list[float | None]]:
    """Width of the true kernels, and how near the predicted ones are; None where there are none to compare."""
    unknown, target = [None] * len(batch), batch.kernel
    columns = {"blur_sigma": unknown if target is None else blur_sigma(target).tolist()}
    if target is None or predicted is None or target.shape != predicted.shape:
        return columns | {"kernel_psnr": unknown, "lq_psnr": unknown}
    psnr = metrics.kernel_psnr(predicted, target).tolist()
    return columns | {"kernel_psnr": psnr, "lq_psnr": _lq_psnr(batch, predicted).tolist()}


def _lq_psnr(batch: Batch, predicted: Tensor) -> Tensor:
    """PSNR between what the predicted and what the true kernels make of the HR images, reduced alike: (B,)."""
    # Not against the LQ image itself: its noise and its compression are no fault of the kernel.
    scale = batch.hr.shape[-1] // batch.lq.shape[-1]
    return metrics.psnr(*(blur_strided(batch.hr, k, "replicate", scale) for k in (predicted, batch.kernel)))


def gather_rows(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of all ranks, each sample once, sorted by key; one exchange at the end."""
    return sorted(gather_object(rows), key=lambda row: row["key"])


def measures_segmentation(model: ModelConfig, sets: Sequence[ShardSet], setting: str) -> bool:
    """Return whether segmentation can be measured: the model finds cracks, and the sets have masks.

    Raises: ValueError, one line, where only some sets have them; `setting` is the option that names the sets.
    """
    unmasked = without_masks(sets)
    if segments(model) and unmasked and not all(shards in unmasked for shards in sets):
        raise ValueError(f"{setting}: {unmasked[0].root} has no masks, other sets have: give sets of one kind")
    return segments(model) and not unmasked


def without_masks(sets: Sequence[ShardSet]) -> list[ShardSet]:
    """The sets that hold images alone."""
    return [shards for shards in sets if not shards.masks]
