"""Mask files at the size of their images, rules of datasets for them (known classes, widened lines), stored kernels."""

import io
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Annotated

import cv2
import numpy as np

from cssr.cracks.masks import BROKEN, NO_DATA, SHOWN, Decide, MaskRule, Read, rule_of_values
from cssr.dataset_preparation.sources import Item
from cssr.utils.annotations import Within
from cssr.utils.image_files import IMAGE_SUFFIXES as IMAGE_SUFFIXES
from cssr.utils.images import exif_orientation, open_image

ResizeMasks = Annotated[bool, "enlarge or reduce masks of another size than their image to it (nearest neighbour)"]
_MAX_PIXELS = 1 << 20
KERNEL_SUFFIXES = (".npy", ".png", ".tif", ".tiff", ".bmp")
Threshold = Annotated[
    int | None, "crack = mask value > N (without it, the values of the whole set decide)", Within(0, 254)
]
CrackColors = Annotated[
    str | None, "crack = these colours of the masks: 'R,G,B' or '#RRGGBB', several with blanks between"
]
CrackValues = Annotated[str | None, "crack = these grey values of the masks, as 1,2"]
Dilate = Annotated[int, "widen cracks by N pixels on each side, for masks of centre lines", Within(0, 1000)]


def refuse_mask_options(
    threshold: int | None,
    crack_colors: str | None,
    crack_values: str | None,
    dilate: int,
    resize_masks: bool,
    mask_pattern: str | None = None,
) -> None:
    """ValueError for an option about masks that is given beside --images-only, where it would do nothing."""
    options = {"threshold": threshold, "crack-colors": crack_colors, "crack-values": crack_values}
    options |= {"dilate": dilate or None, "resize-masks": resize_masks or None, "mask-pattern": mask_pattern}
    for flag, value in options.items():
        if value is not None:
            text = f"--{flag}" if value is True else f"--{flag} {value}"
            raise ValueError(f"{text} is about masks, of which --images-only takes none; leave one out")


def upright_size(path: Path | io.BytesIO) -> tuple[int, int]:
    """(height, width) of an image file as it is shown, by its header alone; ValueError if it cannot be read."""
    try:
        with open_image(path) as stored:
            width, height = stored.size
            on_side = exif_orientation(stored) >= 5
    except BROKEN as problem:
        raise ValueError(
            f"{path}: cannot read the image: {problem}; replace or remove the image and its mask"
        ) from problem
    return (width, height) if on_side else (height, width)


def reader(read: Read, mask: Path, image: Path, origin: str, resize: bool | None = None) -> Callable[[], np.ndarray]:
    """A function that reads a mask, and matches its size.

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
    same_shape = abs(rows * width - columns * height) <= max(height, width)  # but for one pixel of rounding
    if not (resize and same_shape):
        remedy = ", or match the masks to the images with --resize-masks" if same_shape and resize is not None else ""
        remedy = "; they differ in shape, which --resize-masks does not mend: remove both" if resize else remedy
        raise ValueError(
            f"{origin} is {width}x{height}, but its mask is {columns}x{rows}; give both the same size{remedy}"
        )
    return nearest(values, height, width)


def nearest(values: np.ndarray, height: int, width: int) -> np.ndarray:
    """An array H W in another size: each pixel takes the value under its centre."""
    rows, columns = (
        ((np.arange(size) + 0.5) * old_size / size).astype(int) for size, old_size in zip((height, width), values.shape)
    )
    return values[np.ix_(rows, columns)]


def read_kernel(path: Path) -> np.ndarray:
    """A kernel divided by its sum: k k float32, sum 1.

    A .npy file holds numbers as they are. A picture holds them scaled, to 8 bits most often: what is read differs from
    what was applied by up to 1/255 of its maximum.
    Raises: ValueError unless it is square, of odd side, finite, and its sum positive.
    """
    try:
        values = np.load(path, allow_pickle=False) if path.suffix.lower() == ".npy" else _picture(path)
        values = values.astype(np.float64)
    except BROKEN as problem:
        raise ValueError(f"cannot read kernel {path}: {problem}; replace it, or remove what belongs to it") from problem
    if values.ndim != 2 or values.shape[0] != values.shape[1] or values.shape[0] % 2 == 0:
        raise ValueError(f"kernel {path} has the shape {values.shape}; it must be square, of odd side")
    if not np.isfinite(values).all() or values.sum() <= 0:
        raise ValueError(f"kernel {path} adds up to {values.sum():g}; the sum must be positive, all values finite")
    return (values / values.sum()).astype(np.float32)


def _picture(path: Path) -> np.ndarray:
    """The grey levels of a picture, H W; equal colour channels are one."""
    with open_image(path, _MAX_PIXELS) as stored:
        planes = np.asarray(stored)
    if planes.ndim == 3 and (planes[..., :3] == planes[..., :1]).all():
        planes = planes[..., 0]
    return planes


def decide_by_classes(items: Iterable[Item], crack: int, others: dict[int, str]) -> MaskRule:
    """The rule of a set with known grey values: one is crack, each of the `others` has a name.

    Raises: ValueError where a mask holds any other value.
    """
    for item in items:
        unknown = sorted(set(np.unique(item.mask()).tolist()) - {crack, *others, NO_DATA})
        if unknown:
            names = ", ".join(f"{value} {name}" for value, name in others.items())
            raise ValueError(
                f"the mask of {item.origin} holds {', '.join(map(str, unknown[:SHOWN]))}, but this set knows {crack} "
                f"crack, {names}; is it another set, or a changed one? Then read it as `folder`"
            )
    return rule_of_values(
        [crack], f"crack = {crack} ({', '.join(f'{value} is {name}' for value, name in others.items())})"
    )


def dilated(decide: Decide, radius: int) -> Decide:
    """`decide`, with cracks made wider by `radius` pixels on each side (all that is no farther from a crack pixel).

    Raises: ValueError for a negative radius.
    """
    if radius < 0:
        raise ValueError(f"--dilate is {radius}; give 0 or more pixels")
    return partial(_decide_dilated, decide=decide, radius=radius) if radius else decide


def _decide_dilated(items: Iterable[Item], decide: Decide, radius: int) -> MaskRule:
    rule = decide(items)
    return MaskRule(
        f"{rule.sentence}, widened by {radius} pixels on each side",
        lambda values: widen(rule.apply(values), radius),
        rule.notes,
    )


def widen(mask: np.ndarray, radius: float) -> np.ndarray:
    """All pixels no farther than `radius` from one of the mask's; bool H W."""
    if not mask.any():
        return mask
    distance = cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return distance <= radius
