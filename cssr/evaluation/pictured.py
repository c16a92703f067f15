"""Which images of an evaluated set are shown, and pictures of them."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from cssr.data.batch import Batch
from cssr.evaluation.evaluator import infer
from cssr.evaluation.visualization import take_sample, write_samples
from cssr.evaluation.visualize import sample_panels, save_picture, strip
from cssr.models.joint import JointModel

_PICTURED = 3  # images shown of the best, of the median and of the worst


def pictured_rows(per_image: list[dict[str, Any]]) -> dict[str, list[str]]:
    """Keys of the best, the median and the worst images: by IoU, among those with a crack, or else by PSNR."""
    cracked = [row for row in per_image if "tp" in row and row["tp"][0] + row["fn"][0] > 0] or per_image
    ranked = [row["key"] for row in sorted(cracked, key=lambda row: (-_quality(row), row["key"]))]
    middle = max(0, len(ranked) // 2 - 1)
    return {
        "best": ranked[:_PICTURED],
        "median": ranked[middle : middle + _PICTURED],
        "worst": ranked[::-1][:_PICTURED],
    }


def _quality(row: dict[str, Any]) -> float:
    """IoU; PSNR in dB where segmentation was not measured, of which null is infinite."""
    return row["iou"] if "iou" in row else float("inf") if row["psnr"] is None else row["psnr"]


def draw_pictures(
    found: dict[str, Any],
    out: Path,
    model: JointModel,
    degrade: Callable,
    device: torch.device,
    batches: Iterable[Batch],
    tile: int,
) -> None:
    """Strips of the best, median and worst images under `out/pictures`, and their parts in its `samples`."""
    rows, panels, samples = found["per_image"], {}, {}
    wanted, quality = pictured_rows(rows), {row["key"]: _quality(row) for row in rows}
    segmentation = "iou" in rows[0]
    caption = "{}   IoU {:.3f}" if segmentation else "{}   PSNR {:.2f} dB"
    for batch in batches:
        if any(key in keys for keys in wanted.values() for key in batch.key):
            batch, outputs = infer(model, batch, degrade, device, tile)
            panels |= {key: sample_panels(batch, outputs, i, segmentation) for i, key in enumerate(batch.key)}
            samples |= {key: take_sample(batch, outputs, i, segmentation) for i, key in enumerate(batch.key)}
    for name, keys in wanted.items():
        captions = [caption.format(key, quality[key]) for key in keys]
        save_picture(strip([panels[key] for key in keys], captions), out / "pictures" / f"{name}.png")
    write_samples(samples, wanted, out / "pictures" / "samples")
