"""Mask files: grey levels or colours, read without losing or guessing anything, and matched to the image's size."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
from PIL import Image

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
LOSSY_SUFFIXES = (".jpg", ".jpeg", ".webp")
ORIENTATION = 0x0112  # EXIF tag; from 5 on, the picture lies on its side
BROKEN = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)  # what Pillow raises for damaged files

ResizeMasks = Annotated[bool, "enlarge or reduce masks of another size than their image to it (nearest neighbour)"]
Read = Callable[[Path], np.ndarray]


def read_mask(path: Path) -> np.ndarray:
    """The grey levels of a mask file, uint8 H W, a 1-bit mask as 0 and 255.

    Raises: ValueError where it has colours or transparent parts, or cannot be read.
    """
    planes = _planes(path)
    if planes.ndim == 2:
        return planes
    colours = _opaque(planes, path)
    if (colours != colours[..., :1]).any():
        raise ValueError(
            f"mask {path} is coloured; name the colours of cracks with `folder --crack-colors R,G,B`, or store it as a "
            "grey image in which white is crack"
        )
    return np.ascontiguousarray(colours[..., 0])


def read_colours(path: Path) -> np.ndarray:
    """The colours of a mask file, int32 H W, each as `packed` makes it of red, green and blue.

    Raises: ValueError where it has transparent parts, or cannot be read.
    """
    planes = _planes(path)
    if planes.ndim == 2:
        return packed(planes, planes, planes)
    colours = _opaque(planes, path)
    return packed(*np.moveaxis(colours if colours.shape[2] == 3 else np.repeat(colours, 3, 2), -1, 0))


def packed(red, green, blue):
    """Three values 0..255, or arrays of them, as one number: 0xRRGGBB, int32 for arrays."""
    if isinstance(red, np.ndarray):
        red, green, blue = (plane.astype(np.int32) for plane in (red, green, blue))
    return red << 16 | green << 8 | blue


def _planes(path: Path) -> np.ndarray:
    """uint8 H W, or H W C with C of 2 (grey, alpha), 3 or 4 (colours, alpha)."""
    try:
        with Image.open(path) as stored:
            stored.load()
            mode = stored.mode
            if mode == "P":  # the colours are meant, not their places in the palette
                stored = stored.convert("RGBA" if "transparency" in stored.info else "RGB")
            planes = np.asarray(stored.convert("L") if mode == "1" else stored)
    except BROKEN as problem:
        raise ValueError(f"cannot read mask {path}: {problem}; replace or remove it and its image") from problem
    if planes.dtype != np.uint8:
        raise ValueError(f"mask {path} is of mode {mode}; store masks as 8-bit grey or 1-bit images")
    return planes


def _opaque(planes: np.ndarray, path: Path) -> np.ndarray:
    """The colour channels, H W 1 or H W 3; ValueError where an alpha channel lets something through."""
    if planes.shape[2] == 3:
        return planes
    if (planes[..., -1] != 255).any():
        raise ValueError(f"mask {path} is partly transparent; store it as an image without alpha")
    return planes[..., :-1]


def upright_size(path: Path) -> tuple[int, int]:
    """(height, width) of an image file as it is shown, by its header alone; ValueError if it cannot be read."""
    try:
        with Image.open(path) as stored:
            width, height = stored.size
            lying = stored.getexif().get(ORIENTATION, 1) >= 5
    except BROKEN as problem:
        raise ValueError(
            f"{path}: cannot read the image: {problem}; replace or remove the image and its mask"
        ) from problem
    return (width, height) if lying else (height, width)


def reader(read: Read, mask: Path, image: Path, origin: str, resize: bool | None = None) -> Callable[[], np.ndarray]:
    """What reads a mask when it is asked to, and sees to its size.

    Args:
        read: path -> values H W.
        origin: how to name the image to people.
        resize: match a mask of another size to the image; None: there is no such choice.
    """
    return partial(_read_fitted, read, mask, image, origin, resize)


def _read_fitted(read: Read, mask: Path, image: Path, origin: str, resize: bool | None) -> np.ndarray:
    values, size = read(mask), upright_size(image)
    if values.shape == size:
        return values
    (rows, columns), (height, width) = values.shape, size
    alike = abs(rows * width - columns * height) <= max(height, width)  # but for one pixel of rounding
    if not (resize and alike):
        remedy = ", or match the masks to the images with --resize-masks" if alike and resize is not None else ""
        remedy = "; they differ in shape, which --resize-masks does not mend: remove both" if resize else remedy
        raise ValueError(
            f"{origin} is {width}x{height}, but its mask is {columns}x{rows}; give both the same size{remedy}"
        )
    return nearest(values, height, width)


def nearest(values: np.ndarray, height: int, width: int) -> np.ndarray:
    """An array H W in another size: each pixel takes the value under its centre."""
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(int) for new, old in zip((height, width), values.shape)
    )
    return values[np.ix_(rows, columns)]
