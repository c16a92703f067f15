"""Lines and rings of measured cracks: out of GeoJSON, in pixels of the photograph, and as samples along them."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from cssr.utils.annotations import shortened

Transform = Callable[[np.ndarray], np.ndarray]  # of points N 2


_DEPTH = {"LineString": 0, "MultiLineString": 1, "Polygon": 1, "MultiPolygon": 2}
FARTHEST = 1e12  # a coordinate that can be meant, pixels or units of a map


def check(geometry: Any) -> None:
    """ValueError, unless a GeoJSON geometry is of lines or polygons whose points are two finite numbers each."""
    kind = geometry.get("type")
    if not isinstance(kind, str) or kind not in _DEPTH:
        raise ValueError(f"a geometry of type {shortened(kind)}, which is none of {', '.join(_DEPTH)}")
    try:
        points = [np.asarray(path) for path in paths(geometry)]
    except (ValueError, TypeError, KeyError):
        points = [np.asarray("")]
    for path in points:
        valid = path.ndim == 2 and path.shape[1] == 2 and path.dtype.kind in "iuf"
        if path.size and not (valid and (np.abs(path) < FARTHEST).all()) or path.dtype.kind in "US":
            raise ValueError(f"a {kind} whose coordinates are not points of two numbers")


def paths(geometry: Any) -> Iterator[list]:
    """The lines, or rings, of a GeoJSON geometry."""
    coordinates = geometry["coordinates"]
    depth = _DEPTH[geometry["type"]]
    for _ in range(depth - 1):
        coordinates = [part for group in coordinates for part in group]
    yield from coordinates if depth else [coordinates]


def compact(geometry: Any) -> Any:
    """The same GeoJSON geometry with arrays N 2 for lists of points: an eighth of the memory."""
    return {**geometry, "coordinates": _compact(geometry["coordinates"])}


def _compact(coordinates: Any) -> Any:
    if not coordinates or isinstance(coordinates[0][0], (int, float)):
        return np.array(coordinates, float).reshape(-1, 2)
    return [_compact(part) for part in coordinates]


def to_pixels(affine: Sequence[float] | None) -> Transform:
    """From coordinates in the files of a photograph to its pixels; affine: as its facts have it, None without a map."""
    if affine is None:
        return np.asarray
    a, b, c, d, e, f = affine
    inverse = np.linalg.inv([[a, b], [d, e]])
    return lambda points: (np.asarray(points) - (c, f)) @ inverse.T


def segments(lines: Sequence[np.ndarray], step: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cut lines (N 2 each) into segments of `step` at most: begins and ends, M 2 each, and their line's number."""
    if not lines:
        return np.zeros((0, 2)), np.zeros((0, 2)), np.zeros(0, int)
    begins, ends = (np.concatenate([line[part] for line in lines]) for part in (np.s_[:-1], np.s_[1:]))
    number = np.repeat(np.arange(len(lines)), [len(line) - 1 for line in lines])
    count = np.maximum(1, np.ceil(np.linalg.norm(ends - begins, axis=1) / step)).astype(int)
    segment_of = np.repeat(np.arange(len(count)), count)
    k = np.arange(len(segment_of)) - np.repeat(np.cumsum(count) - count, count)
    stride = ((ends - begins) / count[:, None])[segment_of]
    first = begins[segment_of] + k[:, None] * stride
    return first, first + stride, number[segment_of]
