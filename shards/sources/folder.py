"""A folder of images and a folder of masks: the plainest layout, and the parts that other layouts borrow."""

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
from PIL import Image

from . import SOURCES, Item, MaskRule, Root, Source, Split

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
LOSSY_SUFFIXES = (".jpg", ".jpeg", ".webp")
DEFAULT_THRESHOLD = 127
MOST_CLASSES = 8  # this many different values or fewer in loss-free masks are class labels, not soft edges
Threshold = Annotated[int | None, "crack = mask value > N (without it, the values of the whole set decide)"]
ImagesOnly = Annotated[bool, "no masks, for super-resolution alone; the images may also lie in ROOT itself"]


@SOURCES.register
def folder(root: Root, split: Split = None, threshold: Threshold = None, images_only: ImagesOnly = False) -> Source:
    """ROOT/images and ROOT/masks, or ROOT/SPLIT/images and ROOT/SPLIT/masks; same names, any suffix."""
    if images_only:
        return _without_masks(root, split, threshold)
    base = split_folder(root, split)
    if not (base / "masks").is_dir():
        by_stem(base / "images", IMAGE_SUFFIXES)  # without images, that is what to say
        raise ValueError(
            f"there is no folder {base / 'masks'}; create it, point --root at the folder above it, or take the images "
            "alone, for super-resolution, with --images-only"
        )
    items = pair(root, base / "images", base / "masks")
    lossy = any(path.suffix.lower() in LOSSY_SUFFIXES for path in (base / "masks").rglob("*"))
    return Source("folder", None, items, partial(decide_by_levels, threshold=threshold, lossy=lossy))


def _without_masks(root: Path, split: str | None, threshold: int | None) -> Source:
    if threshold is not None:
        raise ValueError(f"--threshold {threshold} is about masks, of which --images-only takes none; leave one out")
    pictures = by_stem(image_folder(root, split), IMAGE_SUFFIXES)
    items = [Item(stem, path.relative_to(root).as_posix(), path.read_bytes, None) for stem, path in pictures.items()]
    return Source("folder", None, items, None)


def image_folder(root: Path, split: str | None) -> Path:
    """The folder `images` of ROOT or ROOT/SPLIT, or that itself where nothing in it is called images or masks.

    Raises: ValueError as `split_folder`.
    """
    base = root / split if split else root
    inside = {path.name for path in base.rglob("*") if path.is_dir()} if base.is_dir() else {"images"}
    return split_folder(root, split) / "images" if inside & {"images", "masks"} else base


def split_folder(root: Path, split: str | None, needs: str = "images") -> Path:
    """ROOT or ROOT/SPLIT, whichever holds the folder `needs`; ValueError naming the splits that there are."""
    if not root.is_dir():
        raise ValueError(f"--root {root} is not a folder; give the folder that holds {needs}/")
    base = root / split if split else root
    if (base / needs).is_dir():
        return base
    splits = sorted(path.name for path in root.iterdir() if (path / needs).is_dir())
    remedy = f"--root must hold {needs}/ or SPLIT/{needs}/"
    if splits:
        remedy = f"choose with --split from: {', '.join(splits)}"
    elif (root / needs).is_dir():
        remedy = "this set has no splits, leave --split out (--ratio cuts it into parts)"
    found = f"unknown split {split!r}: " if split else ""
    raise ValueError(f"{found}there is no folder {base / needs}; {remedy}")


def pair(
    root: Path,
    images: Path,
    masks: Path,
    mask_suffixes: Iterable[str] = IMAGE_SUFFIXES,
    read: Callable[[Path], np.ndarray] | None = None,
) -> list[Item]:
    """The items of two folders, sorted by key: files of the same relative stem belong together.

    Hidden files, and files that are no images, do not count. `read` turns a mask's path into its values, H W.
    Raises: ValueError for an empty or missing folder, two files of one stem, an image without mask and the reverse.
    """
    pictures, truths = by_stem(images, IMAGE_SUFFIXES), by_stem(masks, mask_suffixes)
    _check_pairs(pictures, truths, images, masks)
    read = read or read_mask
    return [
        Item(stem, path.relative_to(root).as_posix(), path.read_bytes, partial(read, truths[stem]))
        for stem, path in sorted(pictures.items())
    ]


def by_stem(directory: Path, suffixes: Iterable[str]) -> dict[str, Path]:
    """Files below `directory` by relative path without suffix; ValueError where there is none, or two share a stem."""
    if not directory.is_dir():
        raise ValueError(f"there is no folder {directory}; create it, or point --root at the folder above it")
    found: dict[str, Path] = {}
    for path in sorted(directory.rglob("*")):
        if path.name.startswith(".") or path.suffix.lower() not in tuple(suffixes) or not path.is_file():
            continue
        stem = path.relative_to(directory).with_suffix("").as_posix()
        if stem in found:
            raise ValueError(f"duplicate key {stem!r}: {found[stem]} and {path}; rename or remove one of them")
        found[stem] = path
    if not found:
        raise ValueError(f"{directory} is empty: no file ends with {' '.join(suffixes)}; check --root and --split")
    return found


def _check_pairs(pictures: dict[str, Path], truths: dict[str, Path], images: Path, masks: Path) -> None:
    without_mask, without_image = sorted(pictures.keys() - truths.keys()), sorted(truths.keys() - pictures.keys())
    if without_mask:
        raise ValueError(
            f"missing mask: {len(without_mask)} of {len(pictures)} images have none, the first is "
            f"{pictures[without_mask[0]]}; add {masks / without_mask[0]}.png or remove the image"
        )
    if without_image:
        raise ValueError(
            f"missing image: {len(without_image)} of {len(truths)} masks have none, the first is "
            f"{truths[without_image[0]]}; add {images / without_image[0]}.jpg or remove the mask"
        )


def read_mask(path: Path) -> np.ndarray:
    """The grey levels of a mask file, uint8 H W, a 1-bit mask as 0 and 255.

    Raises: ValueError where it has colours or transparent parts, or cannot be read.
    """
    try:
        with Image.open(path) as stored:
            stored.load()
            mode = stored.mode
            if mode == "P":  # the colours are meant, not their places in the palette
                stored = stored.convert("RGBA" if "transparency" in stored.info else "RGB")
            planes = np.asarray(stored.convert("L") if mode == "1" else stored)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as problem:
        raise ValueError(f"cannot read mask {path}: {problem}; replace or remove it and its image") from problem
    if planes.dtype != np.uint8:
        raise ValueError(f"mask {path} is of mode {mode}; store masks as 8-bit grey or 1-bit images")
    return planes if planes.ndim == 2 else _one_plane(planes, path)


def _one_plane(planes: np.ndarray, path: Path) -> np.ndarray:
    """H W C -> H W where nothing is lost: equal colour channels, an opaque alpha channel."""
    channels = planes.shape[2]
    if channels in (2, 4) and (planes[..., -1] != 255).any():
        raise ValueError(f"mask {path} is partly transparent; store it as a grey image without alpha")
    colours = planes[..., : channels - 1] if channels in (2, 4) else planes
    if (colours != colours[..., :1]).any():
        raise ValueError(f"mask {path} is coloured; store it as a grey image in which white is crack")
    return np.ascontiguousarray(colours[..., 0])


def above(threshold: int, seen: str, why: str = "") -> MaskRule:
    """The rule "crack = value > threshold"."""
    return MaskRule(f"{seen}: crack = value > {threshold}{why}", lambda values: values > threshold)


def decide_by_levels(items: Iterable[Item], threshold: int | None = None, lossy: bool = False) -> MaskRule:
    """One rule for a whole set from the grey levels that its masks use; reads every mask once.

    {0, 1}: crack = 1. {0, 255}: crack = 255. Otherwise crack = value > 127, or > `threshold` where one is given.
    `lossy`: the masks are JPEGs, whose few levels between come from the compression.
    Raises: ValueError where the levels may mean something else (labels, none above 127) and no threshold is given.
    """
    used = np.zeros(256, bool)
    for item in items:
        used[np.unique(item.mask())] = True
    levels = np.flatnonzero(used).tolist()
    few = len(levels) <= MOST_CLASSES
    seen = f"values {{{', '.join(map(str, levels))}}}" if few else f"values {levels[0]}..{levels[-1]}"
    if threshold is not None:
        return above(threshold, seen, " (as chosen by --threshold)")
    if 1 in levels and levels[-1] == 1:
        return MaskRule(f"{seen}: crack = 1", lambda values: values == 1)
    if levels[-1] == 255 and set(levels) <= {0, 255}:
        return MaskRule(f"{seen}: crack = 255", lambda values: values == 255)
    _refuse_unclear(levels, lossy, seen)
    return above(DEFAULT_THRESHOLD, seen)


def _refuse_unclear(levels: list[int], lossy: bool, seen: str) -> None:
    """Labels such as {0, 1, 2} or {0, 204, 255} are classes: a threshold would pick some of them without a word."""
    labels = not lossy and 3 <= len(levels) <= MOST_CLASSES
    dim = 1 < levels[-1] <= DEFAULT_THRESHOLD and not (lossy and levels[-1] < 32)  # JPEG noise on empty masks stays low
    if labels or dim:
        raise ValueError(
            f"it is unclear which mask values are crack: the masks hold {seen}; "
            "say it with --threshold N (crack = value > N)"
        )
