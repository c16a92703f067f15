"""Photographs as files: read by windows, upright, as RGB of 8 bits, with the pixels that hold data.

A TIFF that is large, georeferenced, deep, or marks missing data is read by windows from the file (extra `large`). All
else is decoded when it is opened, by Pillow, which takes 4 bytes a pixel (grey: 1), 432 MB for 12,000 x 9,000; up to
1,000 megapixels, or one for 8 bytes of this machine's memory.

Pixels that hold no data (`cssr/utils/valid_pixels.py`) are black in `pixels`; `read`, for networks, continues the
nearest valid ones into them, so that no edge arises that the photograph does not have.
"""

import io
import re
import struct
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
from einops import rearrange
from PIL import Image, UnidentifiedImageError

from cssr.utils import geotiff
from cssr.utils.image_files import LIKE_IMAGES, register_heif, remedy
from cssr.utils.images import PIXELS, PNG, any_size, check_pixels, open_image, pixel_chunks
from cssr.utils.valid_pixels import OPAQUE, fill_missing

if TYPE_CHECKING:
    from torch import Tensor  # imported where it is used: shards are made without it

_SMALL = 16_000_000  # pixels of a TIFF without a place on the map that is decoded as a whole
_ORIENTATION = 0x0112  # EXIF and TIFF tag
# TIFF tags: bits, whether 0 is white, greatest value, GDAL's nodata, kind of frame.
_DEPTH, _PHOTOMETRIC, _TOP, _NODATA, _SUBFILE = 258, 262, 281, 42113, 254
# What makes a photograph upright, by the tag: rows and columns exchanged, then rows reversed, columns reversed.
_TURNS = {2: (0, 0, 1), 3: (0, 1, 1), 4: (0, 1, 0), 5: (1, 0, 0), 6: (1, 0, 1), 7: (1, 1, 1), 8: (1, 1, 0)}
_STACKS = ("GIF", "WEBP", "PNG", "TIFF", "AVIF")  # formats with further frames that are no previews of the first
BESIDE = ".msk"  # what GDAL adds to the name of a file for that of a mask of its pixels

cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # what it cannot read is an error of ours

Source = Image.Image | np.ndarray | bytes | str | Path


class Photograph:
    """An upright photograph, to be read by windows.

    Attributes:
        shape: height, width, pixels. held: bytes that it takes in memory. place: its georeference, or None.
        masked: whether some pixels may hold no data. bits: of each value in the file.
        note: what its user should know, or "".
    """

    def __init__(self, source: "_Decoded | geotiff.TiffFile", orientation: int = 1, note: str = ""):
        self._source = source
        self._exchange, self._up, self._left = _TURNS.get(orientation, (0, 0, 0))
        width, height = source.size
        self.shape = (width, height) if self._exchange else (height, width)
        self.place: geotiff.Place | None = getattr(source, "place", None)
        self.held, self.masked, self.bits = source.held, source.masked, source.bits
        self.note = "; ".join(filter(None, (note, source.note)))

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
        part = self._source.part(*box)
        rgb, valid = _rgb_and_valid(*part) if isinstance(part, tuple) else _rgb_and_valid(part)
        return self._upright(rgb), None if valid is None else self._upright(valid)

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


class _Decoded:
    """A picture in memory, of 8 bits, its alpha (where it has one) 0 where it holds no data."""

    def __init__(self, picture: Image.Image, own: bool = True, bits: int = 8, note: str = ""):
        self._picture, self._own, self.size, self.bits, self.note = picture, own, picture.size, bits, note
        self.held = picture.width * picture.height * {"1": 1, "L": 1, "P": 1}.get(picture.mode, 4)
        alpha = _has_alpha(picture)
        self.masked = alpha and picture.convert("RGBA").getchannel("A").getextrema()[0] < OPAQUE

    def part(self, left: int, top: int, right: int, bottom: int) -> Image.Image:
        """A window."""
        return self._picture.crop((left, top, right, bottom))

    def close(self) -> None:
        """The file, unless the picture is the caller's."""
        if self._own:
            self._picture.close()


def check_array(image: np.ndarray) -> np.ndarray:
    """The array itself; ValueError, one line, unless it is H W 3 uint8, or H W 4 with alpha."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in (3, 4):
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
    if isinstance(image, np.ndarray):
        return Photograph(_Decoded(Image.fromarray(check_array(image))))
    try:
        file = isinstance(image, (str, Path, bytes))
        if file and geotiff.is_tiff(image) and geotiff.installed():
            return _open_tiff(image, pixels, bits)
        return _decode(image, pixels, bits)
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
            photograph = _decode(image, pixels, bits)
        except Exception:
            raise error from None
        photograph.note = "; ".join(filter(None, (photograph.note, "not by GDAL, which finds faults in it")))
        return photograph
    if file.lab:  # Pillow converts it
        file.close()
        return _decode(image, pixels, bits)
    if file.place is None and file.size[0] * file.size[1] <= _SMALL and file.bits == 8 and not file.masked:
        file.close()
        try:
            return _decode(image, pixels, bits)
        except Exception:  # of damaged files, decoders raise many kinds
            file = geotiff.TiffFile(image, bits)
    # What is georeferenced is so as it is stored.
    return Photograph(file, 1 if file.place else _tiff_orientation(image))


def _tiff_orientation(image: bytes | str | Path) -> int:
    try:
        with open_image(io.BytesIO(image) if isinstance(image, bytes) else image, 1 << 62) as picture:
            return picture.tag_v2.get(_ORIENTATION, 1)
    except (OSError, UnidentifiedImageError, SyntaxError, AttributeError):
        return 1


def _decode(image: Image.Image | bytes | str | Path, pixels: int, bits: int | None) -> Photograph:
    own = not isinstance(image, Image.Image)
    data = io.BytesIO(image) if isinstance(image, bytes) else image
    if own:
        if Path(str(data)).suffix.lower().startswith((".hei", ".hif")) or isinstance(image, bytes):
            register_heif()
        picture = open_image(data, pixels)
    else:
        picture, data = image, _unread_bytes(image)
        check_pixels(picture, pixels)
    if picture.mode == "F":
        raise ValueError("its values are floating point: save it with 8 or 16 bit")
    frames = _frames(picture)
    stated = _stated_bits(picture, data) if data is not None else None
    with any_size():
        picture.load()
    orientation = picture.getexif().get(_ORIENTATION, 1)
    values = _deep_values(picture, data)
    decoded = _Decoded(picture, own) if values is None else _reduced(values, bits or stated)
    missing = _missing(picture, data) if own else None
    decoded = decoded if missing is None else _without(decoded, missing)
    return Photograph(decoded, orientation, f"the first of its {frames} frames" if frames > 1 else "")


def _unread_bytes(picture: Image.Image) -> io.BytesIO | None:
    """The file of a picture that is open but not decoded yet; None of another."""
    file = getattr(picture, "fp", None)
    if file is None or picture.format not in ("PNG", "TIFF"):
        return None
    position = file.tell()
    file.seek(0)
    data = io.BytesIO(file.read())
    file.seek(position)
    return data


def _frames(picture: Image.Image) -> int:
    """Number of pictures, previews of a TIFF left out; ValueError for a mask, which Pillow does not apply."""
    if picture.format != "TIFF":
        return getattr(picture, "n_frames", 1) if picture.format in _STACKS else 1
    kinds = []
    try:
        for number in range(picture.n_frames):
            picture.seek(number)
            kinds.append(picture.tag_v2.get(_SUBFILE, 0) & 5)
        picture.seek(0)
    except SyntaxError:  # "unknown pixel mode": of a mask
        kinds = [4]
    if 4 in kinds:
        raise ValueError("its mask of missing pixels needs rasterio: pip install 'cssr[large]'")
    return kinds.count(0)


def _stated_bits(picture: Image.Image, data: object) -> int | None:
    """Bits of the values of a deep file, if it says so: in PNG's sBIT, or TIFF's greatest value."""
    if picture.format == "PNG":
        return _significant_bits(_first_bytes(data))
    tags = getattr(picture, "tag_v2", {})
    depth, top = np.max(tags.get(_DEPTH, 8)), np.max(tags.get(_TOP, 0))
    return int(depth) if 8 < depth < 16 else int(top).bit_length() if top > 255 and top < 65535 else None


def _first_bytes(data: object, count: int = 1 << 16) -> bytes:
    if isinstance(data, io.BytesIO):
        return data.getvalue()[:count]
    with open(data, "rb") as file:
        return file.read(count)


def _significant_bits(head: bytes) -> int | None:
    """Greatest number of bits that a PNG's sBIT chunk states; None without one."""
    at = 8
    while at + 8 <= len(head):
        length, kind = struct.unpack(">I4s", head[at : at + 8])
        if kind == b"sBIT":
            return max(head[at + 8 : at + 8 + length], default=None)
        at += 12 + length
    return None


def _deep_values(picture: Image.Image, data: object) -> np.ndarray | None:
    """The values of a picture of more than 8 bits, H W (C) integers; None for one of 8.

    Pillow shows PNGs and TIFFs with colours of 16 bits as if they had 8: OpenCV decodes these.
    """
    if picture.mode.startswith("I"):
        if getattr(picture, "tag_v2", {}).get(_PHOTOMETRIC) == 0:
            raise ValueError(
                "its values of 16 bits count down from white: that needs rasterio, pip install 'cssr[large]'"
            )
        return np.asarray(picture).clip(0, 65535)
    if data is None:
        return None
    head = _first_bytes(data, 33)
    deep = picture.format == "PNG" and head[:8] == PNG and head[24] == 16
    deep |= picture.format == "TIFF" and np.max(picture.tag_v2.get(_DEPTH, 8)) > 8
    if not deep:
        return None
    check_pixels(picture, PIXELS // 2)
    content = data.getvalue() if isinstance(data, io.BytesIO) else Path(data).read_bytes()
    values = cv2.imdecode(np.frombuffer(pixel_chunks(content), np.uint8), cv2.IMREAD_UNCHANGED)
    if values is None:
        raise ValueError("it is damaged, or of a kind that cannot be read")
    if values.dtype != np.uint16:
        raise ValueError("its values are of a kind that cannot be read: save it with 8 or 16 bit")
    return values if values.ndim == 2 else values[..., [2, 1, 0, 3][: values.shape[2]]]


def _reduced(values: np.ndarray, bits: int | None) -> _Decoded:
    """A picture of 8 bits from deeper values; `bits`: that they have, None: as they show."""
    colours = values[..., :3] if values.ndim == 3 else values
    depth = bits or geotiff.bits_of(int(colours.max(initial=0)))
    small = geotiff.to_8_bits(colours, depth)
    if values.ndim == 3 and values.shape[2] == 4:
        small = np.dstack([small, (values[..., 3] >> 8).astype(np.uint8)])
    return _Decoded(Image.fromarray(small), True, depth, geotiff.depth_note(depth, bits is not None))


def _missing(picture: Image.Image, data: object) -> np.ndarray | None:
    """Missing pixels by GDAL's mask beside a file (`a.tif.msk`) or a TIFF's nodata value: H W bool, or None."""
    beside = Path(f"{data}{BESIDE}")
    if not isinstance(data, io.BytesIO) and beside.is_file():
        with open_image(beside, formats=["TIFF"]) as mask:
            if mask.size != picture.size:
                raise ValueError(f"its mask {beside} has {mask.width} x {mask.height} pixels: remove it, or mend it")
            return np.asarray(mask.convert("L")) < OPAQUE
    try:
        nodata, values = float(picture.tag_v2[_NODATA]), np.asarray(picture)
    except (AttributeError, KeyError, TypeError, ValueError):
        return None
    return (values == nodata).reshape(*values.shape[:2], -1).all(-1)


def _without(decoded: _Decoded, missing: np.ndarray) -> _Decoded:
    """The same, transparent there."""
    layers = np.array(decoded.part(0, 0, *decoded.size).convert("RGBA"))
    layers[missing, 3] = 0
    return _Decoded(Image.fromarray(layers), True, decoded.bits, decoded.note)


def _has_alpha(picture: Image.Image) -> bool:
    return "A" in picture.getbands() or "a" in picture.getbands() or "transparency" in picture.info


def _rgb_and_valid(part: Image.Image, valid: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray | None]:
    """H W 3 uint8, black where it is not valid, and H W bool; None where all is."""
    if _has_alpha(part):
        layers = np.asarray(part.convert("RGBA"))
        rgb, opaque = layers[..., :3], layers[..., 3] >= OPAQUE
        valid = opaque if valid is None else valid & opaque
    else:
        rgb = np.asarray(part.convert("RGB"))
    if valid is None or valid.all():
        return rgb, None
    return np.where(valid[..., None], rgb, np.uint8(0)), valid
