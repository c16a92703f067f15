"""Write measured cracks: a table (CSV), lines and outlines (GeoJSON), a picture with numbers and widths."""

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from einops import repeat
from PIL import Image, ImageDraw, ImageFont

from cssr.cracks.measure import Crack
from cssr.cracks.outline import outline
from cssr.cracks.pixel_size import SIZES
from cssr.utils.files import write_atomic
from cssr.utils.images import encode_image

_DECIMALS = 3  # decimals of pixels and millimetres
_TOLERANCE = 0.2  # pixels by which lines in files may differ from those measured
_MIN_SIDE, _MAX_SIDE = 1000, 4000  # pixels of the longer side of a picture
_LABELS = 0.1  # of a picture that labels cover
_LINE, _POINT, _PAPER, _STAIN = (214, 39, 40), (31, 119, 180), 255, 190  # RGB, RGB, grey, grey


@dataclass(frozen=True)
class Units:
    """Size of a mask pixel: `scale` mask pixels are one of the photograph, which is `mm_per_pixel` wide.

    `uncertainty` is the standard one of `mm_per_pixel`, mm, and `source` how it is known.
    """

    scale: float = 1.0
    mm_per_pixel: float | None = None
    uncertainty: float | None = None
    source: str = "typed"

    def __post_init__(self) -> None:
        if not 0 < self.scale < float("inf"):
            raise ValueError(f"scale must be a number above 0, got {self.scale}")
        if self.mm_per_pixel is not None and not SIZES[0] <= self.mm_per_pixel <= SIZES[1]:
            raise ValueError(f"mm_per_pixel must be a number above 0 (1e-06 to 1e+06), got {self.mm_per_pixel}")


@dataclass(frozen=True)
class Georeference:
    """Position of a mask on a map.

    affine: (a, b, c, d, e, f): pixel (x, y) of the mask, its upper left corner being (0, 0), is at a x + b y + c,
    d x + e y + f. crs: the map's name as GDAL reads it, for instance "urn:ogc:def:crs:EPSG::25832"; None: unknown.
    """

    affine: tuple[float, float, float, float, float, float]
    crs: str | None = None

    def place(self, points: np.ndarray) -> np.ndarray:
        """Points N 2 (x, y) of the mask on the map."""
        a, b, c, d, e, f = self.affine
        return points @ np.array([[a, d], [b, e]]) + (c, f)


def record(crack: Crack, units: Units) -> dict[str, float | None]:
    """A crack as a row: lengths in pixels of the photograph, and in millimetres where a pixel's width is known.

    `confidence`, its pixels' mean probability, is None where none is known.
    """
    pixels = {name: getattr(crack, name) for name in ("length", "mean_width", "p95_width", "max_width")}
    row: dict[str, float | None] = {"number": crack.number}
    row |= {f"{name}_px": value / units.scale for name, value in pixels.items()}
    row |= {"orientation_deg": crack.orientation, "area_px": crack.area / units.scale**2}
    row |= {name: value / units.scale for name, value in zip(("left", "top", "right", "bottom"), crack.box)}
    row |= {name: value / units.scale for name, value in zip(("widest_x", "widest_y"), crack.widest)}
    row["confidence"] = crack.confidence
    if units.mm_per_pixel is not None:
        row |= {f"{name}_mm": value * units.mm_per_pixel / units.scale for name, value in pixels.items()}
        row["area_mm2"] = crack.area * (units.mm_per_pixel / units.scale) ** 2
        row["mm_per_pixel"] = units.mm_per_pixel
        row["mm_per_pixel_uncertainty"] = units.uncertainty
    exact = ("mm_per_pixel", "mm_per_pixel_uncertainty")
    return {k: v if v is None or k in exact else round(v, _DECIMALS) for k, v in row.items()}


def table(cracks: Sequence[Crack], units: Units = Units()) -> str:
    """CSV with a row for each crack, under a row of names; see `record`."""
    names = list(record(Crack(0, 0, 0, 0, 0, 0, (0, 0, 0, 0), 0, (), (0, 0)), units))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(record(crack, units) for crack in cracks)
    return text.getvalue()


def write_table(cracks: Sequence[Crack], path: Path, units: Units = Units()) -> Path:
    """Write `table` to a file."""
    return _write(path, table(cracks, units))


def geojson(
    cracks: Sequence[Crack],
    name: str,
    units: Units = Units(),
    georeference: Georeference | None = None,
    photograph: Mapping[str, Any] | None = None,
) -> str:
    """A FeatureCollection: centre lines (LineString, or MultiLineString where there are branches), properties as in
    `record`.

    Coordinates are on the map where there is a georeference (of the mask), else in pixels of the photograph, x to the
    right and y down from its upper left corner. `photograph`: facts of it, kept as a member of the collection.
    """
    shapes = [_geometry(crack, units, georeference) for crack in cracks]
    return _collection(name, shapes, [record(crack, units) for crack in cracks], georeference, photograph)


def outlines(
    cracks: Sequence[Crack], name: str, units: Units = Units(), georeference: Georeference | None = None
) -> str:
    """A FeatureCollection of the cracks' areas (MultiPolygon, along the sides of the mask's pixels), by number."""
    shapes = []
    for crack in cracks:
        polygons = outline(crack.runs) if crack.runs else []
        rings = [[_coordinates(ring, units, georeference) for ring in polygon] for polygon in polygons]
        shapes.append({"type": "MultiPolygon", "coordinates": rings})
    return _collection(name, shapes, [{"number": crack.number} for crack in cracks], georeference, None)


def _collection(
    name: str,
    shapes: Sequence[dict[str, Any]],
    properties: Sequence[dict[str, Any]],
    georeference: Georeference | None,
    photograph: Mapping[str, Any] | None,
) -> str:
    features = [
        {"type": "Feature", "id": row["number"], "geometry": shape, "properties": row}
        for shape, row in zip(shapes, properties)
    ]
    collection: dict[str, Any] = {"type": "FeatureCollection", "name": name}
    if georeference and georeference.crs:
        collection["crs"] = {"type": "name", "properties": {"name": georeference.crs}}
    if photograph is not None:
        collection["photograph"] = dict(photograph)
    return json.dumps(collection | {"features": features})


def write_geojson(
    cracks: Sequence[Crack],
    path: Path,
    units: Units = Units(),
    georeference: Georeference | None = None,
    photograph: Mapping[str, Any] | None = None,
) -> Path:
    """Write `geojson` to a file."""
    return _write(path, geojson(cracks, path.stem, units, georeference, photograph))


def write_outlines(
    cracks: Sequence[Crack], path: Path, units: Units = Units(), georeference: Georeference | None = None
) -> Path:
    """Write `outlines` to a file."""
    return _write(path, outlines(cracks, path.stem, units, georeference))


def _geometry(crack: Crack, units: Units, georeference: Georeference | None) -> dict[str, Any]:
    lines = [_coordinates(_simplified(line), units, georeference) for line in crack.lines]
    if len(lines) == 1:
        return {"type": "LineString", "coordinates": lines[0]}
    return {"type": "MultiLineString", "coordinates": lines}


def _coordinates(line: np.ndarray, units: Units, georeference: Georeference | None) -> list[list[float]]:
    if georeference is None:
        return (line / units.scale).round(_DECIMALS).tolist()
    step = max(abs(georeference.affine[0]), abs(georeference.affine[1]))  # of the map, a pixel
    return georeference.place(line).round(max(0, _DECIMALS - int(np.floor(np.log10(step))))).tolist()


def _simplified(line: np.ndarray) -> np.ndarray:
    """A line with fewer points, but two at least."""
    middle = len(line) // 2 if np.array_equal(line[0], line[-1]) else 0  # a closed line in two parts
    if not middle:
        return _simplify_open(line)
    return np.concatenate([_simplify_open(line[: middle + 1])[:-1], _simplify_open(line[middle:])])


def _simplify_open(line: np.ndarray) -> np.ndarray:
    corner = line[0]
    points = cv2.approxPolyDP((line - corner).astype(np.float32)[:, None], _TOLERANCE, closed=False)[:, 0] + corner
    return points if len(points) > 1 else line[[0, -1]]


def _write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, content)
    return path


# ---- the picture ----


def annotate_picture(image: np.ndarray, cracks: Sequence[Crack], units: Units = Units()) -> Image.Image:
    """A picture of the cracks: centre lines, numbers and greatest widths at their positions.

    image: H W 3 uint8, or the mask itself, H W; both of the size in which the cracks were measured. The picture's
    longer side has 1000 to 4000 pixels. A label is where it covers neither a crack nor another label, or left out; they
    cover a tenth of the picture at most, those of the longest cracks.
    """
    longer = max(image.shape[:2])
    factor = min(max(1.0, round(_MIN_SIDE / longer)), _MAX_SIDE / longer)
    # masks in grey on white, so that the lines are seen
    grey = image if image.ndim == 3 else np.array([_PAPER, _STAIN], np.uint8)[(image != 0).view(np.uint8)]
    size = tuple(max(1, round(side * factor)) for side in image.shape[1::-1])
    picture = cv2.resize(grey, size, interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_NEAREST)
    picture = picture if picture.ndim == 3 else repeat(picture, "h w -> h w 3")
    unit = max(1, round(max(picture.shape[:2]) / 1200))
    occupied = np.zeros(picture.shape[:2], np.uint8)
    for crack in cracks:
        lines = [(line * factor * 16).round().astype(np.int32) for line in crack.lines]
        cv2.polylines(occupied, lines, False, 1, 3 * unit, shift=4)
        cv2.polylines(picture, lines, False, _LINE, unit, cv2.LINE_AA, shift=4)
        middle = tuple(int(value * factor * 16) for value in crack.widest)
        cv2.circle(picture, middle, 16 * 4 * unit, _POINT, unit, cv2.LINE_AA, shift=4)
    result = Image.fromarray(picture)
    _label(result, occupied, cracks, units, factor, 13 * unit)
    return result


def _label(
    picture: Image.Image, occupied: np.ndarray, cracks: Sequence[Crack], units: Units, factor: float, size: int
) -> None:
    """Numbers and widths beside the cracks. occupied: H W uint8, not 0 where a crack is; labels are added."""
    draw, font, free_area = ImageDraw.Draw(picture), ImageFont.load_default(size), _LABELS * occupied.size
    pixel_side, unit = (1, "px") if units.mm_per_pixel is None else (units.mm_per_pixel, "mm")
    for crack in cracks:
        text = f"{crack.number}: {crack.max_width * pixel_side / units.scale:.3g} {unit}"
        width, height = math.ceil(draw.textlength(text, font) + size / 2), math.ceil(1.4 * size)
        x, y = (round(value * factor) for value in crack.widest)
        for left, top in product((x + size, x - size - width), (y - 2 * size, y + 2 * size - height)):
            left, top = (
                max(0, min(bounds)) for bounds in ((left, picture.width - width), (top, picture.height - height))
            )
            label = np.s_[top : top + height, left : left + width]
            if not occupied[label].any():
                occupied[label], free_area = 1, free_area - width * height
                draw.rectangle((left, top, left + width - 1, top + height - 1), fill="white", outline=_POINT)
                draw.text((left + size / 4, top + 0.15 * size), text, fill="black", font=font)
                break
        if free_area < 0:
            break


def write_picture(image: np.ndarray, cracks: Sequence[Crack], path: Path, units: Units = Units()) -> Path:
    """The picture of `annotate_picture` as a PNG."""
    return _write(path, encode_image(annotate_picture(image, cracks, units)))
