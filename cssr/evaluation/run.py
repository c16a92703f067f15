"""Evaluate a run or an export on shards, on all ranks, and write results.json and pictures."""

import argparse
import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from tqdm import tqdm

from cssr.config.loading import parse_value, to_dict
from cssr.config.schema import check_tile
from cssr.data.batch import Batch
from cssr.data.checks import check_sides, is_stored, recorded_degradation, stored_or
from cssr.data.loader import eval_stream
from cssr.data.shards import ShardSet, open_sets
from cssr.degradations import DEGRADATIONS
from cssr.evaluation.evaluator import evaluate, gather_rows, infer, measures_segmentation
from cssr.evaluation.results import compose, load
from cssr.evaluation.visualization import sample_panels, save_picture, strip, take_sample, write_samples
from cssr.models.inference_form import for_inference
from cssr.models.joint import JointModel
from cssr.models.load import choose, degradation_of, export_in, load_model
from cssr.models.shipped import is_shipped
from cssr.models.tta import ORIENTATIONS
from cssr.utils.cli import exit_on_error
from cssr.utils.distributed import start_engine
from cssr.utils.files import PARTIAL, naming_path, sha256_of, write_atomic
from cssr.utils.machine import check_processes, keep_freed_memory

_MAX_SEED = 2**32 - 1
_PICTURES = 3  # images shown of the best, of the median and of the worst
# Files of an export or a checkpoint, and options that results depend on.
_CHECKPOINT_FILES = ("model.safetensors", "ema.safetensors", "config.json", "state.json")
_RESULT_OPTIONS = ("distances", "tta", "degradation", "batch_size", "tile", "limit", "seed")


def run(options: argparse.Namespace) -> None:
    """Run `cssr/evaluate.py`."""
    with exit_on_error():
        engine = start_engine()
        if engine.device.type == "cpu":
            keep_freed_memory()
        _evaluate(options, engine)
    engine.end_training()


def check_options(options: argparse.Namespace) -> None:
    """ValueError, one line, for numbers that make no sense."""
    for name, lowest in {"batch_size": 1, "limit": 1, "workers": 0, "seed": 0}.items():
        value = getattr(options, name)
        if value is not None and value < lowest:
            raise ValueError(f"--{name.replace('_', '-')} must be at least {lowest}, got {value}")
    if options.seed > _MAX_SEED:
        raise ValueError(f"--seed must be at most {_MAX_SEED}, got {options.seed}")
    world = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    check_processes(options.workers * world, f"--workers {options.workers}", gib=0.3)
    check_tile(options.tile, "--tile")


def origin(options: argparse.Namespace, sets: Sequence[ShardSet]) -> dict[str, Any]:
    """Facts that determine a result: the same origin, the same result.

    `checkpoint_sha256`: of each file that the weights and settings are read from; `data_sha256`: of the sets' indexes,
    which hold the sha256 of every shard, as JSON with sorted keys; `options`: those that change results.
    """
    checkpoint = options.checkpoint
    directory = export_in(options.model) if checkpoint == "export" else choose(options.model, checkpoint)
    indexes = json.dumps([shards.index for shards in sets], sort_keys=True)
    return {
        "checkpoint_sha256": {n: sha256_of(directory / n) for n in _CHECKPOINT_FILES if (directory / n).is_file()},
        "data_sha256": hashlib.sha256(indexes.encode()).hexdigest(),
        "options": {name: getattr(options, name) for name in _RESULT_OPTIONS},
    }


def _default_folder(options: argparse.Namespace, sha256: str) -> Path:
    """MODEL/evaluations/DATA[@CHECKPOINT][+tta]; DATA with as many folders before it as tell it from other data.

    Of a model of the package, runs/MODEL/evaluations/DATA.
    """
    model = Path("runs") / options.model if is_shipped(options.model) else options.model
    parts = [part for part in str(options.data).split("://")[-1].split("/") if part not in ("", ".", "..")]
    suffix = "" if options.checkpoint == "export" else f"@{options.checkpoint}"
    suffix += "+tta" if options.tta else ""
    for depth in range(1, len(parts) + 1):
        folder = model / "evaluations" / ("_".join(parts[-depth:]) + suffix)
        if not holds_other_data(folder, options.data, sha256):
            return folder
    raise ValueError(f"{folder} holds the result of other data: give --out")


def holds_other_data(folder: Path, data: str, sha256: str) -> bool:
    """Return whether a folder has a result of another path and other contents; a damaged one does not count."""
    try:
        result = load([folder / "results.json"])[0].data
    except ValueError:
        return False
    return os.path.realpath(result["data"]) != os.path.realpath(data) and result.get("data_sha256") != sha256


def check_writable(out: Path) -> None:
    """Make `out`; ValueError, one line, if nothing can be written there."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise ValueError(f"--out {out} cannot be written: {error.strerror}; choose another folder") from None


def _evaluate(options: argparse.Namespace, engine: Accelerator) -> None:
    check_options(options)
    model = for_inference(load_model(options.model, options.checkpoint).to(engine.device))
    sets = open_sets(options.data, "--data")
    check_sides(sets, model.scale, "--data")
    made_from = origin(options, sets)
    out = options.out or _default_folder(options, made_from["data_sha256"])
    check_writable(out)
    component = (
        parse_value(options.degradation, "--degradation")
        if options.degradation
        else degradation_of(options.model, options.checkpoint)
    )
    component = stored_or(component, sets, model.scale, "--data", given=bool(options.degradation))
    degrade = DEGRADATIONS.build(component, scale=model.scale)
    segmentation = measures_segmentation(model.config, sets, "--data")
    model.orientations = ORIENTATIONS if options.tta else 1

    def stream(rank: int, world: int) -> Iterable[Batch]:
        reading = {"limit": options.limit, "workers": options.workers, "name": "--data", "stored": is_stored(component)}
        return eval_stream(sets, model.scale, options.batch_size, options.seed, rank, world, **reading)

    batches = tqdm(
        stream(engine.process_index, engine.num_processes),
        desc="evaluate",
        unit="batch",
        disable=not engine.is_main_process or not sys.stderr.isatty(),
    )
    measures = {"distances": options.distances, "tile": options.tile, "segmentation": segmentation}
    rows = gather_rows(evaluate(model, batches, degrade, engine.device, **measures))
    if not engine.is_main_process:
        return
    if not rows:
        raise ValueError(f"--data: no samples in {options.data}")
    result = compose(rows, {**_facts(options, model, component, degrade, sets), **made_from})
    partial = out / f"{PARTIAL}-{os.getpid()}"
    try:
        with naming_path(out):
            draw_pictures(result, partial, model, degrade, engine.device, stream(0, 1), options.tile)
            write_atomic(partial / "results.json", json.dumps(result, indent=1))
            _publish(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    print(summary(result, out))


def _publish(partial: Path, out: Path) -> None:
    """Move a result and its pictures to `out`; whenever that ends, no result is left beside pictures of another."""
    (out / "results.json").unlink(missing_ok=True)
    (out / "pictures").mkdir(exist_ok=True)
    shutil.rmtree(out / "pictures" / "samples", ignore_errors=True)
    for path in (partial / "pictures").iterdir():
        os.replace(path, out / "pictures" / path.name)
    os.replace(partial / "results.json", out / "results.json")


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
        "tta": options.tta,
        "limit": options.limit,
        "benchmark": None,
        "model_settings": to_dict(model.config),
        **(recorded_degradation(sets) if is_stored(component) else {}),
    }


def summary(result: dict[str, Any], out: Path) -> str:
    """The main figures on a few lines."""
    image, pooled = result["metrics"]["image"], result["metrics"]["pooled"]
    names = ("iou_max", "aiu", "f1", "ece", "hd95_min", "ahd95", "cldice", "cliou")
    names += ("width_error", "psnr", "ssim", "kernel_psnr")
    shown = {
        label: "  ".join(f"{n} {values[n]:.4g}" for n in names if values[n] is not None)
        for label, values in (("per image", image), ("pooled", pooled))
    }
    benchmark = f" (benchmark {result['benchmark']})" if result["benchmark"] else ""
    lines = [f"{result['name']} on {result['data']}{benchmark}: {result['images']} images"]
    lines += [f"  {label:<10}{text}" for label, text in shown.items()]
    if "segmentation" in result["definitions"]:
        lines.append(f"  segmentation: {result['definitions']['segmentation']}")
    return "\n".join([*lines, f"  written to {out}"])


def pictured_rows(per_image: list[dict[str, Any]]) -> dict[str, list[str]]:
    """Keys of the best, the median and the worst images: by IoU, among those with a crack, or else by PSNR."""
    cracked = [row for row in per_image if "tp" in row and row["tp"][0] + row["fn"][0] > 0] or per_image
    ranked = [row["key"] for row in sorted(cracked, key=lambda row: (-_quality(row), row["key"]))]
    middle = max(0, len(ranked) // 2 - 1)
    return {
        "best": ranked[:_PICTURES],
        "median": ranked[middle : middle + _PICTURES],
        "worst": ranked[::-1][:_PICTURES],
    }


def _quality(row: dict[str, Any]) -> float:
    """IoU; PSNR in dB where segmentation was not measured, of which null is infinite."""
    return row["iou"] if "iou" in row else float("inf") if row["psnr"] is None else row["psnr"]


def draw_pictures(
    result: dict[str, Any],
    out: Path,
    model: JointModel,
    degrade: Callable,
    device: torch.device,
    batches: Iterable[Batch],
    tile: int,
) -> None:
    """Strips of the best, median and worst images under `out/pictures`, and their parts in its `samples`."""
    rows, panels, samples = result["per_image"], {}, {}
    pictured, quality = pictured_rows(rows), {row["key"]: _quality(row) for row in rows}
    segmentation = "iou" in rows[0]
    caption = "{}   IoU {:.3f}" if segmentation else "{}   PSNR {:.2f} dB"
    for batch in batches:
        if any(key in keys for keys in pictured.values() for key in batch.key):
            batch, outputs = infer(model, batch, degrade, device, tile)
            panels |= {key: sample_panels(batch, outputs, i, segmentation) for i, key in enumerate(batch.key)}
            samples |= {key: take_sample(batch, outputs, i, segmentation) for i, key in enumerate(batch.key)}
    for name, keys in pictured.items():
        captions = [caption.format(key, quality[key]) for key in keys]
        save_picture(strip([panels[key] for key in keys], captions), out / "pictures" / f"{name}.png")
    write_samples(samples, pictured, out / "pictures" / "samples")
