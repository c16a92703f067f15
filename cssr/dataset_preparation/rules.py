"""Rules that only datasets need, beside those of `cssr.cracks.masks`: known classes, widened lines; their options."""

from collections.abc import Iterable
from functools import partial
from typing import Annotated

import cv2
import numpy as np

from cssr.cracks.masks import NO_DATA, SHOWN, Decide, MaskRule, members
from cssr.dataset_preparation.sources import Item
from cssr.utils.annotations import Within

Threshold = Annotated[
    int | None, "crack = mask value > N (without it, the values of the whole set decide)", Within(0, 254)
]
CrackColors = Annotated[
    str | None, "crack = these colours of the masks: 'R,G,B' or '#RRGGBB', several with blanks between"
]
CrackValues = Annotated[str | None, "crack = these grey values of the masks, as 1,2"]
Dilate = Annotated[int, "widen cracks by N pixels on each side, for masks of centre lines", Within(0, 1000)]


def decide_by_classes(items: Iterable[Item], crack: int, others: dict[int, str]) -> MaskRule:
    """The rule of a set whose grey values are known: one is crack, each of the `others` has a name.

    Raises: ValueError where a mask holds any other value.
    """
    for item in items:
        foreign = sorted(set(np.unique(item.mask()).tolist()) - {crack, *others, NO_DATA})
        if foreign:
            known = ", ".join(f"{value} {name}" for value, name in others.items())
            raise ValueError(
                f"the mask of {item.origin} holds {', '.join(map(str, foreign[:SHOWN]))}, but this set knows {crack} "
                f"crack, {known}; is it another set, or a changed one? Then read it as `folder`"
            )
    return members([crack], f"crack = {crack} ({', '.join(f'{value} is {name}' for value, name in others.items())})")


def dilated(decide: Decide, radius: int) -> Decide:
    """`decide`, with cracks made wider by `radius` pixels on each side (all that is no farther from a crack pixel).

    Raises: ValueError for a negative radius.
    """
    if radius < 0:
        raise ValueError(f"--dilate is {radius}; give 0 or more pixels")
    return partial(_decide_dilated, decide=decide, radius=radius) if radius else decide


def _decide_dilated(items: Iterable[Item], decide: Decide, radius: int) -> MaskRule:
    rule = decide(items)
    return MaskRule(
        f"{rule.sentence}, widened by {radius} pixels on each side",
        lambda values: widen(rule.apply(values), radius),
        rule.notes,
    )


def widen(mask: np.ndarray, radius: float) -> np.ndarray:
    """All pixels no farther than `radius` from one of the mask's; bool H W."""
    if not mask.any():
        return mask
    away = cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return away <= radius
