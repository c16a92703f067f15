"""Prediction beside the bare forward pass: `python benchmarks/inference.py [--side 4000] [--photographs 50]`.

A photograph is read from a TIFF, worked in tiles, and its mask and SR image written as TIFFs, in three ways in turn:

    bare    the model's forward pass over as many tiles, which are there already: no reading, blending, or writing
    plain   read as a whole, tile by tile, then written
    ours    what `python -m cssr.predict` does: tiles in batches and read ahead, results written behind

With --photographs, a folder of JPEGs and all results: `plain` gives them to the command one after the other, `ours`
together, so that reading, networks and writing overlap.

The share of the bare pass is how busy the device is kept; of a model that predicts a kernel, that takes one pass over
the SR network more.
"""

import argparse
import contextlib
import io
import json
import tempfile
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from harness import Limit, Pair, command
from PIL import Image

from cssr import predict as predict_command
from cssr.config.schema import TILE, TILE_OVERLAP, ModelConfig
from cssr.dataset_preparation.synthesis import render
from cssr.inference.large_images import predict_rows
from cssr.inference.pipeline import Pipeline
from cssr.inference.predictor import predict
from cssr.inference.result_rows import ResultOptions
from cssr.inference.resume import ENDING
from cssr.inference.sources import iterate_sources
from cssr.inference.writers import Files
from cssr.models.inference_form import for_inference
from cssr.models.joint import JointModel, build_model
from cssr.models.load import load_model
from cssr.models.tiling import Tiles
from cssr.utils import geotiff
from cssr.utils.machine import keep_freed_memory
from cssr.utils.photographs import open_photograph

SMALL = {
    "scale": 4,
    "sr": {"name": "dbpn", "stages": 2, "width": 8, "features": 16},
    "seg": {"name": "unet", "encoder": "resnet10t", "width": 4, "encoder_args": {"channels": [8, 8, 16, 16]}},
}
WANTED = ResultOptions(("sr", "mask"), format="tiff")


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    arg_parser = argparse.ArgumentParser(add_help=False)
    add = arg_parser.add_argument
    add("--photographs", type=int, default=1, metavar="N", help="in a folder (1: one, a TIFF)")
    add("--side", type=int, help="pixels of the photograph's sides (4000; without a GPU 500)")
    add("--model", type=Path, help="run or export (default: a small one with weights as drawn)")
    add("--tile", type=int, default=TILE, help=f"photograph pixels a side of a tile ({TILE})")
    add("--batch", type=int, help="tiles at once (4; on a CPU 2, side by side; in its bare pass one by one)")
    add("--rounds", type=int, default=3, help="turns of each way (3)")
    options, rest = arg_parser.parse_known_args(arguments)
    command(__doc__, partial(pairs, options=options), rest, [arg_parser])


def pairs(quick: bool, options: argparse.Namespace) -> Iterable[Pair]:
    """The one pair; masks may differ in one pixel of 10,000."""
    keep_freed_memory()  # as the command does
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    model = load_model(options.model) if options.model else build_model(ModelConfig(**SMALL)).eval()
    model, many = for_inference(model.to(device)), options.photographs > 1
    side = 120 if quick else options.side or (500 if device.type == "cpu" else 4000)
    options.tile = 96 if quick else options.tile
    options.batch = options.batch or (min(2, torch.get_num_threads()) if device.type == "cpu" else 4)
    with tempfile.TemporaryDirectory() as scratch:
        plain, ours = (ways_of_many if many else ways_of_one)(model, Path(scratch), side, options)
        yield Pair(
            f"prediction of {options.photographs} x {side} x {side} pixels, batch {options.batch}",
            "one after the other" if many else "whole image, tile by tile", plain, ours, tolerance=1e-4,
            differ=lambda a, b: float((a != b).mean()), items=options.photographs, rounds=options.rounds,
            limit=Limit(bare=lambda: bare(model, side, options), bare_name="the forward pass"),
        )  # fmt: skip


def ways_of_one(model: JointModel, scratch: Path, side: int, options: argparse.Namespace) -> tuple[Callable, Callable]:
    """Ways to predict one photograph, a TIFF."""
    photograph = scratch / "photograph.tif"
    rows = geotiff.TiffRows(photograph, (side, side), 3, "uint8", None)
    rows.write(drawn(side))
    rows.finish()
    return lambda: whole(model, photograph, options.tile), lambda: by_rows(model, photograph, options)


def ways_of_many(model: JointModel, scratch: Path, side: int, options: argparse.Namespace) -> tuple[Callable, Callable]:
    """Ways to predict a folder of JPEGs."""
    paths = [scratch / f"{number:04d}.jpg" for number in range(options.photographs)]
    for number, path in enumerate(paths):
        Image.fromarray(drawn(side, number)).save(path, quality=92)
    together = lambda: by_command(model, paths, options)  # noqa: E731
    return lambda: np.concatenate([by_command(model, [path], options) for path in paths]), together


def drawn(side: int, number: int = 0) -> np.ndarray:
    """Photograph of a crack, side x side pixels: of noise alone, PNGs would take several times as long."""
    return render(0, number, side, empty_share=0)[0]


@torch.no_grad()
def bare(model: JointModel, side: int, options: argparse.Namespace) -> None:
    """The forward pass alone over as many tiles of as many pixels."""
    count = len(Tiles(options.tile, TILE_OVERLAP).places((side, side))) * options.photographs
    batch = 1 if model.mean.device.type == "cpu" else options.batch
    lq = torch.rand(batch, 3, *2 * (min(options.tile, side),), device=model.mean.device)
    for done in range(0, count, batch):
        outputs = model(lq[: count - done])
    outputs.logits.mean().item()  # until the device is done


def by_command(model: JointModel, paths: Sequence[Path], options: argparse.Namespace) -> np.ndarray:
    """Share of crack pixels in each photograph, predicted as the command does, all results written."""
    with tempfile.TemporaryDirectory() as out, contextlib.redirect_stdout(io.StringIO()):
        words = [*paths, "--out", out, "--tile", options.tile, "--batch", options.batch]
        work = Pipeline(model, predict_command.parser().parse_args([str(word) for word in words]), None)
        work.work(iterate_sources({path.stem: path for path in paths}, 1), len(paths))
        records = [json.loads((Path(out) / f"{path.stem}{ENDING}").read_text(encoding="utf-8")) for path in paths]
    return np.array([record["found"]["crack"] for record in records])


def whole(model: JointModel, path: Path, tile: int) -> np.ndarray:
    """Predict one thing after the other, all in memory; the mask."""
    prediction = predict(model, path, tile)
    with tempfile.TemporaryDirectory() as out:
        for name, pixels in (("sr", prediction.sr), ("mask", prediction.mask().astype(np.uint8) * 255)):
            rows = geotiff.TiffRows(Path(out) / name, pixels.shape[:2], 3 if pixels.ndim == 3 else 1, "uint8", None)
            rows.write(pixels)
            rows.finish()
    return prediction.mask()


def by_rows(model: JointModel, path: Path, options: argparse.Namespace) -> np.ndarray:
    """Predict by rows, as the command does; the mask."""
    batch, threads = (1, options.batch) if model.mean.device.type == "cpu" else (options.batch, 1)
    tiles = Tiles(options.tile, TILE_OVERLAP, batch, ahead=2, threads=threads)
    with (
        tempfile.TemporaryDirectory() as out,
        open_photograph(path) as photograph,
        Files(Path(out) / "photograph") as files,
    ):
        return predict_rows(model, photograph, files, WANTED, tiles, keep_mask=True).crack_prob > 0


if __name__ == "__main__":
    main()
