"""Length, width and direction of each crack of a mask.

A crack is a connected component of the mask (8-connected). Its length is that of its centre line, all
branches together: Guo and Hall's thinning, smoothed along the line, so that a straight crack is as long at any angle,
and continued to where the crack ends, which thinning falls short of. A mean width is area by length; the greatest one
is measured across the line.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
from scipy.ndimage import uniform_filter1d
from scipy.spatial import cKDTree
from tqdm import tqdm

from cssr.cracks.components import Components, Pixels, Runs
from cssr.cracks.skeleton import Path, TooRagged, skeleton_paths

MAX_CRACKS = 10_000  # components of a mask that are measured; some tens of seconds

_STEP = 0.1  # pixels between the points at which a line across the crack is looked at
_APART = 0.37  # pixels between the places at which the width is measured
_STRETCH = 5  # pixels along the line over which a width is averaged
_AT_ONCE = 1 << 15  # places looked at together
_THICK = 24  # pixels that a crack keeps of its mean width where it is reduced
_LARGE = 1 << 20  # pixels above which a thick crack is reduced
_PATIENCE = 2  # seconds before a bar is shown
_RAW = 8  # ends and junctions before spurs are removed, for each branch that may be left
_FORKS = 20  # runs that fork, for each branch: rough edges make some
_SPECK = 12  # pixels of a component up to which its measures are kept for the next of its shape


@dataclass(frozen=True)
class Crack:
    """A crack, all in pixels of the mask it was measured in; points are (x, y), a pixel has its centre at .5."""

    number: int  # 1, 2, ... by length, the longest first
    length: float  # of the centre line with its branches
    mean_width: float  # area / length, the part of branches inside other branches left out
    p95_width: float  # 95th percentile of the widths across the centre line, away from junctions
    max_width: float  # the greatest of them
    orientation: float  # degrees, 0..180, of the axis along which its pixels spread most: 0 along rows, 90 upright
    box: tuple[int, int, int, int]  # left, top, right, bottom; right and bottom are outside
    area: int  # pixels
    lines: tuple[np.ndarray, ...]  # the centre line's parts: N 2 float64 each
    widest: tuple[float, float]  # position of max_width
    confidence: float | None = None  # mean probability of its pixels, 0..1, where probabilities are known
    runs: Runs | None = field(default=None, repr=False, compare=False)  # its pixels; `cssr.cracks.outline` draws them


def measure_cracks(
    mask: np.ndarray,
    least_length: float = 0.0,
    prob: np.ndarray | None = None,
    max_cracks: int = MAX_CRACKS,
    warn: Callable[[str], None] = lambda _: None,
    progress: bool = False,
) -> list[Crack]:
    """The cracks of a mask at least so long, longest first; none of an empty mask.

    Args:
        mask: H W, crack where it is not zero (bool, uint8, ...); beyond the image there is none.
        prob: H W uint8, probabilities of which 255 is 1: gives cracks their confidence. It may be the mask itself.
        max_cracks: how many components are measured, the largest, as long as they have twice as many branches together.
        warn: called with a sentence on those left out.
        progress: show a bar on a terminal after some seconds.
    Memory beside the mask: some 150 bytes a pixel of the largest crack, and 100 bytes for each run of crack pixels in a
    row: 200 MB of a photograph of 12,000 x 9,000 pixels with some dozens of cracks, which takes seconds. A thick
    spot of more than a million pixels is measured in larger pixels, to about 5 % of its width.
    Raises: ValueError, one line, for another shape; TooRagged, one too, where a few components are as
        rough as noise, which would be measured for hours.
    """
    if np.ndim(mask) != 2:
        raise ValueError(f"a mask of height x width is needed, got an array of shape {np.shape(mask)}")
    components, cracks, branches, measured = Components(mask), [], 0, 0
    # A centre line has no more pixels than its crack, each step being 1.42 at most.
    order = np.flatnonzero(1.42 * components.areas + 2 >= least_length)
    order = order[np.argsort(-components.areas[order], kind="stable")]  # the largest first
    _check(components, order[:max_cracks], 2 * max_cracks)
    for number in tqdm(
        order[:max_cracks], "measuring", leave=False, unit="crack", delay=_PATIENCE, disable=not progress
    ):
        try:
            crack = _measure(components[number], prob, _RAW * 2 * max_cracks)
        except TooRagged as error:
            raise TooRagged(_refusal(str(error), 2 * max_cracks)) from None
        if crack.length >= least_length:
            cracks.append(crack)
        branches, measured = branches + len(crack.lines), measured + 1
        if branches >= 2 * max_cracks:
            break
    if measured < len(order):
        remaining, size = len(order) - measured, components.areas[order[measured]]
        warn(f"left out {remaining} components of at most {size} pixels: the {measured} largest are measured")
    cracks.sort(key=lambda crack: (-crack.length, crack.box))
    return [replace(crack, number=number) for number, crack in enumerate(cracks, 1)]


def check_max_cracks(max_cracks: int) -> None:
    """ValueError unless it is a number of cracks that can be measured."""
    if max_cracks < 1:
        raise ValueError(f"--most-cracks must be 1 or more, got {max_cracks}")


def _check(components: Components, chosen: np.ndarray, max_branches: int) -> None:
    """TooRagged where components surely have too many branches: each hole needs one."""
    for kind, count, limit in (
        ("holes", components.holes, max_branches),
        ("runs that fork", components.forks, _FORKS * max_branches),
    ):
        if count[chosen].sum() > limit:
            raise TooRagged(_refusal(f"its components have {count[chosen].sum()} {kind}", max_branches))


def _refusal(reason: str, max_branches: int) -> str:
    return (
        f"too ragged to measure: {reason}, and {max_branches} branches are measured at most; take a higher threshold, "
        "or smooth it"
    )


def _measure(runs: Runs, prob: np.ndarray | None, max_nodes: float) -> Crack:
    reduction, box = _reduction_factor(runs), runs.box
    left, top, *_ = box
    pixels = (runs.reduced(reduction) if reduction > 1 else runs).pixels()
    corner = np.array([left // reduction, top // reduction])
    x, y = pixels.x - corner[0], pixels.y - corner[1]
    crack = _measure_speck(x.tobytes(), y.tobytes()) if len(x) <= _SPECK else _measure_lines(Pixels(x, y), max_nodes)
    lines = tuple((line + corner) * reduction for line in crack.lines)
    measures = {name: getattr(crack, name) * reduction for name in ("length", "mean_width", "p95_width", "max_width")}
    widest = tuple(((crack.widest + corner) * reduction).tolist())
    measures["confidence"] = None if prob is None else runs.mean_of(prob) / 255
    return replace(crack, lines=lines, widest=widest, box=box, area=runs.area, runs=runs, **measures)


@functools.lru_cache(maxsize=1 << 14)
def _measure_speck(x: bytes, y: bytes) -> Crack:
    """Measure a speck, cached: an undertrained model gives thousands of them, of few shapes."""
    return _measure_lines(Pixels(np.frombuffer(x, np.int64), np.frombuffer(y, np.int64)))


def _reduction_factor(runs: Runs) -> int:
    """Factor by which a component is reduced to be measured: 1 unless it is both thick and large."""
    if runs.area <= _LARGE:
        return 1
    return max(1, min(int(runs.mean_width() / _THICK), int(np.ceil((runs.area / _LARGE) ** 0.5))))


def _measure_lines(component: Pixels, max_nodes: float = float("inf")) -> Crack:
    """Measure a component, but for the number, the box and the area."""
    outside = cKDTree(component.rim())
    paths, meeting = skeleton_paths(component, outside, max_nodes)
    axis = _main_axis(component.points)
    is_spot = len(paths) == 1 and paths[0].loose == (True, True) and paths[0].length < 5 * paths[0].radius
    measured = (
        _measure_spot(component, axis, paths[0], outside)
        if is_spot
        else _measure_branches(component, paths, meeting, outside)
    )
    lines, length, spread, widths, widest = measured
    mean = float(len(component) / spread)
    p95, greatest = (max(width, mean) for width in widths)
    degrees = float(np.degrees(np.arctan2(-axis[1], axis[0])) % 180)  # y runs down
    return Crack(0, length, mean, p95, greatest, degrees, (0, 0, 0, 0), 0, lines, widest)


def _measure_branches(component: Pixels, paths: list[Path], meeting: list[int], outside: cKDTree) -> tuple:
    """Lines, length, the length that the area spreads over, and what `_widest` returns."""
    lines = tuple(_extended(path, component) for path in paths)
    length = sum(np.linalg.norm(np.diff(line, axis=0), axis=1).sum() for line in lines)
    inside = sum((number - 2) for number in meeting) * np.median([path.radius for path in paths])
    return lines, float(length), max(length - inside, length / 2), *_widest(component, paths, outside)


def _measure_spot(component: Pixels, axis: np.ndarray, path: Path, outside: cKDTree) -> tuple:
    """As `_measure_branches`, of a component less than thrice as long as wide: as long as it is along its main axis."""
    points = component.points
    middle, pixel = points.mean(0), np.abs(axis).max()
    along = (points - middle) @ axis
    low, high = along.min() - pixel / 2, along.max() + pixel / 2
    straight = replace(path, points=middle + np.array([[low], [high]]) * axis)
    return (straight.points,), straight.length, straight.length, *_widest(component, [straight], outside)


def _main_axis(points: np.ndarray) -> np.ndarray:
    """The unit vector along which points spread most; along rows where they spread alike."""
    if len(points) < 2:
        return np.array([1.0, 0.0])
    values, vectors = np.linalg.eigh(np.cov(points.T))
    return vectors[:, 1] if values[1] - values[0] > 1e-9 * values[1] else np.array([1.0, 0.0])


# ---- ends ----


def _extended(path: Path, component: Pixels) -> np.ndarray:
    points = path.points
    for loose in path.loose:
        points = points[::-1]  # its first point comes last, then its last
        points = _prolonged(points, path.radius, component) if loose else points
    return points


def _prolonged(points: np.ndarray, radius: float, component: Pixels) -> np.ndarray:
    """A line with its last stretch, three quarters of the width, set straight and continued to the end of the crack."""
    # Thinning stops short of the end by about half the width, or turns towards one of its corners.
    remaining = _arc(points[::-1])[::-1]  # pixels to the last point
    last = int(np.flatnonzero(remaining >= min(1.5 * radius, remaining[0] / 3))[-1])
    back = min(remaining[last] + max(6, 2 * radius), max(remaining[0] - radius, (remaining[0] + remaining[last]) / 2))
    step = points[last] - points[int(np.flatnonzero(remaining >= back)[-1])]
    if not step.any():
        return points
    step /= np.linalg.norm(step)
    dropped = ((points[last:] - points[last]) @ step).max() + np.abs(step).max() / 2
    # the length of the crack onwards: the mean over three parallel lines
    sideways = np.array([[-step[1], step[0]]]) * radius / 2
    reach = np.arange(_STEP, 4 * radius + 2, _STEP)
    is_inside = component.holds(points[last] + sideways * np.array([[[-1]], [[0]], [[1]]]) + reach[:, None] * step)
    end = points[last] + max(dropped, float(_STEP * np.cumprod(is_inside, 1).sum(1).mean() + _STEP / 2)) * step
    return np.concatenate([points[: last + 1], [end]])


def _arc(points: np.ndarray) -> np.ndarray:
    """Length from the first point to each."""
    return np.append(0, np.linalg.norm(np.diff(points, axis=0), axis=1).cumsum())


# ---- widths ----


def _widest(component: Pixels, paths: list[Path], outside: cKDTree) -> tuple[tuple[float, float], tuple[float, float]]:
    """95th percentile and greatest of the widths across the paths, means over a short stretch, and where that is."""
    lines = [_resampled(path.points) for path in paths]
    points, cuts = np.concatenate(lines), np.cumsum([len(line) for line in lines])[:-1]
    inner = outside.query(points)[0]
    across = _across(points, np.concatenate([_normals(line) for line in lines]), inner, component)
    middles, widths = [], []
    for path, line, width, near in zip(paths, lines, np.split(across, cuts), np.split(inner, cuts)):
        away = _away_from_junctions(path, line, near)
        if away.any():
            middles.append(line[away])
            widths.append(uniform_filter1d(width[away], round(_STRETCH / _APART), mode="nearest"))
    if not middles:  # junctions all over
        width = float(2 * inner.max() - 1)
        return (width, width), tuple(points[inner.argmax()].tolist())
    all_widths = np.concatenate(widths)
    index = all_widths.argmax()
    p95 = float(np.percentile(all_widths, 95))
    return (p95, float(all_widths[index])), tuple(np.concatenate(middles)[index].tolist())


def _away_from_junctions(path: Path, line: np.ndarray, inner: np.ndarray) -> np.ndarray:
    """Select the points of a line outside the greatest discs within the crack around its junctions."""
    arc = _arc(line)
    begin, end = (near if joined else 0 for joined, near in zip(path.joined, inner[[0, -1]]))
    return (arc >= begin) & (arc <= arc[-1] - end)


def _resampled(points: np.ndarray) -> np.ndarray:
    """Resample a line so densely that all positions between pixel centres are covered alike."""
    arc = _arc(points)
    positions = np.append(np.arange(0, arc[-1], _APART), arc[-1:])
    return np.stack([np.interp(positions, arc, values) for values in points.T], 1)


def _normals(points: np.ndarray) -> np.ndarray:
    if len(points) < 2:
        return np.array([[0.0, 1.0]])
    along = np.gradient(points, axis=0)
    along /= np.maximum(np.linalg.norm(along, axis=1, keepdims=True), 1e-9)
    return np.stack([-along[:, 1], along[:, 0]], 1)


def _across(points: np.ndarray, normal: np.ndarray, inner: np.ndarray, component: Pixels) -> np.ndarray:
    """The width at each point to both sides along its normal, N; `inner`: the distance to the nearest pixel outside."""
    parts = [np.array_split(values, len(points) // _AT_ONCE + 1) for values in (points, normal, inner)]
    return np.concatenate([_reach(p, n, r, component) + _reach(p, -n, r, component) for p, n, r in zip(*parts)])


def _reach(points: np.ndarray, direction: np.ndarray, inner: np.ndarray, component: Pixels) -> np.ndarray:
    """Length of the crack onwards from each point in its direction, but little more than to its nearest side."""
    # All is inside that is nearer than the nearest pixel outside, less half of that pixel's diagonal.
    begin = np.maximum(inner - 1, 0)[:, None]
    reach = begin + np.arange(0, 1.8, _STEP)
    is_inside = component.holds(points[:, None] + reach[..., None] * direction[:, None])
    return begin[:, 0] + _STEP * np.cumprod(is_inside, 1).sum(1) - _STEP / 2
