"""Annotated shapes as masks: polygons, lines, discs, and COCO's run lengths.

Coordinates are continuous, x first, in pixels: pixel (0, 0) covers 0..1 in both. A polygon takes the pixels with their
centres inside, as COCO's own code does: `cv2.fillPoly` takes the border too, and makes cracks a pixel wider. Of the
border it takes only what is needed where a polygon is thinner than a pixel, and would break or vanish.
"""

from collections.abc import Iterable, Mapping, Sequence

import cv2
import numpy as np

_SHIFT = 4  # binary digits after the point in the coordinates that OpenCV takes
_FAR = 10**6  # pixels beyond an image; coordinates further out are mistakes


def polygons_to_mask(polygons: Iterable[np.ndarray], height: int, width: int) -> np.ndarray:
    """The union of polygons, each N 2 (x, y), N >= 3: bool H W. Of one that crosses itself, by the even-odd rule."""
    mask = np.zeros((height, width), bool)
    for polygon in polygons:
        _add_polygon(mask, np.asarray(polygon, np.float64))
    return mask


def _add_polygon(mask: np.ndarray, polygon: np.ndarray) -> None:
    """Add a polygon; only its bounding box is worked on, as photographs are large and cracks are not."""
    height, width = mask.shape
    left, top = np.clip(np.floor(polygon.min(0)).astype(int) - 1, 0, (width, height))
    right, bottom = np.clip(np.ceil(polygon.max(0)).astype(int) + 1, 0, (width, height))
    if left >= right or top >= bottom:
        return
    polygon, size = polygon - (left, top), (bottom - top, right - left)
    mask[top:bottom, left:right] |= _as_one_component(_centres_inside(polygon, *size), polygon)


def _as_one_component(inside: np.ndarray, polygon: np.ndarray) -> np.ndarray:
    """`inside` as one component: with the parts of the polygon's border that bridge gaps, or are slivers."""
    count, labels = cv2.connectedComponents(inside.astype(np.uint8))
    if count == 2:  # background and one component
        return inside
    drawn = np.zeros(inside.shape, np.uint8)
    cv2.fillPoly(drawn, [_fixed_point(polygon)], 1, shift=_SHIFT)
    border = drawn.astype(bool) & ~inside
    sliver = border & (_dilated(inside, 1) == 0)
    greatest = _dilated(labels, 2)  # of the components within two pixels, 0 where there is none
    least = count - _dilated(np.where(inside, count - labels, 0), 2)
    bridge = (greatest > 0) & (least < greatest)
    return inside | border & (_dilated(sliver, 1).astype(bool) | bridge)


def _dilated(values: np.ndarray, reach: int) -> np.ndarray:
    """The greatest value within `reach` pixels, float32 H W."""
    return cv2.dilate(values.astype(np.float32), np.ones((2 * reach + 1, 2 * reach + 1), np.uint8))


def _centres_inside(polygon: np.ndarray, height: int, width: int) -> np.ndarray:
    """The pixels with their centre inside, bool H W: each crossing of a row's middle flips all that is right of it."""
    start, end = polygon, np.roll(polygon, -1, axis=0)
    upper, lower = np.where((start[:, 1] <= end[:, 1])[:, None], (start, end), (end, start))
    first = np.clip(np.ceil(upper[:, 1] - 0.5), 0, height).astype(int)  # rows with their middle crossed by the edge
    count = np.clip(np.ceil(lower[:, 1] - 0.5), 0, height).astype(int) - first
    edge = np.repeat(np.arange(len(count)), count)
    row = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count) + first[edge]
    slope = (lower - upper)[edge]
    x = upper[edge, 0] + (row + 0.5 - upper[edge, 1]) * slope[:, 0] / slope[:, 1]
    flips = np.zeros((height, width + 1), np.int32)
    np.add.at(flips, (row, np.clip(np.ceil(x - 0.5), 0, width).astype(int)), 1)
    return np.cumsum(flips, axis=1)[:, :width] % 2 == 1


def lines_to_mask(lines: Iterable[np.ndarray], height: int, width: int, thickness: int) -> np.ndarray:
    """Lines through points N 2 (x, y), N >= 1, drawn `thickness` pixels wide, ends round: bool H W."""
    drawn = np.zeros((height, width), np.uint8)
    for points in lines:
        points = np.asarray(points, np.float64)
        cv2.polylines(drawn, [_fixed_point(points)], False, 1, shift=_SHIFT)  # one pixel wide, and whole
        for start, end in zip(points[:-1], points[1:]):
            _add_segment(drawn, start, end, thickness / 2)  # OpenCV's own thick lines are up to two pixels wider
    return drawn.astype(bool)


def _add_segment(mask: np.ndarray, start: np.ndarray, end: np.ndarray, radius: float) -> None:
    """The pixels with centres no farther than `radius` from a segment."""
    height, width = mask.shape
    left, top = np.clip(np.floor(np.minimum(start, end) - radius).astype(int), 0, (width, height))
    right, bottom = np.clip(np.ceil(np.maximum(start, end) + radius).astype(int), 0, (width, height))
    rows, columns = np.ogrid[top:bottom, left:right]
    x, y, (dx, dy) = columns + 0.5 - start[0], rows + 0.5 - start[1], end - start
    along = np.clip((x * dx + y * dy) / max(dx * dx + dy * dy, 1e-12), 0, 1)
    near = (x - along * dx) ** 2 + (y - along * dy) ** 2 <= radius**2
    mask[top:bottom, left:right] |= near.astype(np.uint8)


def disc_to_mask(centre: Sequence[float], radius: float, height: int, width: int) -> np.ndarray:
    """The pixels with their centre in a disc: bool H W."""
    rows, columns = np.ogrid[:height, :width]
    return (columns + 0.5 - centre[0]) ** 2 + (rows + 0.5 - centre[1]) ** 2 <= radius**2


def _fixed_point(points: np.ndarray) -> np.ndarray:
    """Points in OpenCV's coordinates: the centre of a pixel at whole numbers."""
    return np.rint((points - 0.5) * (1 << _SHIFT)).astype(np.int32)


def runs_to_mask(counts: str | Sequence[int], height: int, width: int) -> np.ndarray:
    """COCO's run lengths as a mask, bool H W.

    Args:
        counts: lengths of runs of 0 and 1 in turn, 0 first, down the columns; or the text that COCO packs them in.
    Raises: ValueError unless they add up to the image's pixels.
    """
    lengths = unpack_runs(counts) if isinstance(counts, str) else counts
    check_runs(lengths, height, width)
    values = np.arange(len(lengths)) % 2 == 1
    return np.repeat(values, np.asarray(lengths, np.int64)).reshape(width, height).T


def check_runs(lengths: Sequence[int], height: int, width: int) -> None:
    """ValueError unless run lengths add up to the image's pixels."""
    if min(lengths, default=0) < 0 or sum(lengths) != height * width:
        raise ValueError(
            f"has no mask: its run lengths make {sum(lengths)} pixels, not the {width}x{height} of its image; export "
            "it again"
        )


def unpack_runs(text: str) -> list[int]:
    """Text -> run lengths: five bits a letter, lowest first, a sixth that says more follow; from the third number on,
    the difference to the number before the last. Source: `rleFrString` of COCO's API, by its format.

    Raises: ValueError for letters that it does not use.
    """
    lengths: list[int] = []
    value = shift = 0
    for letter in text:
        code = ord(letter) - 48
        if not 0 <= code < 64 or shift > 60:
            raise ValueError(
                f"has no mask: its run lengths are text with {letter!r}, which COCO does not write; export it again"
            )
        value |= (code & 31) << shift
        shift += 5
        if code & 32:
            continue
        if code & 16:  # the sign
            value -= 1 << shift
        lengths.append(value + (lengths[-2] if len(lengths) > 2 else 0))
        value = shift = 0
    return lengths


# ---- checks and notes of annotations ----


def check_points(points: np.ndarray, height: int, width: int) -> bool:
    """Return whether points N 2 (x, y) of an outline are more than two pixels beyond its image, to be cut off there.

    Raises: ValueError where all of it is outside, some far away, or its coordinates are shares of the image's sides.
    """
    low, high, end = points.min(0), points.max(0), np.array([width, height])
    extent = f"x {low[0]:g} to {high[0]:g}, y {low[1]:g} to {high[1]:g}"
    if (low >= 0).all() and (high <= 1).all() and min(height, width) > 2:
        raise ValueError(f"has coordinates relative to the image's sides ({extent}); multiply them by {width}x{height}")
    if not (low >= -_FAR).all() or not (high <= end + _FAR).all():
        raise ValueError(f"goes too far beyond its image of {width}x{height} pixels ({extent}); correct or remove it")
    if (high < 0).any() or (low > end).any():
        raise ValueError(f"is outside of its image of {width}x{height} pixels ({extent}); correct or remove it")
    return bool((low < -2).any() or (high > end + 2).any())


def cut_off_note(places: Sequence[str]) -> tuple[str, ...]:
    """A note about outlines that extend beyond their image."""
    return (f"cut {len(places)} outlines off at the image's border, the first is {places[0]}",) if places else ()


def other_labels_note(what: str, kinds: str, others: Mapping[str, int]) -> str:
    """A note about annotations of categories or labels that were not asked for."""
    names = sorted(others, key=lambda name: -others[name])
    names_text = ", ".join(f"{name} ({others[name]})" for name in names[:8]) + (", ..." if names[8:] else "")
    return f"left out {sum(others.values())} {what} of other {kinds}: {names_text}"
