"""Registration of two photographs of one plane: a homography from features (SIFT, MAGSAC++), or by the georeference."""

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from cssr.survey.geometry import Transform
from cssr.utils.photographs import Photograph, open_photograph

_SIDE = 1600  # pixels of the longer side of the picture in which features are searched
_FEATURES = 3000
_RATIO = 0.85  # of the distances of the best and the second best match
_REACH = 3.0  # pixels of that picture within which a match agrees with a homography
_WIDER = 3.0  # times so far, matches show whether the surface is a plane
_MIN_MATCHES = 15  # matches that agree
_SHARE = 0.3  # of the matches in the common area, beside 8: Brown and Lowe, IJCV 74 (2007), equation 13
_ERROR = 4.0  # pixels of that picture, root mean square, above which the surface is no plane
_SPREAD = 0.1  # of the common area that matches must span
_COMMON = 0.05  # of the smaller photograph that the other must show
_ZOOM = 8.0  # greatest ratio of the sizes of their pixels
_MAP_ERROR = 2.0  # pixels, standard uncertainty of positions by two georeferences


class NotRegistered(ValueError):
    """Two photographs that do not show one spot, or not surely."""


@dataclass(frozen=True)
class Picture:
    """A photograph as registration takes it: size, valid pixels, features.

    Attributes:
        shape: height, width of the photograph, pixels.
        valid: which pixels of it, reduced by `factor`, hold data, H W bool; None: all.
        points: N 2 float32, features (x, y) in pixels of the photograph; descriptors: N 128 uint8.
    """

    shape: tuple[int, int]
    factor: float
    valid: np.ndarray | None
    points: np.ndarray
    descriptors: np.ndarray

    def shows(self, points: np.ndarray) -> np.ndarray:
        """Return whether points N 2 (x, y) are in it, on pixels that hold data."""
        height, width = self.shape
        inside = ((points >= 0) & (points < (width, height))).all(1)
        if self.valid is not None:
            rows, columns = self.valid.shape
            pixels = (points[inside] / self.factor).astype(int)
            inside[inside] = self.valid[pixels[:, 1].clip(0, rows - 1), pixels[:, 0].clip(0, columns - 1)]
        return inside


@dataclass(frozen=True)
class Registration:
    """The map of the points of one photograph to those of another.

    matrix: 3 3, of the first photograph's pixels to the second's. error: standard, of a position, pixels of the second.
    by: "features" or "georeference"; matches: features that agree.
    """

    matrix: np.ndarray
    error: float
    by: str
    matches: int = 0

    def place(self, points: np.ndarray) -> np.ndarray:
        """Points N 2 of the first photograph in the second."""
        return apply_homography(points, self.matrix)

    def back(self, points: np.ndarray) -> np.ndarray:
        """Points N 2 of the second photograph in the first."""
        return apply_homography(points, np.linalg.inv(self.matrix))

    def scale(self, shape: tuple[int, int]) -> float:
        """Pixels of the second for one of the first photograph (height, width), in its middle."""
        height, width = shape
        middle = np.array([[width, height]]) / 2
        x, y = self.place(middle + [[1, 0], [0, 1]]) - self.place(middle)
        return float(abs(x[0] * y[1] - x[1] * y[0]) ** 0.5)


def apply_homography(points: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Points N 2 through a homography; not finite where they are on its horizon."""
    homogeneous = np.c_[points, np.ones(len(points))] @ matrix.T
    with np.errstate(divide="ignore", invalid="ignore"):
        return homogeneous[:, :2] / homogeneous[:, 2:]


def read_picture(path: Path, shape: tuple[int, int]) -> Picture:
    """The picture of a photograph of this shape, or of its SR image, and its features.

    Raises: ValueError where it cannot be read, or has another aspect.
    """
    with open_photograph(path) as photograph:
        height, width = photograph.shape
        if abs(width * shape[0] - height * shape[1]) > max(width, height, *shape):
            raise ValueError(f"{path} has {width} x {height} pixels, the cracks are of {shape[1]} x {shape[0]}")
        small, valid = read_reduced(photograph, _SIDE)
    factor = shape[1] / small.shape[1]
    points, descriptors = _features(small, valid)
    return Picture(shape, factor, valid, points * np.float32(factor), descriptors)


def read_reduced(photograph: Photograph, side: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Reduce to so many pixels a side at most, read by strips: H W 3 uint8, and which pixels hold data (None: all)."""
    height, width = photograph.shape
    factor = max(1.0, max(height, width) / side)
    rows, columns = max(1, round(height / factor)), max(1, round(width / factor))
    strips, masks = [], []
    step = max(1, int(16_000_000 / width / factor))  # rows of the small picture
    for first in range(0, rows, step):
        last = min(rows, first + step)
        top, bottom = round(first * height / rows), round(last * height / rows)
        pixels, valid = photograph.window(top, 0, bottom - top, width)
        size = (columns, last - first)
        strips.append(cv2.resize(np.ascontiguousarray(pixels), size, interpolation=cv2.INTER_AREA))
        valid = np.ones(pixels.shape[:2], bool) if valid is None else valid
        grey = np.ascontiguousarray(valid).view(np.uint8)
        masks.append(cv2.resize(grey, size, interpolation=cv2.INTER_NEAREST) > 0)
    mask = np.concatenate(masks)
    return np.concatenate(strips), None if mask.all() else mask


def _features(small: np.ndarray, valid: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    grey = cv2.createCLAHE(3.0, (8, 8)).apply(cv2.cvtColor(small, cv2.COLOR_RGB2GRAY))
    finder = cv2.SIFT_create(_FEATURES, contrastThreshold=0.01, enable_precise_upscale=True)
    mask = None if valid is None else cv2.erode(valid.astype(np.uint8), np.ones((17, 17), np.uint8))
    keypoints, descriptors = finder.detectAndCompute(grey, mask)
    order = sorted(range(len(keypoints)), key=lambda n: -keypoints[n].response)[:_FEATURES]
    if not order:
        return np.zeros((0, 2), np.float32), np.zeros((0, 128), np.uint8)
    points = np.array([keypoints[n].pt for n in order], np.float32) + np.float32(
        0.5
    )  # OpenCV's centres are whole numbers
    return points, descriptors[order].astype(np.uint8)


def matches(first: Picture, second: Picture, limit: int | None = None) -> np.ndarray:
    """Features of either, the strongest `limit`, that are each other's best match by far: M 2, their numbers."""
    a, b = (_root(picture.descriptors[:limit]) for picture in (first, second))
    if len(a) < 2 or len(b) < 2:
        return np.zeros((0, 2), int)
    likeness = a @ b.T
    best = likeness.argmax(1)
    rows = np.arange(len(a))
    top = likeness[rows, best]
    mutual = likeness.argmax(0)[best] == rows
    likeness[rows, best] = -1
    distance, next_distance = (np.sqrt(np.maximum(2 - 2 * values, 1e-9)) for values in (top, likeness.max(1)))
    chosen = np.flatnonzero(mutual & (distance < _RATIO * next_distance))
    return np.stack([chosen, best[chosen]], 1)


def _root(descriptors: np.ndarray) -> np.ndarray:
    """RootSIFT (Arandjelovic and Zisserman, CVPR 2012): N 128 float32 of length 1."""
    values = descriptors.astype(np.float32)
    return np.sqrt(values / np.maximum(values.sum(1, keepdims=True), 1))


def by_features(first: Picture, second: Picture) -> Registration:
    """The homography that most features agree with.

    Raises: NotRegistered, one line, where few agree, they are in one corner, the homography cannot be that of a plane
    seen by two cameras, the surface is no plane, or there is no common area.
    """
    pairs = matches(first, second)
    if len(pairs) < _MIN_MATCHES:
        raise NotRegistered(f"{len(pairs)} features match, {_MIN_MATCHES} are needed")
    source, target = first.points[pairs[:, 0]], second.points[pairs[:, 1]]
    reach = _REACH * max(second.factor, 1.0)
    cv2.setRNGSeed(0)
    matrix, inliers = cv2.findHomography(source, target, cv2.USAC_MAGSAC, reach, maxIters=5000, confidence=0.9999)
    if matrix is None or not np.isfinite(matrix).all() or inliers.sum() < _MIN_MATCHES:
        agree = 0 if matrix is None else int(inliers.sum())
        raise NotRegistered(f"{agree} of {len(pairs)} matching features agree, {_MIN_MATCHES} are needed")
    area = common_area(matrix, first.shape, second.shape)
    residuals = np.linalg.norm(apply_homography(source, matrix) - target, axis=1)
    near = residuals < _WIDER * reach
    matrix = cv2.findHomography(source[near], target[near], cv2.USAC_MAGSAC, reach, maxIters=5000)[0]
    residuals = np.linalg.norm(apply_homography(source, matrix) - target, axis=1)
    agree, near = residuals < reach, residuals < _WIDER * reach
    within = first.shows(source) & second.shows(apply_homography(source, matrix))
    if agree.sum() < max(_MIN_MATCHES, 8 + _SHARE * within.sum()):
        raise NotRegistered(f"{agree.sum()} of {within.sum()} matching features in the common area agree")
    error = float(np.sqrt((residuals[near] ** 2).mean()))
    if error > _ERROR * max(second.factor, 1.0):
        raise NotRegistered(f"matching features are {error:.1f} pixels off (root mean square): the surface is no plane")
    hull = cv2.contourArea(cv2.convexHull(target[agree]))
    if hull < _SPREAD * area:
        raise NotRegistered(f"the {agree.sum()} features that agree span {hull / area:.0%} of the common area alone")
    common_area(matrix, first.shape, second.shape)
    return Registration(matrix, error, "features", int(agree.sum()))


def by_georeference(
    first: tuple[float, ...],
    second: tuple[float, ...],
    shapes: tuple[tuple[int, int], tuple[int, int]],
    to_second: Transform | None = None,
) -> Registration:
    """The homography of two positions on maps: `first` and `second` are affine, pixel to map, as (a, b, c, d, e, f).

    `to_second`: of points N 2 on the first map to the second; None: it is the same map.
    Raises: NotRegistered where they have no common area.
    """
    height, width = shapes[0]
    x, y = np.meshgrid(np.linspace(0, width, 5), np.linspace(0, height, 5))
    points = np.stack([x.ravel(), y.ravel()], 1)
    on_map = apply_homography(points, _affine(first))
    if to_second:
        on_map = to_second(on_map)
    target = apply_homography(on_map, np.linalg.inv(_affine(second)))
    matrix = cv2.findHomography(points, target)[0] if np.isfinite(target).all() else None
    if matrix is None:
        raise NotRegistered("the georeference of one photograph is beyond the map of the other")
    common_area(matrix, *shapes)
    deviation = np.abs(apply_homography(points, matrix) - target).max()
    return Registration(matrix, float(np.hypot(_MAP_ERROR, deviation)), "georeference")


def _affine(values: tuple[float, ...]) -> np.ndarray:
    return np.array([values[:3], values[3:6], (0, 0, 1)], float)


def common_area(matrix: np.ndarray, first: tuple[int, int], second: tuple[int, int]) -> float:
    """Pixels of the second photograph (shapes: height, width) that the first shows; NotRegistered for what is none."""
    height, width = first
    corners = np.array([[0, 0], [width, 0], [width, height], [0, height]], float)
    depth = np.c_[corners, np.ones(4)] @ matrix[2]
    if np.sign(depth).sum() not in (-4, 4) or np.abs(depth).min() < 0.05 * np.abs(depth).max():
        raise NotRegistered("the homography is degenerate: its horizon is in the photograph")
    outline = apply_homography(corners, matrix).astype(np.float32)
    signed_area = cv2.contourArea(outline, oriented=True)
    if not cv2.isContourConvex(outline) or signed_area <= 0:
        raise NotRegistered("the homography is degenerate: it mirrors or folds the photograph")
    zoom = (signed_area / (height * width)) ** 0.5
    if not 1 / _ZOOM < zoom < _ZOOM:
        raise NotRegistered(f"the homography is degenerate: pixels of one are {zoom:.2g} of the other's")
    rows, columns = second
    frame = np.array([[0, 0], [columns, 0], [columns, rows], [0, rows]], np.float32)
    area = float(cv2.intersectConvexConvex(outline, frame)[0])
    if area < _COMMON * min(signed_area, rows * columns):
        raise NotRegistered("they have no common area")
    return area
