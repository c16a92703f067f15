"""Write the files of a report, each atomically."""

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

from cssr.evaluation.definitions import KEYS
from cssr.evaluation.results import Result, load
from cssr.report.columns import find_reference
from cssr.report.facts import MARKDOWN
from cssr.report.latex import latex_tables
from cssr.report.markdown import compose
from cssr.report.page import compose_page
from cssr.report.plots import Curve, iou_curves
from cssr.utils.files import naming_path, write_atomic

_PICTURES = ("best", "median", "worst")


def report(
    paths: Iterable[str | Path], out: str | Path, title: str | None = None, reference: str | None = None
) -> Path:
    """Write `report.html` and `report.md`, `table.tex`, `table.csv`, `curves.png` (of segmentation) and `pictures/`.

    Args:
        paths: results files, or directories that hold some (a run's are all taken).
        out: where to; made where it is missing.
        title: the report's heading.
        reference: name of the result that the others' IoU_max are shares of; by default the only HR upper bound.
    Returns: the path of `report.md`.
    Raises: ValueError, one line, for what cannot be read and for an unknown reference; nothing is written then.
    """
    results = load(paths)
    return write(results, find_reference(results, reference), Path(out), title)


def write(results: Sequence[Result], base: Result | None, out: Path, title: str | None) -> Path:
    """Write a report of results that were read; `base` is the reference."""
    title = title or "Evaluation"
    page = compose_page(results, base, title)
    with naming_path(out):
        out.mkdir(parents=True, exist_ok=True)
    pictures = [block for result in results for block in _pictures(result, out)]
    drawn = [(result, result.data["curves"]) for result in results if result.segmented]
    curves = [Curve(r.name, c["thresholds"], c["image_iou"], c["pooled_iou"], r.bound) for r, c in drawn]
    if curves:
        write_atomic(out / "curves.png", iou_curves(curves))
    write_atomic(out / "table.csv", _csv(results))
    write_atomic(out / "table.tex", latex_tables(results, base, title))
    write_atomic(out / "report.html", page)
    write_atomic(out / "report.md", compose(results, base, title, pictures))
    return out / "report.md"


def _pictures(result: Result, out: Path) -> list[str]:
    """Copy the pictures beside a result; returns the blocks of Markdown that show them."""
    blocks, name, measure = [], MARKDOWN.text(result.name), "IoU" if result.segmented else "PSNR"
    for kind in _PICTURES:
        source, copy = result.path.parent / "pictures" / f"{kind}.png", f"pictures/{result.slug}/{kind}.png"
        if source.is_file():
            (out / copy).parent.mkdir(parents=True, exist_ok=True)
            write_atomic(out / copy, source.read_bytes())
            blocks += [f"{kind.capitalize()} by {measure}:", f"![{kind} images of {name}]({copy})"]
    return [f"### {name}", *blocks] if blocks else []


def _csv(results: Sequence[Result]) -> str:
    """A row for each result and aggregation, every number in full; empty where there is none."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["name", "data", "images", "aggregation", *KEYS, "iou_max_low", "iou_max_high"])
    for result in results:
        for aggregation in ("image", "pooled"):
            values = result.data["metrics"][aggregation]
            facts = [result.name, result.data["data"], result.data["images"], aggregation]
            between = result.interval(aggregation, "iou_max") or (None, None)
            writer.writerow([*facts, *(values.get(key) for key in KEYS), *between])
    return buffer.getvalue()
