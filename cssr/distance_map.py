"""The distance of each pixel of a mask to the boundary of its cracks."""

import cv2
import numpy as np


def signed_distance(mask: np.ndarray) -> np.ndarray:
    """Signed Euclidean distance map of a mask, pixels.

    Args: mask: H W uint8, 1 on crack pixels.
    Returns: H W float32: outside, the distance to the nearest crack pixel; inside, minus the distance to the nearest
        background pixel (-1 along the inner boundary); zero all over where the mask is empty. Exact (cv2's precise
        transform), image borders not counted as background.
    """
    if not mask.any():
        return np.zeros(mask.shape, np.float32)
    distance = _distance(1 - mask)
    if mask.all():
        return distance - 1
    x, y, width, height = cv2.boundingRect(mask)
    near = np.s_[max(y - 1, 0) : y + height + 1, max(x - 1, 0) : x + width + 1]  # holds each one's nearest background
    distance[near] -= _distance(mask[near])
    return distance


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
