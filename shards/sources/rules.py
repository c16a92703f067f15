"""Rules that say which stored mask values are crack: decided once for a whole set, and told in its index."""

import re
from collections.abc import Callable, Iterable
from functools import partial
from typing import Annotated

import cv2
import numpy as np

from . import Item, MaskRule
from .masks import packed

DEFAULT_THRESHOLD = 127
MOST_CLASSES = 8  # this many different values or fewer in loss-free masks are class labels, not soft edges
SHOWN = 6  # colours or values that a message lists

Threshold = Annotated[int | None, "crack = mask value > N (without it, the values of the whole set decide)"]
CrackColors = Annotated[
    str | None, "crack = these colours of the masks: 'R,G,B' or '#RRGGBB', several with blanks between"
]
CrackValues = Annotated[str | None, "crack = these grey values of the masks, as 1,2"]
Dilate = Annotated[int, "widen cracks by N pixels on each side, for masks of centre lines"]
Decide = Callable[[Iterable[Item]], MaskRule]


def above(threshold: int, seen: str, why: str = "") -> MaskRule:
    """The rule "crack = value > threshold"."""
    return MaskRule(f"{seen}: crack = value > {threshold}{why}", lambda values: values > threshold)


def decide_by_levels(items: Iterable[Item], threshold: int | None = None, lossy: bool = False) -> MaskRule:
    """One rule for a whole set from the grey levels that its masks use; reads every mask once.

    {0, 1}: crack = 1. {0, 255}: crack = 255. Otherwise crack = value > 127, or > `threshold` where one is given.
    `lossy`: the masks are JPEGs, whose few levels between come from the compression.
    Raises: ValueError where the levels may mean something else (labels, none above 127) and no threshold is given.
    """
    used = np.zeros(256, bool)
    for item in items:
        used[np.unique(item.mask())] = True
    levels = np.flatnonzero(used).tolist()
    seen = _seen(levels)
    if threshold is not None:
        return above(threshold, seen, " (as chosen by --threshold)")
    if 1 in levels and levels[-1] == 1:
        return MaskRule(f"{seen}: crack = 1", lambda values: values == 1)
    if levels[-1] == 255 and set(levels) <= {0, 255}:
        return MaskRule(f"{seen}: crack = 255", lambda values: values == 255)
    _refuse_unclear(levels, lossy, seen)
    return above(DEFAULT_THRESHOLD, seen)


def _seen(levels: list[int]) -> str:
    few = len(levels) <= MOST_CLASSES
    return f"values {{{', '.join(map(str, levels))}}}" if few else f"values {levels[0]}..{levels[-1]}"


def _refuse_unclear(levels: list[int], lossy: bool, seen: str) -> None:
    """Labels such as {0, 1, 2} or {0, 204, 255} are classes: a threshold would pick some of them without a word."""
    labels = not lossy and 3 <= len(levels) <= MOST_CLASSES
    dim = 1 < levels[-1] <= DEFAULT_THRESHOLD and not (lossy and levels[-1] < 32)  # JPEG noise on empty masks stays low
    if labels or dim:
        raise ValueError(
            f"it is unclear which mask values are crack: the masks hold {seen}; "
            "say it with --threshold N (crack = value > N)"
        )


def decide_by_members(
    items: Iterable[Item], crack: list[int], option: str, show: Callable[[int], str] = str, others: str = ""
) -> MaskRule:
    """Crack is what has one of the values `crack`; reads every mask once.

    Args:
        option: the setting that named them, and `show`, how to write a value, for messages.
        others: what the other values are, for the rule's sentence.
    Raises: ValueError where none of the values occurs in the set: it is a slip, or another set.
    """
    found: set[int] = set()
    for item in items:
        found.update(np.unique(item.mask()).tolist())
    absent = [show(value) for value in crack if value not in found]
    if len(absent) == len(crack):
        there = ", ".join(map(show, sorted(found)[:SHOWN])) + (", ..." if len(found) > SHOWN else "")
        raise ValueError(f"no mask holds {' or '.join(absent)} ({option}); they hold {there}: choose from these")
    nowhere = f" ({' and '.join(absent)} occurs in no mask)" if absent else ""
    return members(crack, f"crack = {' or '.join(map(show, crack))}{nowhere}{others}")


def members(crack: Iterable[int], sentence: str) -> MaskRule:
    """Crack is what has one of the values `crack`."""
    return MaskRule(sentence, partial(np.isin, test_elements=list(crack)))


def decide_by_classes(items: Iterable[Item], crack: int, others: dict[int, str]) -> MaskRule:
    """The rule of a set whose grey values are known: one is crack, each of the `others` has a name.

    Raises: ValueError where a mask holds any other value.
    """
    for item in items:
        foreign = sorted(set(np.unique(item.mask()).tolist()) - {crack, *others})
        if foreign:
            known = ", ".join(f"{value} {name}" for value, name in others.items())
            raise ValueError(
                f"the mask of {item.origin} holds {', '.join(map(str, foreign[:SHOWN]))}, but this set knows {crack} "
                f"crack, {known}; is it another set, or a changed one? Then read it as `folder`"
            )
    return members([crack], f"crack = {crack} ({', '.join(f'{value} is {name}' for value, name in others.items())})")


def parse_colours(text: str) -> list[int]:
    """'255,0,0 #00ff00' -> [0xFF0000, 0x00FF00]; ValueError if it is written in another way."""
    found = []
    for word in re.split(r"[;\s]+", text.strip()):
        if hexadecimal := re.fullmatch(r"#([0-9A-Fa-f]{6})", word):
            found.append(int(hexadecimal[1], 16))
            continue
        parts = [int(part) for part in word.split(",")] if re.fullmatch(r"\d+,\d+,\d+", word) else [256]
        if max(parts) > 255:
            raise ValueError(
                f"--crack-colors has {word!r}; write R,G,B from 0 to 255 or #RRGGBB, blanks between several"
            )
        found.append(packed(*parts))
    return found


def show_colour(value: int) -> str:
    """0xFF0000 -> '255,0,0'."""
    return f"{value >> 16},{value >> 8 & 255},{value & 255}"


def parse_values(text: str) -> list[int]:
    """'1,2' -> [1, 2]; ValueError unless they are whole numbers from 0 to 255."""
    words = [word.strip() for word in text.split(",")]
    if not all(re.fullmatch(r"\d+", word) and int(word) < 256 for word in words):
        raise ValueError(f"--crack-values is {text!r}; write whole numbers from 0 to 255 with commas between, as 1,2")
    return [int(word) for word in words]


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
        f"{rule.sentence}, widened by {radius} pixels on each side", lambda values: widen(rule.apply(values), radius)
    )


def widen(mask: np.ndarray, radius: float) -> np.ndarray:
    """All pixels no farther than `radius` from one of the mask's; bool H W."""
    if not mask.any():
        return mask
    away = cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return away <= radius
