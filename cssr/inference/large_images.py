"""Prediction of photographs and results that are larger than the memory.

A photograph goes through the model in rounds over its tiles: the blur kernel (where it is predicted), the SR image and
its statistics, the cracks. Between rounds the SR image is in a temporary file beside the results (12 bytes a pixel of
it, float32), as computing it again would take longer than reading it, and rounding it would change the cracks. Tiles
are read ahead of use and results written behind by threads, a few batches apart.
"""

import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from cssr.config.schema import RESULTS, segments
from cssr.inference.writers import PNG_PIXELS, Files, Rows, float_rows, picture_rows, save_array, save_png
from cssr.models.joint import JointModel
from cssr.models.tiling import Tiles, valid_rows
from cssr.models.training_range import blur_sigma, outside
from cssr.utils import geotiff
from cssr.utils.images import overlay
from cssr.utils.photographs import Photograph
from cssr.utils.threads import WriteBehind

_ITEM = 4  # bytes of a float32
_LOOK = 128  # pixels a side of the windows in which a photograph is looked at
_CHUNK = 64  # rows without data that are written at once
_AHEAD = 2  # batches of tiles, and chunks of results, that wait


class Scratch:
    """Rows of an image, appended from the top down and read by windows: float32, 12 bytes a pixel on the disk.

    The file is in `directory` without a name, so that nothing is left of it, whatever ends the process. It is written
    by a thread of its own, and not mapped into memory. Use as a context.
    """

    def __init__(self, directory: Path):
        self._file = tempfile.TemporaryFile(dir=directory)  # noqa: SIM115, closed by __exit__
        self._later = WriteBehind(2)
        self.shape = (0, 0)

    def __enter__(self) -> "Scratch":
        self._later.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        try:
            self._later.__exit__(*error)
        finally:
            self._file.close()

    def append(self, rows: Tensor) -> None:
        """The next rows, 1 3 n W; OSError if there is no room."""
        self.shape = (self.shape[0] + rows.shape[-2], rows.shape[-1])
        self._later(self._write, rows)

    def _write(self, rows: Tensor) -> None:
        pixels = rearrange(rows[0].float(), "c h w -> h w c").contiguous()
        left = memoryview(pixels.cpu().numpy()).cast("B")
        while left:
            left = left[os.write(self._file.fileno(), left) :]

    def read(self, top: int, left: int, height: int, width: int) -> Tensor:
        """1 3 height width float32."""
        return rearrange(torch.from_numpy(self.pixels(top, left, height, width)), "h w c -> 1 c h w")

    def pixels(self, top: int, left: int, height: int, width: int) -> np.ndarray:
        """The same as height width 3."""
        self._later.wait()
        values, columns = np.empty((height, width, 3), np.float32), self.shape[1]
        for row in range(height):
            room = memoryview(values[row]).cast("B")
            offset = ((top + row) * columns + left) * 3 * _ITEM
            while room:
                count = os.preadv(self._file.fileno(), [room], offset)
                if not count:
                    raise OSError("the temporary file of the SR image ends too early")
                room, offset = room[count:], offset + count
        return values


@dataclass(frozen=True)
class Wanted:
    """Results to write of a photograph."""

    results: tuple[str, ...] = RESULTS
    size: str = "sr"  # of prob, mask and overlay: `sr`, or `photo`, the photograph's own
    threshold: float = 0.5
    as_float: bool = False  # probabilities as float32
    format: str = "auto"  # `png`, `tiff`, or by size and place


@dataclass
class Summary:
    """Facts of one photograph's results, for the console and the record."""

    width: int  # of prob and mask, or of the SR image
    height: int
    crack: float | None = None  # share of the pixels; None where none are looked for
    crack_prob: np.ndarray | None = field(default=None, repr=False)  # H W uint8: 0 no crack, else prob x 255
    cracks: int | None = None  # components, where they are measured
    warnings: list[str] = field(default_factory=list)  # how the photograph differs from what the model was trained on

    def facts(self) -> dict[str, Any]:
        """All but the probabilities, for JSON."""
        names = ("width", "height", "crack", "cracks", "warnings")
        return {name: getattr(self, name) for name in names}


def predict_rows(
    model: JointModel, photograph: Photograph, files: Files, wanted: Wanted, tiles: Tiles, keep_mask: bool = False
) -> Summary:
    """Write a photograph's results by rows.

    Args:
        tiles: photograph pixels.
        keep_mask: whether the mask is wanted in memory as well, with probabilities, a byte a pixel: `crack_prob`.
    Raises: OSError for a file that ends too early, or a disk that is full.
    """
    with ExitStack() as stack:
        scratch = stack.enter_context(Scratch(files.directory))
        pictures, cracks = (stack.enter_context(WriteBehind(_AHEAD)) for _ in range(2))
        box = photograph.extent()
        part = photograph if box == (0, 0, *photograph.shape) else photograph.within(*box)
        sr = _SR(model, photograph, files, wanted, box)
        needed = segments(model.config) and (keep_mask or {"prob", "mask", "overlay"} & set(wanted.results))
        mask = _Cracks(model, photograph, scratch, files, wanted, keep_mask, box) if needed else None
        blur = None
        for name, rows in model.infer_rows(part, tiles, scratch):
            if name == "kernel":
                blur = blur_sigma(rows.float()).item()
                if "kernel" in wanted.results:
                    kernel = rows[0, 0].float().cpu().numpy()
                    save_array(files.new("_kernel.npy"), kernel)
                    levels = (kernel / kernel.max() * 255).clip(0, 255).astype(np.uint8)  # its largest value white
                    save_png(files.new("_kernel.png"), levels)
            elif name == "sr":
                pictures(sr.write, rows)
            elif name == "logits" and mask is not None:
                cracks(mask.write, rows)
            elif name == "logits" and model.rounds > 1:
                break  # nobody wants what is to come
        pictures(sr.end)
        if mask is not None:
            cracks(mask.end)
    warnings = outside(model.trained_on, *_look(photograph), photograph.shape, blur) if model.trained_on else []
    if mask is None:
        return Summary(*sr.shape[::-1], warnings=warnings)
    share = mask.crack_pixels / mask.valid_pixels
    return Summary(*mask.shape[::-1], share, mask.crack_prob, warnings=warnings)


def _look(photograph: Photograph) -> tuple[float, float]:
    """Mean and standard deviation of a photograph's values, 0..1, over windows of it."""
    height, width = (min(side, _LOOK) for side in photograph.shape)
    tops, lefts = (np.linspace(0, side - min(side, _LOOK), 4).astype(int) for side in photograph.shape)
    windows = [photograph.window(top, left, height, width) for top in {*tops} for left in {*lefts}]
    seen = [(rgb if valid is None else rgb[valid]).reshape(-1, 3) for rgb, valid in windows]
    values = np.concatenate(seen).astype(np.float32) / 255
    if not len(values):  # all of them are where there are no data
        values = photograph.read(*photograph.extent()[:2], 1, 1).numpy() / 255
    return float(values.mean()), float(values.std())


def as_tiff(wanted: Wanted, photograph: Photograph, scale: int) -> bool:
    """Return whether results are TIFFs: too large for PNGs, or placed on a map; never without rasterio."""
    if wanted.format != "auto":
        return wanted.format == "tiff"
    height, width = photograph.shape
    return geotiff.installed() and (photograph.place is not None or height * width * scale**2 > PNG_PIXELS)


class _Frame:
    """Frame around the part of a photograph that is worked; places rows of results within the whole.

    Args:
        box: top, left, height, width of the part. scale: pixels of a result to one of the photograph.
    """

    def __init__(self, photograph: Photograph, box: tuple[int, int, int, int], scale: int):
        self._photograph, self._scale = photograph, scale
        top, left, height, width = (side * scale for side in box)
        self.shape = (photograph.shape[0] * scale, photograph.shape[1] * scale)
        self.above, self.below = top, self.shape[0] - top - height
        self._beside = (left, self.shape[1] - left - width)

    def widened(self, rows: np.ndarray) -> np.ndarray:
        """Rows of the part (n w ...) as rows of the whole, 0 beside it."""
        return np.pad(rows, ((0, 0), self._beside, *[(0, 0)] * (rows.ndim - 2))) if any(self._beside) else rows

    def valid(self, top: int, count: int) -> np.ndarray | None:
        """Mask of the pixels with data in rows of the whole, n W bool; None where all of the photograph have some."""
        rows = valid_rows(self._photograph, top, count, self._scale)
        return None if rows is None else rows[0, 0].numpy()

    def blank(self, count: int) -> Iterator[np.ndarray]:
        """`count` rows of the whole without data, in chunks: n W float32."""
        for start in range(0, count, _CHUNK):
            yield np.zeros((min(_CHUNK, count - start), self.shape[1]), np.float32)


class _SR:
    """The SR image, to its file."""

    def __init__(self, model: JointModel, photograph: Photograph, files: Files, wanted: Wanted, box: tuple):
        scale = model.scale
        self._frame, self._top = _Frame(photograph, box, scale), 0
        self.shape = (photograph.shape[0] * scale, photograph.shape[1] * scale)
        self._rows: Rows | None = None
        if "sr" in wanted.results:
            tiff = as_tiff(wanted, photograph, scale)
            self._rows = picture_rows(files, "sr", self.shape, 3, tiff, _enlarged(photograph.place, scale))

    def write(self, rows: Tensor) -> None:
        """The next rows, 1 3 n w."""
        if self._rows is not None:
            self._blank(self._frame.above if not self._top else 0)
            self._write(self._frame.widened(_bytes(rearrange(rows[0], "c h w -> h w c"))))

    def end(self) -> None:
        """Write the rows that follow."""
        if self._rows is not None:
            self._blank(self._frame.below)

    def _blank(self, count: int) -> None:
        for rows in self._frame.blank(count):
            self._write(np.zeros((*rows.shape, 3), np.uint8))

    def _write(self, rows: np.ndarray) -> None:
        valid = self._frame.valid(self._top, len(rows))
        self._rows.write(rows if valid is None else rows * valid[..., None], valid)
        self._top += len(rows)


class _Cracks:
    """Probabilities, mask and overlay, to their files."""

    def __init__(
        self,
        model: JointModel,
        photograph: Photograph,
        scratch: Scratch,
        files: Files,
        wanted: Wanted,
        keep_mask: bool,
        box: tuple[int, int, int, int],
    ):
        self._wanted, self._scratch, self._photograph = wanted, scratch, photograph
        self._reduce = model.scale if wanted.size == "photo" else 1
        scale = model.scale // self._reduce
        self.shape = (photograph.shape[0] * scale, photograph.shape[1] * scale)
        self.crack_prob = np.empty(self.shape, np.uint8) if keep_mask else None
        self._frame = _Frame(photograph, box, scale)
        self.crack_pixels, self.valid_pixels, self._top = 0, 0, 0
        self._left: Tensor | None = None  # rows that are too few to be averaged
        where = {"shape": self.shape, "tiff": as_tiff(wanted, photograph, scale)}
        where["place"] = _enlarged(photograph.place, scale)
        self._rows: dict[str, Rows] = {}
        if "prob" in wanted.results:
            make = float_rows if wanted.as_float else partial(picture_rows, bands=1)
            self._rows["prob"] = make(files, "prob", **where)
        for name, bands in (("mask", 1), ("overlay", 3)):
            if name in wanted.results:
                self._rows[name] = picture_rows(files, name, bands=bands, **where)

    def write(self, logits: Tensor) -> None:
        """The next rows, 1 1 n W of the SR image's size."""
        prob = self._reduced(logits.float().sigmoid())[0, 0]
        if len(prob):
            self._blank(self._frame.above if not self._top else 0)
            self._write(self._frame.widened(prob.cpu().numpy()))

    def end(self) -> None:
        """Write the rows that follow."""
        self._blank(self._frame.below)

    def _blank(self, count: int) -> None:
        for rows in self._frame.blank(count):
            self._write(rows)

    def _reduced(self, prob: Tensor) -> Tensor:
        """Means over the pixels of the SR image that make one of the photograph; what is left waits for more rows."""
        if self._reduce == 1:
            return prob
        prob = prob if self._left is None else torch.cat((self._left, prob), -2)
        complete = prob.shape[-2] // self._reduce * self._reduce
        self._left = prob[..., complete:, :]
        return F.avg_pool2d(prob[..., :complete, :], self._reduce) if complete else prob[..., :0, :]

    def _write(self, prob: np.ndarray) -> None:
        valid = self._frame.valid(self._top, len(prob))
        prob = prob if valid is None else prob * valid
        mask = prob > self._wanted.threshold if valid is None else (prob > self._wanted.threshold) & valid
        self.crack_pixels += int(mask.sum())
        self.valid_pixels += prob.size if valid is None else int(valid.sum())
        if self.crack_prob is not None:
            self.crack_prob[self._top : self._top + len(mask)] = np.where(mask, (prob * 255).round().clip(1), 0)
        for name, rows in self._rows.items():
            if name == "prob":
                values = prob if self._wanted.as_float else (prob * 255).round().astype(np.uint8)
            else:
                values = mask if name == "mask" else self._overlaid(prob, mask)
            rows.write(values, valid)
        self._top += len(mask)

    def _overlaid(self, prob: np.ndarray, mask: np.ndarray) -> np.ndarray:
        window = (self._top, 0, *mask.shape)
        if self._wanted.size == "photo":
            return overlay(self._photograph.pixels(*window), mask)
        top, (height, width) = self._top - self._frame.above, self._scratch.shape
        if not 0 <= top < height:  # above or below the part that is worked
            return np.zeros((*mask.shape, 3), np.uint8)
        sr = self._frame.widened(_bytes(torch.from_numpy(self._scratch.pixels(top, 0, len(mask), width))))
        valid = self._frame.valid(self._top, len(mask))
        return overlay(sr if valid is None else sr * valid[..., None], mask)


def _bytes(image: Tensor) -> np.ndarray:
    """Float, 0..1, as uint8, clipped and rounded."""
    return (image.float().clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()


def _enlarged(place: geotiff.Place | None, scale: int) -> geotiff.Place | None:
    return None if place is None else place.enlarged(scale)


def memory(model: JointModel, photograph: Photograph, wanted: Wanted, side: int, keep_mask: bool = False) -> int:
    """Bytes that a photograph needs at most, beside the networks and what they compute of a batch of tiles.

    The photograph as it is held; of the SR image a row of tiles (float32, 3 channels) and the chunks in flight; results
    that become PNGs, and the last blocks of those that become TIFFs. `side` of the tiles, 0: the whole photograph.
    """
    height, width = photograph.shape
    row = width * model.scale * 12  # bytes of a row of the SR image
    tiles = min(side or height, height) * model.scale * row
    chunks = 64 * row * 12
    results = sum(_held(name, photograph, wanted, model.scale) for name in wanted.results if name != "kernel")
    mask = height * width * (1 if wanted.size == "photo" else model.scale**2) if keep_mask else 0
    return photograph.held + geotiff.CACHE + tiles + chunks + results + mask


def _held(name: str, photograph: Photograph, wanted: Wanted, scale: int) -> int:
    """Bytes of a result in memory: of a TIFF rows of blocks, of a PNG all; as chunks, whole, and while saved."""
    scale = 1 if name != "sr" and wanted.size == "photo" else scale
    height, width = (side * scale for side in photograph.shape)
    pixel = 3 if name in ("sr", "overlay") else 4 if name == "prob" and wanted.as_float else 1
    return 3 * pixel * width * (2 * geotiff.BLOCK if as_tiff(wanted, photograph, scale) else height)
