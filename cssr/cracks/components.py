"""Connected components of a mask as runs and lists of pixels: memory grows with the crack, not with the image."""

import functools
from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

_STRIP = 1 << 24  # pixels looked at once
_AT_ONCE = 1 << 20  # pixels of a component that are listed at once to look them up
_BITS = 32
_ROW = 1 << _BITS  # more than a row has pixels
AROUND = ((0, -1), (1, -1), (1, 0), (1, 1), (0, 1), (-1, 1), (-1, 0), (-1, -1))  # x, y; clockwise from above


@dataclass(frozen=True)
class Pixels:
    """Pixels of a mask: x and y, N int64 each, sorted by row, then by column."""

    x: np.ndarray
    y: np.ndarray

    @property
    def points(self) -> np.ndarray:
        """N 2 float64 (x, y): the middles of the pixels, which are at .5."""
        return np.stack([self.x, self.y], 1) + 0.5

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, chosen: np.ndarray) -> "Pixels":
        return Pixels(self.x[chosen], self.y[chosen])

    def find(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """The numbers of these pixels (whole numbers, any shape) in this component; len(self) for those not in it."""
        keys, own_keys = _key(x, y), self._keys
        number = np.searchsorted(own_keys, keys)
        match = own_keys[np.minimum(number, len(own_keys) - 1)] == keys
        return np.where(match, number, len(own_keys))

    def holds(self, points: np.ndarray) -> np.ndarray:
        """Return whether points (..., 2; x, y) are in a pixel of this component."""
        x, y = np.floor(points).astype(np.int64).T
        return (self.find(x, y) < len(self)).T

    def neighbours(self) -> np.ndarray:
        """N 8 int32: the number of each pixel's neighbours in the order of `AROUND`; N where there is none."""
        neighbours = np.full((len(self), 8), len(self), np.int32)
        for k, (dx, dy) in enumerate(AROUND[:4]):
            number = self.find(self.x + dx, self.y + dy)
            pixel = np.flatnonzero(number < len(self))
            neighbours[pixel, k] = number[pixel]
            neighbours[number[pixel], k + 4] = pixel
        return neighbours

    def rim(self) -> np.ndarray:
        """M 2 float64: the middles of the pixels outside that share a side with one inside, each once."""
        sides = [self._outside_keys(*step) for step in AROUND[::2]]
        keys = np.unique(np.concatenate(sides))
        return np.stack([(keys & _ROW - 1) - 1, keys >> _BITS], 1) + 0.5

    def _outside_keys(self, dx: int, dy: int) -> np.ndarray:
        """Keys of the pixels outside that are this step from one inside."""
        outside = self.find(self.x + dx, self.y + dy) == len(self)
        return _key(self.x[outside] + dx, self.y[outside] + dy)

    @functools.cached_property
    def _keys(self) -> np.ndarray:
        return _key(self.x, self.y)


def _key(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """One number for each pixel, in the order of rows; x from -1."""
    return (y << _BITS) + x + 1


@dataclass(frozen=True)
class Runs:
    """Pixels of a mask as runs in rows: their starts and ends (exclusive), x + y * stride, N int64 each, sorted."""

    starts: np.ndarray
    ends: np.ndarray
    stride: int

    @property
    def area(self) -> int:
        """Pixels."""
        return int((self.ends - self.starts).sum())

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Left, top, right, bottom; right and bottom are outside."""
        left, right = (self.starts % self.stride).min(), ((self.ends - 1) % self.stride).max() + 1
        return int(left), int(self.starts[0] // self.stride), int(right), int(self.starts[-1] // self.stride) + 1

    def mean_width(self) -> float:
        """Approximate width, pixels: that of a line of this area and circumference."""
        positions = np.concatenate([self.starts, self.ends, self.starts + self.stride, self.ends + self.stride])
        order = np.argsort(positions, kind="stable")
        depth = np.cumsum(np.tile(np.repeat([1, -1], len(self.starts)), 2)[order])[:-1]
        shared = np.diff(positions[order])[depth == 2].sum()  # sides between a row and the next
        return float(self.area / (self.area - shared + len(self.starts)))

    def mean_of(self, image: np.ndarray) -> float:
        """The mean of an image (H W, whole numbers) over these pixels."""
        last = np.cumsum(self.ends - self.starts)  # for parts of so many pixels, as a list takes 16 bytes a pixel
        cuts = [0, *np.unique(np.searchsorted(last, np.arange(_AT_ONCE, last[-1], _AT_ONCE))), len(last)]
        total = 0
        for part in map(slice, cuts, cuts[1:]):
            pixels = Runs(self.starts[part], self.ends[part], self.stride).pixels()
            total += int(image[pixels.y, pixels.x].sum(dtype=np.int64))
        return total / self.area

    def reduced(self, step: int) -> "Runs":
        """Reduce by nearest neighbour: the middle pixel of each square of `step` pixels a side."""
        y, middle = self.starts // self.stride, step // 2
        rows = y % step == middle
        first = -((middle - self.starts[rows] % self.stride) // step)
        last = ((self.ends[rows] - 1) % self.stride - middle) // step + 1
        nonempty, base = last > first, y[rows] // step * self.stride
        return Runs((base + first)[nonempty], (base + last)[nonempty], self.stride)

    def pixels(self) -> Pixels:
        """The pixels of the runs."""
        length = self.ends - self.starts
        positions = np.arange(length.sum()) + np.repeat(self.starts - np.cumsum(length) + length, length)
        return Pixels(positions % self.stride, positions // self.stride)


class Components:
    """The connected components of a mask (H W; crack is what is not zero), joined by sides or corners, top down.

    Beside the mask, memory is some 100 bytes a run and a strip of 16 million pixels.

    Attributes:
        areas: pixels of each, int64.
        holes: background enclosed by each: how many times its lines come back to themselves, int64.
        forks: runs of each that touch more than one of the row above or below, less one of each: how ragged it is.
    """

    def __init__(self, mask: np.ndarray):
        self._starts, self._ends, self._stride = _find_runs(mask)
        if not len(self._starts):
            self.areas = self.holes = self.forks = np.zeros(0, np.int64)
            return
        upper, lower = _touching_pairs(self._starts, self._ends, self._stride)
        runs = len(self._starts)
        graph = coo_array((np.ones(len(upper), bool), (upper, lower)), shape=(runs, runs))
        labels = connected_components(graph, directed=False)[1]
        self._order, sizes = np.argsort(labels, kind="stable"), np.bincount(labels)
        self._cuts = np.append(0, np.cumsum(sizes))
        self.areas = np.bincount(labels, self._ends - self._starts).astype(np.int64)
        self.holes = np.bincount(labels[upper], minlength=len(sizes)) - sizes + 1
        branches = [np.maximum(np.bincount(ends, minlength=runs) - 1, 0) for ends in (upper, lower)]
        self.forks = np.bincount(labels, branches[0] + branches[1]).astype(np.int64)

    def __len__(self) -> int:
        return len(self.areas)

    def __getitem__(self, number: int) -> Runs:
        if not 0 <= number < len(self):
            raise IndexError(number)
        chosen = self._order[self._cuts[number] : self._cuts[number + 1]]
        return Runs(self._starts[chosen], self._ends[chosen], self._stride)


def _find_runs(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """First and last (exclusive) places of the runs, in rows that are one pixel longer than the mask's."""
    height, width = mask.shape
    stride, step = width + 1, max(1, _STRIP // (width + 1))
    strips = [_run_bounds(mask[top : top + step]) + top * stride for top in range(0, height, step)]
    bounds = np.concatenate(strips) if strips else np.zeros(0, np.int64)
    return bounds[::2], bounds[1::2], stride


def _run_bounds(rows: np.ndarray) -> np.ndarray:
    """Positions at which runs begin and end, each row followed by one that is not set."""
    flat = np.zeros(rows.shape[0] * (rows.shape[1] + 1) + 1, bool)
    flat[1:].reshape(len(rows), -1)[:, :-1] = rows
    return np.flatnonzero(flat[1:] != flat[:-1])


def _touching_pairs(starts: np.ndarray, ends: np.ndarray, stride: int) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of runs that touch each other, each once: the one above, the one below."""
    first = np.searchsorted(ends, starts + stride, "left")  # of the runs in the next row that it touches
    count = np.searchsorted(starts, ends + stride, "right") - first
    runs = np.repeat(np.arange(len(starts)), count)
    return runs, np.arange(len(runs)) - np.repeat(np.cumsum(count) - count, count) + np.repeat(first, count)
