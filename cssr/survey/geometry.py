"""Lines and rings of measured cracks: out of GeoJSON, in pixels of the photograph, and as samples along them."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

Transform = Callable[[np.ndarray], np.ndarray]  # of points N 2


def paths(geometry: Any) -> Iterator[list]:
    """The lines, or rings, of a GeoJSON geometry."""
    coordinates = geometry["coordinates"]
    depth = {"LineString": 0, "MultiLineString": 1, "Polygon": 1, "MultiPolygon": 2}[geometry["type"]]
    for _ in range(depth - 1):
        coordinates = [part for whole in coordinates for part in whole]
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
    which = np.repeat(np.arange(len(count)), count)
    k = np.arange(len(which)) - np.repeat(np.cumsum(count) - count, count)
    stride = ((ends - begins) / count[:, None])[which]
    first = begins[which] + k[:, None] * stride
    return first, first + stride, number[which]
