"""Convert predicted cracks to annotations for correction: COCO, Label Studio predictions, CVAT images 1.1."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.etree import ElementTree

import cv2
import numpy as np

from cssr import __version__
from cssr.cracks.components import Components
from cssr.cracks.outline import outline
from cssr.survey.collect import read_cracks, reading_cracks
from cssr.survey.geometry import paths, to_pixels
from cssr.utils.text import one_line

LABEL = "crack"
_GRIDS = (1, 2, 3, 4, 8)  # by which outlines are whole numbers, or as good as


@dataclass(frozen=True)
class Instance:
    """A crack in the photograph's own pixels."""

    number: int
    left: int
    top: int
    mask: np.ndarray  # H W bool, of its box
    score: float | None  # mean probability of its pixels

    @property
    def box(self) -> list[int]:
        """Left, top, width, height."""
        return [self.left, self.top, self.mask.shape[1], self.mask.shape[0]]

    def polygons(self) -> list[np.ndarray]:
        """Rings without holes that cover it together (N 2 each, not closed): one with holes is cut through them."""
        return [ring[:-1] + (self.left, self.top) for ring in _without_holes(self.mask)]


@dataclass(frozen=True)
class AnnotatedPhotograph:
    """A photograph and its cracks."""

    name: str
    height: int
    width: int
    instances: list[Instance]
    is_file: bool = True  # False: a frame of a video


def read(prefix: Path, least_score: float = 0.0) -> AnnotatedPhotograph:
    """Read the measured cracks of a photograph as whole pixels of it; cracks below `least_score` are left out.

    A pixel is crack where half of it is, and along the centre line, so that hairlines thinner than it are kept.
    Raises: ValueError, one line, for files that are damaged or gone.
    """
    with reading_cracks(prefix):
        return _read(prefix, least_score)


def _read(prefix: Path, least_score: float) -> AnnotatedPhotograph:
    lines, areas = read_cracks(prefix)
    photograph = lines["photograph"]
    pixels = to_pixels(photograph.get("affine"))
    instances = []
    for line, area in zip(lines["features"], areas["features"]):
        score = line["properties"].get("confidence")
        if score is None or score >= least_score:
            rings = [pixels(ring) for ring in paths(area["geometry"])]
            lines_of = [pixels(path) for path in paths(line["geometry"])]
            shape = (photograph["height"], photograph["width"])
            instance = _instance(line["properties"]["number"], rings, lines_of, score, shape)
            instances.append(instance)
    size = photograph["height"], photograph["width"]
    return AnnotatedPhotograph(photograph["name"], *size, instances, "frame" not in photograph)


def _instance(
    number: int, rings: list[np.ndarray], paths: list[np.ndarray], score: float | None, shape: tuple[int, int]
) -> Instance:
    points = np.concatenate([*rings, *paths])
    left, top = np.maximum(np.floor(points.min(0) + 0.01).astype(int), 0)
    right, bottom = np.minimum(np.ceil(points.max(0) - 0.01).astype(int), (shape[1], shape[0]))
    size = (max(1, bottom - top), max(1, right - left))
    grid = next((g for g in _GRIDS if all(np.abs(r * g - np.round(r * g)).max() < 0.05 for r in rings)), _GRIDS[-1])
    fine = _filled(
        [np.round((ring - (left, top)) * grid).astype(int) for ring in rings], size[0] * grid, size[1] * grid
    )
    mask = fine.reshape(size[0], grid, size[1], grid).mean((1, 3)) >= 0.5
    if grid > 1:
        thin = np.zeros(size, np.uint8)
        for path in paths:
            cv2.polylines(thin, [np.floor(path - (left, top)).astype(np.int32)], False, 1)
        mask |= thin > 0
    return Instance(number, int(left), int(top), mask, score)


def _filled(rings: list[np.ndarray], height: int, width: int) -> np.ndarray:
    """Pixels inside rings along their sides, H W bool: right of an odd number of upright sides."""
    sides = np.zeros((height, width + 1), np.uint8)
    for ring in rings:
        for (x, y), (_, below) in zip(ring[:-1], ring[1:]):
            sides[max(0, min(y, below)) : max(y, below), min(max(x, 0), width)] ^= 1
    return np.bitwise_xor.accumulate(sides, 1)[:, :width] > 0


def _without_holes(mask: np.ndarray) -> Iterator[np.ndarray]:
    for runs in Components(mask):
        for exterior, *holes in outline(runs):
            if not holes:
                yield exterior
                continue
            own = _filled([exterior, *holes], *mask.shape)
            cut = int((holes[0][:, 0].min() + holes[0][:, 0].max()) / 2)
            for part, shift in ((own[:, :cut], 0), (own[:, cut:], cut)):
                yield from (ring + (shift, 0) for ring in _without_holes(part))


# ---- formats ----


def coco(photographs: Sequence[AnnotatedPhotograph], polygons: bool = False) -> dict[str, Any]:
    """COCO instances with scores (cocodataset.org): run lengths, exact; or polygons, cut through their holes."""
    images, annotations = [], []
    for number, photograph in enumerate(photographs, 1):
        size = {"height": photograph.height, "width": photograph.width}
        images.append({"id": number, "file_name": photograph.name, **size})
        for instance in photograph.instances:
            shape = [ring.ravel().tolist() for ring in instance.polygons()] if polygons else _runs(instance, photograph)
            annotation = {"id": len(annotations) + 1, "image_id": number, "category_id": 1, "segmentation": shape}
            annotation |= {"bbox": instance.box, "area": int(instance.mask.sum()), "iscrowd": 0}
            annotations.append(annotation | ({} if instance.score is None else {"score": instance.score}))
    categories = [{"id": 1, "name": LABEL, "supercategory": LABEL}]
    info = {"description": f"predicted by cssr {__version__}"}
    return {"info": info, "images": images, "annotations": annotations, "categories": categories}


def _runs(instance: Instance, photograph: AnnotatedPhotograph) -> dict[str, Any]:
    """COCO's run lengths: pixels without and with crack in turn, column by column."""
    x, y = np.nonzero(instance.mask.T)
    positions = (x + instance.left) * photograph.height + y + instance.top
    breaks = np.flatnonzero(np.diff(positions) > 1)
    starts, ends = positions[np.r_[0, breaks + 1]], positions[np.r_[breaks, len(positions) - 1]] + 1
    changes = np.r_[0, np.stack([starts, ends], 1).ravel(), photograph.height * photograph.width]
    return {"size": [photograph.height, photograph.width], "counts": np.diff(changes).tolist()}


def label_studio(photographs: Sequence[AnnotatedPhotograph], prefix: str) -> list[dict[str, Any]]:
    """Label Studio tasks with predictions: polygons in percent, for `<PolygonLabels name="label" toName="image">`."""
    tasks = []
    for photograph in photographs:
        size = np.array([photograph.width, photograph.height])
        results = [
            {
                "id": f"{instance.number}-{part}",
                "type": "polygonlabels",
                "from_name": "label",
                "to_name": "image",
                "original_width": photograph.width,
                "original_height": photograph.height,
                "image_rotation": 0,
                "value": {"points": (100 * ring / size).tolist(), "closed": True, "polygonlabels": [LABEL]},
                **({} if instance.score is None else {"score": instance.score}),
            }
            for instance in photograph.instances
            for part, ring in enumerate(instance.polygons(), 1)
        ]
        scores = [instance.score for instance in photograph.instances if instance.score is not None]
        prediction = {"model_version": f"cssr {__version__}", "result": results}
        prediction |= {"score": min(scores)} if scores else {}
        tasks.append({"data": {"image": prefix + quote(os.fsencode(photograph.name))}, "predictions": [prediction]})
    return tasks


def cvat(photographs: Sequence[AnnotatedPhotograph]) -> bytes:
    """CVAT for images 1.1: masks as run lengths of their boxes, rows first, pixels without crack first."""
    root = ElementTree.Element("annotations")
    ElementTree.SubElement(root, "version").text = "1.1"
    for number, photograph in enumerate(photographs):
        facts = {
            "id": number,
            "name": one_line(photograph.name),
            "width": photograph.width,
            "height": photograph.height,
        }
        image = ElementTree.SubElement(root, "image", {name: str(value) for name, value in facts.items()})
        for instance in photograph.instances:
            left, top, width, height = instance.box
            flat = np.r_[False, instance.mask.ravel()]
            changes = np.r_[0, np.flatnonzero(flat[1:] != flat[:-1]), instance.mask.size]
            runs = ", ".join(map(str, np.diff(changes)))
            box = {"left": left, "top": top, "width": width, "height": height, "z_order": 0}
            mask = {"label": LABEL, "source": "auto", "occluded": "0", "rle": runs} | {
                k: str(v) for k, v in box.items()
            }
            ElementTree.SubElement(image, "mask", mask)
    return ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
