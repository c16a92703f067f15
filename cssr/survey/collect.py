"""Collect the cracks of a survey, one row each, from the results of each photograph."""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from cssr.cracks.pixel_size import SIZES
from cssr.survey.geometry import FARTHEST, check, compact
from cssr.survey.severity import UNKNOWN, Limits
from cssr.utils.annotations import Within, shortened
from cssr.utils.json_files import read_json
from cssr.utils.text import message_of, one_line

Row = dict[str, Any]
LINES = "_cracks.geojson"
_AREAS = {"features": [{"geometry": dict, "properties": dict}]}
_SIDE = Annotated[int, Within(1, 1e9)]  # pixels
_PHOTOGRAPH = {
    "name": str,
    "height": _SIDE,
    "width": _SIDE,
    "?affine": list[float],
    "?mm_per_pixel": Annotated[float, Within(*SIZES)] | None,
    "?mm_per_pixel_uncertainty": Annotated[float, Within(0, 1e12)] | None,
    "?mm_per_pixel_by": str | None,
}
PIXELS = Annotated[float, Within(0, 1e6)]  # standard uncertainty of a width
# What each crack has, and what it has where the size of its pixels is known.
_BOX = ("left", "top", "right", "bottom")
_WIDTHS = ("length", "mean_width", "p95_width", "max_width")
_MEASURES = ("number", *_BOX, "widest_x", "widest_y", "orientation_deg", *(f"{name}_px" for name in _WIDTHS))
_IN_MM = (*(f"{name}_mm" for name in _WIDTHS), "mm_per_pixel")
COVERAGE = 2.0  # standard uncertainties of an expanded one (95 %)

# columns of the table: name, unit, meaning
COLUMNS = {
    "crack": ("", "number in the survey, by photograph and length"),
    "photograph": ("", "file that shows it"),
    "number": ("", "number in that photograph, as in its picture"),
    "x_px": ("px", "position of the greatest width, from the left edge of the photograph"),
    "y_px": ("px", "the same, from the upper edge"),
    "map_x": ("map", "the same on the map, where the photograph is georeferenced"),
    "map_y": ("map", "the same on the map"),
    "length_px": ("px", "length of the centre line with its branches"),
    "mean_width_px": ("px", "area by length"),
    "p95_width_px": ("px", "95th percentile of the widths along the line"),
    "max_width_px": ("px", "greatest width"),
    "length_mm": ("mm", "length"),
    "mean_width_mm": ("mm", "mean width"),
    "p95_width_mm": ("mm", "95th percentile of the widths"),
    "max_width_mm": ("mm", "greatest width"),
    "width_uncertainty_mm": ("mm", "expanded uncertainty (95 %) of the width that is classed"),
    "orientation_deg": ("degrees", "0 along rows, 90 upright"),
    "confidence": ("0..1", "mean probability of its pixels"),
    "severity": ("", "class by width"),
    "severity_range": ("", "all classes within the width's uncertainty, where they are several"),
    "mm_per_pixel": ("mm", "size of the photograph's pixels"),
    "mm_per_pixel_uncertainty": ("mm", "its standard uncertainty"),
    "mm_per_pixel_by": ("", "how it is known"),
}


@dataclass
class Survey:
    """Cracks of many photographs.

    Attributes:
        rows: one for each crack, by the names of COLUMNS; None where a value is not known.
        lines, areas: GeoJSON geometries of each, points as arrays N 2, on the map, or in pixels of the photograph
            where `crs` is None.
        crs: of each, as GDAL reads it; "": a map of unknown name, None: pixels.
        boxes: left, top, right, bottom of each, pixels of the photograph.
        photographs: facts of each: name, height, width, cracks, and what is known of its pixels' size.
        prefixes: the common path of each photograph's results.
    """

    limits: Limits
    rows: list[Row] = field(default_factory=list)
    lines: list[dict] = field(default_factory=list)
    areas: list[dict] = field(default_factory=list)
    crs: list[str | None] = field(default_factory=list)
    boxes: list[tuple[float, ...]] = field(default_factory=list)
    photographs: list[Row] = field(default_factory=list)
    prefixes: list[Path] = field(default_factory=list)

    def by_photograph(self) -> dict[str, list[Row]]:
        """The rows of each photograph, by its name."""
        rows: dict[str, list[Row]] = {photograph["name"]: [] for photograph in self.photographs}
        for row in self.rows:
            rows[row["photograph"]].append(row)
        return rows

    def severities(self, rows: Iterable[Row] | None = None) -> dict[str, int]:
        """Count the cracks of each class, and those that cannot be classed."""
        counts = dict.fromkeys((*self.limits.classes, UNKNOWN), 0)
        for row in self.rows if rows is None else rows:
            counts[row["severity"] or UNKNOWN] += 1
        return counts


@contextmanager
def reading_cracks(prefix: Path) -> Iterator[None]:
    """Turn any error of what the files of a photograph's cracks hold into ValueError, one line, with its prefix."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(f"the cracks of {prefix} cannot be read ({reason}): predict it again") from None


@contextmanager
def reading_result(path: Path) -> Iterator[None]:
    """Name a picture or an array of the results that cannot be read, in ValueError, one line."""
    try:
        yield
    except (OSError, ValueError, EOFError, SyntaxError) as error:  # of damaged files, decoders raise many kinds
        reason = getattr(error, "strerror", None) or message_of(error)
        raise ValueError(f"cannot read {path}: {reason}; predict again") from None


def read_lines(prefix: Path) -> dict[str, Any]:
    """The lines of a photograph's cracks, GeoJSON, with its facts; their features are not checked.

    Raises: ValueError, one line, for a file that is damaged or gone.
    """
    path = prefix.with_name(prefix.name + LINES)
    shape = {"photograph": _PHOTOGRAPH, "?crs": dict | None, "features": list}
    lines = read_json(path, shape, "predict it again")
    if len(lines["photograph"].get("affine", range(6))) != 6:
        raise ValueError(f"{path} is damaged: photograph.affine must be six numbers; predict it again")
    return lines


def crs_of(lines: dict[str, Any]) -> str:
    """Name of the coordinate system of a file of lines, as GDAL reads it; "" of one without."""
    properties = (lines.get("crs") or {}).get("properties")
    name = properties.get("name") if isinstance(properties, dict) else None
    return name if isinstance(name, str) else ""


def read_cracks(prefix: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The lines and the outlines of a photograph's cracks, GeoJSON with as many features each, and sound numbers."""
    lines, areas = read_lines(prefix), read_json(prefix.with_name(f"{prefix.name}_outlines.geojson"), _AREAS)
    if len(lines["features"]) != len(areas["features"]):
        raise ValueError(f"{len(lines['features'])} lines, but {len(areas['features'])} outlines")
    for feature in (*lines["features"], *areas["features"]):
        check(feature["geometry"])
    for feature in lines["features"]:
        _check_measures(feature["properties"])
    return lines, areas


def _check_measures(row: Row) -> None:
    """ValueError unless the numbers of a crack are those that can be meant; files of results are edited by hand, too.

    Checked without `misfit`, which is too slow for 100,000 cracks of twenty numbers.
    """
    optional = tuple(name for name in ("confidence", "mm_per_pixel_uncertainty") if row.get(name) is not None)
    for name in (*_MEASURES, *optional, *(_IN_MM if row.get("mm_per_pixel") is not None else ())):
        value = row.get(name)
        if type(value) not in (int, float) or not -FARTHEST < value < FARTHEST:
            raise ValueError(f"a crack whose {name} is {shortened(value)}")
    left, top, right, bottom = (row[name] for name in _BOX)
    valid = left <= right and top <= bottom and row.get("mm_per_pixel") != 0
    if not valid or min(row[f"{name}_px"] for name in _WIDTHS) < 0:
        raise ValueError(f"crack {row['number']} has no box, or a length, width or pixel that cannot be")


def collect(prefixes: Sequence[Path], limits: Limits, width_uncertainty: float) -> Survey:
    """The cracks of all photographs, from `PREFIX_cracks.geojson` and `PREFIX_outlines.geojson` of each.

    Args:
        width_uncertainty: standard, of a measured width, pixels of the photograph.
    Raises: ValueError, one line, for files that are damaged or gone.
    """
    survey = Survey(limits)
    for prefix in prefixes:
        with reading_cracks(prefix):
            _add(survey, prefix, limits, width_uncertainty)
    return survey


def _add(survey: Survey, prefix: Path, limits: Limits, width_uncertainty: float) -> None:
    lines, areas = read_cracks(prefix)
    photograph = {**lines["photograph"], "name": one_line(lines["photograph"]["name"])}
    crs = crs_of(lines) if "affine" in photograph else None
    survey.photographs.append({**photograph, "cracks": len(lines["features"])})
    survey.prefixes.append(prefix)
    for line, area in zip(lines["features"], areas["features"]):
        row = _row(line["properties"], photograph, limits, width_uncertainty)
        survey.rows.append({"crack": len(survey.rows) + 1, **row})
        survey.boxes.append(tuple(line["properties"][side] for side in _BOX))
        survey.lines.append(compact(line["geometry"]))
        survey.areas.append(compact(area["geometry"]))
        survey.crs.append(crs)


def _row(measured: Row, photograph: Row, limits: Limits, width_uncertainty: float) -> Row:
    values = {name: measured.get(name) for name in COLUMNS}
    values |= {"photograph": photograph["name"], "mm_per_pixel_by": photograph.get("mm_per_pixel_by")}
    values |= {"x_px": measured["widest_x"], "y_px": measured["widest_y"]}
    del values["crack"]
    if "affine" in photograph:
        a, b, c, d, e, f = photograph["affine"]
        x, y = values["x_px"], values["y_px"]
        values |= {"map_x": a * x + b * y + c, "map_y": d * x + e * y + f}
    mm = measured.get("mm_per_pixel")
    if mm is None:
        return values
    width = measured[f"{limits.width}_width_mm"]
    scale_error = width * (measured["mm_per_pixel_uncertainty"] or 0) / mm
    uncertainty = COVERAGE * math.hypot(scale_error, width_uncertainty * mm)
    index, within = limits.class_of(width, uncertainty)
    values |= {"width_uncertainty_mm": round(uncertainty, 3), "severity": limits.classes[index]}
    if len(within) > 1:
        values["severity_range"] = f"{limits.classes[within[0]]} ... {limits.classes[within[-1]]}"
    return values
