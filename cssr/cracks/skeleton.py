"""Skeleton of a component: the paths of its centre line between ends and junctions, without spurs of thinning."""

from dataclasses import dataclass

import cv2
import numpy as np
from scipy.ndimage import gaussian_filter1d
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from cssr.cracks.components import Pixels

_MIN_SIGMA = 2.0  # pixels along the path; smooths the steps of the pixel grid
_OF_RING = 0.07  # of a closed path: its smoothing takes a tenth of its length at most
_AROUND = np.array([[128, 1, 2], [64, 0, 4], [32, 16, 8]], dtype=np.float32)  # p9 p2 p3 / p8 . p4 / p7 p6 p5 as bits


@dataclass(frozen=True)
class Path:
    """A part of a centre line between two nodes.

    points: N 2 float64 (x, y), pixel centres at .5, smoothed. radius: half the width in its middle, pixels.
    loose: whether its first and last point are ends of the line. joined: whether they are at junctions. A closed path
    has neither.
    """

    points: np.ndarray
    radius: float
    loose: tuple[bool, bool]
    joined: tuple[bool, bool] = (False, False)

    @property
    def length(self) -> float:
        return float(np.linalg.norm(np.diff(self.points, axis=0), axis=1).sum())


@dataclass(frozen=True)
class _Graph:
    """Pixels of a centre line, which of them are joined, and the paths between nodes as pixel numbers."""

    pixels: Pixels
    degree: np.ndarray  # N; not 2 at nodes
    junction: np.ndarray  # N: number of the junction that a pixel is of, -1 elsewhere
    chains: list[list[int]]


class TooRagged(ValueError):
    """A mask of more branches than can be measured."""


def skeleton_paths(
    component: Pixels, outside: cKDTree, max_nodes: float = float("inf")
) -> tuple[list[Path], list[int]]:
    """The paths of a component's centre line, and how many of them meet at each junction.

    outside: of the pixels outside along its rim. A spur is a path to an end that reaches less beyond the side of the
    component than half the width there: it is roughness, no branch.
    Raises: TooRagged where the line has more ends and junctions than `max_nodes` before spurs are removed.
    """
    line = component[stays_when_thinned(component.neighbours())]
    nodes = int(((_links(line) < len(line)).sum(1) != 2).sum())
    if nodes > max_nodes:
        raise TooRagged(f"one of its components, of {len(component)} pixels, has {nodes} ends and junctions")
    radius = outside.query(line.points)[0] - 0.5
    while True:
        links = _links(line)
        degree = (links < len(line)).sum(1)
        junction = _junctions(links, degree)
        graph = _Graph(line, degree, junction, _chains(np.sort(links, 1).tolist(), degree.tolist(), junction.tolist()))
        spurs = [n for chain in graph.chains if _is_spur(chain, graph, radius) for n in chain if graph.junction[n] < 0]
        if not spurs:
            return _paths(graph, radius)
        remaining = np.setdiff1d(np.arange(len(line)), spurs)
        line, radius = line[remaining], radius[remaining]


def _links(line: Pixels) -> np.ndarray:
    """N 8: the pixels joined to each; across a corner only where no way by sides is as short."""
    links, absent = line.neighbours(), len(line)
    present = links < absent
    for k in range(1, 8, 2):
        links[present[:, k - 1] | present[:, (k + 1) % 8], k] = absent
    return links


def _junctions(links: np.ndarray, degree: np.ndarray) -> np.ndarray:
    """Pixels at which three or more meet, those next to each other being one junction."""
    if not (degree > 2).any():
        return np.full(len(degree), -1)
    inside = np.append(degree > 2, False)
    pixel, k = np.nonzero(inside[links] & inside[:-1, None])
    graph = coo_array((np.ones(len(pixel), bool), (pixel, links[pixel, k])), shape=(len(links), len(links)))
    return np.where(degree > 2, connected_components(graph, directed=False)[1], -1)


def _chains(links: list[list[int]], degree: list[int], junction: list[int]) -> list[list[int]]:
    """Paths as pixels in order, from node to node, each once; a closed one begins and ends at the same pixel."""
    used, chains = [d != 2 for d in degree], []
    for node in [n for n, d in enumerate(degree) if d != 2]:
        for first in links[node][: degree[node]]:
            direct = degree[first] != 2 and node < first and not 0 <= junction[node] == junction[first]
            if direct or not used[first]:
                chains.append(_walk(node, first, links, used, degree))
        if not degree[node]:
            chains.append([node])
    for start in range(len(links)):
        if not used[start]:
            used[start] = True
            chains.append(_walk(start, links[start][0], links, used, degree))
    return chains


def _walk(start: int, first: int, links: list[list[int]], used: list[bool], degree: list[int]) -> list[int]:
    """The path from a pixel by way of another to the next node, or back."""
    chain = [start, first]
    while degree[first] == 2 and first != start:
        used[first] = True
        first = links[first][links[first][0] == chain[-2]]
        chain.append(first)
    return chain


def _is_spur(chain: list[int], graph: _Graph, radius: np.ndarray) -> bool:
    if graph.junction[chain[0]] < 0:
        chain = chain[::-1]
    if graph.junction[chain[0]] < 0 or graph.degree[chain[-1]] != 1:
        return False
    points = graph.pixels.points[chain]
    length = np.linalg.norm(np.diff(points, axis=0), axis=1).sum()
    return length + radius[chain[-1]] < 2 * radius[chain[0]] + 1


def _paths(graph: _Graph, radius: np.ndarray) -> tuple[list[Path], list[int]]:
    points, junction = graph.pixels.points, graph.junction
    middles = {n: points[chosen].mean(0) for n, chosen in _members(junction).items()}
    paths, meeting = [], dict.fromkeys(middles, 0)
    for chain in graph.chains:
        ends = [int(n) for n in junction[[chain[0], chain[-1]]]]
        closed = chain[0] == chain[-1] and len(chain) > 1 and ends[0] < 0
        path_points, half_width = points[chain], float(np.median(radius[chain]))
        for end_index, end in zip((0, -1), ends):
            if end >= 0:
                path_points[end_index], meeting[end] = middles[end], meeting[end] + 1
        loose, joined = tuple(end < 0 and not closed for end in ends), tuple(end >= 0 for end in ends)
        paths.append(Path(_smoothed(path_points, max(_MIN_SIGMA, half_width / 2), closed), half_width, loose, joined))
    return paths, list(meeting.values())


def _members(junction: np.ndarray) -> dict[int, np.ndarray]:
    """The pixels of each junction."""
    order = np.argsort(junction, kind="stable")
    order = order[junction[order] >= 0]
    numbers, first = np.unique(junction[order], return_index=True)
    return dict(zip(numbers.tolist(), np.split(order, first[1:])))


def _smoothed(points: np.ndarray, sigma: float, closed: bool) -> np.ndarray:
    """Along the path; the ends stay where they are, and so does the direction there."""
    if closed:
        sigma = min(sigma, _OF_RING * (len(points) - 1))  # a small ring would shrink to a point
        ring = gaussian_filter1d(points[:-1], sigma, axis=0, mode="wrap")
        return np.concatenate([ring, ring[:1]])
    beyond = min(len(points) - 1, int(4 * sigma))
    longer = np.pad(points, ((beyond, beyond), (0, 0)), mode="reflect", reflect_type="odd")
    return gaussian_filter1d(longer, sigma, axis=0, mode="nearest")[beyond : beyond + len(points)]


def _tables() -> tuple[np.ndarray, np.ndarray]:
    """Look-up tables of the two passes: 1 where a pixel stays, by the code of its neighbours: 256 uint8 each."""
    p2, p3, p4, p5, p6, p7, p8, p9 = (np.arange(256)[:, None] >> np.arange(8) & 1).T
    runs = (1 - p2) * (p3 | p4) + (1 - p4) * (p5 | p6) + (1 - p6) * (p7 | p8) + (1 - p8) * (p9 | p2)
    pairs = np.minimum((p9 | p2) + (p3 | p4) + (p5 | p6) + (p7 | p8), (p2 | p3) + (p4 | p5) + (p6 | p7) + (p8 | p9))
    rim = (runs == 1) & (pairs >= 2) & (pairs <= 3)  # it joins nothing, and is no end of a line
    first, second = (p2 | p3 | (1 - p5)) & p4, (p6 | p7 | (1 - p9)) & p8
    return tuple((~(rim & (side == 0))).astype(np.uint8) for side in (first, second))


_STAYS = _tables()


def thin(mask: np.ndarray) -> np.ndarray:
    """Lines about a pixel wide in the middle of a mask: (H, W) in {0, 1} -> (H, W) uint8, a part of it.

    As many components (joined by sides or corners) and holes as the mask has; beyond the image is background. Each
    iteration takes a pixel off the rim: about 0.1 ms of a 448x448 image.
    """
    line = (np.asarray(mask) > 0).astype(np.uint8)
    x, y, width, height = cv2.boundingRect(line)
    part = line[y : y + height, x : x + width]
    previous, count = 0, int(part.sum())
    while previous != count:
        for stays in _STAYS:
            part &= cv2.LUT(cv2.filter2D(part, cv2.CV_8U, _AROUND, borderType=cv2.BORDER_CONSTANT), stays)
        previous, count = count, int(part.sum())
    return line


def stays_when_thinned(neighbours: np.ndarray) -> np.ndarray:
    """Thin as `thin` does, for pixels in a list: which of them are in the centre line, N bool.

    neighbours: N 8 whole numbers, the pixels above, above to the right and so on clockwise; N where there is none.
    Only pixels with changed neighbours are looked at again, so that time grows with the pixels' number.
    """
    present, number_of = np.ones(len(neighbours) + 1, bool), np.empty(len(neighbours) + 1, np.int64)
    present[-1] = False
    changed = [np.flatnonzero((neighbours == len(neighbours)).any(1))] * 2  # the others are inside
    while any(map(len, changed)):
        for stays in _STAYS:
            removed = np.concatenate(changed)
            candidates = np.append(neighbours[removed], removed)
            candidates = candidates[present[candidates]]
            number_of[candidates] = np.arange(len(candidates))
            checked = candidates[number_of[candidates] == np.arange(len(candidates))]  # each once
            codes = np.packbits(present[neighbours[checked]], axis=1, bitorder="little")[:, 0]
            removed = checked[stays[codes] == 0]
            present[removed] = False
            changed = [changed[1], removed]
    return present[:-1]
