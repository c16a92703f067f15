"""Predict photographs one after the other: what is written of each, and what is done already."""

import argparse
import ctypes
import math
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from cssr import __version__
from cssr.config.schema import TILE_OVERLAP, segments
from cssr.cracks.measure import TooRagged
from cssr.cracks.pixel_size import PixelSize
from cssr.inference import resume as done
from cssr.inference import sources as inputs
from cssr.inference.detectable import detectable
from cssr.inference.large_images import Summary, Wanted, memory, predict_rows
from cssr.inference.measures import Measured, write_measures
from cssr.inference.options import check, choose_model, measuring
from cssr.inference.predictor import device_named
from cssr.inference.sources import Source, photographs
from cssr.inference.writers import Files, save_png
from cssr.models.joint import JointModel
from cssr.models.load import load_model
from cssr.models.orientations import ORIENTATIONS
from cssr.models.tiling import Tiles
from cssr.survey.collect import collect
from cssr.survey.severity import DEFAULT as DEFAULT_LIMITS
from cssr.survey.severity import Limits, load_limits
from cssr.survey.write import FOLDER, write_survey
from cssr.utils import geotiff
from cssr.utils.cli import errors_end
from cssr.utils.files import naming
from cssr.utils.interrupts import one_line
from cssr.utils.photographs import Photograph

_GIB = 1 << 30
_MMAP_THRESHOLD, _LARGE = -3, 4 << 20  # of mallopt(3), bytes
_AHEAD = 2  # batches of tiles that are read before their turn


def run(options: argparse.Namespace) -> None:
    """All that the command line of `cssr.predict` asks for."""
    _return_memory()
    try:
        with errors_end():
            choose_model(options)
            check(options)
            measured = measuring(options) if options.measure else None
            limits = load_limits(options.limits or DEFAULT_LIMITS) if options.measure else None
            sources = photographs(options.source, apart=options.out)
            left = inputs.passed_over_in(options.source)
            model = load_model(options.model, options.checkpoint).to(device_named(options.device))
            _make_directory(options.out)
            for name in ("measure", "tta"):
                if getattr(options, name) and not segments(model.config):
                    raise ValueError(f"--{name}: the model finds no cracks (model.seg=none)")
            model.orientations = ORIENTATIONS if options.tta else 1
            work = _Run(model, options, measured)
            work.work(inputs.each(sources, options.every), inputs.count(sources, options.every))
            if limits:
                _survey(work, options, limits)
    except KeyboardInterrupt:
        sys.exit("stopped: give the same command again to continue")
    if left:
        print(left, file=sys.stderr)
    again = f" ({work.skipped} of them were there already)" if work.skipped else ""
    print(f"{work.count - len(work.failed)} photographs: {_written(model, work.wanted)} in {options.out}{again}")
    if work.unmeasured:
        names = ", ".join(work.unmeasured[:5])
        told = f"error: {len(work.unmeasured)} of {work.count} photographs were not measured: {names}"
        print(one_line(told), file=sys.stderr)
    if work.failed:
        names = ", ".join(work.failed[:5])
        sys.exit(f"error: {len(work.failed)} of {work.count} photographs could not be read or written: {names}")
    if work.unmeasured:
        sys.exit(1)


def _return_memory() -> None:
    """Have glibc give large blocks back when they are freed: kept for later use, they are between small ones that stay,
    and a process grows with every row of tiles.
    """
    with suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, _LARGE)


def _survey(work: "_Run", options: argparse.Namespace, limits: Limits) -> None:
    """Write all photographs' cracks as one survey."""
    stems = [options.out / source.stem for source in work.measured]
    survey = collect(stems, limits, options.width_uncertainty)
    facts = {"model": str(options.model), "threshold": options.threshold, "tta": options.tta, "cssr": __version__}
    facts |= {"width_uncertainty_px": options.width_uncertainty, "least_length_px": options.least_length}
    openings = [partial(source.open, options.bits) for source in work.measured if source.frame is None]
    if options.detectable and openings:
        least = detectable(work.model, openings, options.threshold, options.detectable)
        sizes = [photograph["mm_per_pixel"] for photograph in survey.photographs if "mm_per_pixel" in photograph]
        facts["detectable"] = least.facts() if least else None
        facts["detectable_says"] = least.sentence(median(sizes) if sizes else None) if least else _NO_ROOM
        print(f"detectable: {facts['detectable_says']}")
    notes = write_survey(survey, options.out / FOLDER, facts)
    for sentence in notes:
        print(one_line(f"survey: {sentence}"), file=sys.stderr)
    classes = ", ".join(f"{count} {name}" for name, count in survey.severities().items() if count)
    print(f"survey of {len(stems)} photographs in {options.out / FOLDER}: {len(survey.rows)} cracks: {classes}")


_NO_ROOM = "not measured: no photograph has a part of 64 x 64 pixels that a crack can be drawn on"


def _make_directory(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        with Files(out / "try"):
            pass
    except OSError as error:
        raise ValueError(f"--out: cannot write to {out}: {error.strerror}") from None


def _written(model: JointModel, wanted: Wanted) -> str:
    """Names of the results that are written, in words."""
    named = {"sr": "SR image", "prob": "probability", "kernel": "blur kernel"}
    there = {"sr": True, "kernel": getattr(model.sr, "predicts_kernel", False)}
    names = [named.get(name, name) for name in wanted.results if there.get(name, segments(model.config))]
    *most, last = names or ["nothing"]
    only = "" if segments(model.config) else " only, as the model finds no cracks (model.seg=none),"
    return (f"{', '.join(most)} and {last}" if most else last) + only


class _Run:
    """Photographs, one after the other, those that are done left out."""

    def __init__(self, model: JointModel, options: argparse.Namespace, measured: Measured | None):
        self.model, self._options = model, options
        self.wanted = Wanted(tuple(options.write), options.size, options.threshold, options.float, options.format)
        self._measured = measured
        self._facts = {"model": done.model_digest(model), "wanted": asdict(self.wanted), "tile": options.tile}
        self._facts["tta"] = options.tta
        self._facts["bits"] = options.bits
        self._facts["measured"] = asdict(self._measured) if self._measured else None
        self.failed: list[str] = []
        self.unmeasured: list[str] = []
        self.measured: list[Source] = []  # photographs whose cracks are measured
        self.count = self.skipped = 0

    def work(self, sources: Iterator[Source], expected: int) -> None:
        """Predict all; report what cannot be read or written, and continue."""
        with self._bar(total=expected, unit="photo", desc="all") as bar:
            for source in sources:
                self.count += 1
                try:
                    self._one(source)
                except (ValueError, OSError, torch.OutOfMemoryError) as error:
                    tqdm.write(one_line(_explain(source, error)), file=sys.stderr)
                    self.failed.append(source.path.name)
                bar.update()

    def _one(self, source: Source) -> None:
        record = self._options.out / f"{source.stem}{done.ENDING}"
        facts = {**self._facts, "photograph": source.facts()}
        if done.is_done(record, facts):
            self.skipped += 1
            if self._measured and (done.read(record) or {"found": {}})["found"].get("cracks") is None:
                self.unmeasured.append(source.path.name)
            elif self._measured:
                self.measured.append(source)
            return
        with naming(self._options.out), source.open(self._options.bits) as opened:
            photograph, size = opened, None
            if self._measured:
                photograph, size = self._measured.prepare(source, opened, partial(self._warn, source))
            self._check_memory(photograph)
            old = done.begin(record)  # from here on nothing looks whole
            with Files(self._options.out / source.stem) as files:
                if photograph is not opened:
                    save_png(files.new("_rectified.png"), photograph.pixels(0, 0, *photograph.shape))
                predicted = self._predict(photograph, files)
                if self._measured:
                    predicted.cracks = self._measure(source, files, predicted.crack_prob, photograph, size)
        done.remove_others(record, old, files.sizes)
        done.write(record, facts, files.sizes, predicted.facts())
        if predicted.cracks is not None:
            self.measured.append(source)
        self._say(source, photograph, predicted)

    def _warn(self, source: Source, sentence: str) -> None:
        tqdm.write(one_line(f"warning: {source.name}: {sentence}"), file=sys.stderr)

    def _measure(
        self, source: Source, files: Files, crack_prob: np.ndarray, photograph: Photograph, size: PixelSize | None
    ) -> int | None:
        """Count the cracks; None, with a message, where they cannot be measured: the other results are written."""
        how = self._measured
        assert how is not None

        def tell(sentence: str) -> None:
            self._warn(source, f"{sentence}; raise --most-cracks for more")

        facts = {"name": source.name} | ({} if source.frame is None else {"frame": source.frame})
        if "_rectified.png" in files.endings:  # positions are those of this picture
            facts["name"] = str(self._options.out / f"{source.stem}_rectified.png")
        try:
            return write_measures(files, crack_prob, photograph, how, size, facts, tell, sys.stderr.isatty())
        except TooRagged as error:
            message = f"{source.name}: {error}, or raise --most-cracks {how.most}; its other results are written"
            tqdm.write(one_line(message), file=sys.stderr)
            self.unmeasured.append(source.path.name)
            return None

    def _predict(self, photograph: Photograph, files: Files) -> Summary:
        side, overlap = self._options.tile, TILE_OVERLAP
        if not side:
            side, overlap = max(photograph.shape), 0
        count = len(Tiles(side, overlap).places(photograph.shape)) * self.model.rounds
        with self._bar(total=count, unit="tile", desc="photograph", leave=False, position=1) as bar:

            def ticking(all_tiles: Iterable) -> Iterator:
                for tile in all_tiles:
                    yield tile
                    bar.update()

            tiles = Tiles(side, overlap, self._options.batch, ticking, _AHEAD)
            return predict_rows(self.model, photograph, files, self.wanted, tiles, self._measured is not None)

    def _check_memory(self, photograph: Photograph) -> None:
        need = memory(self.model, photograph, self.wanted, self._options.tile, self._measured is not None)
        if need <= self._options.memory * _GIB:
            return
        remedy = f"a --tile below {self._options.tile}" if self._options.tile else "--tile 256"
        large = "" if geotiff.there() else ", pip install 'cssr[large]' for TIFFs by windows"
        needed = math.ceil(100 * need / _GIB) / 100
        raise ValueError(
            f"needs {needed:g} GiB beside the networks, above --memory {self._options.memory:g}: choose more, "
            f"{remedy}, --size photo or less to --write{large}"
        )

    def _say(self, source: Source, photograph: Photograph, predicted: Summary) -> None:
        height, width = photograph.shape
        crack = "" if predicted.crack is None else f", crack {predicted.crack:.2%}"
        crack += "" if predicted.cracks is None else f" in {predicted.cracks} components"
        note = f" ({photograph.note})" if photograph.note else ""
        name = one_line(source.name)
        tqdm.write(f"{name}: {width}x{height}{note} -> {predicted.width}x{predicted.height}{crack}")
        if predicted.warnings:
            known = "; ".join(predicted.warnings)
            tqdm.write(f"{name}: unlike what the model was trained on, results may be wrong: {known}")

    @staticmethod
    def _bar(**how: Any) -> tqdm:
        return tqdm(disable=not sys.stderr.isatty(), dynamic_ncols=True, **how)


def _explain(source: Source, error: Exception) -> str:
    """One line."""
    if isinstance(error, torch.OutOfMemoryError):
        return f"{source.name}: the device's memory does not suffice: choose a smaller --batch or --tile"
    text = " ".join(str(error.__cause__ or error).split())
    return text if source.name in text else f"{source.name}: {text}"
