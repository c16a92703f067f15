"""COCO instance annotations (cocodataset.org): one JSON with polygons or run lengths, and a folder of images."""

from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import unquote

import numpy as np

from cssr.config.registry import did_you_mean
from cssr.dataset_preparation.groups import roboflow_original
from cssr.dataset_preparation.masks import upright_size
from cssr.dataset_preparation.pairing import SkipUnpaired, omission_note
from cssr.dataset_preparation.shapes import (
    check_points,
    check_runs,
    cut_off_note,
    other_labels_note,
    polygons_to_mask,
    runs_to_mask,
    unpack_runs,
)
from cssr.dataset_preparation.sources import SOURCES, Item, MaskRule, Root, Source, Split
from cssr.utils.annotations import Within, fits, shortened
from cssr.utils.image_files import filter_by_suffix, walk
from cssr.utils.json_files import read_json

Annotations = Annotated[
    str | None, "the JSON, below ROOT (without it, the usual places; {split}: the value of --split)"
]
Images = Annotated[str | None, "folder of the images, below ROOT (without it, the usual places)"]
Categories = Annotated[str | None, "names of the categories that are crack, with commas between"]

_JSONS = (
    "annotations/instances_{split}.json",
    "annotations/{split}.json",
    "{split}/_annotations.coco.json",
    "{split}/annotations.json",
    "{split}.json",
    "instances_{split}.json",
)
_PLAIN = (
    "_annotations.coco.json",
    "annotations.json",
    "annotations/instances.json",
    "annotations/instances_default.json",
)
_LABEL_STUDIO = "/data/local-files/?d="  # before the path of an image that Label Studio reads from its own folder
_FOLDERS = ("images/{split}", "{split}/images", "{split}", "images", "")


@dataclass(frozen=True)
class Shapes:
    """Cracks of one image of `height` x `width`: outlines (each N 2, x and y) and run lengths, checked."""

    height: int
    width: int
    polygons: list[np.ndarray] = field(default_factory=list)
    runs: list[list[int]] = field(default_factory=list)

    def mask(self) -> np.ndarray:
        """bool H W."""
        mask = polygons_to_mask(self.polygons, self.height, self.width)
        for lengths in self.runs:
            mask |= runs_to_mask(lengths, self.height, self.width)
        return mask


_Id = int | str  # 7 and "7" are the same
_Side = Annotated[int, Within(1, 10**6)]  # pixels
_SHAPE = {
    "images": [{"id": _Id, "file_name": str, "height": _Side, "width": _Side}],
    "annotations": [{"?id": _Id | None, "image_id": _Id, "category_id": _Id, "?segmentation": list | dict | None}],
    "categories": [{"id": _Id, "name": str | int}],
}


@SOURCES.register
def coco(
    root: Root,
    split: Split = None,
    annotations: Annotations = None,
    images: Images = None,
    categories: Categories = None,
    skip_unpaired: SkipUnpaired = False,
) -> Source:
    """ROOT/annotations/instances_SPLIT.json and ROOT/SPLIT (or images/SPLIT); polygons and run lengths, all sizes."""
    if not root.is_dir():
        raise ValueError(f"--root {root} is not a folder; give the folder that holds the annotations and images")
    for option, given in (("--annotations", annotations), ("--images", images)):
        if given and Path(given).is_absolute():
            raise ValueError(f"{option} {given} is an absolute path; give it relative to --root, as the index keeps it")
    path = _find_json(root, split, annotations)
    contents = _load(path)
    crack, notes = _crack(path, contents, categories)
    paths, absent = _find_images(root, path, split, images, contents["images"], skip_unpaired)
    shapes, cut = _shapes(path, contents, set(crack), set(paths))
    items = []
    for number, key in _keys(path, contents["images"], paths):
        image = paths[number]
        origin = image.relative_to(root).as_posix()
        mask = partial(_draw, shapes[number], image, path)
        items.append(Item(key, origin, image.read_bytes, mask, group=roboflow_original(key), files=(image, path)))
    rule = MaskRule(
        f"COCO annotations: crack = inside {' or '.join(sorted(set(crack.values())))}", lambda values: values
    )
    return Source("coco", None, items, lambda _: rule, (*notes, *absent, *cut))


def _draw(shapes: Shapes, image: Path, path: Path) -> np.ndarray:
    height, width = upright_size(image)
    if (height, width) != (shapes.height, shapes.width):
        raise ValueError(
            f"{image} is {width}x{height}, but {path} says {shapes.width}x{shapes.height} of it; correct that, or take "
            "the image that was annotated"
        )
    return shapes.mask()


def _find_json(root: Path, split: str | None, given: str | None) -> Path:
    """The JSON of annotations; ValueError naming the places looked at, or the JSONs that there are."""
    places = [given] if given else list(_JSONS if split else _PLAIN)
    for place in places:
        path = root / place.replace("{split}", split or "")
        if path.is_file():
            return path
    there = sorted(path.relative_to(root).as_posix() for path in filter_by_suffix(walk(root), (".json",)))
    remedy = "point --root at the folder of the set"
    if there:
        remedy = f"choose with --annotations from: {', '.join(there[:6])}"
    wanted = given or (f"annotations of split {split!r}" if split else "annotations (or name a --split)")
    raise ValueError(f"{root} has no {wanted} where they are looked for; {remedy}")


def _load(path: Path) -> dict[str, Any]:
    """The annotations, all ids as text; ValueError where one is of an image or category that is not there."""
    contents = read_json(path, _SHAPE, "export it again as COCO annotations")
    if not contents["images"]:
        raise ValueError(f"{path} lists no images; export it again as COCO annotations")
    for entry in contents["images"]:
        if entry["file_name"].startswith(_LABEL_STUDIO):
            entry["file_name"] = unquote(entry["file_name"].removeprefix(_LABEL_STUDIO))
        name = entry["file_name"]
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ValueError(
                f"{path}: file_name {name!r} leads out of the folder of the images; write it relative to it"
            )
    for kind in contents:
        for entry in contents[kind] if kind in _SHAPE else ():
            entry.update(
                {name: str(entry[name]).strip() for name in ("id", "image_id", "category_id") if name in entry}
            )
    for kind, plural in (("images", "images"), ("categories", "categories")):
        ids = Counter(entry["id"] for entry in contents[kind])
        duplicates = [number for number, count in ids.items() if count > 1]
        if duplicates:
            raise ValueError(f"{path} gives two {plural} the same id, {duplicates[0]}; export it again")
    for name, kind in (("image_id", "images"), ("category_id", "categories")):
        known = {entry["id"] for entry in contents[kind]}
        lost = [entry for entry in contents["annotations"] if entry[name] not in known] if known else []
        if lost:
            raise ValueError(
                f"{path}: {len(lost)} of {len(contents['annotations'])} annotations are of {kind} that it does not "
                f"list, the first is annotation {lost[0].get('id')} with {name} {lost[0][name]}; export it again"
            )
    return contents


def _crack(path: Path, contents: dict[str, Any], wanted: str | None) -> tuple[dict[str, str], tuple[str, ...]]:
    """id -> name of the categories that are crack, and notes: the only one in use, or those that --categories names."""
    names = {category["id"]: str(category["name"]).strip() for category in contents["categories"]}
    used = Counter(one["category_id"] for one in contents["annotations"])
    names |= {number: number for number in used if number not in names}  # of a file without categories
    kinds = sorted({names[number] for number in used or names})
    there = ", ".join(kinds)
    if wanted is None:
        if len(kinds) == 1:
            return {number: names[number] for number in used or names}, ()
        raise ValueError(f"the annotations are of several categories: {there}; say with --categories which are crack")
    chosen = [word.strip() for word in wanted.split(",")]
    for word in chosen:
        if word not in names.values():
            raise ValueError(f"--categories: there is no {word!r}{did_you_mean(word, sorted(set(names.values())))}")
    crack = {number: name for number, name in names.items() if name in chosen}
    if used and not used.keys() & crack.keys():
        raise ValueError(
            f"--categories {wanted}: of {used.total()} annotations of {path} none is of it; they are of: {there}"
        )
    others = Counter({names[number]: count for number, count in used.items() if number not in crack})
    unused = {name for name in chosen if used and not any(used[n] for n, own in crack.items() if own == name)}
    notes = [f"no annotation is of category {name!r}" for name in sorted(unused)]
    notes += [other_labels_note("annotations", "categories", others)] if others else []
    return crack, tuple(notes)


def _find_images(
    root: Path, json_path: Path, split: str | None, given: str | None, listed: list[dict], skip: bool
) -> tuple[dict[str, Path], tuple[str, ...]]:
    """id -> path of the images that are there, and notes; ValueError where some are not, unless `skip`."""
    usual = [place for place in _FOLDERS if split or "{split}" not in place]
    places = [root / given] if given else [root / place.replace("{split}", split or "") for place in usual]
    places += [] if given else [json_path.parent]
    counts = [sum((place / image["file_name"]).is_file() for image in listed) for place in places]
    best = places[int(np.argmax(counts))]
    paths = {image["id"]: best / image["file_name"] for image in listed if (best / image["file_name"]).is_file()}
    absent = [image["file_name"] for image in listed if image["id"] not in paths]
    if absent and not (skip and paths):
        or_skip = "" if not paths else ", or pass over them with --skip-unpaired"
        raise ValueError(
            f"missing image: {len(absent)} of {len(listed)} that {json_path} lists are not in {best}, the first is "
            f"{absent[0]}; say where they are with --images{or_skip}"
        )
    known = {path.resolve() for path in paths.values()}
    others = [path for path in filter_by_suffix(walk(best)) if path.resolve() not in known]
    unlisted = (
        [f"{len(others)} images of {best} are not listed in {json_path.name}, the first is {others[0]}"]
        if others
        else []
    )
    return paths, (*omission_note("listed images without file", absent), *unlisted)


def _shapes(
    path: Path, contents: dict[str, Any], crack: set[str], images: set[str]
) -> tuple[dict[str, Shapes], tuple[str, ...]]:
    """id -> what is crack in an image, and notes; an image without annotation has none. ValueError for no shape."""
    shapes = {one["id"]: Shapes(one["height"], one["width"]) for one in contents["images"] if one["id"] in images}
    cut = []
    for one in contents["annotations"]:
        if one["category_id"] in crack and one["image_id"] in shapes:
            where = f"{path}: annotation {one.get('id')} of image {one['image_id']}"
            try:
                if _add(shapes[one["image_id"]], one.get("segmentation")):
                    cut.append(where)
            except ValueError as problem:
                raise ValueError(f"{where} {problem}") from None
    return shapes, cut_off_note(cut)


def _add(shapes: Shapes, segmentation: Any) -> bool:
    """Add a segmentation, checked. Returns whether a part of it is beyond the image."""
    if isinstance(segmentation, dict):
        shapes.runs.append(_lengths(segmentation, shapes.height, shapes.width))
        return False
    if not segmentation:
        raise ValueError("has no outline (a box alone is no mask); give it a polygon, or remove it")
    if not fits(segmentation, list[list[float]]):
        raise ValueError(
            f"has an outline that is no list of polygons [x, y, x, y, ...], but {shortened(segmentation)}; "
            "give finite numbers, or remove it"
        )
    if any(len(part) < 6 or len(part) % 2 for part in segmentation):
        raise ValueError("has no outline, a polygon needs three points or more, x and y of each; mend or remove it")
    polygons = [np.reshape(np.asarray(part, np.float64), (-1, 2)) for part in segmentation]
    shapes.polygons.extend(polygons)
    return check_points(np.concatenate(polygons), shapes.height, shapes.width)


def _lengths(segmentation: dict[str, Any], height: int, width: int) -> list[int]:
    """The run lengths of a segmentation, unpacked; ValueError unless they are of an image of this size."""
    counts, size = segmentation.get("counts"), segmentation.get("size")
    if not fits(counts, str | list[int]):
        raise ValueError(
            f"has run lengths that are neither text nor whole numbers: {shortened(counts)}; export it again"
        )
    if size != [height, width]:
        raise ValueError(
            f"has run lengths of size {shortened(size)}, but its image is [{height}, {width}] (height, width); export "
            "it again, or correct the image's size"
        )
    lengths = unpack_runs(counts) if isinstance(counts, str) else counts
    check_runs(lengths, height, width)
    return lengths


def _keys(path: Path, listed: list[dict], paths: dict[str, Path]) -> list[tuple[str, str]]:
    """(id, key) of the images that are there, sorted by key; ValueError where two have one name."""
    keys: dict[str, str] = {}
    for image in listed:
        if image["id"] in paths:
            key = str(Path(image["file_name"]).with_suffix("").as_posix())
            if key in keys:
                raise ValueError(f"duplicate key {key!r}: {path} lists it twice; remove one of them")
            keys[key] = image["id"]
    return [(keys[key], key) for key in sorted(keys)]
