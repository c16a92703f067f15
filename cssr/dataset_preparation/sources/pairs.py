"""Real pairs: photographs taken at two resolutions and registered, so that no degradation is made up."""

import inspect
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

from cssr.cracks.masks import check_threshold, decide_by_levels, read_mask
from cssr.dataset_preparation.groups import GroupPattern, by_expression
from cssr.dataset_preparation.masks import IMAGE_SUFFIXES, KERNEL_SUFFIXES, Threshold, read_kernel, reader
from cssr.dataset_preparation.pairing import Pairs, fill_pattern, image_files, match_files
from cssr.dataset_preparation.sources import SOURCES, Item, Root, Source, Split

HrPattern = Annotated[str, "paths of the high-resolution images below ROOT"]
LqPattern = Annotated[str, "path of the low-resolution image of each"]
MasksPattern = Annotated[str, "path of its mask, of the high resolution; without any, for super-resolution alone"]
KernelPattern = Annotated[str, "path of its blur kernel (.npy, or a picture), if there are any"]


@SOURCES.register
def pairs(
    root: Root,
    split: Split = None,
    hr_pattern: HrPattern = "{split}/hr/{stem}.*",
    lq_pattern: LqPattern = "{split}/lq/{stem}.*",
    mask_pattern: MasksPattern = "{split}/masks/{stem}.*",
    kernel_pattern: KernelPattern = "{split}/kernels/{stem}.*",
    threshold: Threshold = None,
    group_pattern: GroupPattern = None,
) -> Source:
    """ROOT/hr and ROOT/lq (or ROOT/SPLIT/hr, ...), and masks/ and kernels/ where there are any; or by patterns."""
    patterns = {"hr": hr_pattern, "lq": lq_pattern, "mask": mask_pattern, "kernel": kernel_pattern}
    files = image_files(root, (*IMAGE_SUFFIXES, *KERNEL_SUFFIXES))
    paths = {
        kind: match_files(files, root, _checked(kind, pattern, split), split) for kind, pattern in patterns.items()
    }
    _check(root, split, patterns, paths)
    group = by_expression(group_pattern)
    items = [
        _item(root, key, {kind: files.get(key) for kind, files in paths.items()}, group) for key in sorted(paths["hr"])
    ]
    if not paths["mask"]:
        return Source("pairs", None, items, None)
    lossy = Pairs(root, paths["hr"], paths["mask"]).lossy
    return Source("pairs", None, items, partial(decide_by_levels, threshold=check_threshold(threshold), lossy=lossy))


def _checked(kind: str, pattern: str, split: str | None) -> str:
    """The pattern, without {split} where there is none; ValueError where it cannot be used."""
    if "{stem}" not in pattern:
        raise ValueError(f"--{kind}-pattern {pattern!r} lacks {{stem}}: what the files of a pair have in common")
    if split is None:
        pattern = pattern.removeprefix("{split}/")
    if ("{split}" in pattern) != (split is not None):
        remedy = "write {split} where it belongs, or leave --split out" if split else "name the split with --split"
        raise ValueError(f"--{kind}-pattern {pattern!r} does not fit --split {split}; {remedy}")
    return pattern


def _check(root: Path, split: str | None, patterns: dict[str, str], paths: dict[str, dict[str, Path]]) -> None:
    """ValueError unless each HR image has its LQ image and, where there are any, mask and kernel, and the reverse."""
    for kind in ("hr", "lq"):
        if not paths[kind]:
            place = fill_pattern(_checked(kind, patterns[kind], split), split, "NAME")
            raise ValueError(f"{root} holds no {place}; point --root at it, or say --{kind}-pattern")
    for kind in ("lq", "mask", "kernel"):
        if not paths[kind]:
            usual = inspect.signature(pairs).parameters[f"{kind}_pattern"].default
            if patterns[kind] != usual:
                raise ValueError(f"no file below {root} fits --{kind}-pattern {patterns[kind]!r}; correct or omit it")
            continue
        for one, other in ((kind, "hr"), ("hr", kind)):
            alone = sorted(paths[one].keys() - paths[other].keys())
            if alone:
                raise ValueError(
                    f"missing {other} file: {len(alone)} of {len(paths[one])} {one} files have none, the first is "
                    f"{paths[one][alone[0]]}; add it or remove this one"
                )


def _item(root: Path, key: str, files: dict[str, Path | None], group: Callable[[str], str] | None) -> Item:
    image, mask, kernel = files["hr"], files["mask"], files["kernel"]
    origin = image.relative_to(root).as_posix()
    return Item(
        key,
        origin,
        image.read_bytes,
        reader(read_mask, mask, image, origin) if mask else None,
        lq=files["lq"].read_bytes,
        kernel=partial(read_kernel, kernel) if kernel else None,
        group=group(key) if group else None,
        files=tuple(path for path in files.values() if path),
    )
