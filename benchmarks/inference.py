"""Prediction beside the bare forward pass: `python benchmarks/inference.py [--side 4000] [--photographs 50]`.

A photograph is read from a TIFF, worked in tiles, and its mask and SR image written as TIFFs, in three ways in turn:

    bare    the model's forward pass over as many tiles, which are there already: no reading, blending, or writing
    plain   read as a whole, tile by tile, then written
    ours    what `python -m cssr.predict` does: tiles in batches and read ahead, results written behind

With --photographs, a folder of JPEGs and all results: `plain` gives them to the command one after the other, `ours`
together, so that reading, networks and writing overlap.

Medians of the rounds in seconds and megapixels of the photograph a second. The share of `ours` in `bare` is how busy
the device is kept; of a model that predicts a kernel, that takes one pass over the SR network more.
"""

import argparse
import contextlib
import io
import json
import os
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import machine
import numpy as np
import torch
from PIL import Image

from cssr import predict as predict_command
from cssr.config.schema import TILE, TILE_OVERLAP, ModelConfig
from cssr.inference.large_images import Wanted, predict_rows
from cssr.inference.pipeline import Pipeline
from cssr.inference.predictor import predict
from cssr.inference.resume import ENDING
from cssr.inference.sources import each
from cssr.inference.writers import Files
from cssr.models.inference_form import for_inference
from cssr.models.joint import JointModel, build_model
from cssr.models.load import load_model
from cssr.models.tiling import Tiles
from cssr.utils import geotiff
from cssr.utils.markdown import markdown_table
from cssr.utils.photographs import open_photograph

SMALL = {
    "scale": 4,
    "sr": {"name": "dbpn", "stages": 2, "width": 8, "features": 16},
    "seg": {"name": "unet", "encoder": "resnet10t", "width": 4, "encoder_args": {"channels": [8, 8, 16, 16]}},
}
WANTED = Wanted(("sr", "mask"), format="tiff")


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    options = _parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    model = load_model(options.model) if options.model else build_model(ModelConfig(**SMALL)).eval()
    model = for_inference(model.to(device))
    side = options.side or (500 if device.type == "cpu" else 4000)
    if options.quick:
        side, options.tile = 120, 96
    with tempfile.TemporaryDirectory() as scratch:
        ways = (ways_of_many if options.photographs > 1 else ways_of_one)(model, Path(scratch), side, options)
        share = equal(ways)
        seconds = timed(ways, machine.CLOCKS[options.clock], 1 if options.quick else options.rounds)
    seconds = {name: [s / options.photographs for s in each] for name, each in seconds.items()}
    print("\n".join(table(seconds, side, f"{device}, {options.threads} threads, {options.clock} clock")))
    if options.json:
        name = f"prediction of {options.photographs} photographs of {side} x {side} (batch {options.batch})"
        options.json.write_text(json.dumps(report(name, seconds, share, options), indent=1), encoding="utf-8")


def ways_of_one(model: JointModel, scratch: Path, side: int, options: argparse.Namespace) -> dict[str, Callable]:
    """Ways to predict one photograph, a TIFF."""
    photograph = scratch / "photograph.tif"
    rows = geotiff.TiffRows(photograph, (side, side), 3, "uint8", None)
    rows.write(drawn(side))
    rows.finish()
    return {
        "bare": lambda: bare(model, side, options.tile, options.batch),
        "plain": lambda: plain(model, photograph, options.tile),
        "ours": lambda: ours(model, photograph, options.tile, options.batch),
    }


def ways_of_many(model: JointModel, scratch: Path, side: int, options: argparse.Namespace) -> dict[str, Callable]:
    """Ways to predict a folder of JPEGs."""
    paths = [scratch / f"{number:04d}.jpg" for number in range(options.photographs)]
    for path in paths:
        Image.fromarray(drawn(side)).save(path, quality=92)
    return {
        "bare": lambda: bare(model, side, options.tile, options.batch, len(paths)),
        "plain": lambda: np.concatenate([by_command(model, [path], options) for path in paths]),
        "ours": lambda: by_command(model, paths, options),
    }


def drawn(side: int) -> np.ndarray:
    """Plaster, side x side pixels, with a crack."""
    pixels = np.random.default_rng(0).integers(120, 200, (side, side, 3)).astype(np.uint8)
    return cv2.polylines(
        pixels, [np.array([[0, 10], [side // 2, side // 3], [side, side - 10]])], False, (20, 20, 20), 4
    )


@torch.no_grad()
def bare(model: JointModel, side: int, tile: int, batch: int, photographs: int = 1) -> None:
    """The forward pass alone over as many tiles of as many pixels."""
    count = len(Tiles(tile, TILE_OVERLAP).places((side, side))) * photographs
    lq = torch.rand(batch, 3, min(tile, side), min(tile, side), device=model.mean.device)
    for done in range(0, count, batch):
        outputs = model(lq[: count - done])
    outputs.logits.mean().item()  # until the device is done


def by_command(model: JointModel, paths: Sequence[Path], options: argparse.Namespace) -> np.ndarray:
    """Share of crack pixels in each photograph, predicted as the command does, all results written."""
    with tempfile.TemporaryDirectory() as out, contextlib.redirect_stdout(io.StringIO()):
        words = [*paths, "--out", out, "--tile", options.tile, "--batch", options.batch]
        work = Pipeline(model, predict_command.parser().parse_args([str(word) for word in words]), None)
        work.work(each({path.stem: path for path in paths}, 1), len(paths))
        records = [json.loads((Path(out) / f"{path.stem}{ENDING}").read_text(encoding="utf-8")) for path in paths]
    return np.array([record["found"]["crack"] for record in records])


def plain(model: JointModel, path: Path, tile: int) -> np.ndarray:
    """Predict one thing after the other, all in memory; the mask."""
    prediction = predict(model, path, tile)
    with tempfile.TemporaryDirectory() as out:
        for name, pixels in (("sr", prediction.sr), ("mask", prediction.mask().astype(np.uint8) * 255)):
            shape = pixels.shape[:2]
            rows = geotiff.TiffRows(Path(out) / name, shape, 3 if pixels.ndim == 3 else 1, "uint8", None)
            rows.write(pixels)
            rows.finish()
    return prediction.mask()


def ours(model: JointModel, path: Path, tile: int, batch: int) -> np.ndarray:
    """Predict by rows, as the command does; the mask."""
    tiles = Tiles(tile, TILE_OVERLAP, batch, ahead=2)
    with (
        tempfile.TemporaryDirectory() as out,
        open_photograph(path) as photograph,
        Files(Path(out) / "photograph") as files,
    ):
        return predict_rows(model, photograph, files, WANTED, tiles, keep_mask=True).crack_prob > 0


def equal(ways: dict[str, Callable[[], Any]]) -> float:
    """The share of pixels in which the masks of both differ, one in 10,000 at most; all ways are warm afterwards."""
    ways["bare"]()
    share = float((ways["plain"]() != ways["ours"]()).mean())
    if share > 1e-4:
        raise SystemExit(f"error: the masks differ in {share:.2%} of the pixels")
    return share


def timed(ways: dict[str, Callable[[], Any]], clock: Callable[[], float], rounds: int) -> dict[str, list[float]]:
    """Seconds of each way in each round; the order turns from round to round."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds):
        for name in list(ways)[:: -1 if turn % 2 else 1]:
            begin = clock()
            ways[name]()
            seconds[name].append(clock() - begin)
    return seconds


def table(seconds_of: dict[str, list[float]], side: int, where: str) -> list[str]:
    """Markdown."""
    medians = {name: statistics.median(seconds) for name, seconds in seconds_of.items()}
    rows = [
        [name, f"{s:.2f}", f"{1 / s:.3g}", f"{side**2 / 1e6 / s:.3g}", f"{medians['bare'] / s:.0%}"]
        for name, s in medians.items()
    ]
    head = ["way", "s", "photographs/s", "MP/s", "share of bare"]
    return [f"Photograph of {side} x {side}, {where}:", "", markdown_table(head, rows, right=range(1, 5))]


def report(name: str, seconds: dict[str, list[float]], share: float, options: argparse.Namespace) -> dict[str, Any]:
    """Contents of the JSON: settings, rates, results and failures, as the other benchmarks write them."""
    bare, plain, ours = (statistics.median(seconds[way]) for way in ("bare", "plain", "ours"))
    line = {
        "name": name, "formulation": "whole image, tile by tile", "plain": plain, "ours": ours, "asked": None,
        "unit": "s", "item": "image", "threads": options.threads, "difference": share, "tolerance": 1e-4,
        "rounds": [a / b for a, b in zip(seconds["plain"], seconds["ours"])], "ratio": plain / ours, "met": None,
        "bound": {"by": "the forward pass", "achieved": ours, "rate": bare, "share": bare / ours},
    }  # fmt: skip
    settings = {"threads": options.threads, "clock": options.clock, "quick": options.quick}
    return {"machine": machine.facts(), "settings": settings, "rates": [], "results": [line], "failures": []}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--photographs", type=int, default=1, metavar="N", help="in a folder (1: one, a TIFF)")
    add("--side", type=int, help="pixels of the photograph's sides (4000; without a GPU 500)")
    add("--model", type=Path, help="run or export (default: a small one with weights as drawn)")
    add("--tile", type=int, default=TILE, help=f"photograph pixels a side of a tile ({TILE})")
    few = 4 if torch.accelerator.is_available() else 1
    add("--batch", type=int, default=few, help="tiles worked at once (4; 1 on a CPU, which is busy with one)")
    add("--rounds", type=int, default=3, help="turns of each way (3)")
    add("--quick", action="store_true", help="120 pixels, one round: whether it works")
    add("--threads", type=int, default=len(os.sched_getaffinity(0)), help="default: all cores")
    add("--clock", choices=machine.CLOCKS, default="wall", help="cpu: where others use the machine too (wall)")
    add("--json", type=Path, metavar="FILE", help="write figures")
    return parser


if __name__ == "__main__":
    main()
