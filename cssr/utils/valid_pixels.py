"""Valid pixels: those that hold data.

Not valid are pixels that are transparent (by half or more), and those that a GeoTIFF marks as missing by a nodata value
or a mask. From reader to result they count for nothing: they are black in pictures and have no part in the moments of
the normalisation, the kernel estimate, losses and measures; their probability is 0, they are no crack, and what is
written marks them as missing again. Only networks, which see the surroundings of a pixel, get something in their place:
the nearest valid pixels, continued.
"""

import cv2
import numpy as np

OPAQUE = 128  # least alpha of a valid pixel, 0..255


def fill_missing(rgb: np.ndarray, valid: np.ndarray | None) -> np.ndarray:
    """Continue the nearest valid pixels into those that are not; `valid`: H W bool or uint8, None where all are.

    rgb: H W 3 uint8, returned as it is where nothing is missing, or everything.
    """
    if valid is None or valid.all() or not valid.any():
        return rgb
    missing = np.ascontiguousarray(valid == 0)
    _, labels = cv2.distanceTransformWithLabels(
        missing.view(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_5, labelType=cv2.DIST_LABEL_PIXEL
    )
    colours = np.zeros((labels.max() + 1, 3), np.uint8)
    colours[labels[~missing]] = rgb[~missing]
    return colours[labels]
