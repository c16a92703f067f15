"""COCO instance annotations (cocodataset.org): one JSON with polygons or run lengths, and a folder of images."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from cssr.config.registry import did_you_mean
from cssr.dataset_preparation.groups import roboflow
from cssr.dataset_preparation.pairing import SkipUnpaired
from cssr.dataset_preparation.shapes import polygons_to_mask, runs_to_mask
from cssr.dataset_preparation.sources import SOURCES, Item, MaskRule, Root, Source, Split
from cssr.utils.annotations import Within
from cssr.utils.image_files import walk, with_suffix
from cssr.utils.json_files import read_json

Annotations = Annotated[str | None, "the JSON, below ROOT (without it, the usual places; {split} stands for --split)"]
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
_FOLDERS = ("images/{split}", "{split}/images", "{split}", "images", "")


@dataclass(frozen=True)
class Shapes:
    """What is crack in one image of `height` x `width`: COCO segmentations, checked."""

    height: int
    width: int
    segmentations: list[Any]

    def mask(self) -> np.ndarray:
        """bool H W."""
        mask = np.zeros((self.height, self.width), bool)
        for one in self.segmentations:
            if isinstance(one, dict):
                mask |= runs_to_mask(one["counts"], self.height, self.width)
            else:
                mask |= polygons_to_mask([np.reshape(part, (-1, 2)) for part in one], self.height, self.width)
        return mask


_Id = int | str
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
    found = _load(path)
    crack = _crack(found, categories)
    paths, notes = _find_images(root, path, split, images, found["images"], skip_unpaired)
    shapes = _shapes(path, found, set(crack), set(paths))
    items = []
    for number, key in _keys(path, found["images"], paths):
        image = paths[number]
        origin = image.relative_to(root).as_posix()
        items.append(Item(key, origin, image.read_bytes, shapes[number].mask, group=roboflow(key)))
    rule = MaskRule(f"COCO annotations: crack = inside {' or '.join(sorted(crack.values()))}", lambda values: values)
    return Source("coco", None, items, lambda _: rule, notes)


def _find_json(root: Path, split: str | None, given: str | None) -> Path:
    """The JSON of annotations; ValueError naming the places looked at, or the JSONs that there are."""
    places = [given] if given else list(_JSONS if split else _PLAIN)
    for place in places:
        path = root / place.replace("{split}", split or "")
        if path.is_file():
            return path
    there = sorted(path.relative_to(root).as_posix() for path in with_suffix(walk(root), (".json",)))
    remedy = "point --root at the folder of the set"
    if there:
        remedy = f"choose with --annotations from: {', '.join(there[:6])}"
    wanted = given or (f"annotations of split {split!r}" if split else "annotations (or name a --split)")
    raise ValueError(f"{root} has no {wanted} where they are looked for; {remedy}")


def _load(path: Path) -> dict[str, Any]:
    found = read_json(path, _SHAPE, "export it again as COCO annotations")
    if not found["images"]:
        raise ValueError(f"{path} lists no images; export it again as COCO annotations")
    outside = next((one["file_name"] for one in found["images"] if _is_outside(one["file_name"])), None)
    if outside is not None:
        raise ValueError(
            f"{path}: file_name {outside!r} leads out of the folder of the images; write it relative to it"
        )
    twice = len({image["id"] for image in found["images"]}) < len(found["images"])
    if twice:
        raise ValueError(f"{path} gives two images the same id; export it again")
    return found


def _is_outside(name: str) -> bool:
    return Path(name).is_absolute() or ".." in Path(name).parts


def _crack(found: dict[str, Any], wanted: str | None) -> dict[int, str]:
    """id -> name of the categories that are crack: the only one in use, or those that --categories names."""
    names = {category["id"]: str(category["name"]) for category in found["categories"]}
    if wanted is None:
        used = {one["category_id"] for one in found["annotations"]} or set(names)
        if len(used) == 1:
            return {number: names.get(number, str(number)) for number in used}
        there = ", ".join(sorted(names.get(number, str(number)) for number in used))
        raise ValueError(f"the annotations are of several categories: {there}; say with --categories which are crack")
    chosen = [word.strip() for word in wanted.split(",")]
    for word in chosen:
        if word not in names.values():
            raise ValueError(f"--categories: there is no {word!r}{did_you_mean(word, sorted(set(names.values())))}")
    return {number: name for number, name in names.items() if name in chosen}


def _find_images(
    root: Path, json_path: Path, split: str | None, given: str | None, listed: list[dict], skip: bool
) -> tuple[dict[int, Path], tuple[str, ...]]:
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
    return paths, (f"passed over {len(absent)} listed images without file",) if absent else ()


def _shapes(path: Path, found: dict[str, Any], crack: set[int], images: set[int]) -> dict[int, Shapes]:
    """id -> what is crack in an image; an image without annotation has none. ValueError for what is no shape."""
    shapes = {one["id"]: Shapes(one["height"], one["width"], []) for one in found["images"] if one["id"] in images}
    for one in found["annotations"]:
        if one["category_id"] in crack and one["image_id"] in shapes:
            segmentation = one.get("segmentation")
            if not _is_shape(segmentation):
                raise ValueError(
                    f"{path}: annotation {one.get('id')} of image {one['image_id']} has no outline (a box "
                    "alone is no mask); give it a polygon, or remove it"
                )
            shapes[one["image_id"]].segmentations.append(segmentation)
    return shapes


def _is_shape(segmentation: Any) -> bool:
    if isinstance(segmentation, dict):
        return isinstance(segmentation.get("counts"), (str, list))
    return bool(segmentation) and all(
        isinstance(part, list) and len(part) >= 6 and len(part) % 2 == 0 for part in segmentation
    )


def _keys(path: Path, listed: list[dict], paths: dict[int, Path]) -> list[tuple[int, str]]:
    """(id, key) of the images that are there, sorted by key; ValueError where two have one name."""
    keys: dict[str, int] = {}
    for image in listed:
        if image["id"] in paths:
            key = str(Path(image["file_name"]).with_suffix("").as_posix())
            if key in keys:
                raise ValueError(f"duplicate key {key!r}: {path} lists it twice; remove one of them")
            keys[key] = image["id"]
    return [(keys[key], key) for key in sorted(keys)]
