"""Image files as shards store them: upright 8-bit RGB. A JPEG or PNG that is so already is kept byte for byte."""

import io
from dataclasses import dataclass, field

import cv2
import numpy as np
from PIL import Image

from cssr.cracks.masks import BROKEN as BROKEN
from cssr.utils.image_files import register_heif
from cssr.utils.images import any_size, encode_image, exif_orientation, open_image
from cssr.utils.photographs import open_photograph

KEPT = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png"}  # MPO: a JPEG of a telephone, with a second picture behind it
MAX_PIXELS = 500_000_000  # 1.5 GB in memory; more is refused
MODE_NAMES = {"L": "grey", "1": "1-bit", "P": "palette", "LA": "grey with alpha", "I": "32-bit", "F": "float"}
_OUTLINE = (255, 40, 40)  # of cracks, RGB
MISSING = "pixels without data, black"  # the last part of why an image was converted


@dataclass(frozen=True)
class Picture:
    """An image file as it is stored.

    Attributes:
        data: the file. suffix: `jpg` or `png`. width, height: pixels.
        converted: why it was converted; None: it was not.
        valid: H W bool, which pixels hold data; None: all do.
    """

    data: bytes
    suffix: str
    width: int
    height: int
    converted: str | None
    valid: np.ndarray | None = None


@dataclass(frozen=True)
class Opened:
    """A decoded image file.

    Attributes:
        image: upright, RGB. reason: why its file cannot be stored as it is; None: it can. suffix: to store it under.
        valid: H W bool, which pixels hold data (`cssr.utils.photographs`); None: all do.
        note: what people should know of it, or "".
    """

    image: Image.Image = field(repr=False)
    reason: str | None
    suffix: str
    valid: np.ndarray | None = None
    note: str = ""


def store_picture(data: bytes, bits: int | None = None) -> Picture:
    """Keep an upright 8-bit RGB JPEG or PNG as it is, make an 8-bit RGB PNG of anything else; ValueError if damaged."""
    opened = open_picture(data, bits)
    stored = data if opened.reason is None else png(opened.image)
    return Picture(stored, opened.suffix, *opened.image.size, opened.reason, opened.valid)


def open_picture(data: bytes, bits: int | None = None) -> Opened:
    """Decode an image file; `bits`: as for `cssr.utils.photographs.open_photograph`.

    Raises: ValueError if it is damaged, of a kind that cannot be stored as 8 bits, or too large to decode.
    """
    try:
        with _open(data) as stored:
            if stored.format == "PNG":  # Pillow may read one that is cut off or has a wrong checksum, others do not
                stored.verify()
        with _open(data) as stored:
            reason = _why_convert(stored, data)
            if reason is None:
                with any_size():
                    stored.load()
                return Opened(stored, None, KEPT[stored.format])
    except BROKEN as problem:
        if data[:2] not in (b"II", b"MM"):  # there are TIFFs that Pillow does not know
            raise ValueError(f"cannot read the image: {problem}") from problem
        reason = "TIFF to PNG"
    return _converted(data, reason, bits)


def _converted(data: bytes, reason: str, bits: int | None) -> Opened:
    try:
        with open_photograph(data, MAX_PIXELS, bits) as photograph:
            rgb, valid = photograph.window(0, 0, *photograph.shape)
    except (ValueError, OSError) as problem:
        text = str(problem).removeprefix("cannot read the image as a photograph: ")
        raise ValueError(f"cannot read the image: {text}") from problem
    reason = f"{photograph.bits}-bit to 8-bit RGB" if photograph.bits > 8 else reason
    reason += "; the first of its frames alone" if " frames" in photograph.note else ""
    reason += "" if valid is None else f"; {MISSING}"
    return Opened(Image.fromarray(np.ascontiguousarray(rgb)), reason, "png", valid, photograph.note)


def size_of(data: bytes) -> tuple[int, int]:
    """(width, height) by the header alone, as stored: an EXIF orientation may swap them. ValueError if damaged."""
    try:
        with _open(data) as stored:
            return stored.size
    except BROKEN as problem:
        raise ValueError(f"cannot read the image: {problem}") from problem


def png(image: Image.Image) -> bytes:
    """Encode as PNG: photographs at zlib level 3, which makes files 5 to 12 % larger than 6 in half of the time."""
    return encode_image(image, compress_level=3 if image.mode == "RGB" else 6)


def outlined(image: Image.Image, mask: np.ndarray) -> Image.Image:
    """Draw the outline of a crack (H W, above 0) around, not on, its pixels in an RGB image: hairlines stay visible."""
    inside = (cv2.resize(mask.astype(np.float32), image.size, interpolation=cv2.INTER_AREA) > 0).astype(np.uint8)
    pixels = np.array(image)
    pixels[cv2.dilate(inside, np.ones((3, 3), np.uint8)) > inside] = _OUTLINE
    return Image.fromarray(pixels)


def _open(data: bytes) -> Image.Image:
    """The header read, the number of pixels checked."""
    register_heif()
    return open_image(io.BytesIO(data), MAX_PIXELS)


def _why_convert(stored: Image.Image, data: bytes) -> str | None:
    deep = stored.format == "PNG" and data[24] == 16  # bit depth in IHDR; Pillow shows such files as plain RGB
    if deep or stored.mode.startswith("I;16"):
        return "16-bit to 8-bit RGB"
    if stored.mode != "RGB":
        return f"{MODE_NAMES.get(stored.mode, stored.mode)} to RGB"
    if "transparency" in stored.info:
        return "transparent colour to RGB"
    if exif_orientation(stored) != 1:
        return "EXIF orientation applied"
    return None if stored.format in KEPT else f"{stored.format} to PNG"
