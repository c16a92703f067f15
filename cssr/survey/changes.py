"""Changes of the cracks of one spot between two photographs: cracks matched along their skeletons, and what has grown.

All is compared in the pixels of the new photograph, into which the old one's cracks are placed, and only where both
photographs show the surface.
"""

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

from cssr.survey.collect import COVERAGE, Row
from cssr.survey.geometry import segments
from cssr.survey.registration import Picture, Registration, moved

STATES = ("new", "grown", "unchanged", "reduced", "gone", "unclear", "out of view")

_STEP = 1.0  # pixels of the photograph, of the segments of a centre line
_NEAR = 3.0  # pixels, and the registration's error thrice, within which lines are of one crack
_BEYOND = 2.0  # pixels along a line by which another may be ahead of its end
_TURN = math.cos(math.radians(35))  # of the directions of two lines that are one
_NEIGHBOURS = 8  # segments looked at for each
_SHARED = 0.25  # of the shorter of two cracks that must be along the other
_VISIBLE = 0.5  # of a crack that the other photograph must show
_HINTED = 0.5  # of a crack that the other survey must see faintly for it not to be new, or gone
_WIDEST = 15  # pixels around a point at most in which that is looked for
_RIPPLE = 2.0  # pixels of the mask by which its outline is smoothed
_OFF = (-1.0, -0.5, 0.0, 0.5, 1.0)  # pixels of the mask by which a centre line may be beside the middle
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
class Uncertainty:
    """Standard uncertainties: of the position of a crack's end, and of a width, pixels of the photograph; of a length
    along its line, a share of it. `width` says which width is compared: mean, p95 or max.
    """

    end: float
    along: float
    widths: tuple[float, float]  # of the old and of the new survey
    width: str = "p95"
    detectable: tuple[float | None, float | None] = (None, None)


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
        around = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))
        near, at = cv2.dilate(self.faint.view(np.uint8), around), np.nan_to_num(points).astype(int)
        return near[at[:, 1].clip(0, self.shape[0] - 1), at[:, 0].clip(0, self.shape[1] - 1)] > 0


@dataclass(frozen=True)
class Change:
    """Cracks of either photograph that are one; lengths and widths in pixels of the new photograph.

    Attributes:
        state: one of STATES. change: what differs beyond the uncertainty ("longer, wider").
        old, new: indices into the cracks of either photograph.
        lengths, widths: old and new, None where there is none; the widths are those where both have the crack.
        length_uncertainty, width_uncertainty: expanded (95 %), of the differences.
        added, lost: lengths of the new crack beside the old ones, and of the old beside the new.
        faint: length that one survey has and the other sees faintly, which counts as there.
        seen: share of the line that both photographs show.
        missed: whether it is narrower than what the survey without it would surely find: it is not gone then, but
            unclear.
        place: (x, y) in the new photograph, where it has changed most.
    """

    state: str
    change: str
    old: tuple[int, ...]
    new: tuple[int, ...]
    lengths: tuple[float | None, float | None]
    widths: tuple[float | None, float | None]
    length_uncertainty: float
    width_uncertainty: float
    added: float
    lost: float
    faint: float
    seen: float
    missed: bool
    place: tuple[float, float]


class _Samples:
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
        first, last = moved(begin, matrix), moved(end, matrix)
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
        width = 2 * np.max([sides.query(middle + off * unit * normal)[0] for off in _OFF], axis=0)
        width = uniform_filter1d(width, min(_STRETCH, len(width)), mode="nearest")
        nodes = cKDTree([point for line in self.cracks.lines[crack] for point in (line[0], line[-1])])
        inner = nodes.query(middle)[0] >= width / 2
        self.width[part] = np.where(inner if inner.any() else True, width, np.nan) * self._stretch[part]

    def ends(self, crack: int) -> int:
        """Count the ends of a crack's lines at which no other begins, two at least."""
        ends = Counter(tuple(line[at].round(2).tolist()) for line in self.cracks.lines[crack] for at in (0, -1))
        return max(2, sum(count == 1 for count in ends.values()))


def _smooth(ring: np.ndarray, unit: float) -> np.ndarray:
    """Points on a ring along sides of pixels, smoothed: the stairs of a slanting side become straight."""
    begin, end, _ = segments([ring], unit)
    return gaussian_filter1d((begin + end) / 2, _RIPPLE, axis=0, mode="wrap")


def mask_pixel(cracks: Cracks) -> float:
    """Side of the pixels of the mask that cracks were measured in, pixels of the photograph: the shortest side seen."""
    sides = [np.abs(np.diff(ring, axis=0)).max(1).min() for rings in cracks.rings for ring in rings]
    return float(np.clip(min(sides, default=1.0), 1 / 16, 1))


def changes(
    old: Cracks,
    new: Cracks,
    registration: Registration,
    uncertainty: Uncertainty,
    views: tuple[View, View] | None = None,
) -> list[Change]:
    """All cracks of both photographs, each once, as changes: new and grown ones first.

    `views` of the old and the new photograph say what they show beside; None: all.
    """
    before, after = _Samples(old, registration.matrix), _Samples(new, np.eye(3))
    near, scale = _NEAR + 3 * registration.error, registration.scale(old.shape)
    first, second = views or (View(old.shape), View(new.shape))
    there = registration.back(after.middle)
    before.seen, after.seen = second.shows(before.middle), first.shows(there)
    before.faint, after.faint = second.hints(before.middle, near), first.hints(there, near / scale)
    halves = before.half_widths(), after.half_widths()
    to_old, to_new = _nearest(after, before, near, halves[::-1]), _nearest(before, after, near, halves)
    groups = _groups(after, before, to_old, to_new)
    for samples, side in ((before, 0), (after, 1)):
        unit = mask_pixel(samples.cracks)
        for crack in (crack for group in groups if all(group) for crack in group[side]):
            samples.measure(crack, unit)
    pair = _Pair(before, after, to_old, to_new, scale, uncertainty)
    made = [pair.change(*group) for group in groups]
    return sorted(made, key=lambda change: (STATES.index(change.state), -max(length or 0 for length in change.lengths)))


@dataclass(frozen=True)
class _Pair:
    """Two photographs' cracks in one frame, and the segment of the other at the place of each (-1: none)."""

    before: _Samples
    after: _Samples
    to_old: np.ndarray
    to_new: np.ndarray
    scale: float  # pixels of the new photograph for one of the old
    uncertainty: Uncertainty

    def change(self, olds: list[int], news: list[int]) -> Change:
        """Cracks that are one, as a change."""
        a, b = self.before.segments_of(olds), self.after.segments_of(news)
        total = len(a) + len(b)
        a, b = a[self.before.seen[a]], b[self.after.seen[b]]
        seen = (len(a) + len(b)) / max(1, total)
        beside = a[self.to_new[a] < 0], b[self.to_old[b] < 0]
        hinted = beside[0][self.before.faint[beside[0]]], beside[1][self.after.faint[beside[1]]]
        faint = float(self.before.length[hinted[0]].sum()), float(self.after.length[hinted[1]].sum())
        beside = np.setdiff1d(beside[0], hinted[0]), np.setdiff1d(beside[1], hinted[1])
        # A line counts for both where one survey has it and the other sees it faintly.
        lengths = float(self.before.length[a].sum()) + faint[1], float(self.after.length[b].sum()) + faint[0]
        off = self._uncertainties(olds, news, lengths)
        missed = False
        if olds and news:
            widths = (
                _width(self.before.width[a[self.to_new[a] >= 0]], self.uncertainty.width),
                _width(self.after.width[b[self.to_old[b] >= 0]], self.uncertainty.width),
            )
            words = _words(lengths, widths, off)
            state = "grown" if {"longer", "wider"} & {*words} else "reduced" if words else "unchanged"
        else:
            name, words = f"{self.uncertainty.width}_width_px", []
            widths = tuple(
                max((samples.cracks.rows[n][name] * scale for n in chosen), default=None)
                for samples, chosen, scale in ((self.before, olds, self.scale), (self.after, news, 1.0))
            )
            unclear = max(lengths) <= off[0] or sum(faint) > _HINTED * max(lengths)
            missed = self._may_be_missed(widths)
            unclear |= missed and not news
            state = "out of view" if seen < _VISIBLE else "unclear" if unclear else "gone" if olds else "new"
        return Change(
            state,
            ", ".join(words),
            tuple(olds),
            tuple(news),
            tuple(length if chosen else None for length, chosen in zip(lengths, (olds, news))),
            widths,
            *off,
            float(self.after.length[beside[1]].sum()),
            float(self.before.length[beside[0]].sum()),
            sum(faint),
            seen,
            missed,
            self._place(olds, news, beside, words),
        )

    def _may_be_missed(self, widths: tuple[float | None, float | None]) -> bool:
        """Return whether the survey without a crack would miss one so narrow."""
        (old, new), (before, after) = widths, self.uncertainty.detectable
        if old is None:
            return before is not None and new is not None and new < before * self.scale
        return after is not None and old < after

    def _uncertainties(self, olds: list[int], news: list[int], lengths: tuple[float, float]) -> tuple[float, float]:
        """Expanded uncertainties of the differences of lengths and of widths."""
        before, after = (sum(map(side.ends, chosen)) for side, chosen in ((self.before, olds), (self.after, news)))
        ends, (old, new) = before * self.scale**2 + after, self.uncertainty.widths
        length = math.hypot(self.uncertainty.end * ends**0.5, self.uncertainty.along * max(lengths))
        return COVERAGE * length, COVERAGE * math.hypot(old * self.scale, new)

    def _place(
        self, olds: list[int], news: list[int], beside: tuple[np.ndarray, np.ndarray], words: list[str]
    ) -> tuple[float, float]:
        """Position of the change in the new photograph, x and y."""
        if not news:
            samples, at = self.before, self.before.segments_of(olds)
        else:
            samples, at = self.after, self.after.segments_of(news)
            if "longer" in words and len(beside[1]):
                at = beside[1]
            elif "wider" in words:
                at = at[self.to_old[at] >= 0]
                growth = self.after.width[at] - self.before.width[self.to_old[at]]
                at = at[[int(np.nanargmax(growth))]] if np.isfinite(growth).any() else at
        return tuple(samples.middle[at[len(at) // 2]].tolist())


def _words(lengths: tuple, widths: tuple, uncertainty: tuple[float, float]) -> list[str]:
    """The differences beyond the uncertainty: longer, wider, ..."""
    words = []
    for (old, new), off, (more, less) in zip(
        (lengths, widths), uncertainty, (("longer", "shorter"), ("wider", "narrower"))
    ):
        if old is not None and new is not None and abs(new - old) > off:
            words.append(more if new > old else less)
    return words


def _width(values: np.ndarray, kind: str) -> float | None:
    """Mean, 95th percentile or greatest of widths; None without any."""
    values = values[np.isfinite(values)]
    if not len(values):
        return None
    return float({"mean": np.mean, "max": np.max}.get(kind, lambda v: np.percentile(v, 95))(values))


def _nearest(own: _Samples, other: _Samples, near: float, half: Sequence[np.ndarray]) -> np.ndarray:
    """The nearest segment of `other` in the same direction; `half`: half the widths of both."""
    here, there = np.flatnonzero(own.seen), np.flatnonzero(other.seen)
    partner = np.full(len(own.seen), -1)
    if not len(here) or not len(there):
        return partner
    tree = cKDTree(other.middle[there])
    count = min(_NEIGHBOURS, len(there))
    reach = near + min(half[0].max(), half[1].max())
    away, at = tree.query(own.middle[here], range(1, count + 1), distance_upper_bound=reach)
    at = np.where(np.isfinite(away), at, 0)
    segment = there[at]
    alike = np.abs((own.along[here][:, None] * other.along[segment]).sum(-1)) >= _TURN
    step = other.middle[segment] - own.middle[here][:, None]
    alike &= np.abs((step * other.along[segment]).sum(-1)) <= _BEYOND  # else it is ahead of an end
    # Within the crack its line may be anywhere.
    allowed = near + np.minimum(half[0][here][:, None], half[1][segment])
    away = np.where(alike & (away <= allowed), away, np.inf)
    best = away.argmin(1)
    rows = np.arange(len(here))
    partner[here] = np.where(np.isfinite(away[rows, best]), segment[rows, best], -1)
    return partner


def _groups(
    after: _Samples, before: _Samples, to_old: np.ndarray, to_new: np.ndarray
) -> list[tuple[list[int], list[int]]]:
    """Cracks of either photograph that are one, as their indices: every crack is in one group."""
    olds, news = len(before.cracks.lines), len(after.cracks.lines)
    seen = before.seen_lengths(), after.seen_lengths()
    along = []
    for own, other, partner, swap in ((after, before, to_old, False), (before, after, to_new, True)):
        hit = np.flatnonzero(partner >= 0)
        ends = own.crack[hit], other.crack[partner[hit]]
        a, b = ends if swap else ends[::-1]  # old, new
        table = coo_array((own.length[hit], (a, b)), shape=(olds, news)).tocsr().tocoo()
        along.append((table.row, table.col, table.data))
    row, column, shared = (np.concatenate(parts) for parts in zip(*along))
    enough = shared >= _SHARED * np.minimum(seen[0][row], seen[1][column])
    row, column = row[enough], column[enough]
    graph = coo_array((np.ones(len(row), bool), (row, olds + column)), shape=(olds + news,) * 2)
    labels = connected_components(graph, directed=False)[1]
    order = np.argsort(labels, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(labels[order])) + 1) if len(order) else []
    return [([int(n) for n in g if n < olds], [int(n) - olds for n in g if n >= olds]) for g in groups]
