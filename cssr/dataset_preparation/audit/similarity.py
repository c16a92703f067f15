"""Similar images: near-duplicates by perceptual hash, and photographs that show the same spot by their key points.

The hash has 256 bits: ImageHash's `phash` of 16 x 16 frequencies, whichever way an image has been turned or mirrored.
It hardly changes when an image is resized, brightened or compressed anew, and differs in 90 bits and more between
photographs of different places.

Tiles of one photograph that overlap, frames of one flight, crops and copies share points (SIFT, Lowe 2004, as RootSIFT,
Arandjelovic and Zisserman 2012), which are looked up among those of all images; two images overlap where enough of
their points agree on one shift, turn and scale.
"""

from collections import defaultdict
from functools import lru_cache
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

from cssr.dataset_preparation.parallel import imap, with_progress

BITS = 256
_FREQUENCIES, _SIDE = 16, 64  # of a hash; of the grey image that it is computed from
_ROWS = 256  # images that a task compares with all that follow them
_HELD = 1_000_000  # links held before all but those of a spanning forest are dropped

MIN_POINTS = 10  # points that must agree
_POINTS, _OVERLAP_SIDE = 300, 320  # of an image; pixels of its longer side when they are looked for
_CONTRAST = 0.01  # below OpenCV's 0.04: concrete is dull
_NEIGHBOURS, _TREES, _CHECKS = 8, 4, 64  # of the search for like points (randomized k-d trees)
_RATIO = 0.8  # a point and its like are that much closer than points that are merely similar
_MISS = 3  # pixels, at _OVERLAP_SIDE, by which a point may miss the place that shift, turn and scale give it
_SCALES = (1 / 3, 3)
_QUERIES = 3000  # points that a task looks up


class Links(NamedTuple):
    """Pairs of images, by their numbers: `first` < `second`, bits that differ, and the way the first was turned."""

    first: np.ndarray
    second: np.ndarray
    distance: np.ndarray
    way: np.ndarray  # 0: not at all


def check_library() -> None:
    """ValueError with the remedy unless ImageHash can be imported."""
    try:
        import imagehash  # noqa: F401
    except ImportError as problem:
        raise ValueError(
            f"near-duplicates need the package ImageHash ({problem}); pip install 'ImageHash>=4.3.1,<5', "
            "or leave them out with --near -1"
        ) from None


def hashes_of(pixels: np.ndarray) -> np.ndarray:
    """The hashes of an image (uint8 H W 3), as it is and turned and mirrored in the seven other ways: uint8 8 32."""
    import imagehash

    small = Image.fromarray(pixels).convert("L").resize((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    ways = [small, *(small.transpose(way) for way in Image.Transpose)]
    return np.stack([np.packbits(imagehash.phash(way, hash_size=_FREQUENCIES).hash) for way in ways])


def find_links(hashes: np.ndarray, limit: int, workers: int) -> Links:
    """Pairs of images that differ in at most `limit` bits.

    Of images that are all alike, the closest pairs that hold them together are kept: a spanning forest, so that there
    are fewer links than images.

    Args:
        hashes: N 8 32 uint8, as `hashes_of` gives them.
        workers: processes.
    """
    count, parts, held = len(hashes), [Links(*np.zeros((4, 0), np.int64))], 0
    tasks = -(-count // _ROWS)
    for links in with_progress(imap(lambda task: _links_of(hashes, task, limit), tasks, workers), tasks, "comparing"):
        parts.append(links)
        held += len(links.first)
        if held > _HELD:
            parts = [forest(_joined(parts), count)]
            held = len(parts[0].first)
    return forest(_joined(parts), count)


def _links_of(hashes: np.ndarray, task: int, limit: int) -> Links:
    """The links from the images of one task to those that follow them."""
    start, matcher, rows = task * _ROWS, cv2.BFMatcher(cv2.NORM_HAMMING), []
    upright = np.ascontiguousarray(hashes[start:, 0])
    for way in range(hashes.shape[1]):
        turned = np.ascontiguousarray(hashes[start : start + _ROWS, way])
        for matches in matcher.radiusMatch(turned, upright, limit + 0.5):
            rows += [
                (start + m.queryIdx, start + m.trainIdx, round(m.distance), way)
                for m in matches
                if m.queryIdx < m.trainIdx
            ]
    return forest(Links(*np.array(rows, np.int64).reshape(-1, 4).T), len(hashes))


def _joined(parts: list[Links]) -> Links:
    return Links(*(np.concatenate(columns) for columns in zip(*parts)))


def forest(links: Links, count: int) -> Links:
    """The shortest links that hold together what all links hold together, of `count` images."""
    from scipy.sparse import coo_matrix  # slow to import
    from scipy.sparse.csgraph import minimum_spanning_tree

    order = np.lexsort((links.distance, links.second, links.first))
    links = Links(*(column[order] for column in links))
    pair = links.first * count + links.second
    pair, closest = np.unique(pair, return_index=True)  # of several ways the best, which comes first
    links = Links(*(column[closest] for column in links))
    tree = minimum_spanning_tree(
        coo_matrix((links.distance + 1.0, (links.first, links.second)), (count, count)).tocsr()
    ).tocoo()
    edges = np.searchsorted(pair, np.sort(tree.row.astype(np.int64) * count + tree.col))
    return Links(*(column[edges] for column in links))


def groups_of(first: np.ndarray, second: np.ndarray, count: int) -> list[list[int]]:
    """The groups of images that links hold together: their numbers in order, groups by their first."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    _, labels = connected_components(coo_matrix((np.ones(len(first)), (first, second)), (count, count)), directed=False)
    members: dict[int, list[int]] = {}
    for number in sorted({*first.tolist(), *second.tolist()}):
        members.setdefault(int(labels[number]), []).append(number)
    return list(members.values())


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
    grey, factor = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), _OVERLAP_SIDE / max(pixels.shape)
    if factor < 1:
        size = [max(1, round(side * factor)) for side in grey.shape[::-1]]
        grey = cv2.resize(grey, size, interpolation=cv2.INTER_AREA)
    points, codes = _detector().detectAndCompute(grey, None)
    if not points:
        return Features(np.zeros((0, 2), np.float32), np.zeros((0, 128), np.uint8))
    codes = np.sqrt(codes / np.maximum(codes.sum(1, keepdims=True), 1))  # each row of length 1
    places = np.array([point.pt for point in points], np.float32)
    return Features(places[:_POINTS], np.rint(codes[:_POINTS] * 255).astype(np.uint8))


def find_overlaps(features: list[Features], workers: int) -> list[Overlap]:
    """Pairs of images that show the same spot. Memory: about 0.4 MB an image."""
    owners = np.repeat(np.arange(len(features)), [len(one.places) for one in features])
    if len(owners) <= _NEIGHBOURS:
        return []
    places = np.concatenate([one.places for one in features])
    codes = np.concatenate([one.codes for one in features]).astype(np.float32)
    cv2.setRNGSeed(0)
    index = cv2.flann_Index(codes, {"algorithm": 1, "trees": _TREES})
    tasks, votes = -(-len(codes) // _QUERIES), defaultdict(set)
    alike = imap(lambda task: _like(index, codes, owners, task), tasks, workers)
    for pairs in with_progress(alike, tasks, "overlaps"):
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
    """The transform on which the pairs of points of two images (M 2) agree, if enough do."""
    if len(pairs) < MIN_POINTS:
        return None
    places_1, places_2 = places[pairs[:, 0]], places[pairs[:, 1]]
    motion, agree = cv2.estimateAffinePartial2D(places_1, places_2, method=cv2.RANSAC, ransacReprojThreshold=_MISS)
    if motion is None:
        return None
    inliers, scale = agree.ravel() > 0, float(np.hypot(motion[0, 0], motion[1, 0]))
    # several codes of one place are one point
    points = min(len(np.unique(side[inliers] // _MISS, axis=0)) for side in (places_1, places_2))
    if points < MIN_POINTS or not _SCALES[0] <= scale <= _SCALES[1]:
        return None
    return Overlap(int(first), int(second), points, round(scale, 3))
