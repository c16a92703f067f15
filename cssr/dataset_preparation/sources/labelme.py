"""LabelMe annotations (github.com/wkentaro/labelme): beside each image a JSON of the shapes drawn in it."""

import base64
import io
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from cssr.config.registry import did_you_mean
from cssr.cracks.masks import BROKEN
from cssr.dataset_preparation.groups import GroupPattern, by_expression
from cssr.dataset_preparation.layout import by_stem
from cssr.dataset_preparation.masks import IMAGE_SUFFIXES, upright_size
from cssr.dataset_preparation.pairing import normalize_name
from cssr.dataset_preparation.shapes import (
    check_points,
    cut_off_note,
    disc_to_mask,
    lines_to_mask,
    other_labels_note,
    polygons_to_mask,
)
from cssr.dataset_preparation.sources import SOURCES, Item, MaskRule, Root, Source, Split
from cssr.utils.annotations import Within, shortened
from cssr.utils.images import open_image
from cssr.utils.json_files import read_json

Labels = Annotated[str | None, "labels that are crack, with commas between (without it, the only one that there is)"]
LineWidth = Annotated[int, "how wide lines are drawn, in pixels"]
UnlabelledEmpty = Annotated[bool, "images without JSON have no crack (otherwise they are refused)"]

_Side = Annotated[int, Within(1, 10**6)] | None  # pixels
_SHAPE = {
    "shapes": [{"label": str | int, "points": list[list[float]], "?shape_type": str | None, "?mask": str | None}],
    "?imageHeight": _Side,
    "?imageWidth": _Side,
    "?imagePath": str | None,
}


@SOURCES.register
def labelme(
    root: Root,
    split: Split = None,
    labels: Labels = None,
    line_width: LineWidth = 1,
    unlabelled_empty: UnlabelledEmpty = False,
    group_pattern: GroupPattern = None,
) -> Source:
    """ROOT/X.jpg and ROOT/X.json, or ROOT/SPLIT/...: polygons, rectangles, circles, lines, masks of chosen labels."""
    if line_width < 1:
        raise ValueError(f"--line-width is {line_width}; give 1 or more pixels")
    folder = root / split if split else root
    pictures, jsons = by_stem(folder, IMAGE_SUFFIXES), by_stem(folder, (".json",))
    _check_pairs(pictures, jsons, unlabelled_empty)
    chosen = None if labels is None else {word.strip() for word in labels.split(",")}
    group = by_expression(group_pattern)
    items = [
        _item(root, key, path, jsons.get(key), chosen, line_width, group) for key, path in sorted(pictures.items())
    ]
    return Source("labelme", None, items, lambda _: _decide(jsons, pictures, chosen))


def _check_pairs(pictures: dict[str, Path], jsons: dict[str, Path], unlabelled_empty: bool) -> None:
    bare, orphans = sorted(pictures.keys() - jsons.keys()), sorted(jsons.keys() - pictures.keys())
    if bare and not unlabelled_empty:
        raise ValueError(
            f"missing JSON: {len(bare)} of {len(pictures)} images have none, the first is {pictures[bare[0]]}; "
            "annotate or remove it, or say with --unlabelled-empty that such images have no crack"
        )
    if orphans:
        raise ValueError(
            f"missing image: {len(orphans)} of {len(jsons)} JSONs have none beside them, the first is "
            f"{jsons[orphans[0]]}; add its image or remove it"
        )


def _item(
    root: Path,
    key: str,
    path: Path,
    json_path: Path | None,
    labels: set[str] | None,
    line_width: int,
    group: Callable[[str], str] | None,
) -> Item:
    mask = partial(_draw, json_path, path, labels, line_width)
    origin, files = path.relative_to(root).as_posix(), (path, json_path) if json_path else (path,)
    return Item(key, origin, path.read_bytes, mask, group=group(key) if group else None, files=files)


def _decide(jsons: dict[str, Path], pictures: dict[str, Path], chosen: set[str] | None) -> MaskRule:
    """The mask rule, from the labels of the whole set; ValueError where it is not clear which are crack."""
    used: Counter[str] = Counter()
    renamed, cut = [], []
    for key, path in jsons.items():
        contents = _load(path)
        used.update(shape["label"] for shape in contents["shapes"])
        name = Path((contents.get("imagePath") or "").replace("\\", "/")).stem
        renamed += [f"{path} of {name}"] if name and normalize_name(name) != normalize_name(path.stem) else []
        cut += _cut_off(path, contents, _size(contents, path, pictures[key]), chosen)
    labels_text = ", ".join(f"{label} ({count})" for label, count in used.most_common(8))
    if chosen is None:
        if len(used) > 1:
            raise ValueError(f"the annotations have several labels: {labels_text}; say with --labels which are crack")
        chosen = set(used)
    for label in sorted(chosen - set(used)):
        raise ValueError(f"--labels: there is no {label!r}{did_you_mean(label, sorted(used))}")
    others = {label: count for label, count in used.items() if label not in chosen}
    notes = [other_labels_note("shapes", "labels", others)] if others else []
    if renamed:
        notes.append(f"{len(renamed)} JSONs name another image than that beside them, the first is {renamed[0]}")
    sentence = f"LabelMe shapes: crack = inside {' or '.join(sorted(chosen)) or 'none'}"
    return MaskRule(sentence, lambda values: values, (*notes, *cut_off_note(cut)))


def _size(contents: dict[str, Any], path: Path, image: Path) -> tuple[int, int]:
    """(height, width) of the image; ValueError where its JSON says another."""
    height, width = upright_size(image)
    stated = contents.get("imageHeight"), contents.get("imageWidth")
    if all(stated) and stated != (height, width):
        raise ValueError(
            f"{image} is {width}x{height}, but {path} says {stated[1]}x{stated[0]} of it; correct that, or take the "
            "image that was annotated"
        )
    return height, width


def _cut_off(path: Path, contents: dict[str, Any], size: tuple[int, int], labels: set[str] | None) -> list[str]:
    """The shapes that extend beyond their image; ValueError for points that cannot be meant."""
    cut = []
    for number, shape in enumerate(contents["shapes"]):
        if labels is None or shape["label"] in labels:
            points = _points(shape, number, path)
            if shape.get("shape_type") == "circle" and len(points) == 2:
                radius = np.linalg.norm(points[1] - points[0])
                points = np.stack([points[0] - radius, points[0] + radius])
            try:
                if len(points) > 1 and check_points(points, *size):
                    cut.append(_place(shape, number, path))
            except ValueError as problem:
                raise ValueError(f"{_place(shape, number, path)} {problem}") from None
    return cut


def _place(shape: dict[str, Any], number: int, path: Path) -> str:
    return f"{path}: shape {number} ({shape['label']!r})"


def _points(shape: dict[str, Any], number: int, path: Path) -> np.ndarray:
    """N 2 float64, x and y; ValueError for points of more or fewer numbers."""
    wrong = [point for point in shape["points"] if len(point) != 2]
    if wrong:
        raise ValueError(
            f"{_place(shape, number, path)} has a point of {len(wrong[0])} numbers, {shortened(wrong[0])}; give x and "
            "y of each, or save it again with LabelMe"
        )
    return np.reshape(np.asarray(shape["points"], np.float64), (-1, 2))


def _load(path: Path) -> dict[str, Any]:
    contents = read_json(path, _SHAPE, "save it again as a LabelMe annotation")
    for shape in contents["shapes"]:
        shape["label"] = str(shape["label"]).strip()
    return contents


def _draw(json_path: Path | None, image: Path, labels: set[str] | None, line_width: int) -> np.ndarray:
    """The mask of one image, bool H W."""
    if json_path is None:
        return np.zeros(upright_size(image), bool)
    contents = _load(json_path)
    mask = np.zeros(_size(contents, json_path, image), bool)
    for number, shape in enumerate(contents["shapes"]):
        if labels is None or shape["label"] in labels:
            points = _points(shape, number, json_path)
            mask |= _shape(shape, points, *mask.shape, line_width, json_path)
    return mask


def _shape(
    shape: dict[str, Any], points: np.ndarray, height: int, width: int, line_width: int, path: Path
) -> np.ndarray:
    """One shape, bool H W; ValueError where it has no area, or too few points."""
    kind = shape.get("shape_type") or "polygon"
    if kind in ("polygon", "oriented_rectangle") and len(points) >= 3:
        return polygons_to_mask([points], height, width)
    if kind == "rectangle" and len(points) == 2:
        (left, top), (right, bottom) = points
        corners = np.array([[left, top], [right, top], [right, bottom], [left, bottom]])
        return polygons_to_mask([corners], height, width)
    if kind == "circle" and len(points) == 2:
        return disc_to_mask(points[0], float(np.linalg.norm(points[1] - points[0])), height, width)
    if kind in ("line", "linestrip") and len(points) >= 2:
        return lines_to_mask([points], height, width, line_width)
    if kind == "mask" and len(points) >= 1 and shape.get("mask"):
        return _pasted(shape["mask"], points[0], height, width, path)
    raise ValueError(
        f"{path}: a shape {shape['label']!r} of type {kind} with {len(points)} points has no area; draw it as a "
        "polygon or linestrip, or give it another label"
    )


def _pasted(text: str, corner: np.ndarray, height: int, width: int, path: Path) -> np.ndarray:
    """A mask that LabelMe keeps as a base64 PNG, laid with its upper left corner at `corner` (x, y)."""
    try:
        with open_image(io.BytesIO(base64.b64decode(text))) as stored:
            part = np.asarray(stored.convert("L")) > 0
    except BROKEN as problem:
        raise ValueError(f"{path}: cannot read a mask in it: {problem}; save it again") from problem
    left, top = np.rint(corner).astype(int)
    mask = np.zeros((height, width), bool)
    rows, columns = min(part.shape[0], height - top), min(part.shape[1], width - left)
    if left < 0 or top < 0 or rows < 1 or columns < 1:
        raise ValueError(f"{path}: a mask in it is outside of the image; save it again")
    mask[top : top + rows, left : left + columns] = part[:rows, :columns]
    return mask
