"""Mask files matched to the size of their images."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import numpy as np

from cssr.cracks.masks import BROKEN, Read
from cssr.utils.image_files import IMAGE_SUFFIXES as IMAGE_SUFFIXES
from cssr.utils.images import open_image

ORIENTATION = 0x0112  # EXIF tag; from 5 on, the picture lies on its side

ResizeMasks = Annotated[bool, "enlarge or reduce masks of another size than their image to it (nearest neighbour)"]


def upright_size(path: Path | io.BytesIO) -> tuple[int, int]:
    """(height, width) of an image file as it is shown, by its header alone; ValueError if it cannot be read."""
    try:
        with open_image(path) as stored:
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
    return lambda: fitted(read(mask), upright_size(image), origin, resize)


def fitted(values: np.ndarray, size: tuple[int, int], origin: str, resize: bool | None) -> np.ndarray:
    """A mask H W in the size (height, width) of its image; the other arguments as for `reader`."""
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
