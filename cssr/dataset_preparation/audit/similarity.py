"""Near-duplicates by perceptual hash, whichever way an image has been turned or mirrored.

The hash has 256 bits: ImageHash's `phash` of 16 x 16 frequencies. It hardly changes when an image is resized,
brightened or compressed anew, and differs in 90 bits and more between photographs of different places.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import cv2
import numpy as np
from PIL import Image
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components, minimum_spanning_tree

from cssr.dataset_preparation.parallel import in_order

BITS = 256
_FREQUENCIES, _SIDE = 16, 64  # of a hash; of the grey image that it is computed from
_ROWS = 256  # images that a task compares with all that follow them
_HELD = 1_000_000  # links held before all but those of a spanning forest are dropped

Watch = Callable[[Iterator[Any], int, str], Iterator[Any]]


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


def find_links(hashes: np.ndarray, limit: int, workers: int, watch: Watch) -> Links:
    """Which images differ in at most `limit` bits.

    Of images that are all alike, the closest pairs that hold them together are kept: a spanning forest, so that there
    are fewer links than images.

    Args:
        hashes: N 8 32 uint8, as `hashes_of` gives them.
        workers: processes; `watch` shows their progress.
    """
    count, found, held = len(hashes), [Links(*np.zeros((4, 0), np.int64))], 0
    tasks = -(-count // _ROWS)
    for links in watch(in_order(lambda task: _links_of(hashes, task, limit), tasks, workers), tasks, "comparing"):
        found.append(links)
        held += len(links.first)
        if held > _HELD:
            found = [forest(_joined(found), count)]
            held = len(found[0].first)
    return forest(_joined(found), count)


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
    order = np.lexsort((links.distance, links.second, links.first))
    links = Links(*(column[order] for column in links))
    pair = links.first * count + links.second
    pair, closest = np.unique(pair, return_index=True)  # of several ways the best, which comes first
    links = Links(*(column[closest] for column in links))
    tree = minimum_spanning_tree(
        coo_matrix((links.distance + 1.0, (links.first, links.second)), (count, count)).tocsr()
    ).tocoo()
    kept = np.searchsorted(pair, np.sort(tree.row.astype(np.int64) * count + tree.col))
    return Links(*(column[kept] for column in links))


def groups_of(first: np.ndarray, second: np.ndarray, count: int) -> list[list[int]]:
    """The groups of images that links hold together: their numbers in order, groups by their first."""
    _, labels = connected_components(coo_matrix((np.ones(len(first)), (first, second)), (count, count)), directed=False)
    members: dict[int, list[int]] = {}
    for number in sorted({*first.tolist(), *second.tolist()}):
        members.setdefault(int(labels[number]), []).append(number)
    return list(members.values())
