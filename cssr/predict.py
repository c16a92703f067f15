"""Cracks in photographs: `python -m cssr.predict PHOTOGRAPHS... --out DIR [--model small-x4|small-x1|RUN|EXPORT]`.

A photograph is taken as the low-resolution image: what is written is larger by the model's scale along each side.
"""

from cssr.utils import interrupts

if __name__ == "__main__":  # before imports that take seconds
    interrupts.answer()

import argparse
import ctypes
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from cssr.arguments import TILE, check_bits, prediction_parser

if __name__ == "__main__":  # --help and mistakes are answered without the imports below, which take seconds
    prediction_parser(__doc__).parse_args()

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from cssr import done, geotiff, inputs
from cssr.config.schema import TILE_OVERLAP, check_tile, segments
from cssr.data.batch import Outputs
from cssr.inputs import Source, photographs
from cssr.measured_files import Measured, write_measures
from cssr.models.hub import is_hub_name
from cssr.models.joint import JointModel
from cssr.models.load import is_model, load_model
from cssr.models.orientations import ORIENTATIONS
from cssr.models.shipped import DEFAULT
from cssr.models.tiling import Tiles
from cssr.models.training_range import blur_sigma, outside
from cssr.photographs import Photograph, read_with_valid
from cssr.rasters import Files
from cssr.streaming import Found, Wanted, memory, predict_rows
from cssr.utils.images import to_image
from cssr.utils.valid_pixels import fill_missing

_GIB = 1 << 30
_MMAP_THRESHOLD, _LARGE = -3, 4 << 20  # of mallopt(3), bytes
_AHEAD = 2  # batches of tiles that are read before their turn


@dataclass
class Prediction:
    """What a model makes of one photograph of h x w pixels, at scale s."""

    sr: np.ndarray  # h*s w*s 3 uint8, super-resolved image
    prob: np.ndarray | None  # h*s w*s float32, crack probability; None from a model that finds no cracks
    kernel: np.ndarray | None  # k k float32, blur kernel that the model has estimated, if it does
    warnings: tuple[str, ...] = ()  # how the photograph differs from what the model was trained on
    valid: np.ndarray | None = None  # h*s w*s bool, where the photograph holds data; None: everywhere. Else all is 0

    def mask(self, threshold: float = 0.5) -> np.ndarray:
        """h*s w*s bool: crack where the probability exceeds `threshold`; ValueError where there is none."""
        if self.prob is None:
            raise ValueError("there is no mask: the model only super-resolves (model.seg=none)")
        return self.prob > threshold


def predict(
    model: JointModel,
    image: Image.Image | np.ndarray | Tensor | str | Path,
    tile: int = TILE,
    overlap: int = TILE_OVERLAP,
    progress: Callable[[Iterable], Iterable] = iter,
) -> Prediction:
    """Super-resolve a photograph and find its cracks, as far as the model does, in memory.

    Args:
        model: in evaluation mode, on any device.
        image: a file, a PIL image, H W 3 uint8 (H W 4 with alpha), or 3 H W float 0..1. Where it holds no data
            (`cssr/utils/valid_pixels.py`), nothing is found, and nothing is taken from there.
        tile: LQ pixels a side of the tiles in which a larger image is worked; 0: the whole image at once. Tiles overlap
            by `overlap` and are blended; the normalisation and a predicted kernel are those of the whole image.
    Raises: ValueError, one line, for what is no such image.
    """
    device = next(iter(model.parameters()), model.mean).device
    lq, valid = _to_tensor(image)
    box, whole, valid = _extent(valid, lq.shape[-2:]), lq.shape[-2:], None if valid is None else valid.to(device)
    lq = lq[..., box[0], box[1]].to(device)
    large = None if valid is None else _enlarged(valid, model.scale)
    within = {} if large is None else {"valid": _enlarged(valid[..., box[0], box[1]], model.scale)}
    outputs = model.infer(lq, tile, overlap, progress, **within)
    if large is not None:
        outputs = _framed(outputs, box, whole, large, model.scale)
    prob = outputs.logits[0, 0].float().sigmoid().cpu().numpy() if segments(model.config) else None
    kernel = None if outputs.kernel is None else outputs.kernel[0, 0].float().cpu().numpy()
    blur = None if outputs.kernel is None else blur_sigma(outputs.kernel.float()).item()
    warnings = outside(model.trained_on, lq.mean().item(), lq.std().item(), lq.shape[-2:], blur)
    shown = None if large is None else large[0, 0].cpu().numpy() > 0
    if prob is not None and shown is not None:
        prob = prob * shown
    return Prediction(to_image(outputs.sr[0]), prob, kernel, tuple(warnings), shown)


def _extent(valid: Tensor | None, shape: Sequence[int]) -> tuple[slice, slice]:
    """Rows and columns of the smallest rectangle that holds all valid pixels; ValueError where there is none."""
    if valid is None:
        return slice(0, shape[0]), slice(0, shape[1])
    if not valid.any():
        raise ValueError("none of the image's pixels holds data: all are transparent, or marked as missing")
    there = (valid[0, 0].any(1 - axis).nonzero() for axis in (0, 1))
    return tuple(slice(int(places[0]), int(places[-1]) + 1) for places in there)


def _enlarged(valid: Tensor, scale: int) -> Tensor:
    return valid.float().repeat_interleave(scale, 2).repeat_interleave(scale, 3)


def _framed(outputs: Outputs, box: tuple[slice, slice], shape: Sequence[int], valid: Tensor, scale: int) -> Outputs:
    """Results of a rectangle in their place in the whole image, 0 (no crack) where it holds no data."""
    (height, width), (rows, columns) = shape, box
    pad = [scale * n for n in (columns.start, width - columns.stop, rows.start, height - rows.stop)]
    sr, logits = (F.pad(x.float(), pad) for x in (outputs.sr, outputs.logits))
    return replace(outputs, sr=sr * valid, logits=logits)


def _to_tensor(image: Image.Image | np.ndarray | Tensor | str | Path) -> tuple[Tensor, Tensor | None]:
    """1 3 H W float32, 0..1, and which pixels hold data: 1 1 H W bool, None where all do."""
    if isinstance(image, Tensor):
        if image.ndim != 3 or image.shape[0] != 3 or not image.is_floating_point():
            raise ValueError(f"a tensor of 3 x height x width, 0..1, is needed, found {image.dtype} {[*image.shape]}")
        return image[None].float(), None
    array, valid = read_with_valid(image)
    array = fill_missing(array, valid)
    return torch.tensor(array).permute(2, 0, 1)[None].float() / 255, (
        None if valid is None else torch.from_numpy(valid)[None, None]
    )


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    options = prediction_parser(__doc__).parse_args(arguments)
    _return_memory()
    try:
        _choose_model(options)
        _check(options)
        found = photographs(options.source, apart=options.out)
        left = inputs.passed_over_in(options.source)
        model = load_model(options.model, options.checkpoint).to(device_named(options.device))
        _make_directory(options.out)
        for name in ("measure", "tta"):
            if getattr(options, name) and not segments(model.config):
                raise ValueError(f"--{name}: the model finds no cracks (model.seg=none)")
        model.orientations = ORIENTATIONS if options.tta else 1
        run = _Run(model, options)
        run.work(inputs.each(found, options.every), inputs.count(found, options.every))
    except ValueError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped: give the same command again to go on")
    if left:
        print(left, file=sys.stderr)
    again = f" ({run.skipped} of them were there already)" if run.skipped else ""
    print(f"{run.count - len(run.failed)} photographs: {_written(model, run.wanted)} in {options.out}{again}")
    if run.failed:
        names = ", ".join(run.failed[:5])
        sys.exit(f"error: {len(run.failed)} of {run.count} photographs could not be read or written: {names}")


def _choose_model(options: argparse.Namespace) -> None:
    """`options.model`: what --model says, a run or export in place of the first photograph, or the package's own."""
    first, *others = options.source
    if options.model is not None:
        return
    if is_model(first) or (others and is_hub_name(first)):
        if not others:
            raise ValueError(f"{first} is a model, and no photographs are given: name files or folders behind it")
        options.model, options.source = first, others
        return
    options.model = Path(DEFAULT)


def _return_memory() -> None:
    """Have glibc give large blocks back when they are freed: kept for later use, they lie between small ones that stay,
    and a process grows with every row of tiles.
    """
    with suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, _LARGE)


def _check(options: argparse.Namespace) -> None:
    """Refuse options that cannot be meant; ValueError names the option."""
    if not 0 <= options.threshold <= 1:
        raise ValueError(f"--threshold must lie in 0..1, found {options.threshold}")
    check_tile(options.tile, "--tile")
    check_bits(options.bits)
    for name in ("batch", "every"):
        if getattr(options, name) < 1:
            raise ValueError(f"--{name} must be 1 or more, found {getattr(options, name)}")
    if not options.memory > 0:
        raise ValueError(f"--memory must be above 0 (GiB), found {options.memory}")
    if options.mm_per_pixel is not None and not 0 < options.mm_per_pixel < float("inf"):
        raise ValueError(f"--mm-per-pixel must be above 0, found {options.mm_per_pixel}")
    if options.mm_per_pixel is not None and not options.measure:
        raise ValueError("--mm-per-pixel is for --measure, which is not given")
    if not 0 <= options.least_length < float("inf"):
        raise ValueError(f"--least-length must be 0 or more, found {options.least_length}")
    if options.least_length and not options.measure:
        raise ValueError("--least-length is for --measure, which is not given")
    if options.format == "tiff" and not geotiff.there():
        raise ValueError("--format tiff needs rasterio: pip install 'cssr[large]'")


def _make_directory(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        with Files(out / "try"):
            pass
    except OSError as error:
        raise ValueError(f"--out: cannot write to {out}: {error.strerror}") from None


def _written(model: JointModel, wanted: Wanted) -> str:
    """What is written of the results that are wanted, in words."""
    named = {"sr": "SR image", "prob": "probability", "kernel": "blur kernel"}
    there = {"sr": True, "kernel": getattr(model.sr, "predicts_kernel", False)}
    found = [named.get(name, name) for name in wanted.results if there.get(name, segments(model.config))]
    *most, last = found or ["nothing"]
    only = "" if segments(model.config) else " only, as the model finds no cracks (model.seg=none),"
    return (f"{', '.join(most)} and {last}" if most else last) + only


class _Run:
    """Photographs, one after the other, those that are done left out."""

    def __init__(self, model: JointModel, options: argparse.Namespace):
        self._model, self._options = model, options
        self.wanted = Wanted(tuple(options.write), options.size, options.threshold, options.float, options.format)
        self._measured = Measured(options.mm_per_pixel, options.least_length) if options.measure else None
        self._facts = {"model": done.model_digest(model), "wanted": asdict(self.wanted), "tile": options.tile}
        self._facts["tta"] = options.tta
        self._facts["bits"] = options.bits
        self._facts["measured"] = asdict(self._measured) if self._measured else None
        self.failed: list[str] = []
        self.count = self.skipped = 0

    def work(self, sources: Iterator[Source], expected: int) -> None:
        """What cannot be read or written is told of, and the rest is done."""
        with self._bar(total=expected, unit="photo", desc="all") as bar:
            for source in sources:
                self.count += 1
                try:
                    self._one(source)
                except (ValueError, OSError, torch.OutOfMemoryError) as error:
                    tqdm.write(_told(source, error), file=sys.stderr)
                    self.failed.append(source.path.name)
                bar.update()

    def _one(self, source: Source) -> None:
        record = self._options.out / f"{source.stem}{done.ENDING}"
        facts = {**self._facts, "photograph": source.facts()}
        if done.is_done(record, facts):
            self.skipped += 1
            return
        with source.open(self._options.bits) as photograph:
            self._check_memory(photograph)
            old = done.begin(record)  # from here on nothing looks whole
            with Files(self._options.out / source.stem) as files:
                found = self._predict(photograph, files)
                if self._measured:
                    found.cracks = write_measures(files, found.crack_prob, photograph, self._measured)
        done.remove_others(record, old, files.sizes)
        done.write(record, facts, files.sizes, found.told())
        self._say(source, photograph, found)

    def _predict(self, photograph: Photograph, files: Files) -> Found:
        side, overlap = self._options.tile, TILE_OVERLAP
        if not side:
            side, overlap = max(photograph.shape), 0
        count = len(Tiles(side, overlap).places(photograph.shape)) * self._model.rounds
        with self._bar(total=count, unit="tile", desc="photograph", leave=False, position=1) as bar:

            def told(places: Iterable) -> Iterator:
                for place in places:
                    yield place
                    bar.update()

            tiles = Tiles(side, overlap, self._options.batch, told, _AHEAD)
            return predict_rows(self._model, photograph, files, self.wanted, tiles, self._measured is not None)

    def _check_memory(self, photograph: Photograph) -> None:
        need = memory(self._model, photograph, self.wanted, self._options.tile, self._measured is not None)
        if need <= self._options.memory * _GIB:
            return
        remedy = f"a --tile below {self._options.tile}" if self._options.tile else "--tile 256"
        large = "" if geotiff.there() else ", pip install 'cssr[large]' for TIFFs by windows"
        raise ValueError(
            f"needs {need / _GIB:.1f} GiB beside the networks, above --memory {self._options.memory:g}: choose more, "
            f"{remedy}, --size photo or less to --write{large}"
        )

    def _say(self, source: Source, photograph: Photograph, found: Found) -> None:
        height, width = photograph.shape
        crack = "" if found.crack is None else f", crack {found.crack:.2%}"
        crack += "" if found.cracks is None else f" in {found.cracks} pieces"
        note = f" ({photograph.note})" if photograph.note else ""
        tqdm.write(f"{source.name}: {width}x{height}{note} -> {found.width}x{found.height}{crack}")
        if found.warnings:
            known = "; ".join(found.warnings)
            tqdm.write(f"{source.name}: unlike what the model was trained on, results may be wrong: {known}")

    @staticmethod
    def _bar(**how: Any) -> tqdm:
        return tqdm(disable=not sys.stderr.isatty(), dynamic_ncols=True, **how)


def _told(source: Source, error: Exception) -> str:
    """One line."""
    if isinstance(error, torch.OutOfMemoryError):
        return f"{source.name}: the device's memory does not suffice: choose a smaller --batch or --tile"
    text = " ".join(str(error.__cause__ or error).split())
    return text if source.name in text else f"{source.name}: {text}"


def device_named(name: str) -> torch.device:
    """`cpu`, `cuda`, ..., or `auto`: an accelerator where there is one; ValueError where it cannot be used."""
    if name != "auto":
        try:
            return torch.zeros(1, device=name).device
        except (RuntimeError, AssertionError) as error:
            raise ValueError(f"--device {name} cannot be used here: {str(error).splitlines()[0]}") from None
    return torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")


if __name__ == "__main__":
    sys.exit(interrupts.run(main))
