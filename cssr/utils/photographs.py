"""Photographs as files: read by windows, upright, as RGB of 8 bits, with the pixels that hold data.

A TIFF that is large, georeferenced, deep, or marks missing data is read by windows from the file (`geotiff.py`, extra
`large`). All else is decoded when it is opened (`decoded_image.py`), up to 1,000 megapixels, or one for 8 bytes of this
machine's memory.

Pixels that hold no data (`cssr/utils/valid_pixels.py`) are black in `pixels`; `read`, for networks, continues the
nearest valid ones into them, so that no edge arises that the photograph does not have.
"""

import io
import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from einops import rearrange
from PIL import ExifTags, Image, UnidentifiedImageError

from cssr.utils import geotiff
from cssr.utils.decoded_image import DecodedImage, decode
from cssr.utils.image_files import LIKE_IMAGES, remedy
from cssr.utils.images import PIXELS, open_image
from cssr.utils.valid_pixels import fill_missing

if TYPE_CHECKING:
    from torch import Tensor  # imported where it is used: shards are made without it

_SMALL = 16_000_000  # pixels of a TIFF without a place on the map that is decoded as a whole
# What makes a photograph upright, by the tag: rows and columns exchanged, then rows reversed, columns reversed.
_TURNS = {2: (0, 0, 1), 3: (0, 1, 1), 4: (0, 1, 0), 5: (1, 0, 0), 6: (1, 0, 1), 7: (1, 1, 1), 8: (1, 1, 0)}

Source = Image.Image | np.ndarray | bytes | str | Path


class Photograph:
    """An upright photograph, to be read by windows.

    Attributes:
        shape: height, width, pixels. held: bytes that it takes in memory. place: its georeference, or None.
        masked: whether some pixels may hold no data. bits: of each value in the file.
        note: what its user should know, or "".
    """

    def __init__(self, source: DecodedImage | geotiff.TiffFile, orientation: int = 1):
        self._source = source
        self._exchange, self._up, self._left = _TURNS.get(orientation, (0, 0, 0))
        width, height = source.size
        self.shape = (width, height) if self._exchange else (height, width)
        self.place: geotiff.Place | None = getattr(source, "place", None)
        self.held, self.masked, self.bits, self.note = source.held, source.masked, source.bits, source.note

    def pixels(self, top: int, left: int, height: int, width: int) -> np.ndarray:
        """Read a window within the photograph: height width 3 uint8, black where it is not valid.

        Raises: OSError if the file is damaged there.
        """
        return self.window(top, left, height, width)[0]

    def window(self, top: int, left: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray | None]:
        """`pixels`, and which of them are valid: height width bool, None where all are."""
        rows, columns = self.shape
        top = rows - top - height if self._up else top
        left = columns - left - width if self._left else left
        box = (top, left, top + height, left + width) if self._exchange else (left, top, left + width, top + height)
        rgb, valid = self._source.part(*box)
        if valid is None or valid.all():
            return self._upright(rgb), None
        return self._upright(np.where(valid[..., None], rgb, np.uint8(0))), self._upright(valid)

    def _upright(self, array: np.ndarray) -> np.ndarray:
        array = array.swapaxes(0, 1) if self._exchange else array
        return array[:: -1 if self._up else 1, :: -1 if self._left else 1]

    def read(self, top: int, left: int, height: int, width: int) -> "Tensor":
        """Read a window for networks: 1 3 height width uint8, the nearest valid pixels continued into missing ones."""
        import torch

        rgb, valid = self.window(top, left, height, width)
        return rearrange(torch.from_numpy(np.array(fill_missing(rgb, valid))), "h w c -> 1 c h w")

    def valid(self, top: int, left: int, height: int, width: int) -> "Tensor | None":
        """Read which pixels of a window are valid: 1 1 height width bool; None where all of them are."""
        import torch

        valid = self.window(top, left, height, width)[1] if self.masked else None
        return None if valid is None else torch.from_numpy(np.array(valid))[None, None]

    def extent(self) -> tuple[int, int, int, int]:
        """Top, left, height and width of the smallest window that holds all valid pixels; ValueError without any."""
        height, width = self.shape
        if not self.masked:
            return 0, 0, height, width
        rows, columns = np.zeros(height, bool), np.zeros(width, bool)
        step = max(1, (1 << 24) // width)
        for top in range(0, height, step):
            count = min(step, height - top)
            valid = self.window(top, 0, count, width)[1]
            rows[top : top + count] = True if valid is None else valid.any(1)
            columns |= True if valid is None else valid.any(0)
        if not rows.any():
            raise ValueError("none of its pixels holds data: all are transparent, or marked as missing")
        (top, *_, bottom), (left, *_, right) = (np.flatnonzero(np.r_[x, False])[[0, -1]] for x in (rows, columns))
        return int(top), int(left), int(bottom - top) + 1, int(right - left) + 1

    def within(self, top: int, left: int, height: int, width: int) -> "Part":
        """A rectangle of the photograph as an image of its own."""
        return Part(self, top, left, height, width)

    def close(self) -> None:
        """The file."""
        self._source.close()

    def __enter__(self) -> "Photograph":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Part:
    """A rectangle of a photograph, read by windows as the photograph is."""

    def __init__(self, photograph: Photograph, top: int, left: int, height: int, width: int):
        self._photograph, self._top, self._left, self.shape = photograph, top, left, (height, width)
        self.masked = photograph.masked

    def read(self, top: int, left: int, height: int, width: int) -> "Tensor":
        """Read as `Photograph.read` does."""
        return self._photograph.read(self._top + top, self._left + left, height, width)

    def valid(self, top: int, left: int, height: int, width: int) -> "Tensor | None":
        """Mask as `Photograph.valid`."""
        return self._photograph.valid(self._top + top, self._left + left, height, width)


def check_array(image: np.ndarray) -> np.ndarray:
    """The array itself; ValueError, one line, unless it is H W 3 uint8, or H W 4 with alpha."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in (3, 4) or not image.size:
        raise ValueError(
            f"an array of height x width x 3 (4 with alpha), uint8, is needed, got {image.dtype} {[*image.shape]}"
        )
    return image


def open_photograph(image: Source, pixels: int = PIXELS, bits: int | None = None) -> Photograph:
    """Open a file, its bytes, a PIL image or an array (H W 3 uint8, or H W 4 with alpha) as a photograph.

    Upright by EXIF; grey, palette and CMYK to RGB; deeper values scaled to 8 bits; of several frames the first.

    Args:
        pixels: that a picture which is decoded as a whole may have.
        bits: of the values of files that store them in 16; None: as the file says or, if it does not, as few of 8, 10,
            12, 14 and 16 as hold its greatest value.
    Raises: ValueError, one line, if it cannot be read.
    """
    if not isinstance(image, Source):
        raise ValueError(f"a photograph is a path, bytes, a PIL image or an array, got {type(image).__name__}")
    if isinstance(image, Image.Image) and 0 in image.size:
        raise ValueError(f"the image has no pixels: {image.width} x {image.height}")
    if isinstance(image, np.ndarray):
        return Photograph(DecodedImage(Image.fromarray(check_array(image))))
    try:
        file = isinstance(image, (str, Path, bytes))
        if file and geotiff.is_tiff(image) and geotiff.installed():
            return _open_tiff(image, pixels, bits)
        return Photograph(*decode(image, pixels, bits))
    except Exception as error:  # of damaged files, decoders raise many kinds
        raise unreadable(image, error) from None


def unreadable(image: object, error: Exception) -> ValueError:
    """Message for a photograph that cannot be read, in one line."""
    name = "the image" if isinstance(image, bytes) else str(image)
    error = error.__cause__ if type(error).__name__ == "RasterioIOError" and error.__cause__ else error
    reason = " ".join(re.sub(r".*, band \d+: ", "", str(error).replace(repr(image), "it")).split())
    suffix = Path(name).suffix.lower() if isinstance(image, (str, Path)) else ""
    more = f" ({suffix} is not read here: {remedy([suffix])})" if suffix in LIKE_IMAGES else ""
    return ValueError(f"cannot read {name} as a photograph: {reason}{more}")


def read_photograph(image: Source, pixels: int = PIXELS, bits: int | None = None) -> np.ndarray:
    """Read a photograph as H W 3 uint8, as `open_photograph` does: black where it holds no data.

    Raises: ValueError, one line, if it cannot be read.
    """
    return read_with_valid(image, pixels, bits)[0]


def read_with_valid(
    image: Source, pixels: int = PIXELS, bits: int | None = None
) -> tuple[np.ndarray, np.ndarray | None]:
    """`read_photograph`, and which of its pixels are valid: H W bool, None where all are."""
    with open_photograph(image, pixels, bits) as photograph:
        try:
            rgb, valid = photograph.window(0, 0, *photograph.shape)
        except OSError as error:
            raise unreadable(image, error) from None
    return np.ascontiguousarray(rgb), None if valid is None or valid.all() else np.ascontiguousarray(valid)


def _open_tiff(image: bytes | str | Path, pixels: int, bits: int | None) -> Photograph:
    """Open a TIFF by windows where it is large, deep, masked or georeferenced, or unknown to Pillow."""
    try:
        file = geotiff.TiffFile(image, bits)
    except ValueError:
        raise
    except Exception as error:  # of one odd tag, which Pillow may pass over
        try:
            photograph = Photograph(*decode(image, pixels, bits))
        except Exception:
            raise error from None
        photograph.note = "; ".join(filter(None, (photograph.note, "not by GDAL, which finds faults in it")))
        return photograph
    if file.lab:  # Pillow converts it
        file.close()
        return Photograph(*decode(image, pixels, bits))
    if file.place is None and file.size[0] * file.size[1] <= _SMALL and file.bits == 8 and not file.masked:
        file.close()
        try:
            return Photograph(*decode(image, pixels, bits))
        except Exception:  # of damaged files, decoders raise many kinds
            file = geotiff.TiffFile(image, bits)
    # What is georeferenced is so as it is stored.
    return Photograph(file, 1 if file.place else _tiff_orientation(image))


def _tiff_orientation(image: bytes | str | Path) -> int:
    try:
        with open_image(io.BytesIO(image) if isinstance(image, bytes) else image, 1 << 62) as picture:
            return picture.tag_v2.get(ExifTags.Base.Orientation, 1)
    except (OSError, UnidentifiedImageError, SyntaxError, AttributeError):
        return 1
