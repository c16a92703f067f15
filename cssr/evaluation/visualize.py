"""Pictures: strips of LQ, SR, HR, probability and mask side by side, overlays, curves."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont

from cssr.data.batch import Batch, Outputs
from cssr.utils.images import to_image

_GAP = 4  # pixels between panels
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # Okabe and Ito; bounds are black
_MARKERS = "os^DvPX"  # seven, so that colour and marker together repeat after 42 results only


def sample_panels(batch: Batch, outputs: Outputs, index: int, segmentation: bool = True) -> dict[str, np.ndarray]:
    """The panels of one sample by title, all of HR size: LQ (pixels enlarged), SR, HR; of `segmentation`, probability
    and mask.
    """
    size = batch.hr.shape[-2:]
    lq = F.interpolate(batch.lq[index : index + 1].float(), size=size, mode="nearest")[0]
    height, width = batch.lq.shape[-2:]
    panels = {
        f"LQ {width}x{height}": to_image(lq),
        "SR": to_image(outputs.sr[index]),
        "HR": to_image(batch.hr[index]),
    }
    if segmentation:
        panels |= {"probability": to_image(outputs.logits[index].sigmoid()), "mask": to_image(batch.mask[index])}
    return panels


def strip(rows: Sequence[dict[str, np.ndarray]], captions: Sequence[str] = ()) -> Image.Image:
    """Rows of titled panels as one picture; `captions` stand above the rows."""
    pictures = [_row(panels, caption) for panels, caption in zip(rows, [*captions, *[""] * len(rows)])]
    sheet = Image.new("RGB", (max(p.width for p in pictures), sum(p.height for p in pictures)), "white")
    top = 0
    for picture in pictures:
        sheet.paste(picture, (0, top))
        top += picture.height
    return sheet


def _row(panels: dict[str, np.ndarray], caption: str) -> Image.Image:
    font, head = ImageFont.load_default(13), 20 * (2 if caption else 1)
    width = sum(p.shape[1] + _GAP for p in panels.values()) + _GAP
    row = Image.new("RGB", (width, max(p.shape[0] for p in panels.values()) + head + _GAP), "white")
    draw, left = ImageDraw.Draw(row), _GAP
    draw.text((_GAP, 2), caption, fill="black", font=font)
    for title, panel in panels.items():
        draw.text((left, head - 18), title, fill="black", font=font)
        row.paste(Image.fromarray(panel), (left, head))
        left += panel.shape[1] + _GAP
    return row


def save_picture(image: Image.Image | np.ndarray, path: Path) -> Path:
    """Write a PNG, making its directory."""
    path.parent.mkdir(parents=True, exist_ok=True)
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(path)
    return path


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

    colour = "black" if number is None else _COLOURS[number % len(_COLOURS)]
    marker, size = ("*", 13) if number is None else (_MARKERS[number % len(_MARKERS)], 8)
    point = {"color": colour, "marker": marker, "markersize": size, "markeredgecolor": "white"}
    for values, line in ((curve.image, "-"), (curve.pooled, "--")):
        best = values.index(max(values))
        axes.plot(curve.thresholds, values, line, color=colour, linewidth=1.6)
        axes.plot(curve.thresholds[best], values[best], zorder=3, **point)
    name = curve.name if len(curve.name) <= 80 else curve.name[:79] + "…"
    # A dollar sign would begin a formula; the number in front keeps a leading underscore from hiding the entry.
    label = f"{max(curve.image):.3f}  {name}".replace("$", r"\$")
    return Line2D([], [], label=label, **point)
