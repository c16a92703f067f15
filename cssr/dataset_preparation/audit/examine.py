"""Examine the files of one sample: faults are recorded, none is raised."""

import hashlib
import io
import re
from dataclasses import dataclass, field

import cv2
import numpy as np
import simplejpeg
from einops import repeat

from cssr.dataset_preparation.audit.similarity import Features, features_of, hashes_of
from cssr.dataset_preparation.images import open_picture
from cssr.dataset_preparation.sources import Item, MaskRule
from cssr.utils.images import exif_orientation, open_image

MAX_VALUES = 4096  # different values kept of one mask; more is a photograph in a mask's place
WIDEST = 255  # pixels; wider cracks count as this wide
_SIZES = re.compile(r"is (\d+)x(\d+), but its mask is (\d+)x(\d+)")


@dataclass
class FileState:
    """State of the files of one sample. `faults`: kind -> message."""

    faults: dict[str, str] = field(default_factory=dict)
    size: tuple[int, int] | None = None  # width, height, upright
    mode: str | None = None  # as Pillow calls it
    converted: str | None = None  # why it cannot be stored as it is
    orientation: int = 1
    missing: float = 0.0  # share of pixels without data
    note: str = ""  # what the reader says of it
    blank: bool = False  # all pixels alike
    digest: str | None = None  # of the upright RGB pixels
    mask_digest: str | None = None
    values: dict[int, int] | None = None  # value of the mask -> pixels
    scale: float | None = None  # HR pixels per LQ pixel, where the sides agree on it
    kernel: int | None = None  # side
    hashes: np.ndarray | None = None  # 8 32 uint8, one row for each way to turn and mirror the image
    features: Features | None = None


@dataclass
class Crack:
    """Crack pixels and widths of a mask under the rule of its set."""

    share: float | None = None  # crack pixels of all, 0..1
    widths: np.ndarray | None = None  # how many ridge pixels have width 0, 1, ..., WIDEST
    fault: str | None = None


def inspect_files(
    item: Item, root: str, near: bool, overlaps: bool, image_only: bool = False, bits: int | None = None
) -> FileState:
    """Read all files of a sample.

    Args:
        root: prefix of paths that messages leave out.
        near: compute perceptual hashes.
        overlaps: find features.
        image_only: do not look at mask, LQ image and kernel.
        bits: of image values that are stored in 16; None: as files say or show.
    """
    state = FileState()
    pixels = _image(item, state, root, bits)
    if pixels is not None:
        state.blank = bool((pixels == pixels[:1, :1]).all())
        state.digest = _digest(pixels)
        state.hashes = hashes_of(pixels) if near and not state.blank else None
        state.features = features_of(pixels) if overlaps and not state.blank else None
    if not image_only:
        _mask(item, state, root)
        _low_quality(item, state, root)
        _kernel(item, state, root)
    return state


def _words(problem: Exception, root: str) -> str:
    """An error on one line, with paths below the root."""
    return " ".join((str(problem) or type(problem).__name__).replace(root, "").split())


def _digest(array: np.ndarray) -> str:
    return hashlib.sha256(f"{array.shape} {array.dtype}".encode() + np.ascontiguousarray(array).tobytes()).hexdigest()


def _image(item: Item, state: FileState, root: str, bits: int | None) -> np.ndarray | None:
    """The upright RGB pixels, H W 3 uint8, and what the file says about itself."""
    try:
        data = item.image()
        if not data:
            state.faults["zero-byte files"] = "the image"
            return None
        _check_data(data, state)
        opened = open_picture(data, bits)
    except Exception as problem:  # whatever a decoder stumbles over, the next image has its turn
        state.faults = {"damaged images": _words(problem, root)}
        return None
    state.size, state.converted, state.note = opened.image.size, opened.reason, opened.note
    if opened.valid is not None:
        state.missing = 1 - float(opened.valid.mean())
    return np.asarray(opened.image)


def _check_data(data: bytes, state: FileState) -> None:
    """Note mode and orientation by the header, and damage in the data that decoding alone does not show."""
    with open_image(io.BytesIO(data)) as stored:
        kind, state.mode = stored.format, stored.mode
        state.orientation = exif_orientation(stored)
    if kind == "PNG":
        with open_image(io.BytesIO(data)) as stored:
            stored.verify()  # every checksum, the end of the file: training decodes with a stricter library
    if kind in ("JPEG", "MPO") and state.mode in ("L", "RGB"):
        try:  # it alone reports damage that decoders gloss over; as small as it gets, as the data are read whole anyway
            simplejpeg.decode_jpeg(data, "GRAY", min_height=1, min_width=1, strict=True)
        except ValueError as problem:
            state.faults["faulty JPEG data"] = str(problem)


def _mask(item: Item, state: FileState, root: str) -> None:
    if item.mask is None:
        return
    try:
        values = np.asarray(item.mask())
        if values.ndim != 2:
            raise ValueError(f"its mask has {values.ndim} dimensions; store it as a grey image")
        if state.size and values.shape != state.size[::-1]:
            width, height = state.size
            raise ValueError(f"it is {width}x{height}, but its mask is {values.shape[1]}x{values.shape[0]}")
    except Exception as problem:
        if state.size or "cannot read the image" not in str(problem):  # that has been said of the image
            kind = _kind_of(str(problem), item)
            state.faults[kind] = "the mask" if kind == "zero-byte files" else _words(problem, root)
        return
    numbers, counts = np.unique(values + 0 if values.dtype == bool else values, return_counts=True)
    kept = np.r_[0 : min(len(numbers), MAX_VALUES) - 1, -1]
    state.values = dict(zip(numbers[kept].tolist(), counts[kept].tolist()))
    state.mask_digest = _digest(values)


def _kind_of(problem: str, item: Item) -> str:
    if sizes_in(problem):
        return "sizes that differ"
    if any(path.is_file() and not path.stat().st_size for path in (item.files or ())[1:]):
        return "zero-byte files"
    return "damaged masks" if "cannot read" in problem else "masks that cannot be used"


def sizes_in(problem: str) -> tuple[tuple[int, int], tuple[int, int]] | None:
    """(width, height) of image and mask from a message that they differ; None of another message."""
    sizes = _SIZES.search(problem)
    width, height, *mask = map(int, sizes.groups()) if sizes else (0, 0)
    return ((width, height), tuple(mask)) if sizes else None


def _low_quality(item: Item, state: FileState, root: str) -> None:
    if item.lq is None:
        return
    try:
        (width, height), size = open_picture(item.lq()).image.size, state.size or (0, 0)
        if size[0] * height == size[1] * width and size[0] % width == 0:
            state.scale = size[0] // width
        elif state.size:
            raise ValueError(f"the image is {size[0]}x{size[1]}, no whole multiple of its LQ image's {width}x{height}")
    except Exception as problem:
        state.faults["LQ images that cannot be used"] = _words(problem, root)


def _kernel(item: Item, state: FileState, root: str) -> None:
    if item.kernel is None:
        return
    try:
        kernel = np.asarray(item.kernel())
        square = kernel.ndim == 2 and kernel.shape[0] == kernel.shape[1] > 0
        if not square or not np.isfinite(kernel).all() or abs(kernel.sum() - 1) > 1e-2:
            raise ValueError(f"its kernel has shape {kernel.shape} and sum {kernel.sum():g}; it must be k x k of sum 1")
        state.kernel = len(kernel)
    except Exception as problem:
        state.faults["kernels that cannot be used"] = _words(problem, root)


def measure(item: Item, rule: MaskRule, root: str) -> Crack:
    """Share and widths of what is crack in a mask that could be read."""
    try:
        values = np.asarray(item.mask())
        mask = np.asarray(rule.apply(values), bool)
    except Exception as problem:
        return Crack(fault=_words(problem, root))
    widths = np.minimum(np.rint(crack_widths(mask)), WIDEST).astype(int)
    return Crack(float(mask.mean()), np.bincount(widths, minlength=WIDEST + 1))


def crack_widths(mask: np.ndarray) -> np.ndarray:
    """The widths of cracks along their middle, in pixels, float32; none where nothing is crack, or everything.

    The middle is where the Euclidean distance to the background has a local maximum (among eight neighbours); the width
    is twice the distance to the edge there. The mask (H W bool) is doubled first, which makes the widths of straight
    cracks exact, even or odd; a pixel of length counts about twice. The image's border is no edge.
    """
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows) or mask.all():
        return np.zeros(0, np.float32)
    part = mask[max(rows[0] - 1, 0) : rows[-1] + 2, max(columns[0] - 1, 0) : columns[-1] + 2]
    doubled = repeat(part.astype(np.uint8), "h w -> (h 2) (w 2)")
    inside = cv2.distanceTransform(doubled, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    # in half pixels, to the centre of the nearest background pixel: twice the distance to the edge, in whole pixels
    ridge = (doubled > 0) & (inside >= cv2.dilate(inside, np.ones((3, 3), np.uint8)))
    return inside[ridge]
