"""Tables of measurements, from a report (the JSON of a part, or of all): for a terminal, and for Markdown."""

from collections.abc import Sequence
from typing import Any

from cssr.utils.text import markdown_table

UNITS = {"s": ((1, "s"), (1e-3, "ms"), (1e-6, "us")), "B": ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"))}
HEADINGS = ("what", "plain formulation", "plain", "ours", "times", "rounds", "asked", "threads", "bound by", "of it")


def table(report: dict[str, Any]) -> list[str]:
    """Table of the results in aligned columns, the rates, and the failures, as lines."""
    lines = [HEADINGS, *map(cells, report["results"])]
    widths = [max(map(len, column)) for column in zip(*lines)]
    rows = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines]
    return [*rows, *rate_lines(report["rates"]), *failure_lines(report["failures"])]


def markdown(report: dict[str, Any]) -> list[str]:
    """Machine, rates and a Markdown table of the results, as lines."""
    rows = markdown_table(HEADINGS, [*map(cells, report["results"])], right=(2, 3, 4, 5, 6, 7, 9))
    return [circumstances(report), "", *(f"- {line}" for line in rate_lines(report["rates"])), "", rows]


def circumstances(report: dict[str, Any]) -> str:
    """A sentence on machine, versions, revision and clock."""
    facts, clock = report["machine"], report["settings"].get("clock", "wall")
    device = f"{facts['processor']}, {facts['cores']} cores, {facts['memory_gib']} GiB"
    versions = ", ".join(
        f"{name} {facts['versions'][name]}" for name in ("python", "torch") if name in facts["versions"]
    )
    return f"{device}, GPU: {facts['gpu'] or 'none'}; {versions}; revision {facts['revision']}; {clock} clock."


def cells(line: dict[str, Any]) -> tuple[str, ...]:
    """Cells of a result, in the order of HEADINGS."""
    per = "" if line["item"] == "" else f"/{line['item']}"
    figures = [figure(line[way], line["unit"]) + per for way in ("plain", "ours")]
    rounds = f"{min(line['rounds']):.1f}..{max(line['rounds']):.1f}" if line["rounds"] else ""
    asked = "" if line["asked"] is None else f"{line['asked']:g}{'' if line['met'] else ' MISSED'}"
    bound = line["bound"]
    share = f"{100 * bound['share']:.0f} %" if bound else ""
    by = f"{bound['by']} ({achieved(bound)})" if bound else ""
    ratio, threads = f"{line['ratio']:.3g}", str(line["threads"] or "")
    return line["name"], line["formulation"], *figures, ratio, rounds, asked, threads, by, share


def figure(value: float, unit: str) -> str:
    """A value with three digits, in the largest unit in which it is 1 at least, or in the smallest."""
    units = UNITS.get(unit, ((1, unit),))
    size, name = next((u for u in units if value >= u[0]), units[-1])
    return f"{value / size:.3g} {name}"


def achieved(bound: dict[str, Any]) -> str:
    """The achieved rate, or the seconds that a bare call takes."""
    kind = bound["by"].split(",")[0]
    return speed(bound["achieved"], kind) if kind in ("memory", "arithmetic") else figure(bound["rate"], "s")


def speed(value: float, kind: str) -> str:
    """Speed of memory or arithmetic."""
    return f"{value / 1e9:.3g} {'GB/s' if kind == 'memory' else 'GFLOP/s'}"


def rate_lines(rates: Sequence[dict[str, Any]]) -> list[str]:
    """Rates of the machine, a line for each device and number of threads."""
    return [f"{rate['device']}, {rate['threads']} threads: " + ", ".join(rate_texts(rate)) for rate in rates]


def rate_texts(rate: dict[str, Any]) -> list[str]:
    """`copy 20 GB/s`, `matmul float32 300 GFLOP/s`, ..."""
    kinds = [key for key in rate if key.split()[0] in ("copy", "matmul", "conv")]
    return [f"{kind} {speed(rate[kind], 'memory' if kind == 'copy' else 'arithmetic')}" for kind in kinds]


def failure_lines(failures: Sequence[dict[str, str]]) -> list[str]:
    """A line for each failure."""
    return [f"FAILED {failure['name']}: {failure['reason']}" for failure in failures]
