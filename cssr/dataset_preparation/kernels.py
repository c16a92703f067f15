"""Blur kernels on disk: arrays, or grey pictures of them."""

from pathlib import Path

import numpy as np

from cssr.cracks.masks import BROKEN
from cssr.utils.images import open_image

_MOST_PIXELS = 1 << 20
KERNEL_SUFFIXES = (".npy", ".png", ".tif", ".tiff", ".bmp")


def read_kernel(path: Path) -> np.ndarray:
    """A kernel divided by its sum: k k float32, sum 1.

    A .npy file holds numbers as they are. A picture holds them scaled, to 8 bits most often: what is read differs from
    what was applied by up to 1/255 of its maximum.
    Raises: ValueError unless it is square, of odd side, finite, and its sum positive.
    """
    try:
        values = np.load(path, allow_pickle=False) if path.suffix.lower() == ".npy" else _picture(path)
        values = values.astype(np.float64)
    except BROKEN as problem:
        raise ValueError(f"cannot read kernel {path}: {problem}; replace it, or remove what belongs to it") from problem
    if values.ndim != 2 or values.shape[0] != values.shape[1] or values.shape[0] % 2 == 0:
        raise ValueError(f"kernel {path} has the shape {values.shape}; it must be square, of odd side")
    if not np.isfinite(values).all() or values.sum() <= 0:
        raise ValueError(f"kernel {path} adds up to {values.sum():g}; the sum must be positive, all values finite")
    return (values / values.sum()).astype(np.float32)


def _picture(path: Path) -> np.ndarray:
    """The grey levels of a picture, H W; equal colour channels are one."""
    with open_image(path, _MOST_PIXELS) as stored:
        planes = np.asarray(stored)
    if planes.ndim == 3 and (planes[..., :3] == planes[..., :1]).all():
        planes = planes[..., 0]
    return planes
