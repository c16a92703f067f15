"""Photographs as files: read by windows, upright, as RGB of 8 bits.

A TIFF that is large or georeferenced is read by windows from the file (extra `large`). All else is decoded when it is
opened, by Pillow, which takes 4 bytes a pixel (grey: 1), 432 MB for 12,000 x 9,000; up to 1,000 megapixels.
"""

from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from cssr import geotiff
from cssr.utils.images import any_size

PIXELS = 10**9  # of a photograph that is decoded as a whole: a larger one is taken for a decompression bomb
_SMALL = 16_000_000  # pixels of a TIFF without a place on the map that is decoded as a whole
_ORIENTATION = 0x0112  # EXIF and TIFF tag
# What makes a photograph upright, by the tag: rows and columns exchanged, then rows reversed, columns reversed.
_TURNS = {2: (0, 0, 1), 3: (0, 1, 1), 4: (0, 1, 0), 5: (1, 0, 0), 6: (1, 0, 1), 7: (1, 1, 1), 8: (1, 1, 0)}
_STACKS = ("GIF", "WEBP", "PNG", "TIFF")  # formats whose further frames are not previews of the first


class Photograph:
    """An upright photograph, to be read by windows.

    Attributes:
        shape: height, width, pixels. held: bytes that it takes in memory. place: where it lies on the map, or None.
        note: what its user should know, or "".
    """

    def __init__(self, source: "_Decoded | geotiff.TiffFile", orientation: int = 1, note: str = ""):
        self._source = source
        self._exchange, self._up, self._left = _TURNS.get(orientation, (0, 0, 0))
        width, height = source.size
        self.shape = (width, height) if self._exchange else (height, width)
        self.place: geotiff.Place | None = getattr(source, "place", None)
        self.held, self.note = getattr(source, "held", geotiff.CACHE), note

    def pixels(self, top: int, left: int, height: int, width: int) -> np.ndarray:
        """A window that lies in the photograph: height width 3 uint8; OSError if the file is damaged there."""
        rows, columns = self.shape
        top = rows - top - height if self._up else top
        left = columns - left - width if self._left else left
        box = (top, left, top + height, left + width) if self._exchange else (left, top, left + width, top + height)
        found = np.asarray(_to_rgb(self._source.part(*box)))
        found = found.transpose(1, 0, 2) if self._exchange else found
        return found[:: -1 if self._up else 1, :: -1 if self._left else 1]

    def read(self, top: int, left: int, height: int, width: int) -> Tensor:
        """The same as 1 3 height width uint8."""
        pixels = np.array(self.pixels(top, left, height, width))
        return torch.from_numpy(pixels).permute(2, 0, 1)[None]

    def close(self) -> None:
        """The file."""
        self._source.close()

    def __enter__(self) -> "Photograph":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Decoded:
    """A picture in memory."""

    def __init__(self, picture: Image.Image, own: bool = True):
        self._picture, self._own, self.size = picture, own, picture.size
        self.held = picture.width * picture.height * {"1": 1, "L": 1, "P": 1, "I;16": 2}.get(picture.mode, 4)

    def part(self, left: int, top: int, right: int, bottom: int) -> Image.Image:
        """A window."""
        return self._picture.crop((left, top, right, bottom))

    def close(self) -> None:
        """The file, unless the picture is the caller's."""
        if self._own:
            self._picture.close()


def check_array(image: np.ndarray) -> np.ndarray:
    """The array itself; ValueError, one line, unless it is H W 3 uint8."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"an array of height x width x 3, uint8, is needed, found {image.dtype} {[*image.shape]}")
    return image


def open_photograph(image: Image.Image | np.ndarray | str | Path, pixels: int = PIXELS) -> Photograph:
    """A file, a PIL image or an array (H W 3 uint8) as a photograph.

    Upright by EXIF, grey, palette and CMYK to RGB, alpha on white, 16 to 8 bit; of several frames the first.

    Args:
        pixels: that a picture which is decoded as a whole may have.
    Raises: ValueError, one line, if it cannot be read.
    """
    if isinstance(image, np.ndarray):
        return Photograph(_Decoded(Image.fromarray(check_array(image))))
    try:
        if not isinstance(image, Image.Image) and geotiff.is_tiff(Path(image)) and geotiff.there():
            return _open_tiff(Path(image), pixels)
        return _decode(image, pixels)
    except Exception as error:  # of damaged files, decoders raise many kinds
        raise unreadable(image, error) from None


def unreadable(image: object, error: Exception) -> ValueError:
    """What is said of a photograph that cannot be read, in one line."""
    return ValueError(f"cannot read {image} as a photograph: {' '.join(str(error).split())}")


def read_photograph(image: Image.Image | str | Path, pixels: int = PIXELS) -> np.ndarray:
    """A photograph as H W 3 uint8, as `open_photograph` reads it.

    Raises: ValueError, one line, if it cannot be read.
    """
    with open_photograph(image, pixels) as photograph:
        try:
            return np.ascontiguousarray(photograph.pixels(0, 0, *photograph.shape))
        except OSError as error:
            raise unreadable(image, error) from None


def _open_tiff(path: Path, pixels: int) -> Photograph:
    """By windows where it is large, or lies on the map, or Pillow does not know its kind."""
    file = geotiff.TiffFile(path)
    if file.place is None and file.size[0] * file.size[1] <= _SMALL:
        file.close()
        try:
            return _decode(path, pixels)
        except Exception:  # of damaged files, decoders raise many kinds
            file = geotiff.TiffFile(path)
    # What lies on the map lies there as it is stored.
    return Photograph(file, 1 if file.place else _tiff_orientation(path))


def _tiff_orientation(path: Path) -> int:
    try:
        with any_size(), Image.open(path) as picture:
            return picture.tag_v2.get(_ORIENTATION, 1)
    except (OSError, UnidentifiedImageError, SyntaxError, AttributeError):
        return 1


def _decode(image: Image.Image | str | Path, pixels: int) -> Photograph:
    if isinstance(image, Image.Image):
        picture = image
    else:
        with any_size():
            picture = Image.open(image)
    if picture.width * picture.height > pixels:
        raise ValueError(f"its {picture.width} x {picture.height} pixels are above the limit of {pixels:,}")
    if picture.mode == "F":
        raise ValueError("its values are floating point: save it with 8 or 16 bit")
    frames = getattr(picture, "n_frames", 1) if picture.format in _STACKS else 1
    picture.load()
    orientation = picture.getexif().get(_ORIENTATION, 1)
    own = picture is not image
    return Photograph(_Decoded(picture, own), orientation, f"the first of its {frames} frames" if frames > 1 else "")


def _to_rgb(part: Image.Image) -> Image.Image:
    if part.mode.startswith("I"):  # 16-bit grey
        part = Image.fromarray((np.asarray(part).clip(0, 65535) / 257).round().astype(np.uint8))
    if "A" in part.mode or "transparency" in part.info:
        layer = part.convert("RGBA")
        part = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return part.convert("RGB")
