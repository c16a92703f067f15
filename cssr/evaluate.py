"""Evaluation by the papers' measures: `accelerate launch cssr/evaluate.py RUN_OR_EXPORT --data SHARDS`."""

import argparse
import dataclasses
import functools
import hashlib
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor
from tqdm import tqdm

from cssr import metrics
from cssr.batch import Batch, Outputs
from cssr.checkpoint import choose, degradation_of, load_model, write_atomic
from cssr.checks import measures_segmentation
from cssr.config import check_tile, to_dict
from cssr.data import eval_stream
from cssr.degradations import DEGRADATIONS
from cssr.degradations.pixels import blur_strided
from cssr.distances import surface_distances
from cssr.engine import start_engine
from cssr.groups import blur_sigma
from cssr.models.joint import JointModel
from cssr.results import compose
from cssr.sets import is_stored, recorded, stored_or
from cssr.settings import parse_value
from cssr.tars import ShardSet, open_sets
from cssr.topology import topology
from cssr.visualize import sample_panels, save_picture, strip

_PICTURED = 3  # images shown of the best, of the median and of the worst
_MADE_OF = ("model.safetensors", "ema.safetensors", "config.json", "state.json")  # files of an export or a checkpoint
_CHANGING = ("distances", "degradation", "batch_size", "tile", "limit", "seed")  # options that results depend on


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
        degrade: HR to (LQ, kernel), from the zoo.
        distances: whether HD95, MSD, clDice, clIoU and boundary F1 are computed (slow).
        tile: side, LQ pixels, of the tiles in which larger images are evaluated; 0: never.
        show: called with every batch and its outputs.
        segmentation: whether it is measured: not where the model finds no cracks or the images have no masks.
    """
    rows: list[dict[str, Any]] = []
    for batch in batches:
        batch, outputs = infer(model, batch, degrade, device, tile)
        rows += measure(batch, outputs, distances, segmentation)
        if show:
            show(batch, outputs)
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
    return batch, model.infer(batch.lq, tile).float()


def measure(batch: Batch, outputs: Outputs, distances: bool, segmentation: bool = True) -> list[dict[str, Any]]:
    """The rows of a batch: key, image measures; of segmentation, pixel counts at every threshold, and on request the
    surface distances, and what is measured of centre lines and boundaries.
    """
    sr = outputs.sr.clamp(0, 1)
    columns: dict[str, Sequence[Any]] = {
        "key": batch.key,
        **(_counts(batch, outputs) if segmentation else {}),
        "pixels": [batch.mask[0].numel()] * len(batch),
        "mse": metrics.mse(sr, batch.hr).tolist(),
        "psnr": metrics.psnr(sr, batch.hr).tolist(),
        "ssim": metrics.ssim(sr, batch.hr).tolist(),
        **_of_kernels(batch, outputs.kernel),
    }
    if distances and segmentation:
        prob = outputs.logits.sigmoid()
        found = surface_distances(prob, batch.mask, percentiles=(95,))
        columns |= {"hd95": found["hd95"].tolist(), "msd": found["msd"].tolist(), **topology(prob, batch.mask)}
    return [dict(zip(columns, row)) for row in zip(*columns.values())]


def _counts(batch: Batch, outputs: Outputs) -> dict[str, list[list[int]]]:
    counts = metrics.threshold_counts(outputs.logits.sigmoid(), batch.mask)
    return {name: getattr(counts, name).tolist() for name in ("tp", "fp", "fn")}


def _of_kernels(batch: Batch, predicted: Tensor | None) -> dict[str, list[float | None]]:
    """Width of the true kernels, and how near the predicted ones are; None where there are none to compare."""
    unknown, true = [None] * len(batch), batch.kernel
    found = {"blur_sigma": unknown if true is None else blur_sigma(true).tolist()}
    if true is None or predicted is None or true.shape != predicted.shape:
        return found | {"kernel_psnr": unknown, "lq_psnr": unknown}
    near = metrics.kernel_psnr(predicted, true).tolist()
    return found | {"kernel_psnr": near, "lq_psnr": _lq_psnr(batch, predicted).tolist()}


def _lq_psnr(batch: Batch, predicted: Tensor) -> Tensor:
    """PSNR between what the predicted and what the true kernels make of the HR images, reduced alike: (B,)."""
    # Not against the LQ image itself: its noise and its compression are no fault of the kernel.
    scale = batch.hr.shape[-1] // batch.lq.shape[-1]
    return metrics.psnr(*(blur_strided(batch.hr, k, "replicate", scale) for k in (predicted, batch.kernel)))


def gather_rows(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of all ranks, each sample once, sorted by key; one exchange at the end."""
    return sorted(gather_object(rows), key=lambda row: row["key"])


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
    """Strips of the best, median and worst images under `out/pictures`."""
    rows, panels = found["per_image"], {}
    wanted, quality = pictured_rows(rows), {row["key"]: _quality(row) for row in rows}
    segmentation = "iou" in rows[0]
    caption = "{}   IoU {:.3f}" if segmentation else "{}   PSNR {:.2f} dB"
    for batch in batches:
        if any(key in keys for keys in wanted.values() for key in batch.key):
            batch, outputs = infer(model, batch, degrade, device, tile)
            panels |= {key: sample_panels(batch, outputs, i, segmentation) for i, key in enumerate(batch.key)}
    for name, keys in wanted.items():
        captions = [caption.format(key, quality[key]) for key in keys]
        save_picture(strip([panels[key] for key in keys], captions), out / "pictures" / f"{name}.png")


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    options = _parser().parse_args(arguments)
    try:
        engine = start_engine()
        _run(options, engine)
    except ValueError as error:
        sys.exit(f"error: {error}")
    engine.end_training()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="accelerate launch cssr/evaluate.py", description=__doc__)
    parser.add_argument("model", type=Path, help="run directory or export directory")
    parser.add_argument("--data", required=True, help="shard directory to evaluate on")
    parser.add_argument("--checkpoint", default="export", help="of a run: export (default), best, last, or a step")
    parser.add_argument("--out", type=Path, help="where results.json and pictures go (default: MODEL/evaluations/DATA)")
    parser.add_argument("--name", help="how reports call this result (default: the model's directory)")
    add_options(parser)
    return parser


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of how it is evaluated, which a launcher has as well."""
    parser.add_argument(
        "--distances",
        action="store_true",
        help="also HD95 and MSD at 99 thresholds, clDice, clIoU and boundary F1 (slower)",
    )
    parser.add_argument(
        "--degradation",
        help="another one than in training, or than what the shards store, as YAML: '{name: gaussian, sigma: [1, 2]}'",
    )
    parser.add_argument(
        "--batch-size", type=int, default=4, help="images of equal size evaluated together (%(default)s)"
    )
    parser.add_argument(
        "--tile", type=int, default=0, help="LQ pixels a side of tiles for large images (0: whole images)"
    )
    parser.add_argument("--limit", type=int, help="evaluate the first images only")
    parser.add_argument("--workers", type=int, default=0, help="loader processes per rank (0)")
    parser.add_argument("--seed", type=int, default=0, help="of the degradation (0)")


def check_options(options: argparse.Namespace) -> None:
    """ValueError, one line, for numbers that make no sense."""
    for name, lowest in {"batch_size": 1, "limit": 1, "workers": 0, "seed": 0}.items():
        value = getattr(options, name)
        if value is not None and value < lowest:
            raise ValueError(f"--{name.replace('_', '-')} must be at least {lowest}, found {value}")
    check_tile(options.tile, "--tile")


def origin(options: argparse.Namespace, sets: Sequence[ShardSet]) -> dict[str, Any]:
    """What a result follows from: the same origin, the same result.

    `checkpoint_sha256`: of each file that the weights and settings are read from; `data_sha256`: of the sets' indexes,
    which hold the sha256 of every shard, as JSON with sorted keys; `options`: those that change results.
    """
    directory = _files_in(options.model, options.checkpoint)
    indexes = json.dumps([shards.index for shards in sets], sort_keys=True)
    return {
        "checkpoint_sha256": {n: _sha256(directory / n) for n in _MADE_OF if (directory / n).is_file()},
        "data_sha256": hashlib.sha256(indexes.encode()).hexdigest(),
        "options": {name: getattr(options, name) for name in _CHANGING},
    }


def _files_in(model: Path, which: str) -> Path:
    if which != "export":
        return choose(model, which)
    return model / "export" if (model / "export").is_dir() else model


def _sha256(path: Path) -> str:
    stat = path.stat()
    return _sha256_as_it_is(path, stat.st_ino, stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=256)
def _sha256_as_it_is(path: Path, *_: int) -> str:
    """Of a file that has not changed since, by its stat: once for all the data that it is evaluated on."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()


def _run(options: argparse.Namespace, engine: Accelerator) -> None:
    check_options(options)
    model = load_model(options.model, options.checkpoint).to(engine.device)
    sets = open_sets(options.data, "--data")
    made_from = origin(options, sets) if engine.is_main_process else {}
    component = (
        parse_value(options.degradation, "--degradation")
        if options.degradation
        else degradation_of(options.model, options.checkpoint)
    )
    component = stored_or(component, sets, model.scale, "--data", given=bool(options.degradation))
    degrade = DEGRADATIONS.build(component, scale=model.scale)
    segmentation = measures_segmentation(model.config, sets, "--data")

    def stream(rank: int, world: int) -> Iterable[Batch]:
        return eval_stream(
            options.data,
            model.scale,
            options.batch_size,
            options.seed,
            rank,
            world,
            options.limit,
            options.workers,
            name="--data",
            stored=is_stored(component),
        )

    batches = tqdm(
        stream(engine.process_index, engine.num_processes),
        desc="evaluate",
        unit="batch",
        disable=not engine.is_main_process or not sys.stderr.isatty(),
    )
    how = {"distances": options.distances, "tile": options.tile, "segmentation": segmentation}
    rows = gather_rows(evaluate(model, batches, degrade, engine.device, **how))
    if not engine.is_main_process:
        return
    if not rows:
        raise ValueError(f"--data: no samples in {options.data}")
    out = options.out or options.model / "evaluations" / Path(options.data).name
    found = compose(rows, {**_facts(options, model, component, degrade, sets), **made_from})
    out.mkdir(parents=True, exist_ok=True)
    draw_pictures(found, out, model, degrade, engine.device, stream(0, 1), options.tile)
    write_atomic(out / "results.json", json.dumps(found, indent=1))
    print(summary(found, out))


def _facts(
    options: argparse.Namespace, model: JointModel, component: Any, degrade: Callable, sets: Sequence[ShardSet]
) -> dict[str, Any]:
    return {
        "name": options.name or options.model.resolve().name,
        "model": str(options.model),
        "checkpoint": options.checkpoint,
        "data": str(options.data),
        "scale": model.scale,
        "degradation": component,
        "resampler": degrade.resampler,
        "seed": options.seed,
        "tile": options.tile,
        "limit": options.limit,
        "benchmark": None,
        "model_settings": to_dict(model.config),
        **(recorded(sets) if is_stored(component) else {}),
    }


def summary(found: dict[str, Any], out: Path) -> str:
    """The main figures on a few lines."""
    image, pooled = found["metrics"]["image"], found["metrics"]["pooled"]
    names = ("iou_max", "aiu", "f1", "hd95_min", "ahd95", "cldice", "cliou", "psnr", "ssim", "kernel_psnr")
    shown = {
        label: "  ".join(f"{n} {values[n]:.4g}" for n in names if values[n] is not None)
        for label, values in (("per image", image), ("pooled", pooled))
    }
    benchmark = f" (benchmark {found['benchmark']})" if found["benchmark"] else ""
    lines = [f"{found['name']} on {found['data']}{benchmark}: {found['images']} images"]
    lines += [f"  {label:<10}{text}" for label, text in shown.items()]
    if "segmentation" in found["definitions"]:
        lines.append(f"  segmentation: {found['definitions']['segmentation']}")
    return "\n".join([*lines, f"  written to {out}"])


if __name__ == "__main__":
    main()
