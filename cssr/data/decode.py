"""Decode the files of a sample. What a header claims is checked before anything is decoded.

Images are JPEG or PNG and, in other people's shards, WebP or TIFF; other formats that the decoders know are refused.
"""

import io
import re
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import cv2
import kornia_rs.io
import numpy as np
import simplejpeg
from PIL import Image

from cssr.cracks.masks import BROKEN
from cssr.utils.images import PNG, any_size, pixel_chunks
from cssr.utils.text import message_of

_GREY = b"\x08\x00"  # of a PNG: 8 bits, one channel
_BY_KORNIA = {_GREY: "mono", b"\x08\x02": "rgb"}  # by a PNG's bits and kind of colours
_JPEG = b"\xff\xd8\xff"
_BY_PILLOW = re.compile(rb"RIFF....WEBP|II\*\x00|MM\x00\*", re.DOTALL)
_NPY = re.compile(
    rb"\x93NUMPY\x01\x00..\{'descr': '<f4', 'fortran_order': (True|False), 'shape': \((\d{1,3}), (\d{1,3})\), \} *\n",
    re.DOTALL,
)  # what numpy.save writes for such an array; nothing in it is evaluated


def image_size(data: bytes) -> tuple[int, int]:
    """(width, height) in pixels by the header of a JPEG, PNG, WebP or TIFF file; ValueError if it is none of them."""
    if data[:8] == PNG and data[12:16] == b"IHDR" and len(data) >= 33:
        return struct.unpack(">II", data[16:24])
    if data[:3] == _JPEG:
        return _jpeg_size(data)
    if _BY_PILLOW.match(data):
        with _open_by_pillow(data) as image:
            return image.size
    raise ValueError("neither JPEG nor PNG, nor WebP or TIFF")


def _jpeg_size(data: bytes) -> tuple[int, int]:
    try:
        height, width, *_ = simplejpeg.decode_jpeg_header(data, strict=False)
        return width, height
    except (ValueError, KeyError):  # colours subsampled in a way that it does not know, or no JPEG at all
        try:
            with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
                return image.size
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise ValueError("neither JPEG nor PNG") from error


def decode_image(data: bytes, notify: Callable[[str], None]) -> np.ndarray:
    """H W 3 uint8 RGB, as stored: an EXIF orientation is not applied.

    `notify` is called with what a JPEG decoder reports, where it could decode all the same. ValueError if it cannot.
    """
    if _BY_PILLOW.match(data):
        return _decode_by_pillow(data, "RGB")
    if data[:3] == _JPEG:
        return _decode_jpeg(data, "RGB", notify)
    image = _decode_plain_png(data)
    if image is None:
        return cv2.cvtColor(_decode_by_opencv(data, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
    return image if image.shape[2] == 3 else np.repeat(image, 3, axis=2)


def decode_mask(data: bytes, above: int = 0) -> np.ndarray:
    """H W uint8: 1 where the stored value exceeds `above`. ValueError if it cannot be decoded."""
    if _BY_PILLOW.match(data):
        return (_decode_by_pillow(data, "L") > above).view(np.uint8)
    if data[:3] == _JPEG:
        return (_decode_jpeg(data, "GRAY", lambda _: None)[..., 0] > above).view(np.uint8)
    values = _decode_plain_png(data) if data[24:26] == _GREY else None
    values = _decode_by_opencv(data, cv2.IMREAD_GRAYSCALE) if values is None else values[..., 0]
    return (values > above).view(np.uint8)


def decode_kernel(data: bytes, side: int) -> np.ndarray:
    """k k float32 from a numpy file. ValueError for anything but `side` x `side` finite float32, pickles above all."""
    header = _NPY.match(data)
    if not header or data[8:10] != struct.pack("<H", header.end() - 10):
        raise ValueError("its kernel is no numpy file of float32")
    shape = int(header[2]), int(header[3])
    if shape != (side, side) or len(data) - header.end() != 4 * side * side:
        raise ValueError(f"its kernel has {shape[0]} x {shape[1]} pixels, not {side} x {side}")
    order = "F" if header[1] == b"True" else "C"
    kernel = np.frombuffer(data, "<f4", offset=header.end()).reshape(shape, order=order)
    if not np.isfinite(kernel).all():
        raise ValueError("its kernel is not finite")
    return np.array(kernel, np.float32, order="C")


def _decode_jpeg(data: bytes, colours: str, notify: Callable[[str], None]) -> np.ndarray:
    """H W C uint8; damage in the middle is doubtful, an end that is missing an error."""
    try:
        return simplejpeg.decode_jpeg(data, colours)
    except (ValueError, KeyError) as error:
        reason = message_of(error)
        if "subsampling" in reason or isinstance(error, KeyError):  # merely of a kind that it does not know
            image = _decode_by_opencv(data, cv2.IMREAD_COLOR if colours == "RGB" else cv2.IMREAD_GRAYSCALE)
            return cv2.cvtColor(image, cv2.COLOR_BGR2RGB) if colours == "RGB" else image[..., None]
        if "Premature end of JPEG" in reason:
            raise ValueError("cannot be decoded") from error
    try:
        image = simplejpeg.decode_jpeg(data, colours, strict=False)  # what it can: as OpenCV, which writes to stderr
    except (ValueError, KeyError) as error:
        raise ValueError("cannot be decoded") from error
    notify(reason)
    return image


def _decode_plain_png(data: bytes) -> np.ndarray | None:
    """H W C uint8 of a PNG of 8 bits that is grey or RGB, else None: several times faster than OpenCV, and strict."""
    kind = _BY_KORNIA.get(data[24:26])
    if data[:8] != PNG or kind is None or len(data) < 33:
        return None
    width, height = struct.unpack(">II", data[16:24])
    try:
        return kornia_rs.io.decode_image_png_u8(pixel_chunks(data), (height, width), kind)
    except Exception as error:  # of no class of its own
        raise ValueError("cannot be decoded") from error


def _decode_by_opencv(data: bytes, mode: int) -> np.ndarray:
    try:
        pixels = np.frombuffer(pixel_chunks(data), np.uint8)
        image = cv2.imdecode(pixels, mode | cv2.IMREAD_IGNORE_ORIENTATION)
    except (cv2.error, ValueError) as error:
        raise ValueError("cannot be decoded") from error
    if image is None:
        raise ValueError("cannot be decoded")
    return image


@contextmanager
def _open_by_pillow(data: bytes) -> Iterator[Image.Image]:
    """A WebP or TIFF file, its header read; ValueError for damage, then and later."""
    try:
        with any_size():
            image = Image.open(io.BytesIO(data), formats=["WEBP", "TIFF"])
        with image:
            yield image
    except (*BROKEN, struct.error) as error:
        raise ValueError("cannot be decoded") from error


def _decode_by_pillow(data: bytes, mode: str) -> np.ndarray:
    with _open_by_pillow(data) as image:
        return np.array(image.convert(mode))
