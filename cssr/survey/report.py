"""Write a survey as a document to print and sign: HTML for A4, in one file, and PDF (extra `pdf`)."""

import base64
import functools
import io
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, select_autoescape
from PIL import Image, ImageFile

from cssr import __version__
from cssr.survey.collect import COLUMNS, PIXELS, Row, Survey, collect, reading_result
from cssr.survey.geometry import paths
from cssr.survey.severity import Limits, check_limits
from cssr.utils.files import naming_path, write_atomic
from cssr.utils.images import open_image
from cssr.utils.json_files import read_json

PICTURED = 60  # cracks that have a picture, the most severe ones
LISTED = 1000  # rows of the table; all are in cracks.csv
_SHEET, _CROP, _MARGIN = 560, 360, 24  # pixels: of a photograph, of a crack's picture, around a crack
_COLOURS = ("#2a7f3f", "#c98a00", "#c0392b", "#7b1fa2", "#4e342e", "#1a237e")  # from the mildest class
_UNKNOWN = "#5f6b76"
_MAP = (640, 420)  # SVG units


@dataclass(frozen=True)
class CrackEntry:
    """A crack as the document shows it."""

    row: Row
    label: str  # photograph.number, as in the photograph's picture
    colour: str
    picture: str | None  # data address


def write_report(directory: Path, out: Path, title: str | None = None) -> list[Path]:
    """Write `survey.html`, and `survey.pdf` where WeasyPrint is there, of a directory of results or its survey.

    Raises: ValueError, one line, where there is no survey, or a photograph's results are gone.
    """
    folder = directory if (directory / "survey.json").is_file() else directory / "survey"
    if not (folder / "survey.json").is_file():
        raise ValueError(f"no survey in {directory}: run cssr.predict PHOTOGRAPHS --measure --out {directory}")
    facts = read_json(folder / "survey.json", _SHAPE, "predict again")
    survey = _read_survey(facts, folder)
    page = compose(survey, facts, title or "Crack survey")
    with naming_path(out):
        out.mkdir(parents=True, exist_ok=True)
    write_atomic(out / "survey.html", page)
    pdf = to_pdf(page)
    if pdf is None:
        (out / "survey.pdf").unlink(missing_ok=True)
        return [out / "survey.html"]
    write_atomic(out / "survey.pdf", pdf)
    return [out / "survey.html", out / "survey.pdf"]


_SHAPE = {
    "photographs": [{"name": str, "width": int, "height": int, "results": str}],
    "limits": {"name": str, "source": str, "width": str, "classes": list[str], "above": list[float]},
    "width_uncertainty_px": PIXELS,
}


def _read_survey(facts: dict[str, Any], folder: Path) -> Survey:
    stored = facts["limits"]
    names = {name: stored[name] for name in ("name", "source", "width")}
    try:
        limits = check_limits(Limits(**names, classes=tuple(stored["classes"]), above=tuple(stored["above"])))
    except ValueError as error:
        raise ValueError(f"{folder / 'survey.json'} is damaged: limits: {error}; predict again") from None
    prefixes = [Path(os.path.normpath(folder / photograph["results"])) for photograph in facts["photographs"]]
    missing = [prefix for prefix in prefixes if not prefix.with_name(f"{prefix.name}_cracks.geojson").is_file()]
    if missing:
        raise ValueError(
            f"results of {len(missing)} photographs are gone, {missing[0]}_cracks.geojson first: predict again"
        )
    return collect(prefixes, limits, facts["width_uncertainty_px"])


def to_pdf(page: str) -> bytes | None:
    """The page as PDF; None where WeasyPrint or the libraries that it needs are not there."""
    strict = ImageFile.LOAD_TRUNCATED_IMAGES
    try:
        import weasyprint
    except (ImportError, OSError):  # of Pango
        return None
    finally:  # WeasyPrint has the whole process take images that are cut off for whole ones
        ImageFile.LOAD_TRUNCATED_IMAGES = strict
    return weasyprint.HTML(string=page).write_pdf()  # all that it shows is in it


def compose(survey: Survey, facts: dict[str, Any], title: str) -> str:
    """The document as HTML, in one file."""
    environment = Environment(loader=PackageLoader("cssr.survey", "pages"), autoescape=select_autoescape())
    order = sorted(survey.rows, key=functools.partial(_severity_order, survey.limits))
    rows = survey.severities()
    spread = [row for row in survey.rows if row["severity_range"]]
    return environment.get_template("survey.html").render(
        title=title,
        today=date.today().isoformat(),
        version=__version__,
        facts=facts,
        survey=survey,
        severities=[(name, count, colour_of(survey.limits, name)) for name, count in rows.items() if count],
        spread=len(spread),
        photographs=list(_photographs(survey)),
        pictured=[_crack_entry(survey, row, True) for row in order[:PICTURED]],
        listed=[_crack_entry(survey, row, False) for row in order[:LISTED]],
        total_length=_total(survey, "length_mm", 1e-3, "m") or _total(survey, "length_px", 1, "px"),
        widest=order[0] if order else None,
        map=_map(survey),
        columns=COLUMNS,
        sizes=sorted({photograph.get("mm_per_pixel_by") or "not known" for photograph in survey.photographs}),
    )


def colour_of(limits: Limits, severity: str | None) -> str:
    """Colour of a class of severity."""
    if severity not in limits.classes:
        return _UNKNOWN
    return _COLOURS[min(limits.classes.index(severity), len(_COLOURS) - 1)]


def _severity_order(limits: Limits, row: Row) -> tuple:
    """Sorts the most severe, then the widest, first."""
    rank = limits.classes.index(row["severity"]) if row["severity"] else -1
    return -rank, -(row["p95_width_mm"] or 0), -row["p95_width_px"], row["crack"]


def _total(survey: Survey, name: str, factor: float, unit: str) -> str:
    values = [row[name] for row in survey.rows if row[name] is not None]
    return f"{sum(values) * factor:.4g} {unit}" if values else ""


def _photographs(survey: Survey) -> Iterator[tuple[int, Row, dict[str, int], str | None]]:
    """Number, facts, classes and picture of each."""
    by_name = survey.by_photograph()
    for number, (photograph, prefix) in enumerate(zip(survey.photographs, survey.prefixes), 1):
        classes = {name: count for name, count in survey.severities(by_name[photograph["name"]]).items() if count}
        yield number, photograph, classes, data_uri(_picture(prefix), _SHEET)


def _crack_entry(survey: Survey, row: Row, pictured: bool) -> CrackEntry:
    number = next(n for n, photograph in enumerate(survey.photographs, 1) if photograph["name"] == row["photograph"])
    picture = None
    if pictured:
        prefix, photograph = survey.prefixes[number - 1], survey.photographs[number - 1]
        picture = data_uri(_crop(_picture(prefix), survey, row, photograph), _CROP)
    return CrackEntry(row, f"{number}.{row['number']}", colour_of(survey.limits, row["severity"]), picture)


@functools.lru_cache(maxsize=4)
def _picture(prefix: Path) -> Image.Image | None:
    """The photograph with its cracks; None where it was removed."""
    path = prefix.with_name(f"{prefix.name}_cracks.png")
    if not path.is_file():
        return None
    with reading_result(path), open_image(path) as picture:
        return picture.convert("RGB")


def _crop(picture: Image.Image | None, survey: Survey, row: Row, photograph: Row) -> Image.Image | None:
    """The part of the picture around a crack."""
    if picture is None:
        return None
    factor = picture.width / photograph["width"]
    left, top, right, bottom = (factor * side for side in survey.boxes[row["crack"] - 1])
    margin = max(_MARGIN, (right - left) / 8, (bottom - top) / 8)
    box = (left - margin, top - margin, right + margin, bottom + margin)
    low, high = map(math.floor, box[:2]), map(math.ceil, box[2:])
    return picture.crop((*(max(0, n) for n in low), *(min(n, s) for n, s in zip(high, picture.size))))


def data_uri(picture: Image.Image | None, side: int) -> str | None:
    """A picture, reduced to so many pixels a side, as a data address of HTML."""
    if picture is None:
        return None
    small, buffer = picture.copy(), io.BytesIO()
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    small.save(buffer, "JPEG", quality=82)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _map(survey: Survey) -> dict[str, Any] | None:
    """Lines of the cracks that are on the map of the first of them, in SVG units, and a scale bar."""
    target = next((crs for crs in survey.crs if crs is not None), None)
    chosen = [n for n, crs in enumerate(survey.crs) if crs == target] if target is not None else []
    if not chosen:
        return None
    lines = [(n, line) for n in chosen for line in paths(survey.lines[n])]
    xs, ys = zip(*(point for _, line in lines for point in line))
    extent = max((max(xs) - min(xs)) / _MAP[0], (max(ys) - min(ys)) / _MAP[1]) or 1.0
    drawn = [
        (
            " ".join(f"{(x - min(xs)) / extent:.1f},{(max(ys) - y) / extent:.1f}" for x, y in line),
            colour_of(survey.limits, survey.rows[n]["severity"]),
        )
        for n, line in lines
    ]
    bar = 10 ** math.floor(math.log10(extent * _MAP[0] / 3)) if extent > 0 else 1.0
    return {"lines": drawn, "bar": bar / extent, "bar_text": f"{bar:g}", "width": _MAP[0], "height": _MAP[1]}
