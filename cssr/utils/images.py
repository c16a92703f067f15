"""Pictures: opening those larger than Pillow takes for an attack, tensors as pictures, and cracks drawn over them."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
from einops import repeat
from PIL import Image

if TYPE_CHECKING:  # images are read without torch, whose import takes seconds
    from torch import Tensor

_PILLOW = threading.Lock()  # on its limit, which is one for the whole process
_CRACK = np.array([255, 40, 40], np.float32)  # overlay colour, RGB


@contextmanager
def any_size() -> Iterator[None]:
    """`Image.open` without Pillow's own limit, which is below what cameras and mosaics have; the caller has another."""
    with _PILLOW:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def to_image(x: "Tensor") -> np.ndarray:
    """C H W float (0..1; C 3 or 1) as H W 3 uint8, clipped and rounded."""
    levels = (x.detach().float().cpu().clamp(0, 1) * 255).round().byte()
    return repeat(levels, "c h w -> h w (n c)", n=3 // len(levels)).numpy()


def overlay(image: np.ndarray, mask: np.ndarray, strength: float = 0.6) -> np.ndarray:
    """Crack pixels tinted red: H W 3 uint8 and H W bool -> H W 3 uint8."""
    tinted = image.astype(np.float32)
    tinted[mask] = (1 - strength) * tinted[mask] + strength * _CRACK
    return tinted.round().astype(np.uint8)
