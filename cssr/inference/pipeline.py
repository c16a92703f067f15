"""Predict photographs, with reading, networks and writing in parallel.

While the networks work on a photograph, one thread opens the next and another measures and writes the one before: three
photographs at most, which together take no more than `--memory`. These threads compute on one core each, as the
networks use all of them.
"""

import argparse
import math
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm

from cssr.config.schema import TILE, TILE_AT_SCALE_1, TILE_OVERLAP
from cssr.cracks.pixel_size import PixelSize
from cssr.inference import resume
from cssr.inference.large_images import Summary, memory, predict_rows
from cssr.inference.result_rows import ResultOptions
from cssr.inference.sources import Source
from cssr.inference.writers import Files, save_png
from cssr.models.inference_form import for_inference
from cssr.models.joint import JointModel
from cssr.models.tiling import Tiles, fitting_side
from cssr.utils import geotiff
from cssr.utils.files import naming_path
from cssr.utils.images import open_image
from cssr.utils.machine import keep_freed_memory
from cssr.utils.photographs import Photograph
from cssr.utils.text import message_of, one_line

if TYPE_CHECKING:
    from cssr.inference.measures import MeasureOptions

_GIB = 1 << 30
_AT_ONCE = 2  # tiles, on a CPU: more take memory, and are hardly faster
_AHEAD = 2  # batches of tiles that are read before their turn
_DECODED = 8  # bytes a pixel that a photograph may take while it is opened
_STRIDE = 32  # pixels of a result, of which images are padded to multiples by most segmentation networks
_BAR = "{percentage:3.0f}%|{bar}| {n:.1f}/{total} photographs [{elapsed}<{remaining}]"


@dataclass
class Outcome:
    """State of one photograph."""

    source: Source  # without its picture
    skipped: bool = False  # done before
    failed: bool = False
    cracks: int | None = None  # that were measured; None: they were not


@dataclass
class _Job:
    """A photograph in progress."""

    source: Source
    outcome: Outcome
    facts: dict[str, Any]  # by which its results are known again
    photograph: Photograph | None = None  # None: not opened, or closed again
    rectified: bool = False
    size: PixelSize | None = None  # of its pixels
    need: int = 0  # bytes


class Pipeline:
    """Photographs of a command, those that are done left out.

    Attributes:
        outcomes: of the photographs so far, in their order.
    """

    def __init__(self, model: JointModel, options: argparse.Namespace, measured: "MeasureOptions | None"):
        self.model, self._options, self._measured = for_inference(model), options, measured
        self.wanted = ResultOptions(
            tuple(options.write), options.size, options.threshold, options.float, options.format
        )
        self._facts = {"model": resume.model_digest(model), "wanted": asdict(self.wanted), "tile": options.tile}
        self._facts |= {"tta": options.tta, "bits": options.bits, "measured": asdict(measured) if measured else None}
        if options.precision != "float32":
            self._facts["precision"] = options.precision
        self._memory = options.memory * _GIB
        self._stopped = Event()
        self.outcomes: list[Outcome] = []

    def precise(self) -> AbstractContextManager:
        """Context in which the networks compute as --precision asks for."""
        bfloat16 = self._options.precision == "bfloat16"
        return torch.autocast(self.model.mean.device.type, torch.bfloat16, enabled=bfloat16)

    def work(self, sources: Iterator[Source], expected: int) -> None:
        """Predict all; report what cannot be read or written, and continue."""
        shown = {"disable": None, "dynamic_ncols": True, "smoothing": 0, "bar_format": _BAR}
        one_core: dict[str, Any] = {"initializer": torch.set_num_threads, "initargs": (1,)}  # of threads from then on
        with (
            tqdm(total=expected, **shown) as bar,
            ThreadPoolExecutor(1, **one_core) as reader,
            ThreadPoolExecutor(1, **one_core) as writer,
        ):
            try:
                self._work(sources, bar, reader, writer)
            except BaseException:
                self._stopped.set()
                raise

    def _work(
        self, sources: Iterator[Source], bar: tqdm, reader: ThreadPoolExecutor, writer: ThreadPoolExecutor
    ) -> None:
        written, written_bytes = Future[None](), 0  # the photograph before, and the bytes that it has
        written.set_result(None)
        upcoming = reader.submit(self._next, sources, 0)
        while (job := upcoming.result()) is not None:
            self.outcomes.append(job.outcome)
            waiting = not (job.photograph or job.outcome.skipped or job.outcome.failed)
            if waiting or written_bytes + job.need > self._memory:
                written.result()
                written_bytes = 0
            if waiting:
                self._open(job)
            upcoming = reader.submit(self._next, sources, written_bytes + job.need)
            if job.photograph:
                keep_freed_memory(1.5 * (written_bytes + job.need) <= self._memory)
                finish = self._predict(job, bar)
                written.result()
                written, written_bytes = writer.submit(finish), job.need
            bar.initial = getattr(bar, "initial", 0) + job.outcome.skipped  # of the rate, and so of the time left
            bar.update(len(self.outcomes) - bar.n)
        written.result()

    def _next(self, sources: Iterator[Source], busy: int) -> _Job | None:
        """The next photograph, opened where there is room beside `busy` bytes; None after the last."""
        source = next(sources, None)
        if source is None:
            return None
        job = _Job(source, Outcome(replace(source, image=None)), dict(self._facts))
        with self._reporting_errors(job):
            job.facts["photograph"] = source.facts()
            record = resume.read(self._record(source)) if resume.is_done(self._record(source), job.facts) else None
            if record is not None:
                job.outcome.skipped, job.outcome.cracks = True, record["found"].get("cracks")
            elif busy == 0 or busy + _DECODED * _pixels(source) <= self._memory:
                self._open(job)
        return job

    def _open(self, job: _Job) -> None:
        with self._reporting_errors(job), ExitStack() as stack:
            photograph = opened = stack.enter_context(job.source.open(self._options.bits))
            if self._measured:
                photograph, job.size = self._measured.prepare(job.source, opened, partial(self._warn, job.source))
            side = self._side(photograph)
            job.need = memory(self.model, photograph, self.wanted, side, self._measured is not None)
            self._check_memory(job.need, side)
            job.photograph, job.rectified = photograph, photograph is not opened
            stack.pop_all()

    def _predict(self, job: _Job, bar: tqdm) -> Callable[[], None]:
        """Run the networks. Returns the call that measures and writes."""
        with self._reporting_errors(job), ExitStack() as stack:
            photograph = stack.enter_context(job.photograph)
            stack.enter_context(naming_path(self._options.out))
            earlier = resume.mark_unfinished(self._record(job.source))  # from here on its results count as unfinished
            files = stack.enter_context(Files(self._options.out / job.source.stem))
            if job.rectified:
                save_png(files.new("_rectified.png"), photograph.pixels(0, 0, *photograph.shape))
            tiles = self._tiles(photograph, bar)
            with self.precise():
                predicted = predict_rows(self.model, photograph, files, self.wanted, tiles, self._measured is not None)
            return partial(self._finish, job, stack.pop_all(), files, predicted, earlier)
        return lambda: None

    def _side(self, photograph: Photograph) -> int:
        """Side of the tiles of a photograph; 0: it is processed as a whole."""
        if self._options.tile is not None:
            return self._options.tile
        limit = TILE_AT_SCALE_1 if self.model.scale == 1 else TILE
        return fitting_side(photograph.shape, limit, TILE_OVERLAP, _STRIDE // self.model.scale)

    def _tiles(self, photograph: Photograph, bar: tqdm) -> Tiles:
        side, overlap = self._side(photograph), TILE_OVERLAP
        if not side:
            side, overlap = max(photograph.shape), 0
        count = len(Tiles(side, overlap).places(photograph.shape)) * self.model.rounds

        def ticking(tiles: Iterable) -> Iterator:
            for tile in tiles:
                yield tile
                bar.update(1 / count)

        if self.model.mean.device.type != "cpu":
            return Tiles(side, overlap, self._options.batch or 1, ticking, _AHEAD)
        threads = min(self._options.batch or _AT_ONCE, torch.get_num_threads())
        return Tiles(side, overlap, 1, ticking, _AHEAD, threads)

    def _finish(
        self, job: _Job, stack: ExitStack, files: Files, predicted: Summary, earlier: dict[str, Any] | None
    ) -> None:
        with self._reporting_errors(job):
            with stack:
                if self._measured:
                    predicted.cracks = self._measure(job, files, predicted)
                if self._stopped.is_set():
                    raise KeyboardInterrupt
            record = self._record(job.source)
            resume.remove_stale(record, earlier, files.sizes)
            resume.write(record, job.facts, files.sizes, predicted.facts())
            job.outcome.cracks = predicted.cracks
            self._report(job, predicted)
        job.photograph = None

    def _measure(self, job: _Job, files: Files, predicted: Summary) -> int | None:
        """Count the cracks; None, with a message, where they cannot be measured: the other results are written."""
        from cssr.cracks.measure import TooRagged  # slow to import
        from cssr.inference.measures import write_measures

        source, options = job.source, self._measured

        def warn(sentence: str) -> None:
            self._warn(source, f"{sentence}; raise --most-cracks for more")

        facts = {"name": source.name} | ({} if source.frame is None else {"frame": source.frame})
        if job.rectified:  # positions are those of this picture
            facts["name"] = str(self._options.out / f"{source.stem}_rectified.png")
        try:
            return write_measures(files, predicted.crack_prob, job.photograph, options, job.size, facts, warn)
        except TooRagged as error:
            message = f"{source.name}: {error}, or raise --most-cracks {options.most}; its other results are written"
            tqdm.write(one_line(message), file=sys.stderr)
            return None

    def _record(self, source: Source) -> Path:
        return self._options.out / f"{source.stem}{resume.ENDING}"

    def _check_memory(self, need: int, side: int) -> None:
        if need <= self._memory:
            return
        remedy = f"a --tile below {side}" if side else "--tile 256"
        large = "" if geotiff.installed() else ", pip install 'cssr[large]' for TIFFs by windows"
        needed = math.ceil(100 * need / _GIB) / 100
        raise ValueError(
            f"needs {needed:g} GiB beside the networks, above --memory {self._options.memory:g}: choose more, "
            f"{remedy}, --size photo or less to --write{large}"
        )

    @contextmanager
    def _reporting_errors(self, job: _Job) -> Iterator[None]:
        """Report an error of this photograph, and continue with the others."""
        try:
            yield
        except (ValueError, OSError, torch.OutOfMemoryError) as error:
            tqdm.write(one_line(_explain(job.source, error)), file=sys.stderr)
            job.outcome.failed, job.photograph = True, None

    def _warn(self, source: Source, sentence: str) -> None:
        tqdm.write(one_line(f"warning: {source.name}: {sentence}"), file=sys.stderr)

    def _report(self, job: _Job, predicted: Summary) -> None:
        (height, width), note = job.photograph.shape, job.photograph.note
        crack = "" if predicted.crack is None else f", crack {predicted.crack:.2%}"
        crack += "" if predicted.cracks is None else f" in {predicted.cracks} components"
        note = f" ({note})" if note else ""
        name = one_line(job.source.name)
        tqdm.write(f"{name}: {width}x{height}{note} -> {predicted.width}x{predicted.height}{crack}")
        if predicted.warnings:
            warnings = "; ".join(predicted.warnings)
            tqdm.write(f"{name}: unlike what the model was trained on, results may be wrong: {warnings}")


def _pixels(source: Source) -> int:
    """Pixels of a photograph by its header; 0 of a frame, which is in memory, and where the header cannot be read."""
    if source.image is not None or source.problem:
        return 0
    try:
        with open_image(source.path) as image:
            return image.width * image.height
    except (ValueError, OSError):
        return 0


def _explain(source: Source, error: Exception) -> str:
    """The error of a photograph, in one line."""
    if isinstance(error, torch.OutOfMemoryError):
        return f"{source.name}: the device's memory does not suffice: choose a smaller --batch or --tile"
    text = message_of(error.__cause__ or error)
    return text if source.name in text else f"{source.name}: {text}"
