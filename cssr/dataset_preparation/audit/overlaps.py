"""Photographs that show the same spot: tiles of one photograph that overlap, frames of one flight, crops, copies.

Points of each image (SIFT, Lowe 2004, as RootSIFT, Arandjelovic and Zisserman 2012) are looked up among those of all
images; two images overlap where enough of their points agree on one shift, turn and scale.
"""

from collections import defaultdict
from functools import lru_cache
from typing import NamedTuple

import cv2
import numpy as np

from cssr.dataset_preparation.audit.similarity import Watch
from cssr.dataset_preparation.parallel import in_order

LEAST = 10  # points that must agree
_POINTS, _SIDE = 300, 320  # of an image; pixels of its longer side when they are looked for
_CONTRAST = 0.01  # below OpenCV's 0.04: concrete is dull
_NEIGHBOURS, _TREES, _CHECKS = 8, 4, 64  # of the search for like points (randomized k-d trees)
_RATIO = 0.8  # a point and its like are that much closer than points that are merely similar
_MISS = 3  # pixels, at _SIDE, by which a point may miss the place that shift, turn and scale give it
_SCALES = (1 / 3, 3)
_QUERIES = 3000  # points that a task looks up


class Features(NamedTuple):
    """Points of one image: places N 2 float32 (pixels, x first), codes N 128 uint8."""

    places: np.ndarray
    codes: np.ndarray


class Overlap(NamedTuple):
    """Two images, by their numbers, how many points agree, and how much larger the second shows things."""

    first: int
    second: int
    points: int
    scale: float


@lru_cache(maxsize=1)
def _detector() -> cv2.SIFT:
    return cv2.SIFT_create(nfeatures=_POINTS, contrastThreshold=_CONTRAST)


def features_of(pixels: np.ndarray) -> Features:
    """The points of an image, uint8 H W 3."""
    grey, factor = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), _SIDE / max(pixels.shape)
    if factor < 1:
        size = [max(1, round(side * factor)) for side in grey.shape[::-1]]
        grey = cv2.resize(grey, size, interpolation=cv2.INTER_AREA)
    points, codes = _detector().detectAndCompute(grey, None)
    if not points:
        return Features(np.zeros((0, 2), np.float32), np.zeros((0, 128), np.uint8))
    codes = np.sqrt(codes / np.maximum(codes.sum(1, keepdims=True), 1))  # each row of length 1
    places = np.array([point.pt for point in points], np.float32)
    return Features(places[:_POINTS], np.rint(codes[:_POINTS] * 255).astype(np.uint8))


def find_overlaps(features: list[Features], workers: int, watch: Watch) -> list[Overlap]:
    """Which images show the same spot, by their numbers. Memory: about 0.4 MB an image."""
    owners = np.repeat(np.arange(len(features)), [len(one.places) for one in features])
    if len(owners) <= _NEIGHBOURS:
        return []
    places = np.concatenate([one.places for one in features])
    codes = np.concatenate([one.codes for one in features]).astype(np.float32)
    cv2.setRNGSeed(0)
    index = cv2.flann_Index(codes, {"algorithm": 1, "trees": _TREES})
    tasks, votes = -(-len(codes) // _QUERIES), defaultdict(set)
    found = in_order(lambda task: _like(index, codes, owners, task), tasks, workers)
    for pairs in watch(found, tasks, "overlaps"):
        for one, other in pairs.tolist():
            one, other = (one, other) if owners[one] < owners[other] else (other, one)
            votes[owners[one], owners[other]].add((one, other))
    agreed = (_agree(*images, np.array(sorted(pairs)), places) for images, pairs in sorted(votes.items()))
    return [overlap for overlap in agreed if overlap]


def _like(index: cv2.flann_Index, codes: np.ndarray, owners: np.ndarray, task: int) -> np.ndarray:
    """Pairs of points of different images that are alike: M 2, the first of this task."""
    mine = np.arange(task * _QUERIES, min((task + 1) * _QUERIES, len(codes)))
    near, squared = index.knnSearch(codes[mine], _NEIGHBOURS, params={"checks": _CHECKS})
    foreign = owners[near] != owners[mine][:, None]
    merely_similar = np.where(foreign, squared, 0).max(1, keepdims=True)
    rows, columns = np.nonzero(foreign & (squared < _RATIO**2 * merely_similar))
    return np.stack([mine[rows], near[rows, columns]], 1)


def _agree(first: int, second: int, pairs: np.ndarray, places: np.ndarray) -> Overlap | None:
    """What the pairs of points of two images (M 2) agree on, if enough do."""
    if len(pairs) < LEAST:
        return None
    one, other = places[pairs[:, 0]], places[pairs[:, 1]]
    motion, agree = cv2.estimateAffinePartial2D(one, other, method=cv2.RANSAC, ransacReprojThreshold=_MISS)
    if motion is None:
        return None
    kept, scale = agree.ravel() > 0, float(np.hypot(motion[0, 0], motion[1, 0]))
    # several codes of one place are one point
    points = min(len(np.unique(side[kept] // _MISS, axis=0)) for side in (one, other))
    if points < LEAST or not _SCALES[0] <= scale <= _SCALES[1]:
        return None
    return Overlap(int(first), int(second), points, round(scale, 3))
