"""Surface distances between predicted and true cracks at 99 thresholds, as Google DeepMind's surface-distance library
defines them, in two dimensions.
"""

import itertools
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import cv2
import numpy as np
import torch
from scipy.spatial import cKDTree

from cssr.evaluation.metrics import THRESHOLDS, same_shape, thresholds_below

_STEPS = len(THRESHOLDS)
# Length of contour at a corner: half a diagonal where one or three of its pixels are set, a side where two that share
# one are, half a diagonal twice where two opposite ones are.
_LENGTHS = np.array([0.5 * math.sqrt(2), 1.0, math.sqrt(2)])
_NEAR = 8  # pixels within which the contours at all thresholds are searched at once
_BLOCK = 1 << 15  # corners that are searched around at once, to bound the memory
_DENSE = 20  # pixels of the image for each corner, below which a distance map is faster than a search tree


def _bits(steps: Iterable[int]) -> np.ndarray:
    """A set of thresholds as bits, uint64 (2)."""
    flags = np.zeros(128, np.uint8)
    flags[list(steps)] = 1
    return np.packbits(flags, bitorder="little").view(np.uint64)


_BEFORE = np.stack([_bits(range(step)) for step in range(_STEPS + 1)])  # by step, the thresholds before it
_OFFSETS = sorted(
    (y * y + x * x, y, x)
    for y, x in itertools.product(range(-_NEAR, _NEAR + 1), repeat=2)
    if y * y + x * x <= _NEAR * _NEAR
)  # squared length, rows, columns


class _Contour(NamedTuple):
    """The pixel corners through which a contour passes, and how much of it passes through each."""

    at: np.ndarray  # N flat indices of (H+1, W+1)
    length: np.ndarray  # N float64, pixels


class _Contours:
    """The contours of {level > i} for all thresholds i, `level` (H, W) uint8; beyond the image it is 0.

    A corner is on the contour where some of its four pixels are set and not all: at thresholds `first` <= i < `last`,
    the least and the greatest of its levels, uint8 (H+1, W+1).
    """

    def __init__(self, level: np.ndarray):
        padded = np.pad(level, 1)
        around = padded[:-1, :-1], padded[:-1, 1:], padded[1:, :-1], padded[1:, 1:]  # a b / c d
        self.first, self.last = np.minimum.reduce(around), np.maximum.reduce(around)
        self._at = np.flatnonzero(self.first < self.last)
        a, b, c, d = (levels.ravel()[self._at] for levels in around)
        opposite = (np.minimum(a, d) > np.maximum(b, c)) | (np.minimum(b, c) > np.maximum(a, d))
        self._of_two = np.where(opposite, 2, 1).astype(np.uint8)  # which of the lengths, where two pixels are set
        self._ordered = np.sort((a, b, c, d), 0)

    def at(self, step: int) -> _Contour:
        """The contour at threshold number `step`."""
        first, second, third, last = self._ordered
        active = np.flatnonzero((first <= step) & (step < last))
        kinds = self._of_two * ((second <= step) & (step < third))
        return _Contour(self._at[active], _LENGTHS[kinds[active]])


def _background_of(contour: _Contour, shape: tuple[int, int]) -> np.ndarray:
    """(H+1, W+1) uint8: 0 on the contour."""
    off = np.ones(shape, np.uint8)
    off.reshape(-1)[contour.at] = 0
    return off


def _squares(off: np.ndarray) -> np.ndarray:
    """Squared distance of each corner to the nearest zero of `off` (uint8), flat, int32."""
    distances = cv2.distanceTransform(off, cv2.DIST_L2, cv2.DIST_MASK_PRECISE).ravel()
    return np.rint(distances * distances).astype(np.int32)  # exact: undoes float32's rounding below 1500 px


def _squares_to(points: np.ndarray, contour: _Contour, shape: tuple[int, int]) -> np.ndarray:
    """Squared distance of the corners `points` (flat indices) to the nearest of a contour, int32."""
    if _DENSE * (len(points) + len(contour.at)) > shape[0] * shape[1]:
        return _squares(_background_of(contour, shape))[points]
    tree = cKDTree(np.stack(divmod(contour.at, shape[1]), 1), balanced_tree=False, compact_nodes=False)
    return np.rint(tree.query(np.stack(divmod(points, shape[1]), 1))[0] ** 2).astype(np.int32)


def _directed(squares: np.ndarray, length: np.ndarray, percentiles: Sequence[float]) -> np.ndarray:
    """Percentiles and, last, the mean of distances, each of which counts by the length of its bit of contour."""
    if squares.max() < 4 * len(squares):  # as of noise: equal ones together, a fiftieth of sorting's time
        length = np.bincount(squares, length)
        squares = np.flatnonzero(length)
        length = length[squares]
    order, distance = np.argsort(squares), np.sqrt(squares)
    share = np.cumsum(length[order])
    index = np.searchsorted(share / share[-1], np.asarray(percentiles) / 100)
    return np.append(distance[order[np.minimum(index, len(order) - 1)]], distance @ length / share[-1])


class _NearDistances:
    """Distances of up to `_NEAR` pixels from a contour to those of a prediction, at all of `steps` at once.

    Around each corner, the nearest offsets first, bits tell at which thresholds a contour passes. Where corners are
    many, a distance map is faster, and none is searched around.
    """

    def __init__(self, contour: _Contour, prediction: _Contours, steps: np.ndarray):
        self._lengths: dict[int, np.ndarray] = defaultdict(lambda: np.zeros(_STEPS))  # by squared distance and step
        self._far, self._missing = np.arange(len(contour.at)), np.tile(_bits(steps), (len(contour.at), 1))
        if _DENSE * len(contour.at) > prediction.first.size:
            return
        levels = [np.pad(corners, _NEAR) for corners in (prediction.first, prediction.last)]
        rows, columns = np.divmod(contour.at, prediction.first.shape[1])
        at = (rows + _NEAR) * levels[0].shape[1] + columns + _NEAR
        blocks = [slice(start, start + _BLOCK) for start in range(0, len(at), _BLOCK)]
        unmatched = [self._search(at[block], contour.length[block], levels, steps) for block in blocks]
        self._far = np.concatenate([indices + block.start for (indices, _), block in zip(unmatched, blocks)])
        self._missing = np.concatenate([missing for _, missing in unmatched])

    def _search(
        self, at: np.ndarray, length: np.ndarray, levels: Sequence[np.ndarray], steps: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Corners, and the bits of thresholds at which no contour is near them."""
        width, (first, last) = levels[0].shape[1], map(np.ravel, levels)
        corners, missing = np.arange(len(at)), np.tile(_bits(steps), (len(at), 1))
        for square, row, column in _OFFSETS:
            neighbours = at[corners] + (row * width + column)
            hits = missing & _BEFORE[last[neighbours]] & ~_BEFORE[first[neighbours]]
            rows = np.flatnonzero(hits[:, 0] | hits[:, 1])
            if len(rows):
                hits = hits[rows]
                flags = np.unpackbits(hits.view(np.uint8), axis=1, count=_STEPS, bitorder="little")
                self._lengths[square] += length[corners[rows]] @ flags
                missing[rows] ^= hits
                remaining = np.flatnonzero(missing[:, 0] | missing[:, 1])
                corners, missing = corners[remaining], missing[remaining]
        return corners, missing

    def squares(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Squared distances that occur, int32, and how much of the contour is so far away."""
        lengths = np.array([by_step[step] for by_step in self._lengths.values()])
        occur = np.flatnonzero(lengths)
        return np.array([*self._lengths], np.int32)[occur], lengths[occur]

    def far(self, step: int) -> np.ndarray:
        """Indices of the corners that are farther away."""
        word, bit = divmod(step, 64)
        return self._far[(self._missing[:, word] >> np.uint64(bit)) & np.uint64(1) > 0]


def _compare(level: np.ndarray, mask: np.ndarray, steps: np.ndarray, percentiles: Sequence[float]) -> np.ndarray:
    """Hausdorff percentiles, then mean distance, of {level > i} and the mask for each step i: (percentiles + 1, steps).

    All are non-empty.
    """
    x, y, width, height = cv2.boundingRect(((level > 0) | (mask > 0)).astype(np.uint8))
    window, columns = (slice(y, y + height), slice(x, x + width)), []  # holds both contours at every threshold
    contours, truth, shape = _Contours(level[window]), _Contours(mask[window]).at(0), (height + 1, width + 1)
    to_truth, nearby = _squares(_background_of(truth, shape)), _NearDistances(truth, contours, steps)
    for i in steps:
        predicted = contours.at(i)
        forth = _directed(to_truth[predicted.at], predicted.length, percentiles)
        (squares, lengths), far = nearby.squares(i), nearby.far(i)
        if len(far):
            squares = np.append(squares, _squares_to(truth.at[far], predicted, shape))
            lengths = np.append(lengths, truth.length[far])
        back = _directed(squares, lengths, percentiles)
        columns.append(np.append(np.maximum(forth, back)[:-1], (forth[-1] + back[-1]) / 2))
    return np.stack(columns, 1)


def _surface_image(level: np.ndarray, mask: np.ndarray, percentiles: Sequence[float]) -> np.ndarray:
    """One image: level (H, W) uint8, thresholds below each pixel; mask (H, W) uint8 -> (percentiles + 1, 99)."""
    present = np.bincount(level.ravel(), minlength=len(THRESHOLDS) + 1) > 0
    top = int(np.flatnonzero(present)[-1])  # nothing is predicted from threshold number `top` on
    result = np.zeros((len(percentiles) + 1, len(THRESHOLDS)))
    result[:, (np.arange(len(THRESHOLDS)) < top) != mask.any()] = max(level.shape)
    if mask.any() and top:
        # Predictions are nested: where no pixel has level i, none drops out at threshold i, and the last answer holds.
        last = np.maximum.accumulate(np.arange(top) * present[:top])
        steps, inverse = np.unique(last, return_inverse=True)
        result[:, :top] = _compare(level, mask, steps, percentiles)[:, inverse]
    return result


def surface_distances(
    prob: torch.Tensor, mask: torch.Tensor, percentiles: Sequence[float] = (95, 100)
) -> dict[str, np.ndarray]:
    """Hausdorff percentiles and mean surface distance at all thresholds: "hd95", "hd100", "msd", (B, 99) float64 each.

    prob (B, 1, H, W) floating point; mask (B, 1, H, W) in {0, 1}; distances in pixels. The contour is the set of
    corners between four pixels that are not all alike, each counted by its length of contour; beyond the image is
    background.
    A percentile is taken of both directed distances, and the greater one returned; msd averages the two directed means.
    0 where mask and prediction are both empty, max(H, W) where one is. Raises ValueError where the shapes differ.
    Exact whatever the masks. Runs on the CPU: on one core about 0.5 ms a threshold at which the prediction changes for
    cracks on 448x448, and at most 4 s a megapixel for all of them (noise, of which each corner is on the contour).
    """
    same_shape(prob, mask)
    levels = thresholds_below(prob)[:, 0].to(torch.uint8).cpu().numpy()
    masks = (mask[:, 0] > 0.5).to(torch.uint8).cpu().numpy()
    values = np.stack([_surface_image(level, m, percentiles) for level, m in zip(levels, masks)], 1)
    return dict(zip([f"hd{p:g}" for p in percentiles] + ["msd"], values))
