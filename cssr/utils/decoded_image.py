"""Pictures decoded as a whole, by Pillow or, where they have more than 8 bits, by OpenCV: in 8 bits, from any file.

A decoded picture takes 4 bytes a pixel (grey: 1), 432 MB for 12,000 x 9,000.
"""

import io
import struct
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from cssr.utils import geotiff
from cssr.utils.image_files import BESIDE, register_heif
from cssr.utils.images import PIXELS, PNG, any_size, check_pixels, exif_orientation, open_image, pixel_chunks
from cssr.utils.valid_pixels import OPAQUE

# TIFF tags: bits, whether 0 is white, greatest value, GDAL's nodata, kind of frame.
_DEPTH, _PHOTOMETRIC, _TOP, _NODATA, _SUBFILE = 258, 262, 281, 42113, 254
_STACKS = ("GIF", "WEBP", "PNG", "TIFF", "AVIF")  # formats with further frames that are no previews of the first

cv2.utils.logging.setLogLevel(
    cv2.utils.logging.LOG_LEVEL_SILENT
)  # the package raises its own error for files it cannot read


class DecodedImage:
    """A picture in memory, of 8 bits, its alpha (where it has one) 0 where it holds no data.

    Attributes: as `geotiff.TiffFile` has them.
    Args:
        own: whether `close` closes the picture.
    """

    def __init__(self, picture: Image.Image, own: bool = True, bits: int = 8, note: str = ""):
        self._picture, self._own, self.size, self.bits, self.note = picture, own, picture.size, bits, note
        self.held = picture.width * picture.height * {"1": 1, "L": 1, "P": 1}.get(picture.mode, 4)
        alpha = _has_alpha(picture)
        self.masked = alpha and picture.convert("RGBA").getchannel("A").getextrema()[0] < OPAQUE

    def part(self, left: int, top: int, right: int, bottom: int) -> tuple[np.ndarray, np.ndarray | None]:
        """A window as H W 3 uint8, and which of its pixels hold data (H W bool; None: all)."""
        part = self._picture.crop((left, top, right, bottom))
        if not _has_alpha(part):
            return np.asarray(part.convert("RGB")), None
        layers = np.asarray(part.convert("RGBA"))
        return layers[..., :3], layers[..., 3] >= OPAQUE

    def without(self, missing: np.ndarray) -> "DecodedImage":
        """The same picture, transparent where `missing` (H W bool) says so."""
        layers = np.array(self._picture.convert("RGBA"))
        layers[missing, 3] = 0
        return DecodedImage(Image.fromarray(layers), True, self.bits, self.note)

    def close(self) -> None:
        """Close the file, unless the picture is the caller's."""
        if self._own:
            self._picture.close()


def decode(image: Image.Image | bytes | str | Path, pixels: int, bits: int | None) -> tuple[DecodedImage, int]:
    """Decode a file, its bytes or an open picture; deeper values are scaled to 8 bits, of several frames the first.

    Args: as `open_photograph` takes them.
    Returns: the picture as it is stored, and its EXIF orientation, 1..8.
    Raises: ValueError, or what the decoders raise for damaged files.
    """
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
    orientation = exif_orientation(picture)
    values = _deep_values(picture, data)
    decoded = DecodedImage(picture, own) if values is None else _reduced(values, bits or stated)
    missing = _missing(picture, data) if own else None
    decoded = decoded if missing is None else decoded.without(missing)
    if frames > 1:
        decoded.note = "; ".join(filter(None, (f"the first of its {frames} frames", decoded.note)))
    return decoded, orientation


def _unread_bytes(picture: Image.Image) -> io.BytesIO | None:
    """The bytes of a PNG or TIFF that is open but not decoded yet; None for other pictures."""
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
    position = 8
    while position + 8 <= len(head):
        length, kind = struct.unpack(">I4s", head[position : position + 8])
        if kind == b"sBIT":
            return max(head[position + 8 : position + 8 + length], default=None)
        position += 12 + length
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


def _reduced(values: np.ndarray, bits: int | None) -> DecodedImage:
    """A picture of 8 bits from deeper values; `bits`: that they have, None: as they show."""
    colours = values[..., :3] if values.ndim == 3 else values
    depth = bits or geotiff.bits_of(int(colours.max(initial=0)))
    small = geotiff.to_8_bits(colours, depth)
    if values.ndim == 3 and values.shape[2] == 4:
        small = np.dstack([small, (values[..., 3] >> 8).astype(np.uint8)])
    return DecodedImage(Image.fromarray(small), True, depth, geotiff.depth_note(depth, bits is not None))


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


def _has_alpha(picture: Image.Image) -> bool:
    return "A" in picture.getbands() or "a" in picture.getbands() or "transparency" in picture.info
