"""A set's measures in parts: by source, as keys begin with its name, and by blur, as wide as the true kernel is."""

import math
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from cssr.evaluation.metrics import THRESHOLDS, aggregate, has_segmentation
from cssr.evaluation.scores import iou

MOST_SOURCES = 30  # more are names of photographs rather than of sources


def breakdown(rows: Sequence[dict[str, Any]], threshold: float | None) -> dict[str, dict[str, Any] | None]:
    """{"source": {name: part}, "blur": {range: part}}; None in place of what rows do not tell, or tell alike.

    A part holds `images` (how many), `iou` (mean at `threshold`, the whole set's best one, where there is one), and
    `image` and `pooled` as `metrics.aggregate` gives them. Rows are as it takes them, with `blur_sigma` where known.
    """
    sources, blurs = _grouped(rows, _source), _grouped(rows, _blur)
    kept = {"source": sources if len(sources) <= MOST_SOURCES else {}, "blur": blurs}
    return {
        kind: {name: _part(found[name], threshold) for name in in_order(found)} if len(found) > 1 else None
        for kind, found in kept.items()
    }


def in_order(names: Iterable[str]) -> list[str]:
    """Names as they are shown: by the number that they begin with, as blurs do, then as text."""
    number = {name: re.match(r"\d+", name) for name in names}
    return sorted(number, key=lambda name: (int(number[name][0]) if number[name] else math.inf, name))


def _grouped(rows: Sequence[dict[str, Any]], name: Callable[[dict[str, Any]], str]) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(name(row), []).append(row)
    return found


def _source(row: dict[str, Any]) -> str:
    """`CFD` of `CFD_001`."""
    match = re.match(r"[^\W\d_][^_-]*(?=[_-])", row["key"])
    return match[0] if match else "others"


def _blur(row: dict[str, Any]) -> str:
    """`1-2 px` of 1.7; a kernel whose sum is 0 has no width."""
    sigma = row.get("blur_sigma")
    if sigma is None or not math.isfinite(sigma):
        return "unknown"
    low = math.floor(sigma)
    return f"{low}-{low + 1} px"


def _part(rows: Sequence[dict[str, Any]], threshold: float | None) -> dict[str, Any]:
    at = threshold is not None and has_segmentation(rows)
    return {"images": len(rows), "iou": _iou_at(rows, threshold) if at else None, **aggregate(rows)}


def _iou_at(rows: Sequence[dict[str, Any]], threshold: float) -> float:
    best = int(np.abs(THRESHOLDS.numpy() - threshold).argmin())
    tp, fp, fn = ([row[name][best] for row in rows] for name in ("tp", "fp", "fn"))
    return math.fsum(iou(tp, fp, fn)) / len(rows)
