"""Write the results of a photograph by rows; its files appear together once all are complete."""

import glob
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Protocol

import numpy as np
import psutil

from cssr.utils import geotiff, png
from cssr.utils.files import PARTIAL

PNG_PIXELS = 64_000_000  # of a PNG, which few programs read by windows; larger results are TIFFs


class Rows(Protocol):
    """A file that is written from the top down."""

    def write(self, rows: np.ndarray, valid: np.ndarray | None = None) -> None:
        """The next rows, n W (3), and which pixels hold data (n W bool; None: all); OSError if there is no room."""

    def finish(self) -> None:
        """Complete the file, on the disk."""

    def close(self) -> None:
        """Close the file, complete or not."""


class Files:
    """The files of one photograph, which get their names when all of them are complete.

    Args:
        stem: their common path, to which `_sr.png` and the like are added. Its directory is made on entering.
    """

    def __init__(self, stem: Path):
        self._stem = stem
        self._open: list[Rows] = []
        self.endings: list[str] = []  # of those that are or will be there
        self.sizes: dict[str, int] = {}  # bytes by name, once they are there

    @property
    def directory(self) -> Path:
        """The directory that holds them."""
        return self._stem.parent

    def new(self, ending: str) -> Path:
        """The temporary path of a file with this ending."""
        self.endings.append(ending)
        return self._scratch / (self._stem.name + ending)

    @property
    def _scratch(self) -> Path:
        """Temporary directory of the files, and of what GDAL may write beside them."""
        return self._stem.with_name(f"{self._scratch_prefix}{os.getpid()}")

    @property
    def _scratch_prefix(self) -> str:
        """Prefix of this machine's scratch directories for this stem, before the process id: others may write here too.

        The stem is hashed, as a long one leaves no place in a file name for more.
        """
        return f".{sha256(os.fsencode(self._stem.name)).hexdigest()[:16]}{PARTIAL}-{os.uname().nodename[:32]}-"

    def rows(self, make: Callable[[Path], Rows], ending: str) -> Rows:
        """A file to be written by rows."""
        rows = make(self.new(ending))
        self._open.append(rows)
        return rows

    def discard(self) -> None:
        """Drop all files that are not complete."""
        shutil.rmtree(self._scratch, ignore_errors=True)
        self.endings.clear()

    def __enter__(self) -> "Files":
        for directory in self.directory.glob(f"{glob.escape(self._scratch_prefix)}*"):  # by a kill
            if not psutil.pid_exists(int(directory.name.removeprefix(self._scratch_prefix))):
                shutil.rmtree(directory, ignore_errors=True)
        self.discard()
        self._scratch.mkdir(parents=True)
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        try:
            if kind is None:
                self._publish()
        finally:
            for rows in self._open:
                with suppress(OSError):  # of a full disk, which has been reported
                    rows.close()
            self.discard()

    def _publish(self) -> None:
        for rows in self._open:
            rows.finish()
        paths = [self._scratch / (self._stem.name + ending) for ending in self.endings]
        self.sizes = {path.name: path.stat().st_size for path in paths}
        for path in paths:
            os.replace(path, self._stem.with_name(path.name))


class _Array:
    """Rows that are collected, and saved as .npy at the end."""

    def __init__(self, path: Path):
        self._path = path
        self._rows: list[np.ndarray] = []

    def write(self, rows: np.ndarray, valid: np.ndarray | None = None) -> None:
        """The next rows, float32; pixels without data are NaN."""
        self._rows.append(rows if valid is None else np.where(valid, rows, np.float32(np.nan)))

    def finish(self) -> None:
        """Save them."""
        save_array(self._path, np.concatenate(self._rows))

    def close(self) -> None:
        """Forget them."""
        self._rows.clear()


def save_png(path: Path, pixels: np.ndarray) -> None:
    """H W (C) uint8, C of 1 to 4, or H W bool as 1 bit, whatever the path ends with."""
    path.write_bytes(png.encode(pixels))


def save_array(path: Path, values: np.ndarray) -> None:
    """Write .npy, whatever the path ends with."""
    with open(path, "wb") as file:
        np.save(file, values)


def picture_rows(files: Files, name: str, shape: tuple[int, int], bands: int, tiff: bool, place: geotiff.Place | None):
    """Rows of `_NAME.png` or `.tif`: uint8 colours or grey, or bool (1 bit, in TIFF 0 and 255)."""
    if tiff:
        return files.rows(lambda path: _ByteRows(path, shape, bands, "uint8", place), f"_{name}.tif")
    return files.rows(lambda path: png.PngRows(open(path, "wb"), shape[0]), f"_{name}.png")


def float_rows(files: Files, name: str, shape: tuple[int, int], tiff: bool, place: geotiff.Place | None) -> Rows:
    """Rows of `_NAME.npy` or `.tif`, float32."""
    if tiff:
        return files.rows(lambda path: geotiff.TiffRows(path, shape, 1, "float32", place), f"_{name}.tif")
    return files.rows(_Array, f"_{name}.npy")


class _ByteRows(geotiff.TiffRows):
    """Rows in which bool is written as 0 and 255."""

    def write(self, rows: np.ndarray, valid: np.ndarray | None = None) -> None:
        """The next rows."""
        super().write(rows.astype(np.uint8) * 255 if rows.dtype == bool else rows, valid)
