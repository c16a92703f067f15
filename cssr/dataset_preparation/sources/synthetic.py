"""Photographs of cracks that a program draws: for demonstrations, tests and trial runs without a data set."""

from functools import lru_cache
from typing import Annotated

import cv2
import numpy as np

from cssr.dataset_preparation.sources import SOURCES, Item, MaskRule, Source
from cssr.dataset_preparation.synthesis import render

JPEG_QUALITY = 95
MIN_SIZE = 32  # pixels; below that a picture holds no more than its crack
_MAX_SIZE = 4096  # pixels; what is drawn is in memory


@SOURCES.register
def synthetic(
    count: Annotated[int, "how many pictures"] = 400,
    size: Annotated[int, "their side in pixels; one of 4096 takes a core about 12 s"] = 256,
    seed: int = 0,
    empty_share: Annotated[float, "share of pictures without crack"] = 0.15,
) -> Source:
    """Drawn photographs of cracks in concrete and asphalt; needs no dataset."""
    if count < 1:
        raise ValueError(f"--count is {count}; ask for at least 1")
    if not MIN_SIZE <= size <= _MAX_SIZE:
        raise ValueError(f"--size is {size} pixels; give {MIN_SIZE} to {_MAX_SIZE}")
    if not 0 <= empty_share <= 1:
        raise ValueError(f"--empty-share is {empty_share}; give a share from 0 to 1")
    # a picture and its mask are asked for in turn: drawing it once serves both
    draw = lru_cache(maxsize=1)(lambda index: render(seed, index, size, empty_share))
    items = [
        Item(
            f"synthetic_{index:06d}",
            f"seed {seed}, sample {index}",
            lambda i=index: _jpeg(draw(i)[0]),
            lambda i=index: draw(i)[1],
            files=(),
        )
        for index in range(count)
    ]
    rule = MaskRule("drawn crack: crack = more than half of the pixel is covered", lambda values: values)
    return Source("synthetic", "Apache-2.0", items, lambda _: rule)


def _jpeg(photo: np.ndarray) -> bytes:
    """uint8 H W 3, red first, as a JPEG file."""
    done, encoded = cv2.imencode(".jpg", photo[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    assert done
    return encoded.tobytes()
