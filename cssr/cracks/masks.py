"""Mask files: their grey levels or colours, and the rule that says which of them are crack.

All commands share this reader and these rules. A rule is decided for a whole set of masks (by `cssr.measure`, for each
file). Unclear values are refused, with the option that settles them: a guess would empty masks, or take classes and
missing data for cracks.
"""

import io
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from PIL import Image, ImageOps

from cssr.utils.images import any_size, open_image
from cssr.utils.text import message_of

LOSSY_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".jp2", ".j2k", ".avif", ".heic", ".heif")
BROKEN = (OSError, SyntaxError, ValueError, EOFError, MemoryError)  # what Pillow raises for damage
DEFAULT_THRESHOLD = 127
MAX_CLASSES = 8  # this many different values or fewer in loss-free masks are class labels, not soft edges
NO_DATA = -1  # value of pixels that a mask file marks as missing: never crack
MOSTLY = 0.5  # share of crack pixels above which a mask looks inverted
SHOWN = 6  # colours, values or levels that a message lists
_TRACE = 0.002  # share of a mask's pixels below which dim values are the rim of a crack, or noise of compression
_CHUNK = 1 << 22  # pixels counted at once: numpy takes 8 bytes for each
_NODATA_TAG = 42113  # of TIFF, by GDAL
_OPAQUE_MODES = {"CMYK", "YCbCr", "LAB", "HSV"}  # of Pillow: colours without alpha


@dataclass(frozen=True)
class MaskRule:
    """Rule by which stored mask values are crack or background.

    Attributes:
        sentence: the rule for people.
        apply: stored values H W -> bool H W.
        notes: sentences that people should read: which masks come out empty.
        only: the one value other than 0 that the masks hold; None: they hold several, or it is not known.
    """

    sentence: str
    apply: Callable[[np.ndarray], np.ndarray]
    notes: tuple[str, ...] = ()
    only: int | None = None


class Mask(Protocol):
    """A mask to decide by: `mask()` gives its stored values (H W), `origin` names it to people."""

    origin: str
    mask: Callable[[], np.ndarray] | None


class UnreadableMask(ValueError):
    """A mask file is damaged."""


class MaskFile(NamedTuple):
    """Values that have been read, under the name of their file."""

    origin: str
    values: np.ndarray

    def mask(self) -> np.ndarray:
        """H W."""
        return self.values


Read = Callable[[Path | io.BytesIO], np.ndarray]
Decide = Callable[[Iterable[Mask]], MaskRule]


# ---- files ----


def read_mask(path: Path | io.BytesIO, transparent: bool = False) -> np.ndarray:
    """Read the grey levels of a mask file: H W, 0..255, a 1-bit mask as 0 and 255, `NO_DATA` where data are missing.

    Upright by EXIF. Data are missing where a GeoTIFF says so (by a nodata value but 0), and in transparent pixels.

    Args:
        transparent: accept transparent pixels, which are refused otherwise.
    Raises: ValueError where it has colours or transparent parts, or cannot be read.
    """
    planes, missing = _planes(path)
    if planes.ndim == 3:
        planes, missing = _opaque(planes, path, transparent)
        if any((planes[..., 0] != planes[..., channel])[~missing].any() for channel in range(1, planes.shape[2])):
            colours = np.unique(pack_colour(*np.moveaxis(planes, -1, 0))[~missing])
            listed = " ".join(map(show_colour, colours[:SHOWN])) + (" ..." if len(colours) > SHOWN else "")
            raise ValueError(
                f"mask {path} is coloured ({listed}); name the colours of cracks with --crack-colors R,G,B (of the "
                "source `folder`, and of cssr.measure), or store it as a grey image in which white is crack"
            )
        planes = np.ascontiguousarray(planes[..., 0])
    return _with_missing(planes, missing)


def read_colours(path: Path | io.BytesIO) -> np.ndarray:
    """Read the colours of a mask file: int32 H W, each as `pack_colour` makes it; `NO_DATA` where it is transparent.

    Raises: ValueError where it cannot be read.
    """
    planes, missing = _planes(path)
    if planes.ndim == 3:
        planes, missing = _opaque(planes, path, True)
    else:
        planes = planes[..., None]
    return _with_missing(pack_colour(*np.moveaxis(np.broadcast_to(planes, (*planes.shape[:2], 3)), -1, 0)), missing)


def pack_colour(red, green, blue):
    """Three values 0..255, or arrays of them, as one number: 0xRRGGBB, int32 for arrays."""
    if isinstance(red, np.ndarray):
        red, green, blue = (plane.astype(np.int32) for plane in (red, green, blue))
    return red << 16 | green << 8 | blue


def _planes(path: Path | io.BytesIO) -> tuple[np.ndarray, np.ndarray]:
    """uint8 H W, or H W C with C of 2 (grey, alpha), 3 or 4 (colours, alpha); and where data are missing, bool H W."""
    try:
        with any_size(), open_image(path) as stored:
            stored.load()
            mode, nodata = stored.mode, _nodata(stored)
            ImageOps.exif_transpose(stored, in_place=True)  # as photographs are
            if mode in ("P", "PA"):  # its colours, not the numbers in the palette
                stored = stored.convert("RGBA" if mode == "PA" or "transparency" in stored.info else "RGB")
            elif mode in _OPAQUE_MODES:
                stored = stored.convert("RGB")
            planes = np.asarray(stored.convert("L") if mode == "1" else stored)
    except BROKEN as problem:
        reason = message_of(problem)
        raise UnreadableMask(f"cannot read mask {path}: {reason}; replace or remove it and its image") from problem
    if planes.dtype != np.uint8:
        raise ValueError(f"mask {path} is of mode {mode}; store masks as 8-bit grey or 1-bit images")
    missing = np.zeros(planes.shape[:2], bool)
    return planes, planes == nodata if nodata and planes.ndim == 2 else missing


def _nodata(stored: Image.Image) -> float:
    """The value of a GeoTIFF that marks missing data; 0 where there is none, or 0, which is background."""
    try:
        return float(getattr(stored, "tag_v2", {}).get(_NODATA_TAG, 0))
    except (TypeError, ValueError):
        return 0.0


def _opaque(planes: np.ndarray, path: Path | io.BytesIO, transparent: bool) -> tuple[np.ndarray, np.ndarray]:
    """The colour channels (H W 1 or H W 3), and where they are transparent (by half or more)."""
    if planes.shape[2] == 3:
        return planes, np.zeros(planes.shape[:2], bool)
    if not transparent and (planes[..., -1] != 255).any():
        raise ValueError(
            f"mask {path} is partly transparent; name what is drawn in it with --crack-colors, --crack-values or "
            "--threshold (transparent pixels are no crack then), or store it as an image without alpha"
        )
    return planes[..., :-1], planes[..., -1] < 128


def _with_missing(values: np.ndarray, missing: np.ndarray) -> np.ndarray:
    return np.where(missing, NO_DATA, values.astype(np.int32)) if missing.any() else values


# ---- rules ----


def choose_rule(
    threshold: int | None = None, colors: str | None = None, values: str | None = None, lossy: bool = False
) -> tuple[Read, Decide]:
    """Choose how masks are read and what in them is crack: options --threshold, --crack-colors and --crack-values.

    Args:
        lossy: the masks are JPEGs or the like, with inexact values.
    Raises: ValueError where two of them are given, or one cannot be meant.
    """
    options = {"--threshold": threshold, "--crack-colors": colors, "--crack-values": values}
    options = [option for option, value in options.items() if value is not None]
    if len(options) > 1:
        raise ValueError(f"{' and '.join(options)} both say what is crack; give one of them")
    if colors is not None:
        chosen = parse_colours(colors)
        return read_colours, partial(decide_by_members, crack=chosen, option="--crack-colors", show=show_colour)
    read = partial(read_mask, transparent=bool(options))
    if values is not None:
        return read, partial(decide_by_members, crack=parse_values(values), option="--crack-values")
    return read, partial(decide_by_levels, threshold=check_threshold(threshold), lossy=lossy)


def check_threshold(threshold: int | None) -> int | None:
    """The threshold itself; ValueError where it would make everything crack, or nothing."""
    if threshold is not None and not 0 <= threshold <= 254:
        raise ValueError(f"--threshold is {threshold}; give 0 to 254: crack is what has a greater mask value")
    return threshold


def rule_above(threshold: int, listed: str, reason: str = "", notes: tuple[str, ...] = ()) -> MaskRule:
    """The rule "crack = value > threshold"."""
    check_threshold(threshold)
    return MaskRule(f"{listed}: crack = value > {threshold}{reason}", lambda values: values > threshold, notes)


def decide_by_levels(items: Iterable[Mask], threshold: int | None = None, lossy: bool = False) -> MaskRule:
    """Decide one rule for a whole set from the grey levels that its masks use; reads every mask once.

    {0, 1}: crack = 1. {0, 255}: crack = 255. Otherwise crack = value > 127, or > `threshold` where one is given.
    `lossy`: the masks are JPEGs; few levels between come from the compression.
    Raises: ValueError where no threshold is given and the levels may mean something else (labels, none above 127), or
        the rule would empty masks in which something is drawn (such as one of {0, 1} among others of 0..255).
    """
    levels_used, dim = np.zeros(256, bool), {}
    limit = DEFAULT_THRESHOLD if threshold is None else threshold
    for item in items:
        counts = _counts(item.mask())
        levels_used |= counts > 0
        if counts[1 : limit + 1].any() and not counts[limit + 1 :].any():
            dim[item.origin] = counts
    levels = np.flatnonzero(levels_used).tolist() or [0]
    listed = f"values {_levels_text(levels)}"
    if threshold is not None:
        empty = _describe_empty(dim, threshold)
        return rule_above(threshold, listed, " (as chosen by --threshold)", (empty,) if empty else ())
    if 1 in levels and levels[-1] == 1:
        return MaskRule(f"{listed}: crack = 1", lambda values: values == 1, only=1)
    if levels[-1] == 255 and set(levels) <= {0, 255}:
        return MaskRule(f"{listed}: crack = 255", lambda values: values == 255, only=255)
    _refuse_unclear(levels, lossy, listed)
    empty = _describe_empty({origin: counts for origin, counts in dim.items() if _is_drawn(counts, lossy)}, limit)
    if empty:
        raise ValueError(f"{empty}; say with --threshold N what is crack (crack = value > N), or correct these masks")
    return rule_above(DEFAULT_THRESHOLD, listed)


def _counts(values: np.ndarray) -> np.ndarray:
    """Pixels of each value 0..255, int64; missing data are of none."""
    values = np.asarray(values).ravel()
    chunks = (values[start : start + _CHUNK] for start in range(0, max(values.size, 1), _CHUNK))
    return sum(np.bincount(chunk[chunk >= 0].astype(np.int64), minlength=256) for chunk in chunks)


def _levels_text(levels: list[int]) -> str:
    few = len(levels) <= MAX_CLASSES
    return f"{{{', '.join(map(str, levels))}}}" if few else f"{levels[0]}..{levels[-1]}"


def _is_drawn(counts: np.ndarray, lossy: bool) -> bool:
    """Return whether something is drawn in a mask of low values: two exact values, or more than a trace of pixels."""
    two = not lossy and np.count_nonzero(counts) == 2
    return bool(two or counts[1:].sum() > _TRACE * counts.sum())


def _describe_empty(dim: dict[str, np.ndarray], threshold: int) -> str:
    """Warning of masks that a threshold empties; "" where there are none."""
    if not dim:
        return ""
    origin, counts = next(iter(dim.items()))
    mask = "mask has" if len(dim) == 1 else "masks have"
    return (
        f"{len(dim)} {mask} values above 0 but none above {threshold} and would be empty, the first that of {origin}, "
        f"which holds {_levels_text(np.flatnonzero(counts).tolist())}"
    )


def _refuse_unclear(levels: list[int], lossy: bool, listed: str) -> None:
    """Labels such as {0, 1, 2} or {0, 204, 255} are classes: a threshold would pick some of them without a word."""
    labels = not lossy and 3 <= len(levels) <= MAX_CLASSES
    dim = 1 < levels[-1] <= DEFAULT_THRESHOLD
    if labels or dim:
        raise ValueError(
            f"it is unclear which mask values are crack: the masks hold {listed}; say it with --threshold N (crack = "
            "value > N), or of the source `folder` and of cssr.measure with --crack-values"
        )


def decide_by_members(
    items: Iterable[Mask], crack: list[int], option: str, show: Callable[[int], str] = str, others: str = ""
) -> MaskRule:
    """Crack is what has one of the values `crack`; reads every mask once.

    Args:
        option: the setting that named them, and `show`, how to write a value, for messages.
        others: what the other values are, for the rule's sentence.
    Raises: ValueError where none of the values occurs in the set: it is a slip, or another set.
    """
    values: set[int] = set()
    for item in items:
        values.update(np.unique(item.mask()).tolist())
    values.discard(NO_DATA)
    absent = [show(value) for value in crack if value not in values]
    if len(absent) == len(crack):
        listed = ", ".join(map(show, sorted(values)[:SHOWN])) + (", ..." if len(values) > SHOWN else "")
        raise ValueError(f"no mask holds {' or '.join(absent)} ({option}); they hold {listed}: choose from these")
    absent_text = f" ({' and '.join(absent)} occurs in no mask)" if absent else ""
    return rule_of_values(crack, f"crack = {' or '.join(map(show, crack))}{absent_text}{others}")


def rule_of_values(crack: Iterable[int], sentence: str) -> MaskRule:
    """Crack is what has one of the values `crack`."""
    return MaskRule(sentence, partial(np.isin, test_elements=list(crack)))


def parse_colours(text: str) -> list[int]:
    """'255,0,0 #00ff00' -> [0xFF0000, 0x00FF00]; ValueError if it is written in another way."""
    colours = []
    for word in re.split(r"[;\s]+", text.strip()):
        if hexadecimal := re.fullmatch(r"#([0-9A-Fa-f]{6})", word):
            colours.append(int(hexadecimal[1], 16))
            continue
        parts = [int(part) for part in word.split(",")] if re.fullmatch(r"\d+,\d+,\d+", word) else [256]
        if max(parts) > 255:
            raise ValueError(
                f"--crack-colors has {word!r}; write R,G,B from 0 to 255 or #RRGGBB, blanks between several"
            )
        colours.append(pack_colour(*parts))
    return colours


def show_colour(value: int) -> str:
    """0xFF0000 -> '255,0,0'."""
    return f"{value >> 16},{value >> 8 & 255},{value & 255}"


def parse_values(text: str) -> list[int]:
    """'1,2' -> [1, 2]; ValueError unless they are whole numbers from 0 to 255."""
    words = [word.strip() for word in text.split(",")]
    if not all(re.fullmatch(r"\d+", word) and int(word) < 256 for word in words):
        raise ValueError(f"--crack-values is {text!r}; write whole numbers from 0 to 255 with commas between, as 1,2")
    return [int(word) for word in words]
