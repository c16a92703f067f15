"""Results side by side, as Markdown, curves and CSV: `python -m cssr.report RESULTS... --out DIR`."""

import argparse
import csv
import io
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from cssr.checkpoint import write_atomic
from cssr.metrics import KEYS, SEGMENTATION_KEYS
from cssr.registry import did_you_mean
from cssr.results import Result, component_name, load
from cssr.visualize import Curve, iou_curves

_PICTURES = ("best", "median", "worst")
_FACTS = ("model", "networks", "checkpoint", "data", "images", "scale", "degradation", "resampler", "seed", "tile")
_SEEN = ("scale", "degradation", "resampler")  # facts in which an HR upper bound differs from the rest
_QUOTED = ("model", "data", "degradation")  # facts shown as code: paths and YAML


class Column(NamedTuple):
    """A measure in a table: its heading, key, decimals, what follows the number, and whether less is better."""

    label: str
    key: str
    decimals: int = 3
    unit: str = ""
    lower: bool = False


IMAGE_COLUMNS = (
    Column("IoU_max (threshold)", "iou_max"),
    Column("AIU", "aiu"),
    Column("F1", "f1"),
    Column("HD95_min [px]", "hd95_min", 2, lower=True),
    Column("AHD95 [px]", "ahd95", 2, lower=True),
    Column("clDice", "cldice"),
    Column("clIoU", "cliou"),
    Column("boundary F1", "boundary_f1"),
    Column("PSNR [dB]", "psnr", 2),
    Column("SSIM", "ssim"),
    Column("kernel PSNR [dB]", "kernel_psnr", 2),
    Column("LQ PSNR of the kernel [dB]", "lq_psnr", 2),
)
_PER_IMAGE = (*IMAGE_COLUMNS[:3], Column("OIS", "ois"), *IMAGE_COLUMNS[3:])
DETECTION_COLUMNS = (Column("ODS", "ods"), Column("AP", "ap"))  # as the field computes them, pooled
POOLED_COLUMNS = (
    *(column for column in IMAGE_COLUMNS if column.key in ("iou_max", "aiu", "f1")),
    *DETECTION_COLUMNS,
    *(column for column in IMAGE_COLUMNS if column.key == "psnr"),
)
_INTERVAL = "95 % of IoU_max"
_RARE = ("kernel_psnr", "lq_psnr", "cldice", "cliou", "boundary_f1")  # hidden where no result has them


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


# ---- tables ----


def image_table(results: Sequence[Result], base: Result | None) -> str:
    """The Markdown table per image; what not every evaluation measures where any result has it, shares with a
    reference.
    """
    return _measures(results, _shown(results), "image", base)


def _shown(results: Sequence[Result], columns: Sequence[Column] = _PER_IMAGE) -> list[Column]:
    hidden = set() if any(result.segmented for result in results) else set(SEGMENTATION_KEYS)
    measured = [result.data["metrics"]["image"] for result in results]
    hidden |= {key for key in _RARE if all(values.get(key) is None for values in measured)}
    return [column for column in columns if column.key not in hidden]


def _share_label(base: Result) -> str:
    return "share of HR" if base.bound else f"share of {_escape(base.name)}"


def _measures(
    results: Sequence[Result], columns: Sequence[Column], aggregation: str, base: Result | None = None
) -> str:
    if base:
        columns = [columns[0], Column(_share_label(base), "share", 1, " %"), *columns[1:]]
    rows = [result.numbers(aggregation, base) for result in results]
    cells = [_cells(column, rows, [result.bound for result in results]) for column in columns]
    names, labels = [_escape(result.name) for result in results], [column.label for column in columns]
    if columns[0].key == "iou_max":
        labels.insert(1, _INTERVAL)
        cells.insert(1, [_interval_text(result, aggregation) for result in results])
    return _markdown(["result", *labels], list(zip(names, *cells)))


def _interval_text(result: Result, aggregation: str) -> str:
    found = result.interval(aggregation, "iou_max")
    return "{:.3f} to {:.3f}".format(*found) if found else "-"


def _cells(column: Column, rows: Sequence[dict[str, Any]], bounds: Sequence[bool]) -> list[str]:
    """A column's texts, the best in bold: all that read the same, once two results other than bounds have a number."""
    values = [row.get(column.key) for row in rows]
    texts = ["-" if value is None else f"{value:.{column.decimals}f}{column.unit}" for value in values]
    ranked = [(value, text) for value, text, bound in zip(values, texts, bounds) if value is not None and not bound]
    best = (min if column.lower else max)(ranked)[1] if len(ranked) > 1 else None
    texts = [f"**{text}**" if text == best and not bound else text for text, bound in zip(texts, bounds)]
    if column.key == "iou_max":
        at = [row["iou_max_threshold"] for row in rows]
        texts = [text if threshold is None else f"{text} ({threshold:.2f})" for text, threshold in zip(texts, at)]
    return texts


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]], numeric: bool = True) -> str:
    """A Markdown table whose columns are also aligned as plain text; numbers to the right."""
    widths = [max(3, *(len(row[i]) for row in [head, *rows])) for i in range(len(head))]
    right = [numeric and i > 0 for i in range(len(head))]
    rule = ["-" * (width - 1) + ":" if r else "-" * width for width, r in zip(widths, right)]
    lines = [[c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right)] for row in [head, *rows]]
    return "\n".join("| " + " | ".join(line) + " |" for line in [lines[0], rule, *lines[1:]])


def _escape(text: str) -> str:
    """Text as Markdown shows it literally, in a table too."""
    return re.sub(r"([\\|*<`])", r"\\\1", " ".join(text.split()))


# ---- how it was evaluated ----


def _fact(result: Result, key: str) -> str:
    """One of `_FACTS` as Markdown."""
    value = result.data.get(key)
    if key == "networks":
        value = " + ".join(component_name(result.data, part) for part in ("sr", "seg"))
    if key == "degradation" and value is not None:
        component = {"name": value} if isinstance(value, str) else value
        value = yaml.safe_dump(component, default_flow_style=True, sort_keys=False, width=10**6).strip()
    text = "-" if value is None else str(value)
    return "`{}`".format(text.replace("|", r"\|")) if key in _QUOTED else _escape(text)


def _facts(results: Sequence[Result]) -> str:
    """What all results share as a list, the rest as a table."""
    shared = [key for key in _FACTS if len({_fact(result, key) for result in results}) == 1]
    blocks = ["\n".join(f"- {key}: {_fact(results[0], key)}" for key in shared)] if shared else []
    if own := [key for key in _FACTS if key not in shared]:
        rows = [[_escape(result.name), *(_fact(result, key) for key in own)] for result in results]
        blocks += ["These differ:", _markdown(["result", *own], rows, numeric=False)]
    return "\n\n".join(blocks)


def caveats(results: Sequence[Result]) -> list[str]:
    """Lines that say why the results may not be compared, and what differs as it should."""
    systems = [result for result in results if not result.bound] or list(results)
    found = [_difference(results, key) for key in ("data", "images")]
    found += [_difference(systems, key) for key in (*_SEEN, "seed")]
    if not any(found) and _other_images(results):
        found = ["the images themselves (names, sizes or masks)"]
    lines = []
    if any(found):
        lines.append(f"**WARNING:** not comparable: the results differ in {'; '.join(filter(None, found))}.")
    if keys := [label for label, texts in _definitions(results).items() if len(texts) > 1]:
        lines.append(f"**WARNING:** the results define these differently (see Definitions): {', '.join(keys)}.")
    return lines + _expected(results, systems)


def _expected(results: Sequence[Result], systems: Sequence[Result]) -> list[str]:
    """A line on the facts in which upper bounds alone differ."""
    expected = " and ".join(key for key in _SEEN if _difference(results, key) != _difference(systems, key))
    if not expected:
        return []
    bounds = ", ".join(_escape(result.name) for result in results if result.bound)
    return [f"HR upper bound: {bounds} segments the HR image itself; another {expected} is expected there."]


def _difference(results: Sequence[Result], key: str) -> str:
    """The values of a fact and who has them; empty where all have the same."""
    owners = _grouped((_fact(result, key), _escape(result.name)) for result in results)
    if len(owners) == 1:
        return ""
    values = "; ".join(f"{value}: {', '.join(names)}" for value, names in owners.items())
    if key == "data" and not _other_images(results):
        values += "; though names and crack areas of the images are the same"
    return f"{'number of images' if key == 'images' else key} ({values})"


def _other_images(results: Sequence[Result]) -> bool:
    """Whether images differ in name, size or crack pixels: a path alone does not tell what lies there."""
    sets = [result.data["per_image"] for result in results if result.data.get("per_image")]
    counted = all("tp" in row for rows in sets for row in rows)
    return len({frozenset(_identity(row, counted) for row in rows) for rows in sets}) > 1


def _identity(row: dict[str, Any], counted: bool) -> tuple[Any, ...]:
    return row["key"], row["pixels"], row["tp"][0] + row["fn"][0] if counted else None


def _grouped(pairs: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for key, value in pairs:
        groups.setdefault(key, []).append(value)
    return groups


def _definitions(results: Sequence[Result]) -> dict[str, dict[str, list[str]]]:
    """By what is shown: its definitions, and the names of the results that have each."""
    labels = {key: key.replace("image", "per image") for key in ("image", "pooled", "thresholds")}
    labels |= {
        column.key: column.label.split(" (")[0].split(" [")[0]
        for column in _shown(results, (*_PER_IMAGE, *DETECTION_COLUMNS))
    }
    labels |= {"iou_max_threshold": "threshold", "per_image.iou": "IoU in the pictures", "segmentation": "segmentation"}
    labels |= {"intervals": _INTERVAL}
    found = {label: _grouped(_texts(results, key)) for key, label in labels.items()}
    return {label: texts for label, texts in found.items() if texts}


def _texts(results: Sequence[Result], key: str) -> Iterator[tuple[str, str]]:
    """A definition and the name of its result; a result without segmentation leaves out what it does not measure."""
    for result in results:
        text = result.data["definitions"].get(key)
        if text is not None or (result.segmented and key != "segmentation"):
            yield _escape(text or "not in the file"), _escape(result.name)


def _definition_lines(results: Sequence[Result], base: Result | None) -> list[str]:
    lines = [
        f"- **{label}**{' (' + ', '.join(names) + ')' if len(texts) > 1 else ''}: {text}"
        for label, texts in _definitions(results).items()
        for text, names in texts.items()
    ]
    share = [f"- **{_share_label(base)}**: IoU_max in percent of that of {_escape(base.name)}"] if base else []
    return lines + share


# ---- writing ----


def report(
    paths: Iterable[str | Path], out: str | Path, title: str | None = None, reference: str | None = None
) -> Path:
    """Write `report.md`, `curves.png` (of segmentation, where measured), `table.csv` and `pictures/` into `out`.

    Args:
        paths: results files, or directories that hold some (a run's are all taken).
        title: the report's heading.
        reference: name of the result of whose IoU_max the others' are shares; by default the only HR upper bound.
    Returns: the path of `report.md`.
    Raises: ValueError, one line, for what cannot be read and for an unknown reference; nothing is written then.
    """
    results = load(paths)
    return _write(results, find_reference(results, reference), Path(out), title)


def _write(results: Sequence[Result], base: Result | None, out: Path, title: str | None) -> Path:
    out.mkdir(parents=True, exist_ok=True)
    pictures = [block for result in results for block in _pictures(result, out)]
    if curves := [_curve(result) for result in results if result.segmented]:
        _replace(out / "curves.png", iou_curves(curves))
    write_atomic(out / "table.csv", _csv(results))
    write_atomic(out / "report.md", _compose(results, base, title or "Evaluation", pictures))
    return out / "report.md"


def _curve(result: Result) -> Curve:
    found = result.data["curves"]
    return Curve(result.name, found["thresholds"], found["image_iou"], found["pooled_iou"], result.bound)


def _pictures(result: Result, out: Path) -> list[str]:
    """Copy the pictures that lie beside a result; returns the blocks of Markdown that show them."""
    blocks, name, measure = [], _escape(result.name), "IoU" if result.segmented else "PSNR"
    for kind in _PICTURES:
        source, copy = result.path.parent / "pictures" / f"{kind}.png", f"pictures/{result.slug}/{kind}.png"
        if source.is_file():
            (out / copy).parent.mkdir(parents=True, exist_ok=True)
            _replace(out / copy, source.read_bytes())
            blocks += [f"{kind.capitalize()} by {measure}:", f"![{kind} images of {name}]({copy})"]
    return [f"### {name}", *blocks] if blocks else []


def _replace(path: Path, content: bytes) -> None:
    temporary = path.with_name(f"{path.name}.partial-{os.getpid()}")
    temporary.write_bytes(content)
    os.replace(temporary, path)


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


def _compose(results: Sequence[Result], base: Result | None, title: str, pictures: list[str]) -> str:
    note = "Bold: the best of each column, HR upper bounds aside. `-`: not computed, not defined, or infinite."
    blocks = [f"# {_escape(title)}", "## Per image", image_table(results, base), note]
    blocks += ["## Pooled over all pixels", _measures(results, _shown(results, POOLED_COLUMNS), "pooled")]
    blocks += ["## How it was evaluated", *caveats(results), _facts(results)]
    if any(result.segmented for result in results):
        blocks += ["## IoU over the threshold", "![IoU over the threshold, per image and pooled](curves.png)"]
    blocks += ["## Pictures", *pictures] if pictures else []
    lines = "\n".join(_definition_lines(results, base))
    blocks += ["## Definitions", f"<details><summary>What each number is</summary>\n\n{lines}\n\n</details>"]
    return "\n\n".join(blocks) + "\n"


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    options = _parser().parse_args(arguments)
    try:
        results = load(options.results)
        base = find_reference(results, options.reference)
        path = _write(results, base, options.out, options.title)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    print(image_table(results, base), *caveats(results), f"written to {path}", sep="\n\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m cssr.report", description=__doc__)
    parser.add_argument("results", nargs="+", type=Path, help="results.json files, or run or evaluation directories")
    parser.add_argument("--out", type=Path, required=True, help="directory for report.md, curves.png and table.csv")
    parser.add_argument("--title", help="heading of the report")
    parser.add_argument("--reference", help="result whose IoU_max is 100 %% (default: the only HR upper bound)")
    return parser


if __name__ == "__main__":
    main()
