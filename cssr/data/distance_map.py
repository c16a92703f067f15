"""The distance of each pixel of a mask to the boundary of its cracks."""

from collections import defaultdict

import cv2
import numpy as np

_REACH = 6  # pixels; cracks are thin: nearly all of their pixels have a background pixel as near as that
_SPARSE = 0.03  # share of crack pixels in the box around them, up to which they are looked at one by one


def _rings() -> list[tuple[float, np.ndarray]]:
    """Distances up to `_REACH`, and the steps (n 2; rows, columns) that are so long, shortest first."""
    steps = defaultdict(list)
    for row in range(-_REACH, _REACH + 1):
        for column in range(-_REACH, _REACH + 1):
            steps[row * row + column * column].append((row, column))
    return [(square**0.5, np.array(steps[square])) for square in sorted(steps) if 0 < square <= _REACH**2]


_RINGS = _rings()


def signed_distance(mask: np.ndarray) -> np.ndarray:
    """Signed Euclidean distance map of a mask, pixels.

    Args: mask: H W uint8, 1 on crack pixels.
    Returns: H W float32: outside, the distance to the nearest crack pixel; inside, minus the distance to the nearest
        background pixel (-1 along the inner boundary); zero all over where the mask is empty. Exact (cv2's precise
        transform), image borders not counted as background.
    """
    cracks = cv2.countNonZero(mask)
    if not cracks:
        return np.zeros(mask.shape, np.float32)
    distance = _distance(1 - mask)
    if cracks == mask.size:
        return distance - 1
    x, y, width, height = cv2.boundingRect(mask)
    if cracks > _SPARSE * width * height or not _subtract_thin(distance, mask):
        near = np.s_[max(y - 1, 0) : y + height + 1, max(x - 1, 0) : x + width + 1]  # holds the nearest background
        distance[near] -= _distance(mask[near])
    return distance


def _subtract_thin(distance: np.ndarray, mask: np.ndarray) -> bool:
    """Subtract, on crack pixels, the distance to the background: several times faster than a transform of all pixels.

    Returns: whether all of them have it within reach; if not, `distance` is unchanged.
    """
    framed = cv2.copyMakeBorder(mask, _REACH, _REACH, _REACH, _REACH, cv2.BORDER_CONSTANT, value=1)
    background, width = framed.reshape(-1) == 0, framed.shape[1]
    places = np.flatnonzero(mask.view(bool))
    rows = places // mask.shape[1]
    left = (rows + _REACH) * width + places - rows * mask.shape[1] + _REACH
    values = np.zeros(len(places), np.float32)
    todo = np.arange(len(places))
    for length, steps in _RINGS:
        reached = background[left[:, None] + steps @ (width, 1)].any(1)
        values[todo[reached]] = length
        left, todo = left[~reached], todo[~reached]
        if not len(todo):
            distance.reshape(-1)[places] -= values
            return True
    return False


def _distance(mask: np.ndarray) -> np.ndarray:
    """The distance of each pixel to the nearest 0.

    Without IPP, which is slower here, and in which the last bit hangs on where the arrays lie in memory.
    """
    used = cv2.ipp.useIPP()
    cv2.ipp.setUseIPP(False)  # of this thread
    try:
        return cv2.distanceTransform(mask, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    finally:
        cv2.ipp.setUseIPP(used)
