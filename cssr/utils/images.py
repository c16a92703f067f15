"""Pictures: opened safely at any size, side by side, with cracks drawn on them; tensors as pictures.

Pillow takes large pictures for an attack, which cameras and mosaics have; and it makes room for all that a header says
before it reads any of it.
"""

import ctypes
import io
import os
import stat
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from einops import repeat
from PIL import ExifTags, Image, UnidentifiedImageError

from cssr.utils import png
from cssr.utils.machine import memory

if TYPE_CHECKING:  # images are read without torch: its import takes seconds
    from torch import Tensor

PIXELS = min(10**9, memory() // 8)  # that are decoded as a whole, at 8 bytes each: more are taken for a bomb
_PILLOW = threading.Lock()  # on its limit, which is one for the whole process
_lifted: list[int | None] = []  # the limit, once for each block that has lifted it
PNG = b"\x89PNG\r\n\x1a\n"  # the first bytes of such a file
_PIXEL_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")  # all that the pixels of a PNG file depend on
_PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by the colour type of its header
_DEFLATE = 1032  # bytes that become of one at most
_JPEG = 1024  # pixels that come of a byte at most: a bit for each block of 8 x 8, of one channel, and half of that
_CRACK = np.array([255, 40, 40], np.float32)  # overlay colour, RGB

warnings.filterwarnings("ignore", module=r"PIL\.")  # of odd tags: what cannot be read is an error


def _quiet_libtiff() -> None:
    """Keep libtiff, by which Pillow reads TIFFs, from writing of damage to stderr by itself: Pillow raises an error."""
    maps = Path("/proc/self/maps")
    lines = maps.read_text(encoding="utf-8", errors="replace").splitlines() if maps.is_file() else []
    for path in {line.split(maxsplit=5)[5] for line in lines if "/libtiff" in line}:
        with suppress(OSError, AttributeError):  # of another library with such a name
            ctypes.CDLL(path).TIFFSetErrorHandler(None)
            ctypes.CDLL(path).TIFFSetWarningHandler(None)


_quiet_libtiff()


@contextmanager
def any_size() -> Iterator[None]:
    """Open and decode without Pillow's own limit on pixels; `open_image` has another."""
    with _PILLOW:
        _lifted.append(_lifted[0] if _lifted else Image.MAX_IMAGE_PIXELS)
        Image.MAX_IMAGE_PIXELS = None
    try:
        yield
    finally:
        with _PILLOW:
            limit = _lifted.pop()
            if not _lifted:
                Image.MAX_IMAGE_PIXELS = limit


def open_image(
    file: str | Path | io.BytesIO, pixels: int = PIXELS, formats: Sequence[str] | None = None
) -> Image.Image:
    """Read the header of an image, and refuse what must not be decoded: nothing is, yet.

    Args:
        pixels: that it may have. formats: of Pillow, that it may be of; None: all.
    Raises: ValueError for no regular file, more pixels, or more than its bytes can hold; what Pillow raises for what is
        no image.
    """
    if isinstance(file, io.BytesIO):
        size = file.getbuffer().nbytes
    else:
        facts = os.stat(file)
        if not stat.S_ISREG(facts.st_mode):
            raise ValueError("it is no regular file")
        size = facts.st_size
    try:
        with any_size():
            image = Image.open(file, formats=formats)
    except UnidentifiedImageError:  # which names a path a second time, and bytes by their address
        raise UnidentifiedImageError("cannot identify it as an image") from None
    try:
        _check_header(image, size, pixels)
    except ValueError:
        image.close()
        raise
    return image


def exif_orientation(image: Image.Image) -> int:
    """EXIF orientation of an image: 1 is upright, 2 to 8 are mirrored or turned, from 5 on it is on its side."""
    return image.getexif().get(ExifTags.Base.Orientation, 1)


def check_pixels(image: Image.Image, limit: int) -> None:
    """Refuse an image of more pixels."""
    width, height = image.size
    if width * height > limit:
        raise ValueError(f"its {width} x {height} pixels are above the limit of {limit:,}; cut it into parts")


def _check_header(image: Image.Image, size: int, pixels: int) -> None:
    check_pixels(image, pixels)
    width, height = image.size
    limit = _JPEG * size if image.format in ("JPEG", "MPO") else None
    if image.format == "PNG":
        position = image.fp.tell()
        image.fp.seek(24)
        depth, colours = image.fp.read(2)
        image.fp.seek(position)
        limit = _DEFLATE * size * 8 // (depth * _PNG_CHANNELS.get(colours, 1))
    if limit is not None and width * height > limit:
        raise ValueError(f"it is damaged: its header says {width} x {height} pixels, its {size} bytes cannot hold them")


def pixel_chunks(data: bytes) -> bytes:
    """A PNG file without what its pixels do not depend on: OpenCV's libpng writes of oddities there to stderr.

    Files of other kinds are returned as they are.
    Raises: ValueError for a file that ends early, a checksum that is not its chunk's, or a chunk whose name is none of
        PNG's, of which it would write too.
    """
    if data[:8] != PNG:
        return data
    chunks, position, name = [PNG], 8, b""
    while name != b"IEND":
        if len(data) < position + 12:
            raise ValueError("it ends early")
        size, name = struct.unpack_from(">I4s", data, position)
        chunk = data[position : position + size + 12]
        if name in _PIXEL_CHUNKS:
            if len(chunk) < size + 12 or zlib.crc32(chunk[4:-4]) != int.from_bytes(chunk[-4:], "big"):
                raise ValueError(f"it is damaged in {name.decode()}, or ends early")
            chunks.append(chunk)
        elif not name[0] & 32:  # one that no reader may pass over: there is none but these
            raise ValueError("it is damaged: a part of it has no name of PNG's")
        position += size + 12
    return b"".join(chunks)


def to_image(x: "Tensor") -> np.ndarray:
    """C H W float (0..1; C 3 or 1) as H W 3 uint8, clipped and rounded."""
    levels = (x.detach().float().cpu().clamp(0, 1) * 255).round().byte()
    return repeat(levels, "c h w -> h w (n c)", n=3 // len(levels)).numpy()


def encode_image(image: Image.Image | np.ndarray, form: str = "PNG", **options: Any) -> bytes:
    """The bytes of an image as a file; `form` and `options` as Pillow takes them. PNGs without options take a 20th of
    Pillow's time, and are as large within a fifth.
    """
    if not isinstance(image, Image.Image):
        image = Image.fromarray(image)
    if form == "PNG" and not options and image.mode in ("1", "L", "LA", "RGB", "RGBA"):
        return png.encode(np.asarray(image))
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def join_images(
    pictures: Sequence[Image.Image], down: bool = False, gap: int = 0, ground: str = "white"
) -> Image.Image:
    """Pictures in a row or, `down`, in a column, `gap` pixels apart, as one."""
    along = int(down)
    across = max(picture.size[1 - along] for picture in pictures)
    length = sum(picture.size[along] + gap for picture in pictures) - gap
    sheet, position = Image.new("RGB", (across, length) if down else (length, across), ground), 0
    for picture in pictures:
        sheet.paste(picture, (0, position) if down else (position, 0))
        position += picture.size[along] + gap
    return sheet


def overlay(image: np.ndarray, mask: np.ndarray, strength: float = 0.6) -> np.ndarray:
    """Crack pixels tinted red: H W 3 uint8 and H W bool -> H W 3 uint8."""
    tinted = image.copy()
    tinted[mask] = ((1 - strength) * image[mask].astype(np.float32) + strength * _CRACK).round()
    return tinted
