"""Cracks of two photographs in one frame, matched along their centre lines: segments, their widths, and groups."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np
from scipy.ndimage import gaussian_filter1d, uniform_filter1d
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from cssr.survey.collect import Row
from cssr.survey.geometry import segments
from cssr.survey.registration import Picture, Registration, apply_homography

_STEP = 1.0  # pixels of the photograph, of the segments of a centre line
_NEAR = 3.0  # pixels, and the registration's error thrice, within which lines are of one crack
_BEYOND = 2.0  # pixels along a line by which another may be ahead of its end
_TURN = math.cos(math.radians(35))  # of the directions of two lines that are one
_NEIGHBOURS = 8  # segments looked at for each
_SHARED = 0.25  # of the shorter of two cracks that must be along the other
_WIDEST = 15  # pixels around a point at most in which that is looked for
_RIPPLE = 2.0  # pixels of the mask by which its outline is smoothed
_OFFSETS = (-1.0, -0.5, 0.0, 0.5, 1.0)  # pixels of the mask by which a centre line may be beside the middle
_STRETCH = 5  # segments along the line over which a width is averaged


@dataclass(frozen=True)
class Cracks:
    """The cracks of a photograph, in its pixels.

    Attributes:
        lines, rings: parts of the centre line, and sides of the area, of each crack: N 2 (x, y) each.
        rows: of each, as a survey's table has it.
    """

    shape: tuple[int, int]
    lines: list[list[np.ndarray]] = field(default_factory=list)
    rings: list[list[np.ndarray]] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)


@dataclass(frozen=True)
class View:
    """Pixels with data of a photograph, and where a crack is seen faintly.

    Attributes:
        shape: height, width, pixels. picture: says which of them hold data; None: all.
        faint: H W bool, where the model sees a crack faintly, below its threshold; None: not known.
    """

    shape: tuple[int, int]
    picture: Picture | None = None
    faint: np.ndarray | None = None

    def shows(self, points: np.ndarray) -> np.ndarray:
        """Return whether points N 2 (x, y) are in it, on pixels that hold data."""
        if self.picture:
            return self.picture.shows(points)
        return ((points >= 0) & (points < self.shape[::-1])).all(1)

    def hints(self, points: np.ndarray, reach: float) -> np.ndarray:
        """Return whether a crack is seen faintly within so many pixels of points N 2."""
        if self.faint is None:
            return np.zeros(len(points), bool)
        side = 2 * min(_WIDEST, math.ceil(reach)) + 1
        disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))
        dilated, pixels = cv2.dilate(self.faint.view(np.uint8), disc), np.nan_to_num(points).astype(int)
        return dilated[pixels[:, 1].clip(0, self.shape[0] - 1), pixels[:, 0].clip(0, self.shape[1] - 1)] > 0


class CrackSegments:
    """Segments of the centre lines of a photograph's cracks, and where they are in the common frame.

    Attributes:
        middle, along: M 2, in the frame; along is of length 1. length: M, in the frame. crack: M, index.
        seen: M bool, whether the other photograph shows it. faint: M bool, whether that has a crack there, faintly.
    """

    def __init__(self, cracks: Cracks, matrix: np.ndarray):
        lines = [line for parts in cracks.lines for line in parts]
        owner = np.repeat(np.arange(len(cracks.lines)), [len(parts) for parts in cracks.lines])
        begin, end, number = segments(lines, _STEP)
        self.cracks, self._begin, self._end, self.crack = cracks, begin, end, owner[number]
        first, last = apply_homography(begin, matrix), apply_homography(end, matrix)
        self.middle, stride = (first + last) / 2, last - first
        self.length = np.linalg.norm(stride, axis=1)
        self.along = stride / np.maximum(self.length, 1e-9)[:, None]
        self.seen, self.faint = np.ones(len(begin), bool), np.zeros(len(begin), bool)
        own = np.maximum(np.linalg.norm(end - begin, axis=1), 1e-9)
        depth = np.abs(np.c_[(begin + end) / 2, np.ones(len(begin))] @ matrix[2])
        # Across the line, the frame stretches by the determinant of the homography's derivative, less that along it.
        self._stretch = np.abs(np.linalg.det(matrix)) / depth**3 / np.maximum(self.length / own, 1e-9)
        self.width = np.full(len(begin), np.nan)
        self._cuts = np.searchsorted(self.crack, np.arange(len(cracks.lines) + 1))

    def segments_of(self, cracks: Sequence[int]) -> np.ndarray:
        """Numbers of the segments of some cracks."""
        ranges = [np.arange(self._cuts[crack], self._cuts[crack + 1]) for crack in cracks]
        return np.concatenate(ranges) if ranges else np.zeros(0, int)

    def half_widths(self) -> np.ndarray:
        """Half the mean width of the crack that each segment is of, in the frame."""
        mean = np.array([row["mean_width_px"] for row in self.cracks.rows] or [0.0])
        return mean[self.crack] / 2 * self._stretch

    def seen_lengths(self) -> np.ndarray:
        """Length of each crack that the other photograph shows."""
        return np.bincount(self.crack, self.length * self.seen, len(self.cracks.lines))

    def measure(self, crack: int, unit: float) -> None:
        """Set the widths of a crack's segments: twice the distance to its sides; NaN near its ends and forks."""
        part = slice(self._cuts[crack], self._cuts[crack + 1])
        rings = [_smooth(ring, unit) for ring in self.cracks.rings[crack]]
        if not rings or part.start == part.stop:
            return
        sides = cKDTree(np.concatenate(rings))
        middle = (self._begin[part] + self._end[part]) / 2
        step = self._end[part] - self._begin[part]
        normal = np.stack([-step[:, 1], step[:, 0]], 1) / np.maximum(np.linalg.norm(step, axis=1), 1e-9)[:, None]
        width = 2 * np.max([sides.query(middle + off * unit * normal)[0] for off in _OFFSETS], axis=0)
        width = uniform_filter1d(width, min(_STRETCH, len(width)), mode="nearest")
        nodes = cKDTree([point for line in self.cracks.lines[crack] for point in (line[0], line[-1])])
        inner = nodes.query(middle)[0] >= width / 2
        self.width[part] = np.where(inner if inner.any() else True, width, np.nan) * self._stretch[part]

    def ends(self, crack: int) -> int:
        """Count the ends of a crack's lines at which no other begins, two at least."""
        ends = Counter(tuple(line[at].round(2).tolist()) for line in self.cracks.lines[crack] for at in (0, -1))
        return max(2, sum(count == 1 for count in ends.values()))


@dataclass(frozen=True)
class MatchedCracks:
    """The cracks of an old and a new photograph, in the pixels of the new one.

    Attributes:
        to_old: for each segment of `after`, that of `before` at its place; -1: none. to_new: the other way round.
        scale: pixels of the new photograph for one of the old.
        groups: cracks of the old and of the new photograph that are one, as their indices: every crack is in one.
    """

    before: CrackSegments
    after: CrackSegments
    to_old: np.ndarray
    to_new: np.ndarray
    scale: float
    groups: list[tuple[list[int], list[int]]]


def match(old: Cracks, new: Cracks, registration: Registration, views: tuple[View, View]) -> MatchedCracks:
    """Match cracks along their centre lines, and measure the widths of those that both photographs have."""
    before, after = CrackSegments(old, registration.matrix), CrackSegments(new, np.eye(3))
    near, scale = _NEAR + 3 * registration.error, registration.scale(old.shape)
    first, second = views
    back = registration.back(after.middle)
    before.seen, after.seen = second.shows(before.middle), first.shows(back)
    before.faint, after.faint = second.hints(before.middle, near), first.hints(back, near / scale)
    halves = before.half_widths(), after.half_widths()
    to_old = _nearest_segments(after, before, near, halves[::-1])
    to_new = _nearest_segments(before, after, near, halves)
    groups = _group_cracks(after, before, to_old, to_new)
    for segmented, side in ((before, 0), (after, 1)):
        unit = _mask_pixel(segmented.cracks)
        for crack in (crack for group in groups if all(group) for crack in group[side]):
            segmented.measure(crack, unit)
    return MatchedCracks(before, after, to_old, to_new, scale, groups)


def _smooth(ring: np.ndarray, unit: float) -> np.ndarray:
    """Points on a ring along sides of pixels, smoothed: the stairs of a slanting side become straight."""
    begin, end, _ = segments([ring], unit)
    return gaussian_filter1d((begin + end) / 2, _RIPPLE, axis=0, mode="wrap")


def _mask_pixel(cracks: Cracks) -> float:
    """Side of the pixels of the mask that cracks were measured in, pixels of the photograph: the shortest side seen."""
    sides = [np.abs(np.diff(ring, axis=0)).max(1).min() for rings in cracks.rings for ring in rings]
    return float(np.clip(min(sides, default=1.0), 1 / 16, 1))


def _nearest_segments(own: CrackSegments, other: CrackSegments, near: float, half: Sequence[np.ndarray]) -> np.ndarray:
    """The nearest segment of `other` in the same direction; `half`: half the widths of both."""
    own_seen, other_seen = np.flatnonzero(own.seen), np.flatnonzero(other.seen)
    partner = np.full(len(own.seen), -1)
    if not len(own_seen) or not len(other_seen):
        return partner
    tree = cKDTree(other.middle[other_seen])
    count = min(_NEIGHBOURS, len(other_seen))
    reach = near + min(half[0].max(), half[1].max())
    distance, nearest = tree.query(own.middle[own_seen], range(1, count + 1), distance_upper_bound=reach)
    nearest = np.where(np.isfinite(distance), nearest, 0)
    segment = other_seen[nearest]
    parallel = np.abs((own.along[own_seen][:, None] * other.along[segment]).sum(-1)) >= _TURN
    step = other.middle[segment] - own.middle[own_seen][:, None]
    parallel &= np.abs((step * other.along[segment]).sum(-1)) <= _BEYOND  # else it is ahead of an end
    # Within the crack its line may be anywhere.
    allowed = near + np.minimum(half[0][own_seen][:, None], half[1][segment])
    distance = np.where(parallel & (distance <= allowed), distance, np.inf)
    best = distance.argmin(1)
    rows = np.arange(len(own_seen))
    partner[own_seen] = np.where(np.isfinite(distance[rows, best]), segment[rows, best], -1)
    return partner


def _group_cracks(
    after: CrackSegments, before: CrackSegments, to_old: np.ndarray, to_new: np.ndarray
) -> list[tuple[list[int], list[int]]]:
    """Cracks of either photograph that are one, as their indices: every crack is in one group."""
    olds, news = len(before.cracks.lines), len(after.cracks.lines)
    seen = before.seen_lengths(), after.seen_lengths()
    along = []
    for own, other, partner, swap in ((after, before, to_old, False), (before, after, to_new, True)):
        matched = np.flatnonzero(partner >= 0)
        ends = own.crack[matched], other.crack[partner[matched]]
        a, b = ends if swap else ends[::-1]  # old, new
        table = coo_array((own.length[matched], (a, b)), shape=(olds, news)).tocsr().tocoo()
        along.append((table.row, table.col, table.data))
    row, column, shared = (np.concatenate(parts) for parts in zip(*along))
    enough = shared >= _SHARED * np.minimum(seen[0][row], seen[1][column])
    row, column = row[enough], column[enough]
    graph = coo_array((np.ones(len(row), bool), (row, olds + column)), shape=(olds + news,) * 2)
    labels = connected_components(graph, directed=False)[1]
    order = np.argsort(labels, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(labels[order])) + 1) if len(order) else []
    return [([int(n) for n in g if n < olds], [int(n) - olds for n in g if n >= olds]) for g in groups]
