"""Image files as shards store them: 8-bit RGB, upright, a JPEG or PNG that is kept as it came wherever that is so."""

import io
import warnings
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps

KEPT = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png"}  # MPO: a JPEG of a telephone, with a second picture behind it
ORIENTATION = 0x0112  # EXIF tag; 1 is upright
MOST_PIXELS = 500_000_000  # 1.5 GB in memory; more is refused
MODE_NAMES = {"L": "grey", "1": "1-bit", "P": "palette", "LA": "grey with alpha", "I": "32-bit", "F": "float"}
BROKEN = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)  # what Pillow raises for damaged files

Image.MAX_IMAGE_PIXELS = MOST_PIXELS  # its own limit is below what a large camera or a mosaic has


@dataclass(frozen=True)
class Picture:
    """An image file as it is stored: bytes, `jpg` or `png`, size in pixels, why it was converted (None: it was not)."""

    data: bytes
    suffix: str
    width: int
    height: int
    converted: str | None


def store_picture(data: bytes) -> Picture:
    """Keep an upright 8-bit RGB JPEG or PNG as it is, make an 8-bit RGB PNG of anything else; ValueError if damaged."""
    image, reason, suffix = open_picture(data)
    if reason is None:
        return Picture(data, suffix, *image.size, None)
    return Picture(png(image), "png", *image.size, reason)


def open_picture(data: bytes) -> tuple[Image.Image, str | None, str]:
    """Decode an image file.

    Returns: the upright RGB image, why its file cannot be stored as it is (None: it can), the suffix to store it under.
    Raises: ValueError if it is damaged, of a kind that cannot be stored as 8 bits, or too large to decode.
    """
    try:
        _check_end(data)
        with _open(data) as stored:
            stored.load()
            reason = _why_convert(stored, data)
            if reason is None:
                return stored, None, KEPT[stored.format]
            upright = ImageOps.exif_transpose(_to_rgb(stored))
    except BROKEN as problem:
        raise ValueError(f"cannot read the image: {problem}") from problem
    upright.info.clear()  # no EXIF, profile or text goes along
    return upright, reason, "png"


def size_of(data: bytes) -> tuple[int, int]:
    """(width, height) by the header alone, as stored: an EXIF orientation may swap them. ValueError if damaged."""
    try:
        with _open(data) as stored:
            return stored.size
    except BROKEN as problem:
        raise ValueError(f"cannot read the image: {problem}") from problem


def png(image: Image.Image) -> bytes:
    """As a PNG file: of photographs at zlib level 3, which makes files 5 to 12 % larger than 6 in half of the time."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=3 if image.mode == "RGB" else 6)
    return buffer.getvalue()


def _open(data: bytes) -> Image.Image:
    """The header read, the number of pixels checked."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        image = Image.open(io.BytesIO(data))
    if image.width * image.height > MOST_PIXELS:
        raise ValueError(f"it has {image.width}x{image.height} pixels, more than {MOST_PIXELS}; cut it into parts")
    return image


def _check_end(data: bytes) -> None:
    """OSError for a PNG that is cut off or has a wrong checksum: Pillow may read it, stricter decoders do not."""
    with _open(data) as stored:
        if stored.format == "PNG":
            stored.verify()


def _why_convert(stored: Image.Image, data: bytes) -> str | None:
    deep = stored.format == "PNG" and data[24] == 16  # bit depth in IHDR; Pillow shows such files as plain RGB
    if deep or stored.mode.startswith("I;16"):
        return "16-bit to 8-bit RGB"
    if stored.mode != "RGB":
        return f"{MODE_NAMES.get(stored.mode, stored.mode)} to RGB"
    if stored.getexif().get(ORIENTATION, 1) != 1:
        return "EXIF orientation applied"
    return None if stored.format in KEPT else f"{stored.format} to PNG"


def _to_rgb(stored: Image.Image) -> Image.Image:
    """Any mode to 8-bit RGB; alpha is dropped, 16 bits are scaled (Pillow itself would clip them at 255)."""
    if stored.mode == "F":
        raise ValueError("its pixels are floating-point numbers; store it as an 8-bit image")
    if not stored.mode.startswith("I"):
        return (stored.convert("RGBA") if stored.mode == "P" else stored).convert("RGB")  # a palette may have alpha
    exif = stored.getexif()
    rgb = Image.fromarray(np.rint(np.clip(np.asarray(stored), 0, 65535) / 257).astype(np.uint8)).convert("RGB")
    if ORIENTATION in exif:
        rgb.getexif()[ORIENTATION] = exif[ORIENTATION]
    return rgb
