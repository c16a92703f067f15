"""Columns of a report: the measures, their headings, and each result's number beside the others'."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from cssr.config.registry import did_you_mean
from cssr.evaluation.definitions import CRACK_KEYS, LINE_KEYS, SEGMENTATION_KEYS
from cssr.evaluation.results import Result

INTERVAL = "95 % of IoU_max"
NOTE = "the best of each column, HR upper bounds aside. A dash: not computed, not defined, or infinite."


class Column(NamedTuple):
    """A measure in a table: its heading, key, decimals, what follows the number, and whether less is better."""

    label: str
    key: str
    decimals: int = 3
    unit: str = ""
    lower: bool = False


class Cell(NamedTuple):
    """A number as it is read and as it is sorted: text, what follows it, and its 95 % interval."""

    text: str
    value: float | None = None
    after: str = ""
    best: bool = False
    between: str = ""


class Table(NamedTuple):
    """Numbers of results: rows[i][j] is what result i has in column j."""

    results: Sequence[Result]
    columns: list[Column]
    rows: list[list[Cell]]


IMAGE_COLUMNS = (
    Column("IoU_max (threshold)", "iou_max"),
    Column("AIU", "aiu"),
    Column("F1", "f1"),
    Column("ECE", "ece", 4, lower=True),
    Column("HD95_min [px]", "hd95_min", 2, lower=True),
    Column("AHD95 [px]", "ahd95", 2, lower=True),
    Column("clDice", "cldice"),
    Column("clIoU", "cliou"),
    Column("boundary F1", "boundary_f1"),
    Column("width error [px]", "width_error", 2, lower=True),
    Column("greatest width error [px]", "max_width_error", 2, lower=True),
    Column("length error [px]", "length_error", 1, lower=True),
    Column("PSNR [dB]", "psnr", 2),
    Column("SSIM", "ssim"),
    Column("kernel PSNR [dB]", "kernel_psnr", 2),
    Column("LQ PSNR of the kernel [dB]", "lq_psnr", 2),
)
PER_IMAGE = (*IMAGE_COLUMNS[:3], Column("OIS", "ois"), *IMAGE_COLUMNS[3:])
DETECTION_COLUMNS = (Column("ODS", "ods"), Column("AP", "ap"))  # as the field computes them, pooled
POOLED_COLUMNS = (
    *(column for column in IMAGE_COLUMNS if column.key in ("iou_max", "aiu", "f1", "ece")),
    *DETECTION_COLUMNS,
    *(column for column in IMAGE_COLUMNS if column.key == "psnr"),
)
# hidden where no result has them
_RARE = (*("ece", "hd95_min", "ahd95", "kernel_psnr", "lq_psnr"), *LINE_KEYS, *CRACK_KEYS)


def find_reference(results: Sequence[Result], name: str | None) -> Result | None:
    """The result called `name`; without one the HR upper bound, if there is exactly one.

    Raises: ValueError where the name is unknown, or the result has no IoU_max to take shares of.
    """
    if name is None:
        bounds = [result for result in results if result.bound and result.segmented]
        return bounds[0] if len(bounds) == 1 else None
    for result in results:
        if result.name == name:
            if not result.segmented:
                raise ValueError(f"--reference: {name} has no measures of segmentation; choose a result that has")
            return result
    raise ValueError(f"--reference: no result is called {name!r}{did_you_mean(name, [r.name for r in results])}")


def shown(results: Sequence[Result], columns: Sequence[Column] = PER_IMAGE) -> list[Column]:
    """The columns without those of segmentation, and of what not every evaluation measures, where no result has any."""
    hidden = set() if any(result.segmented for result in results) else set(SEGMENTATION_KEYS)
    measured = [result.data["metrics"]["image"] for result in results]
    hidden |= {key for key in _RARE if all(values.get(key) is None for values in measured)}
    return [column for column in columns if column.key not in hidden]


def share_label(base: Result) -> str:
    """Heading of the shares of a result's IoU_max."""
    return "share of HR" if base.bound else f"share of {base.name}"


def image_measures(results: Sequence[Result], base: Result | None) -> Table:
    """The table per image; with a reference, shares of its IoU_max."""
    columns = shown(results)
    if base:
        columns.insert(1, Column(share_label(base), "share", 1, " %"))
    return _table(results, columns, "image", base)


def pooled_measures(results: Sequence[Result]) -> Table:
    """The table pooled over all pixels."""
    return _table(results, shown(results, POOLED_COLUMNS), "pooled")


def with_intervals(table: Table) -> tuple[list[str], list[list[Cell]]]:
    """Headings and rows of a table that has its intervals of IoU_max in a column of their own."""
    heads, rows = [column.label for column in table.columns], [list(row) for row in table.rows]
    if table.columns[0].key == "iou_max":
        heads.insert(1, INTERVAL)
        for row in rows:
            row.insert(1, Cell(row[0].between or "-"))
    return heads, rows


def _table(results: Sequence[Result], columns: list[Column], aggregation: str, base: Result | None = None) -> Table:
    rows = [result.numbers(aggregation, base) for result in results]
    cells = [_cells(column, rows, results, aggregation) for column in columns]
    return Table(results, columns, [list(row) for row in zip(*cells)])


def _cells(column: Column, rows: Sequence[dict[str, Any]], results: Sequence[Result], aggregation: str) -> list[Cell]:
    """A column, the best marked: all that read the same, once two results other than bounds have a number."""
    values, bounds = [row.get(column.key) for row in rows], [result.bound for result in results]
    texts = ["-" if value is None else f"{value:.{column.decimals}f}{column.unit}" for value in values]
    ranked = [(value, text) for value, text, bound in zip(values, texts, bounds) if value is not None and not bound]
    best = (min if column.lower else max)(ranked)[1] if len(ranked) > 1 else None
    return [
        Cell(
            text,
            value,
            _threshold_text(column, row),
            text == best and not bound,
            _interval_text(column, result, aggregation),
        )
        for text, value, row, bound, result in zip(texts, values, rows, bounds, results)
    ]


def _threshold_text(column: Column, row: dict[str, Any]) -> str:
    threshold = row["iou_max_threshold"] if column.key == "iou_max" else None
    return "" if threshold is None else f" ({threshold:.2f})"


def _interval_text(column: Column, result: Result, aggregation: str) -> str:
    interval = result.interval(aggregation, column.key)
    return " to ".join(f"{value:.{column.decimals}f}" for value in interval) if interval else ""
