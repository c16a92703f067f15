"""Outlines of connected components along the sides of their pixels: polygons that hold exactly these pixels."""

from collections.abc import Iterator

import cv2
import numpy as np

from cssr.cracks.components import Runs

_RIGHT_OF = {(1, 0): (0, 1), (0, 1): (-1, 0), (-1, 0): (0, -1), (0, -1): (1, 0)}  # of a direction; y runs down
Ring = np.ndarray  # N 2 int64 (x, y), corners of pixels, closed (the last is the first), of which N - 1 differ


def outline(runs: Runs) -> list[list[Ring]]:
    """Polygons of a component: each its exterior, then its holes; clockwise as seen, holes the other way round.

    Pixel (x, y) is the square from (x, y) to (x + 1, y + 1). Parts that meet at corners alone are polygons of their
    own, and no ring touches itself, so that the polygons are valid as OGC Simple Features define it.
    """
    rings = [ring for walk in _walks(*_edges(runs)) for ring in _simple_rings(walk)]
    exteriors = [[ring] for ring in rings if _area(ring) > 0]
    for hole in rings:
        if _area(hole) < 0:
            _enclosing_polygon(hole, exteriors).append(hole)
    return exteriors


def _edges(runs: Runs) -> tuple[np.ndarray, np.ndarray]:
    """Straight sides of the component, from and to corners N 2, the component to the right of each."""
    stride = runs.stride
    upper = np.stack([np.r_[runs.starts, runs.ends], np.r_[np.ones_like(runs.starts), -np.ones_like(runs.ends)]])
    lower = upper + [[stride], [0]]
    lower[1] *= -1
    positions, steps = np.concatenate([upper, lower], 1)
    order = np.argsort(positions, kind="stable")
    positions, depth = positions[order], np.cumsum(steps[order])  # 1: this row alone, -1: the row above alone
    row = np.flatnonzero((depth[:-1] != 0) & (positions[:-1] != positions[1:]))
    first = np.stack([positions[row] % stride, positions[row] // stride], 1)
    last = np.stack([first[:, 0] + positions[row + 1] - positions[row], first[:, 1]], 1)
    above = depth[row] < 0  # lower sides, along which the way goes to the left
    first[above], last[above] = last[above], first[above].copy()
    left = np.stack([runs.starts % stride, runs.starts // stride], 1)
    right = np.stack([(runs.ends - 1) % stride + 1, (runs.ends - 1) // stride], 1)
    down = np.array([0, 1])
    return np.concatenate([first, left + down, right]), np.concatenate([last, left, right + down])


def _walks(begin: np.ndarray, end: np.ndarray) -> Iterator[list[tuple[int, int]]]:
    """Closed ways along all edges, as their corners, around parts that are joined by sides."""
    targets: dict[tuple[int, int], dict[tuple[int, int], tuple[int, int]]] = {}  # by corner and direction
    steps = map(tuple, np.sign(end - begin).tolist())
    for corner, step, target in zip(map(tuple, begin.tolist()), steps, map(tuple, end.tolist())):
        targets.setdefault(corner, {})[step] = target
    edges = [(corner, step) for corner, leaving in targets.items() for step in leaving]
    unused = set(edges)
    for edge in edges:
        walk = []
        while edge in unused:
            unused.remove(edge)
            corner, step = edge
            walk.append(corner)
            corner = targets[corner][step]
            leaving = targets[corner]  # of two edges, the one to the right is of the same pixel
            edge = corner, _RIGHT_OF[step] if len(leaving) == 2 else next(iter(leaving))
        if walk:
            yield walk


def _simple_rings(walk: list[tuple[int, int]]) -> Iterator[Ring]:
    """Rings that touch themselves nowhere: the walk is cut where it comes to a corner again."""
    path: list[tuple[int, int]] = []
    position: dict[tuple[int, int], int] = {}
    for corner in [*walk, walk[0]]:
        if corner in position:
            ring = path[position[corner] :]
            for passed in ring:
                del position[passed]
            del path[len(path) - len(ring) :]
            # without corners at which it does not turn
            points = np.array(ring, np.int64)
            step = np.sign(np.roll(points, -1, 0) - points)
            points = points[(step != np.roll(step, 1, 0)).any(1)]
            yield np.concatenate([points, points[:1]])
        position[corner] = len(path)
        path.append(corner)


def _area(ring: Ring) -> float:
    """Area that the ring encloses, pixels; below 0 where it runs counterclockwise as seen."""
    x, y = ring.T
    return float((x[:-1] * y[1:] - x[1:] * y[:-1]).sum() / 2)


def _enclosing_polygon(hole: Ring, exteriors: list[list[Ring]]) -> list[Ring]:
    """The polygon around a hole: the smallest exterior that encloses it."""
    if len(exteriors) == 1:
        return exteriors[0]
    turn = int(np.lexsort((hole[:-1, 0], hole[:-1, 1]))[0])  # its upper left corner: the hole is below, to the right
    inside = tuple((hole[turn] + 0.5).tolist())
    holding = [
        polygon for polygon in exteriors if cv2.pointPolygonTest(polygon[0].astype(np.float32), inside, False) > 0
    ]
    return min(holding, key=lambda polygon: _area(polygon[0]))
