"""Helpers of the sources that have a folder of images and a folder of masks."""

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

from cssr.cracks.masks import Read, check_threshold, decide_by_levels, read_mask
from cssr.dataset_preparation.masks import IMAGE_SUFFIXES
from cssr.dataset_preparation.pairing import Layout, Pairs, check_pairs, find_pairs, normalize_name, select
from cssr.dataset_preparation.sources import Item, Source
from cssr.utils.image_files import filter_by_suffix, walk


def by_stem(directory: Path, suffixes: Iterable[str]) -> dict[str, Path]:
    """Files below `directory` by relative path without suffix; ValueError where there is none, or two share a stem.

    Litter (`cssr.utils.image_files`), and files with other suffixes, do not count.
    """
    if not directory.is_dir():
        raise ValueError(f"there is no folder {directory}; create it, or point --root at the folder above it")
    paths: dict[str, Path] = {}
    for path in filter_by_suffix(walk(directory), suffixes):
        stem = normalize_name(path.relative_to(directory).with_suffix("").as_posix())
        if stem in paths:
            raise ValueError(f"duplicate key {stem!r}: {paths[stem]} and {path}; rename or remove one of them")
        paths[stem] = path
    if not paths:
        raise ValueError(f"{directory} is empty: no file ends with {' '.join(suffixes)}; check --root and --split")
    return paths


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
    unknown = f"unknown split {split!r}: " if split else ""
    raise ValueError(f"{unknown}there is no folder {base / needs}; {remedy}")


def image_folder(root: Path, split: str | None) -> Path:
    """The folder `images` of ROOT or ROOT/SPLIT, or that itself where nothing in it is called images or masks.

    Raises: ValueError as `split_folder`.
    """
    base = root / split if split else root
    inside = {"images"}
    if base.is_dir():
        inside = {part for path in walk(base) for part in path.relative_to(base).parts[:-1]}
        inside |= {path.name for path in base.iterdir() if path.is_dir()}
    return split_folder(root, split) / "images" if inside & {"images", "masks"} else base


def pair_folders(
    root: Path,
    images: Path,
    masks: Path,
    mask_suffixes: Iterable[str] = IMAGE_SUFFIXES,
    names: str | None = None,
    skip: bool | None = None,
) -> Pairs:
    """The pairs of two folders: files of the same relative stem belong together.

    Args:
        names, skip: as for `pairing.find_pairs`.
    Raises: ValueError for an empty or missing folder, two files of one stem, an image without mask and the reverse.
    """
    pairs = Pairs(root, by_stem(images, IMAGE_SUFFIXES), by_stem(masks, mask_suffixes))
    pairs = select(pairs, names, skip) if names else pairs
    return check_pairs(pairs, lambda key: masks / f"{key}.png", lambda key: images / f"{key}.jpg", skip)


def grey_source(
    name: str,
    licence: str | None,
    pairs: Pairs,
    threshold: int | None = None,
    resize: bool | None = None,
    group: Callable[[str], str] | None = None,
    read: Read = read_mask,
) -> Source:
    """A source with grey masks, by the levels that the whole set uses (`masks.decide_by_levels`)."""
    decide = partial(decide_by_levels, threshold=check_threshold(threshold), lossy=pairs.lossy)
    return Source(name, licence, pairs.items(read, resize, group), decide, pairs.notes)


def grey_set(
    name: str,
    licence: str | None,
    root: Path,
    split: str | None,
    *layouts: tuple[str, str],
    threshold: int | None = None,
    resize: bool | None = None,
    skip: bool | None = None,
    group: Callable[[str], str] | None = None,
) -> Source:
    """`grey_source` of the pairs of the first of `layouts` that fits (`pairing.find_pairs`)."""
    pairs = find_pairs(root, split, *(Layout(*layout) for layout in layouts), skip=skip)
    return grey_source(name, licence, pairs, threshold, resize, group)


def without_masks(
    root: Path, name: str, pictures: dict[str, Path], group: Callable[[str], str] | None = None
) -> Source:
    """A source of pictures alone, for super-resolution."""
    items = []
    for stem, path in sorted(pictures.items()):
        origin, photograph = path.relative_to(root).as_posix(), group(stem) if group else None
        items.append(Item(stem, origin, path.read_bytes, None, group=photograph, files=(path,)))
    return Source(name, None, items, None)
