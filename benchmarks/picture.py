"""A picture of what was measured: a bar a pair, how many times as long the plain way takes, and what is asked."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.ticker import NullFormatter  # noqa: E402

MET, MISSED, OURS = "#2a78b5", "#c44e52", "#9aa7b1"  # what is asked: met, not met, nothing asked


def draw(report: dict[str, Any], path: Path) -> None:
    """Write a PNG; nothing where there is no result."""
    lines = report["results"][::-1]
    if not lines:
        return
    figure, axes = plt.subplots(figsize=(11, 1.6 + 0.3 * len(lines)), layout="constrained")
    axes.barh(range(len(lines)), [line["ratio"] for line in lines], color=[color(line) for line in lines], height=0.65)
    for place, line in enumerate(lines):
        axes.text(line["ratio"] * 1.04, place, f"{line['ratio']:.3g}", va="center", fontsize=8)
        if line["asked"] is not None:
            axes.plot([line["asked"]] * 2, [place - 0.42, place + 0.42], color="black", lw=2)
    axes.set_yticks(
        range(len(lines)), [f"{line['name']}\n  against {line['formulation']}" for line in lines], fontsize=7
    )
    axes.set(xscale="log", xlim=limits(lines), ylim=(-0.7, len(lines) - 0.3))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("times as much as ours (black: what is asked; red: not reached; grey: nothing is asked)")
    axes.axvline(1, color="black", lw=0.6, ls=":")
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(title(report), fontsize=9, loc="left")
    part = path.with_name(path.name + ".part")
    figure.savefig(part, format="png", dpi=120)
    plt.close(figure)
    part.replace(path)


def color(line: dict[str, Any]) -> str:
    """By whether it is what is asked."""
    return {True: MET, False: MISSED, None: OURS}[line["met"]]


def limits(lines: list[dict[str, Any]]) -> tuple[float, float]:
    """Of the axis, with room for the figures."""
    values = [value for line in lines for value in (line["ratio"], line["asked"]) if value]
    return min(0.5, 0.5 * min(values)), 2 * max(10.0, *values)


def title(report: dict[str, Any]) -> str:
    """Machine, threads and revision."""
    found = report["machine"]
    device = found["gpu"] or f"{found['processor']}, {found['cores']} cores"
    return f"{device}; {report['settings'].get('threads', '?')} threads; revision {found['revision']}"
