"""TIFF files by windows, georeferenced or not, of any size: with rasterio (extra `large`), imported where it is used.

GDAL, which does the work, keeps at most 64 MiB of blocks in memory.
"""

import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cssr.utils.text import message_of

BLOCK = 256  # pixels a side of the blocks that are written
CACHE = 64 << 20  # bytes of blocks that GDAL keeps
_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}  # of Pillow, by bands


@dataclass(frozen=True)
class Place:
    """Position of a raster on the map."""

    crs: Any  # of rasterio; None: unknown
    transform: Any  # affine, pixel (column, row) to map coordinates

    def enlarged(self, scale: float) -> "Place":
        """Place of the same area in smaller pixels."""
        return Place(self.crs, self.transform * self.transform.scale(1 / scale))


def installed() -> bool:
    """Return whether rasterio is installed."""
    return find_spec("rasterio") is not None


def is_tiff(image: bytes | str | Path) -> bool:
    """Return whether a file is a TIFF, classic or Big, by its first bytes."""
    if isinstance(image, bytes):
        return image[:4] in _MAGIC
    with open(image, "rb") as file:
        return file.read(4) in _MAGIC


def bits_of(greatest: int) -> int:
    """Fewest of 8, 10, 12, 14 and 16 bits that hold a value: cameras store those of 10 to 14 bits in 16."""
    return next(bits for bits in (8, 10, 12, 14, 16) if greatest < 1 << bits)


def to_8_bits(values: np.ndarray, bits: int) -> np.ndarray:
    """Scale values of so many bits to 0..255, uint8."""
    top, small = (1 << bits) - 1, np.empty(values.shape, np.uint8)
    for rows, into in zip(values, small):  # by rows: 12 bytes a value on the way
        into[...] = (np.minimum(rows, top) * np.float32(255 / top)).round()
    return small


def depth_note(bits: int, stated: bool) -> str:
    """Note on a file of 16 bits in which values have fewer."""
    if bits == 16:
        return ""
    return f"values of {bits} bits" if stated else f"values of {bits} bits, as its greatest shows; else say --bits"


@contextmanager
def _gdal() -> Iterator[Any]:
    """rasterio, with errors as exceptions rather than printed."""
    os.environ.setdefault("GDAL_CACHEMAX", str(CACHE >> 20))  # read once, at GDAL's first use
    import rasterio
    from rasterio.errors import NotGeoreferencedWarning

    with rasterio.Env(), warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        yield rasterio


class TiffFile:
    """A TIFF read by windows: `part` gives pictures of 8 bits.

    Attributes:
        size: width, height. place: on the map, or None. masked: whether some pixels may hold no data, by a nodata
            value, a mask or alpha. bits: of its values; `note` says so where the file does not. held: bytes in memory.
        lab: whether its colours are CIELAB, which `part` does not convert.
    Args:
        bits: of values that are stored in 16; None: as the file says or as its greatest value shows.
    Raises: OSError if it cannot be read, ValueError for values other than 8 or 16 bit.
    """

    held = CACHE

    def __init__(self, image: bytes | str | Path, bits: int | None = None):
        self._lock = threading.Lock()
        with _gdal() as rasterio:
            self._memory = rasterio.MemoryFile(image) if isinstance(image, bytes) else None
            self._file = self._memory.open() if self._memory else rasterio.open(image)
            plain = self._file.transform.is_identity and self._file.crs is None
            self.place = None if plain else Place(self._file.crs, self._file.transform)
            all_valid = rasterio.enums.MaskFlags.all_valid
            self.masked = any(all_valid not in flags for flags in self._file.mask_flag_enums)
        self.size = (self._file.width, self._file.height)
        self._colours = [colour.name for colour in self._file.colorinterp]
        self.lab = self._file.photometric is not None and self._file.photometric.name == "cielab"
        if self._file.dtypes[0] not in ("uint8", "uint16"):
            self.close()
            raise ValueError(f"its values are {self._file.dtypes[0]}: save it with 8 or 16 bit")
        deep = self._file.dtypes[0] == "uint16"
        stated = (bits or self._stated_bits()) if deep else 8
        self.bits = stated or bits_of(self._greatest())
        self.note = depth_note(self.bits, stated is not None) if deep else ""

    def _stated_bits(self) -> int | None:
        packed = int(self._file.tags(1, ns="IMAGE_STRUCTURE").get("NBITS", 16))
        top = str(self._file.tags().get("TIFFTAG_MAXSAMPLEVALUE", "")).split(" ")[0]
        return packed if packed < 16 else int(top).bit_length() if top.isdigit() and 255 < int(top) < 65535 else None

    def _greatest(self) -> int:
        """The greatest value of a pixel that holds data; the file is read once, by rows of blocks."""
        width, height = self.size
        step, greatest = max(BLOCK, (1 << 22) // width // BLOCK * BLOCK), 0
        for top in range(0, height, step):
            values, valid = self._read(0, top, width, min(top + step, height))
            values = values[:3] if valid is None else values[:3, valid]
            greatest = max(greatest, int(values.max(initial=0)))
        return greatest

    def part(self, left: int, top: int, right: int, bottom: int) -> tuple[np.ndarray, np.ndarray | None]:
        """A window as H W 3 uint8, and which of its pixels hold data (H W bool; None: all)."""
        values, valid = self._read(left, top, right, bottom)
        if values.dtype == np.uint16:
            values = to_8_bits(values, self.bits)
        return np.asarray(self._picture(values).convert("RGB")), valid

    def _read(self, left: int, top: int, right: int, bottom: int) -> tuple[np.ndarray, np.ndarray | None]:
        with self._lock, _gdal() as rasterio:
            window = rasterio.windows.Window(left, top, right - left, bottom - top)
            values = self._file.read(self._bands(), window=window)
            valid = self._file.dataset_mask(window=window) >= 128 if self.masked else None
        return values, None if valid is None or valid.all() else valid

    def _bands(self) -> list[int]:
        """Bands that make a picture: of a file with many, the first three."""
        count = self._file.count
        if count == 2 and "alpha" not in self._colours:
            return [1]
        extra = count > 4 or (count == 4 and "alpha" not in self._colours and not self._cmyk)
        return list(range(1, 4 if extra else count + 1))

    @property
    def _cmyk(self) -> bool:
        return self._colours[:1] == ["cyan"]

    def _picture(self, values: np.ndarray) -> Image.Image:
        mode = "CMYK" if self._cmyk else _MODES[len(values)]
        if self._file.tags(ns="IMAGE_STRUCTURE").get("MINISWHITE") == "YES":  # GDAL may call it a palette
            values = 255 - values
        elif self._colours == ["palette"]:
            table = np.zeros((256, 4), np.uint8)
            for number, colour in self._file.colormap(1).items():
                table[number] = colour
            return Image.fromarray(table[values[0]], "RGBA")
        layers = values[0] if len(values) == 1 else np.ascontiguousarray(values.transpose(1, 2, 0))
        return Image.frombuffer(mode, layers.shape[1::-1], layers, "raw", mode, 0, 1)

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        if self._memory:
            self._memory.close()


class TiffRows:
    """A TIFF that is written from the top down, in compressed blocks; a BigTIFF where it may become larger than 4 GB.

    Args:
        bands: 1 or 3. dtype: uint8 or float32. place: on the map.
    Raises: OSError if it cannot be written, a full disk included.
    """

    def __init__(self, path: Path, shape: tuple[int, int], bands: int, dtype: str, place: Place | None):
        self._path, self._shape, self._bands = path, shape, bands
        self._waiting: list[np.ndarray] = []
        self._valid: list[np.ndarray] = []  # of these rows; empty where all pixels hold data
        self._top = 0
        options = {"driver": "GTiff", "tiled": True, "blockxsize": BLOCK, "blockysize": BLOCK, "interleave": "pixel"}
        # One thread: with several, GDAL 3.10 reports no full disk.
        options |= {"compress": "deflate", "zlevel": 1, "predictor": 3 if dtype == "float32" else 2}
        options |= {"bigtiff": "if_safer", "photometric": "rgb" if bands == 3 else "minisblack"}
        options |= {} if place is None else {"crs": place.crs, "transform": place.transform}
        with _gdal() as rasterio:
            self._file = rasterio.open(path, "w", height=shape[0], width=shape[1], count=bands, dtype=dtype, **options)

    def write(self, rows: np.ndarray, valid: np.ndarray | None = None) -> None:
        """Write the next rows, n W or n W bands; `valid`: those that hold data, n W bool, always or never given."""
        self._waiting.append(rows)
        self._valid += [] if valid is None else [valid]
        count = sum(map(len, self._waiting))
        if count >= BLOCK:
            self._put(count // BLOCK * BLOCK)

    def _put(self, count: int) -> None:
        """Write the first of the rows that wait, and of the mask, which is within the file."""
        rows, self._waiting = _split_rows(self._waiting, count)
        layers = rows[None] if self._bands == 1 else rows.transpose(2, 0, 1)
        with _gdal() as rasterio, rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
            window = rasterio.windows.Window(0, self._top, self._shape[1], len(rows))
            self._file.write(layers, window=window)
            if self._valid:
                valid, self._valid = _split_rows(self._valid, count)
                self._file.write_mask(valid.astype(np.uint8) * 255, window=window)
        self._top += len(rows)

    def finish(self) -> None:
        """Write the rest and sync it; then read the last blocks, as GDAL hides errors on closing."""
        rest = sum(map(len, self._waiting))
        if rest:
            self._put(rest)
        self.close()
        with open(self._path, "rb+") as file:
            os.fsync(file.fileno())
        with _gdal() as rasterio, rasterio.open(self._path) as file:
            height, width = self._shape
            top = (height - 1) // BLOCK * BLOCK
            file.read(1, window=rasterio.windows.Window(0, top, width, height - top))

    def close(self) -> None:
        """Close the file, complete or not."""
        with _gdal():
            self._file.close()


def _split_rows(arrays: list[np.ndarray], count: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """Join arrays; the first `count` rows, and a copy of the rest."""
    joined = np.concatenate(arrays)
    return joined[:count], [joined[count:].copy()]


def reprojected(points: np.ndarray, crs: str, target: str) -> np.ndarray:
    """Points N 2 of a map on another; not finite outside its area. ValueError for maps unknown to GDAL."""
    with _gdal() as rasterio:
        from rasterio.errors import CRSError
        from rasterio.warp import transform

        try:
            names = [rasterio.crs.CRS.from_user_input(name) for name in (crs, target)]
        except CRSError as error:
            raise ValueError(f"a map cannot be read: {message_of(error)}") from None
        return np.stack(transform(*names, *points.T), 1)
