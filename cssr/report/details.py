"""Below the set's means: its parts by source and by blur, and every image, as a page shows them."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from cssr.evaluation.definitions import CRACK_KEYS, LINE_KEYS
from cssr.evaluation.groups import in_order
from cssr.evaluation.results import Result
from cssr.report.columns import PER_IMAGE, Column

_GROUPS = {"source": "By source", "blur": "By width of the blur kernel"}
_IMAGE_COLUMNS = (
    Column("IoU", "iou"),
    Column("ECE", "ece", 4),
    *(column for column in PER_IMAGE if column.key in (*LINE_KEYS, *CRACK_KEYS)),
    Column("width bias [px]", "width_bias", 2),
    Column("length bias [px]", "length_bias", 1),
    *(column for column in PER_IMAGE if column.key in ("psnr", "ssim", "kernel_psnr", "lq_psnr")),
    Column("blur sigma [px]", "blur_sigma", 2),
)
_DIGITS = 6  # significant ones, of numbers that are read to four decimals at most


class Part(NamedTuple):
    """A group of images: its name, how many images, and for each result its measure (None: not measured)."""

    name: str
    images: int
    values: list[float | None]


class Parts(NamedTuple):
    """All groups of a kind; the measure is "IoU" (at the whole set's best threshold) or "PSNR [dB]"."""

    kind: str
    title: str
    measure: str
    names: list[str]  # of the results
    most: float  # that a bar shows
    parts: list[Part]


def parts_of(results: Sequence[Result]) -> list[Parts]:
    """The groups by source and by blur of those results whose files have them."""
    found = []
    for kind, title in _GROUPS.items():
        having = [result for result in results if (result.data.get("groups") or {}).get(kind)]
        for segmented in (True, False):
            own = [result for result in having if result.segmented == segmented]
            if own:
                found.append(_parts(own, kind, title, segmented))
    return found


def _parts(results: Sequence[Result], kind: str, title: str, segmented: bool) -> Parts:
    groups = [result.data["groups"][kind] for result in results]
    parts = []
    for name in in_order(set().union(*groups)):
        images = next(of[name]["images"] for of in groups if name in of)
        parts.append(Part(name, images, [_value(of.get(name), segmented) for of in groups]))
    values = [value for part in parts for value in part.values if value is not None]
    most = 1.0 if segmented else max(values, default=1.0)
    return Parts(kind, title, "IoU" if segmented else "PSNR [dB]", [r.name for r in results], most, parts)


def _value(part: dict[str, Any] | None, segmented: bool) -> float | None:
    return None if part is None else part["iou"] if segmented else part["image"]["psnr"]


def images_of(results: Sequence[Result]) -> dict[str, Any]:
    """Every image's numbers, for a script: the columns that any result has, and of each result its keys and values."""
    rows = [result.data.get("per_image") or [] for result in results]
    columns = [c for c in _IMAGE_COLUMNS if any(row.get(c.key) is not None for own in rows for row in own)]
    return {
        "columns": [{"key": c.key, "label": c.label, "decimals": c.decimals} for c in columns],
        "results": [
            {
                "keys": [row["key"] for row in own],
                "values": {c.key: [_rounded(row.get(c.key)) for row in own] for c in columns},
            }
            for own in rows
        ],
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.{_DIGITS}g}")
