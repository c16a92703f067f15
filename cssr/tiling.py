"""A function of an image, applied to an image of any size in overlapping tiles whose results are blended."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor


def tiled(
    function: Callable[[Tensor], Tensor],
    x: Tensor,
    tile: int,
    overlap: int,
    scale: int = 1,
    progress: Callable[[Iterable], Iterable] = iter,
) -> Tensor:
    """`function(x)`, tile by tile.

    Args:
        function: B C h w -> B C' h*scale w*scale.
        x: B C H W.
        tile: side of a tile, input pixels. overlap: of neighbouring tiles, input pixels, less than half of `tile`.
        progress: wraps the iteration over tiles.
    Returns: B C' H*scale W*scale. The outer quarter of an overlap has weight 0 and its middle half a linear ramp, so
        the result equals the untiled one where `overlap / 4` reaches as far as the function sees (the radius of its
        receptive field).
    """
    if not 0 <= 2 * overlap < tile:
        raise ValueError(f"tiles of {tile} pixels need an overlap below {(tile + 1) // 2}, found {overlap}")
    height, width = x.shape[-2:]
    places = [(y, x0) for y in starts(height, tile, overlap) for x0 in starts(width, tile, overlap)]
    total = weight = None
    for top, left in progress(places):
        part = function(x[..., top : top + tile, left : left + tile])
        if total is None:
            total = part.new_zeros(*part.shape[:-2], height * scale, width * scale)
            weight = part.new_zeros(height * scale, width * scale)
        share = _window(top, height, tile, overlap, scale, part)[:, None] * _window(
            left, width, tile, overlap, scale, part
        )
        rows, columns = (slice(at * scale, at * scale + n) for at, n in zip((top, left), part.shape[-2:]))
        total[..., rows, columns] += part * share
        weight[rows, columns] += share
    return total / weight


def starts(length: int, tile: int, overlap: int) -> list[int]:
    """First pixels of tiles that cover `length`; the last is moved back to end with the image."""
    last = max(length - tile, 0)
    return [*range(0, last, tile - overlap), last]


def _window(start: int, length: int, tile: int, overlap: int, scale: int, like: Tensor) -> Tensor:
    """Weight along one side of a tile: 0, a rising ramp, 1, a falling ramp, 0; no ramp at the image's own border."""
    size = min(tile, length)
    place = (torch.arange(size * scale, dtype=like.dtype, device=like.device) + 0.5) / scale
    window = torch.ones_like(place)
    if not overlap:
        return window
    margin, ramp = overlap / 4, overlap / 2
    if start > 0:
        window = window * ((place - margin) / ramp).clamp(0, 1)
    if start + size < length:
        window = window * ((size - place - margin) / ramp).clamp(0, 1)
    return window
