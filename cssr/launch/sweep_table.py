"""The table of a sweep: mean and standard deviation over seeds, as Markdown, CSV and JSON."""

import csv
import io
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cssr.evaluation.definitions import KEYS
from cssr.evaluation.results import load
from cssr.launch.grid import Point
from cssr.report import IMAGE_COLUMNS
from cssr.utils.files import write_atomic
from cssr.utils.text import markdown_table

FORMAT = "cssr-sweep-1"
_NOTE = "Per image; mean ± standard deviation (n - 1) over n runs, one a seed. `-`: of one run there is no deviation."


@dataclass(frozen=True)
class Entry:
    """The result of a point of the grid on a benchmark."""

    point: Point
    benchmark: str
    path: Path


@dataclass(frozen=True)
class Row:
    """All runs of a setting on a benchmark: `measures` by aggregation and key, each with mean, deviation, n, values."""

    benchmark: str
    setting: dict[str, str]
    seeds: list[str | None]
    measures: dict[str, dict[str, dict[str, Any]]]


def write_tables(entries: Sequence[Entry], points: Sequence[Point], out: Path, recipe: str, note: str = "") -> str:
    """Write `table.md`, `table.csv` and `table.json` into `out`; returns the Markdown. Settings come as in `points`."""
    rows = table_rows(entries, points)
    blocks = [f"# {Path(recipe).stem}", *([note] if note else [])]
    for benchmark in dict.fromkeys(row.benchmark for row in rows):
        blocks += [f"## {benchmark}", _table([row for row in rows if row.benchmark == benchmark], Path(recipe).stem)]
    text = "\n\n".join([*blocks, _NOTE]) + "\n"
    table = {"format": FORMAT, "recipe": recipe, "note": note, "rows": [vars(row) for row in rows]}
    write_atomic(out / "table.json", json.dumps(table, indent=1))
    write_atomic(out / "table.csv", _csv(rows))
    write_atomic(out / "table.md", text)
    return text


def table_rows(entries: Sequence[Entry], points: Sequence[Point]) -> list[Row]:
    """A row for each benchmark and setting; a setting without a result has one of n = 0."""
    settings = list({json.dumps(point.setting): point.setting for point in points}.values())
    benchmarks = list(dict.fromkeys(entry.benchmark for entry in entries))
    return [_row(entries, benchmark, setting) for benchmark in benchmarks for setting in settings]


def _row(entries: Sequence[Entry], benchmark: str, setting: dict[str, str]) -> Row:
    matching = [entry for entry in entries if entry.benchmark == benchmark and entry.point.setting == setting]
    metrics_of_runs = [load([entry.path])[0].data["metrics"] for entry in matching]
    measures = {
        kind: {key: summarize([metrics[kind].get(key) for metrics in metrics_of_runs]) for key in KEYS}
        for kind in ("image", "pooled")
    }
    return Row(benchmark, setting, [entry.point.seed for entry in matching], measures)


def summarize(values: Sequence[float | None]) -> dict[str, Any]:
    """Mean and standard deviation (n - 1) of those that are numbers; None where there are too few."""
    numbers = [value for value in values if value is not None]
    return {
        "mean": statistics.fmean(numbers) if numbers else None,
        "deviation": statistics.stdev(numbers) if len(numbers) > 1 else None,
        "n": len(numbers),
        "values": list(values),
    }


def _csv(rows: Sequence[Row]) -> str:
    """A line for each row and aggregation, every number in full; empty where there is none."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    settings = list(rows[0].setting)
    writer.writerow(["benchmark", "aggregation", *settings, "n", *(f"{k}{end}" for k in KEYS for end in ("", "_std"))])
    for row in rows:
        for kind, measures in row.measures.items():
            numbers = [measures[key][statistic] for key in KEYS for statistic in ("mean", "deviation")]
            writer.writerow([row.benchmark, kind, *row.setting.values(), len(row.seeds), *numbers])
    return buffer.getvalue()


def _table(rows: Sequence[Row], recipe: str) -> str:
    """A Markdown table with columns aligned as plain text; measures that no run has are left out."""
    shown = [column for column in IMAGE_COLUMNS if any(row.measures["image"][column.key]["n"] for row in rows)]
    head = [*(rows[0].setting or {"recipe": ""}), "n", *(column.label.split(" (")[0] for column in shown)]
    lines = [
        [*(row.setting.values() or [recipe]), str(len(row.seeds)), *(_cell(row, c.key, c.decimals) for c in shown)]
        for row in rows
    ]
    head, *lines = [[cell.replace("|", "\\|") for cell in line] for line in [head, *lines]]
    return markdown_table(head, lines, aligned=True)


def _cell(row: Row, key: str, decimals: int) -> str:
    measure = row.measures["image"][key]
    if not measure["n"]:
        return "-"
    deviation = "-" if measure["deviation"] is None else f"{measure['deviation']:.{decimals}f}"
    fewer = f" (n = {measure['n']})" if measure["n"] < len(row.seeds) else ""
    return f"{measure['mean']:.{decimals}f} ± {deviation}{fewer}"
