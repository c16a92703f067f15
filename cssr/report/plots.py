"""Plots: coordinates of SVG for the page (IoU over the threshold, precision over recall, reliability), curves.png."""

import io
import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from cssr.evaluation.metrics import precision, recall
from cssr.evaluation.results import Result

WIDTH, HEIGHT = 480, 340  # of the drawing, in units that are CSS pixels where there is room
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 10, 42  # margins around the axes
_COLOURS, _MARKERS = 6, 4
_KINDS = ("image", "pooled")
_HUES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # Okabe and Ito; bounds are black
_SHAPES = "os^DvPX"  # seven, so that colour and marker together repeat after 42 results only
_TENTHS = slice(9, None, 10)  # of the 99 thresholds: 0.10, 0.20, ... 0.90


class Line(NamedTuple):
    """A curve of one result: "image" or "pooled", and its points as `x,y x,y`."""

    kind: str
    points: str


class Series(NamedTuple):
    """Drawing of a result: numbers of colour and marker (both None of a bound), lines, maximum, dots."""

    name: str
    colour: int | None
    marker: int | None
    lines: list[Line]
    peak: tuple[float, float] | None
    dots: list[tuple[float, float]]


class Plot(NamedTuple):
    """A drawing: axes with their ticks (place, text), series, and what it shows in words."""

    id: str  # by which the page's script knows it
    name: str
    labels: tuple[str, str]
    across: list[tuple[float, str]]
    up: list[tuple[float, str]]
    top: float  # the value at the upper end
    series: list[Series]
    words: str
    guide: str = ""  # points of a line to compare with


def curves_of(result: Result) -> dict[str, Any]:
    """The curves of a result by name, 99 numbers each: thresholds; iou, precision and recall of `image` and `pooled`.

    Precision and recall only where the file has counts of each image; None where nothing is predicted (pooled).
    """
    stored = result.data["curves"]
    curves: dict[str, Any] = {"thresholds": stored["thresholds"]}
    curves |= {kind: {"iou": stored[f"{kind}_iou"]} for kind in _KINDS}
    rows = [row for row in result.data.get("per_image") or [] if "tp" in row]
    if rows:
        counts = np.array([[row[name] for row in rows] for name in ("tp", "fp", "fn")], dtype=np.float64)  # 3 N 99
        summed = counts.sum(1)
        curves["image"] |= {score.__name__: score(*counts).mean(0).tolist() for score in (precision, recall)}
        curves["pooled"] |= {score.__name__: score(*summed).tolist() for score in (precision, recall)}
        curves["pooled"]["precision"] = [
            value if predicted else None for value, predicted in zip(curves["pooled"]["precision"], summed[:2].sum(0))
        ]
    return curves


def iou_plot(results: Sequence[Result], curves: Sequence[dict[str, Any]]) -> Plot:
    """IoU over the threshold, the maxima per image marked; `curves` as `curves_of` gives them."""
    top = min(1.0, math.ceil(10 * max(max(c[kind]["iou"]) for c in curves for kind in _KINDS) + 1e-9) / 10)
    series = [
        _series(result, number, {kind: zip(c["thresholds"], c[kind]["iou"]) for kind in _KINDS}, top, peak=True)
        for result, number, c in zip(results, _numbers(results), curves)
    ]
    words = "; ".join(f"{result.name}: {_peaks(c)}" for result, c in zip(results, curves))
    up = _ticks(top, 0.1 if top <= 0.5 else 0.2, top, across=False)
    return Plot(
        "plot-1", "IoU over the threshold", ("threshold", "IoU"), _ticks(1, 0.2), up, top, series, f"Maxima: {words}."
    )


def precision_recall_plot(results: Sequence[Result], curves: Sequence[dict[str, Any]]) -> Plot | None:
    """Precision over recall at the 99 thresholds; None where no file has counts of each image."""
    if not any("recall" in c["image"] for c in curves):
        return None
    series = [
        _series(result, number, {k: zip(c[k]["recall"], c[k]["precision"]) for k in _KINDS if "recall" in c[k]}, 1.0)
        for result, number, c in zip(results, _numbers(results), curves)
    ]
    words = "Each point is one of the 99 thresholds; the lower the threshold, the greater the recall."
    across, up = _ticks(1, 0.2), _ticks(1, 0.2, across=False)
    return Plot("plot-2", "Precision over recall", ("recall", "precision"), across, up, 1.0, series, words)


def reliability_plot(results: Sequence[Result]) -> Plot | None:
    """Share of crack over probability, pooled, a dot for each bin; None where no file has it."""
    reliabilities = [(result.data.get("calibration") or {}).get("reliability") for result in results]
    if not any(reliabilities):
        return None
    series = [
        _series(result, number, {"pooled": zip(curve["prob"], curve["crack"])}, 1.0, dots=True)
        for result, number, curve in zip(results, _numbers(results), reliabilities)
        if curve
    ]
    words = (
        "Pixels of all images in bins of probability: their mean probability, and how many of them are crack. On the "
        "diagonal, probabilities can be taken at their word; below it, the model is overconfident."
    )
    labels, guide = ("probability", "share of crack"), " ".join(_points([_to_drawing(0, 0), _to_drawing(1, 1)]))
    across, up = _ticks(1, 0.2), _ticks(1, 0.2, across=False)
    return Plot("plot-3", "Reliability, pooled", labels, across, up, 1.0, series, words, guide)


def tenths(curve: Sequence[float | None]) -> list[str]:
    """A curve of 99 numbers at 0.10, 0.20, ..., 0.90, as text."""
    return ["-" if value is None else f"{value:.3f}" for value in curve[_TENTHS]]


def _numbers(results: Sequence[Result]) -> list[int | None]:
    """Numbers of the systems, in order; bounds have none."""
    systems = [result.slug for result in results if not result.bound]
    return [None if result.bound else systems.index(result.slug) for result in results]


def _series(
    result: Result, number: int | None, kinds: dict[str, Iterable], top: float, peak: bool = False, dots: bool = False
) -> Series:
    drawn = {kind: [_to_drawing(x, y / top) for x, y in points if y is not None] for kind, points in kinds.items()}
    lines = [Line(kind, " ".join(_points(points))) for kind, points in drawn.items()]
    highest = min(drawn["image"], key=lambda point: point[1]) if peak else None
    colour_and_marker = (None, None) if number is None else (number % _COLOURS, number % _MARKERS)
    return Series(result.name, *colour_and_marker, lines, highest, drawn["pooled"] if dots else [])


def _points(positions: Iterable[tuple[float, float]]) -> list[str]:
    return [f"{x:.1f},{y:.1f}" for x, y in positions]


def _to_drawing(x: float, y: float) -> tuple[float, float]:
    """Place in the drawing of shares of both axes."""
    return LEFT + x * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - y * (HEIGHT - TOP - BOTTOM)


def _ticks(end: float, step: float, top: float = 1.0, across: bool = True) -> list[tuple[float, str]]:
    values = [number * step for number in range(math.floor(end / step + 1e-9) + 1)]
    return [
        (_to_drawing(v, 0)[0] if across else _to_drawing(0, v / top)[1], f"{v:.2f}".rstrip("0").rstrip("."))
        for v in values
    ]


def _peaks(curves: dict[str, Any]) -> str:
    texts = []
    for kind, words in zip(_KINDS, ("per image", "pooled")):
        values = curves[kind]["iou"]
        texts.append(f"{max(values):.3f} {words} at {curves['thresholds'][values.index(max(values))]:.2f}")
    return ", ".join(texts)


# ---- curves.png ----


class Curve(NamedTuple):
    """IoU over the threshold of one result; `bound` marks an HR upper bound, drawn in black."""

    name: str
    thresholds: Sequence[float]
    image: Sequence[float]
    pooled: Sequence[float]
    bound: bool = False


def iou_curves(curves: Sequence[Curve]) -> bytes:
    """A PNG, 1200 pixels wide: IoU over the threshold, per image and pooled, with the maxima marked."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    columns = 2 if all(len(curve.name) <= 32 for curve in curves) else 1
    figure = Figure(figsize=(8, 4.7 + 0.22 * -(-len(curves) // columns)), dpi=150, layout="constrained")
    axes = figure.add_subplot(xlabel="threshold", ylabel="IoU", xlim=(0, 1))
    axes.grid(color="0.9")
    axes.spines[["top", "right"]].set_visible(False)
    systems = [curve for curve in curves if not curve.bound]
    handles = [_draw(axes, curve, systems.index(curve) if curve in systems else None) for curve in curves]
    axes.set_ylim(bottom=0)
    lines = [Line2D([], [], color="0.4", linestyle=s, label=text) for s, text in (("-", "per image"), ("--", "pooled"))]
    figure.legend(handles=lines, loc="outside upper left", ncols=2, frameon=False)
    below = {"loc": "outside lower left", "title": "maximum per image", "alignment": "left"}
    figure.legend(handles=handles, ncols=columns, frameon=False, **below)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _draw(axes: Any, curve: Curve, number: int | None) -> Any:
    """Both lines of a curve, in black where it has no number; returns the legend's line."""
    from matplotlib.lines import Line2D

    colour = "black" if number is None else _HUES[number % len(_HUES)]
    marker, size = ("*", 13) if number is None else (_SHAPES[number % len(_SHAPES)], 8)
    point = {"color": colour, "marker": marker, "markersize": size, "markeredgecolor": "white"}
    for values, line in ((curve.image, "-"), (curve.pooled, "--")):
        best = values.index(max(values))
        axes.plot(curve.thresholds, values, line, color=colour, linewidth=1.6)
        axes.plot(curve.thresholds[best], values[best], zorder=3, **point)
    name = curve.name if len(curve.name) <= 80 else curve.name[:79] + "…"
    # A dollar sign would begin a formula; the number in front keeps a leading underscore from hiding the entry.
    label = f"{max(curve.image):.3f}  {name}".replace("$", r"\$")
    return Line2D([], [], label=label, **point)
