"""A folder of images and a folder of masks, or any other naming that a pattern can say."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

from cssr.cracks.masks import choose_rule
from cssr.dataset_preparation.groups import GroupPattern, by_expression
from cssr.dataset_preparation.layout import by_stem, image_folder, pair_folders, split_folder, without_masks
from cssr.dataset_preparation.masks import (
    IMAGE_SUFFIXES,
    CrackColors,
    CrackValues,
    Dilate,
    ResizeMasks,
    Threshold,
    dilated,
    refuse_mask_options,
)
from cssr.dataset_preparation.pairing import (
    Layout,
    NameList,
    Pairs,
    SkipUnpaired,
    find_pairs,
    image_files,
    match_files,
    omission_note,
    select,
)
from cssr.dataset_preparation.sources import SOURCES, Root, Source, Split
from cssr.utils.image_files import filter_by_suffix, masks_beside, walk

ImagesOnly = Annotated[bool, "no masks, for super-resolution alone; the images may also be in ROOT itself"]
ImagePattern = Annotated[str | None, "paths of the images below ROOT, as 'photos/{stem}.jpg'; also {split}, *, ?, **/"]
MaskPattern = Annotated[str | None, "path of the mask of each, as 'photos/{stem}_mask.png'"]


@SOURCES.register
def folder(
    root: Root,
    split: Split = None,
    threshold: Threshold = None,
    images_only: ImagesOnly = False,
    image_pattern: ImagePattern = None,
    mask_pattern: MaskPattern = None,
    name_list: NameList = None,
    crack_colors: CrackColors = None,
    crack_values: CrackValues = None,
    dilate: Dilate = 0,
    resize_masks: ResizeMasks = False,
    skip_unpaired: SkipUnpaired = False,
    group_pattern: GroupPattern = None,
) -> Source:
    """ROOT/images and ROOT/masks, or ROOT/SPLIT/images and ROOT/SPLIT/masks; same names, any suffix; or by patterns."""
    group = by_expression(group_pattern)
    if images_only:
        refuse_mask_options(threshold, crack_colors, crack_values, dilate, resize_masks, mask_pattern)
        pictures = _pictures(root, split, image_pattern, name_list)
        masks = {*masks_beside(pictures.values())}
        source = without_masks(root, "folder", {key: p for key, p in pictures.items() if p not in masks}, group)
        return replace(
            source, notes=omission_note("masks beside their images", sorted(p.relative_to(root) for p in masks))
        )
    pairs = _pairs(root, split, image_pattern, mask_pattern, name_list, skip_unpaired)
    read, decide = choose_rule(threshold, crack_colors, crack_values, pairs.lossy)
    return Source("folder", None, pairs.items(read, resize_masks, group), dilated(decide, dilate), pairs.notes)


def _pictures(root: Path, split: str | None, pattern: str | None, name_list: str | None) -> dict[str, Path]:
    names, left = _list_of(name_list, split)
    if pattern:
        _check_pattern("--image-pattern", pattern, left)
        pictures = match_files(image_files(root), root, pattern, left)
        if not pictures:
            raise ValueError(f"no image below {root} fits --image-pattern {pattern!r}; write it as paths below --root")
    else:
        pictures = by_stem(image_folder(root, left), IMAGE_SUFFIXES)
    return select(Pairs(root, pictures, {}), names).pictures if names else pictures


def _pairs(
    root: Path, split: str | None, image: str | None, mask: str | None, name_list: str | None, skip: bool
) -> Pairs:
    names, left = _list_of(name_list, split)
    if image or mask:
        for option, pattern in (("--image-pattern", image), ("--mask-pattern", mask)):
            _check_pattern(option, pattern, left)
        return find_pairs(root, left, Layout(image, mask), names=names, skip=skip)
    beside = [] if (root / (left or "") / "masks").is_dir() else masks_beside(filter_by_suffix(walk(root)))
    if beside:
        raise ValueError(
            f"{len(beside)} masks are beside their images, as {beside[0]}: say how both are called below --root, as "
            "with --image-pattern '{stem}.jpg' --mask-pattern '{stem}_mask.png'"
        )
    base = split_folder(root, left)
    if not (base / "masks").is_dir():
        by_stem(base / "images", IMAGE_SUFFIXES)  # without images, that is what to say
        raise ValueError(
            f"there is no folder {base / 'masks'}; create it, point --root at the folder above it, or take the images "
            "alone, for super-resolution, with --images-only"
        )
    return pair_folders(root, base / "images", base / "masks", names=names, skip=skip)


def _list_of(name_list: str | None, split: str | None) -> tuple[str | None, str | None]:
    """The list with {split} filled, and the split where it has no use there."""
    if name_list and "{split}" in name_list:
        if split is None:
            raise ValueError(f"--name-list {name_list} asks for a split; name it with --split")
        return name_list.replace("{split}", split), None
    return name_list, split


def _check_pattern(option: str, pattern: str | None, split: str | None) -> None:
    if not pattern or "{stem}" not in pattern:
        fault = f"is {pattern!r}" if pattern else "is missing"
        raise ValueError(
            f"{option} {fault}; say where these files are below --root, with {{stem}} for what pairs share"
        )
    if split is not None and "{split}" not in pattern:
        raise ValueError(f"--split {split} has no place in {option} {pattern!r}; write {{split}} where it belongs")
