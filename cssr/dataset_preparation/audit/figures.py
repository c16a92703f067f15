"""Statistics of a part of a dataset: sizes, modes, mask values, shares and widths of cracks."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from cssr.dataset_preparation.audit.findings import Case, Part

WIDTH = (
    "twice the Euclidean distance to the edge, at its local maxima along the middle of a crack, in pixels; "
    "percentiles over the length of all cracks"
)
_PERCENTILES = (5, 25, 50, 75, 95)


def tally(part: Part, cases: Sequence[Case]) -> dict[str, Any]:
    """The figures of one part, for doctor.json."""
    own = [case for case in cases if case.part == part.name]
    states = [case.state for case in own if case.state.size]
    figures = {
        "images": len(own),
        "compared_only": part.compared,
        "sizes": _counts(f"{state.size[0]}x{state.size[1]}" for state in states),
        "modes": _counts(state.mode for state in states),
    }
    masks = [case for case in own if case.crack and case.crack.share is not None]
    return {**figures, "masks": _of_masks(part, masks) if masks else None}


def _counts(values: Any) -> dict[str, int]:
    return dict(sorted(Counter(values).items(), key=lambda entry: (-entry[1], entry[0])))


def _of_masks(part: Part, cases: Sequence[Case]) -> dict[str, Any]:
    shares = np.array([case.crack.share for case in cases])
    widths = sum(case.crack.widths for case in cases)
    return {
        "rule": part.rule.sentence,
        "values": _values(cases),
        "empty": int((shares == 0).sum()),
        "crack_share": {"mean": round(float(shares.mean()), 6), "where_any": _percentiles(shares[shares > 0])},
        "crack_width": {"definition": WIDTH, **_percentiles(np.repeat(np.arange(len(widths)), widths), 1)},
    }


def _values(cases: Sequence[Case]) -> dict[str, dict[str, float]]:
    """Value -> its share of all mask pixels, and how many masks hold it."""
    pixels, masks = Counter(), Counter()
    for case in cases:
        pixels.update(case.state.values)
        masks.update(case.state.values.keys())
    total = sum(pixels.values())
    return {str(v): {"share": round(pixels[v] / total, 6), "masks": masks[v]} for v in sorted(pixels)}


def _percentiles(values: np.ndarray, digits: int = 6) -> dict[str, float]:
    if not len(values):
        return {}
    percentiles = np.percentile(values, _PERCENTILES)
    return {f"p{p}": round(float(value), digits) for p, value in zip(_PERCENTILES, percentiles)}


def lines(name: str, figures: dict[str, Any]) -> list[str]:
    """The figures of a part for people."""
    sizes, modes = _short(figures["sizes"]), _short(figures["modes"])
    first = f"{name or 'all'}: {figures['images']} images; sizes {sizes}; modes {modes}"
    if figures["compared_only"]:
        return [f"{first} (for comparison)"]
    return [first, *(_mask_lines(figures["masks"]) if figures["masks"] else ["  no masks that could be read"])]


def _short(counts: dict[str, int], shown: int = 4) -> str:
    more = f" and {len(counts) - shown} more" if len(counts) > shown else ""
    return ", ".join(f"{name} ({count})" for name, count in list(counts.items())[:shown]) + more


def _mask_lines(masks: dict[str, Any]) -> list[str]:
    values = {v: f"{100 * e['share']:.3g} % in {e['masks']} masks" for v, e in masks["values"].items()}
    shown = sorted(values, key=lambda v: -masks["values"][v]["share"])[:4]
    more = f" and {len(values) - 4} more" if len(values) > 4 else ""
    share, width = masks["crack_share"], masks["crack_width"]
    text = [
        f"  mask rule: {masks['rule']}",
        f"  mask values: {', '.join(f'{v} ({values[v]})' for v in shown)}{more}",
        f"  crack pixels: {100 * share['mean']:.2f} % of all; empty masks: {masks['empty']}",
    ]
    if "p50" in width:
        low, middle, high = (100 * share["where_any"][p] for p in ("p5", "p50", "p95"))
        text[2] += f"; of an image with crack 5/50/95 %: {low:.2f}, {middle:.2f}, {high:.2f} %"
        text.append("  crack width 5/50/95 %: {p5:g}, {p50:g}, {p95:g} px, along the cracks' length".format(**width))
    return text
