"""Write a photograph's SR image, probabilities, mask and overlay to files, by rows from the top down.

Networks see the rectangle of a photograph that holds data; results have the whole photograph's extent.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from cssr.config.schema import RESULTS
from cssr.inference.scratch import Scratch
from cssr.inference.writers import PNG_PIXELS, Files, Rows, float_rows, picture_rows
from cssr.models.joint import JointModel
from cssr.models.tiling import valid_rows
from cssr.utils import geotiff
from cssr.utils.images import overlay
from cssr.utils.photographs import Photograph

_CHUNK = 64  # rows without data that are written at once


@dataclass(frozen=True)
class ResultOptions:
    """Results of a photograph to write, and their form."""

    results: tuple[str, ...] = RESULTS
    size: str = "sr"  # of prob, mask and overlay: `sr`, or `photo`, the photograph's own
    threshold: float = 0.5
    as_float: bool = False  # probabilities as float32
    format: str = "auto"  # `png`, `tiff`, or by size and place


def as_tiff(wanted: ResultOptions, photograph: Photograph, scale: int) -> bool:
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


class SRImage:
    """Writer of the SR image."""

    def __init__(self, model: JointModel, photograph: Photograph, files: Files, wanted: ResultOptions, box: tuple):
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

    def finish(self) -> None:
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


class CrackMasks:
    """Writer of probabilities, mask and overlay."""

    def __init__(
        self,
        model: JointModel,
        photograph: Photograph,
        scratch: Scratch,
        files: Files,
        wanted: ResultOptions,
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
        self._pending: Tensor | None = None  # rows that are too few to be averaged
        target = {"shape": self.shape, "tiff": as_tiff(wanted, photograph, scale)}
        target["place"] = _enlarged(photograph.place, scale)
        self._rows: dict[str, Rows] = {}
        if "prob" in wanted.results:
            make = float_rows if wanted.as_float else partial(picture_rows, bands=1)
            self._rows["prob"] = make(files, "prob", **target)
        for name, bands in (("mask", 1), ("overlay", 3)):
            if name in wanted.results:
                self._rows[name] = picture_rows(files, name, bands=bands, **target)

    def write(self, logits: Tensor) -> None:
        """The next rows, 1 1 n W of the SR image's size."""
        prob = self._reduced(logits.float().sigmoid())[0, 0]
        if len(prob):
            self._blank(self._frame.above if not self._top else 0)
            self._write(self._frame.widened(prob.cpu().numpy()))

    def finish(self) -> None:
        """Write the rows that follow."""
        self._blank(self._frame.below)

    def _blank(self, count: int) -> None:
        for rows in self._frame.blank(count):
            self._write(rows)

    def _reduced(self, prob: Tensor) -> Tensor:
        """Means over the pixels of the SR image that make one of the photograph; incomplete rows wait for more."""
        if self._reduce == 1:
            return prob
        prob = prob if self._pending is None else torch.cat((self._pending, prob), -2)
        complete = prob.shape[-2] // self._reduce * self._reduce
        self._pending = prob[..., complete:, :]
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
