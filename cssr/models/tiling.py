"""Tiled inference: apply a function to an image of any size in overlapping tiles and blend the results.

The image need not be in memory: it is read by windows, and the result is returned in rows.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import Protocol

import torch
import torch.nn.functional as F
from einops import repeat
from torch import Tensor

from cssr.utils.threads import read_ahead, side_by_side

Function = Callable[[Tensor], Tensor]
_CHUNK = 64  # rows yielded at once


class Windows(Protocol):
    """Protocol of an image that is read by windows."""

    shape: tuple[int, int]  # height, width

    def read(self, top: int, left: int, height: int, width: int) -> Tensor:
        """Read a window within the image: B C height width."""


class Whole:
    """Image in memory (B C H W), read by windows; `valid`: its mask of valid pixels (B 1 H W), None: all."""

    def __init__(self, x: Tensor, valid: Tensor | None = None):
        self._x, self._valid, self.shape, self.masked = x, valid, (x.shape[-2], x.shape[-1]), valid is not None

    def read(self, top: int, left: int, height: int, width: int) -> Tensor:
        """View of a window: B C height width."""
        return self._x[..., top : top + height, left : left + width]

    def valid(self, top: int, left: int, height: int, width: int) -> Tensor | None:
        """Mask of valid pixels in a window, B 1 height width; None: all are valid."""
        return None if self._valid is None else self._valid[..., top : top + height, left : left + width]


class WithValid:
    """Image read by windows, with its valid pixels as a fourth channel: 0, or 1 (float) or 255 (uint8) where valid."""

    def __init__(self, image: Windows):
        self._image, self.shape = image, image.shape

    def read(self, top: int, left: int, height: int, width: int) -> Tensor:
        """Read a window with its valid pixels: B 4 height width."""
        part, valid = (get(top, left, height, width) for get in (self._image.read, self._image.valid))
        maximum = 255 if part.dtype == torch.uint8 else 1
        valid = torch.ones_like(part[:, :1], dtype=torch.bool) if valid is None else valid.to(part.device)
        return torch.cat((part, valid.to(part.dtype) * maximum), 1)


class Kept:
    """Row buffer: rows of a result (B C n W each, from the top down) in memory, read by windows."""

    def __init__(self) -> None:
        self.shape = (0, 0)
        self._rows: list[Tensor] = []
        self._starts: list[int] = []

    def append(self, rows: Tensor) -> None:
        """Append the next rows, B C n W."""
        self._rows.append(rows)
        self._starts.append(self.shape[0])
        self.shape = (self.shape[0] + rows.shape[-2], rows.shape[-1])

    def read(self, top: int, left: int, height: int, width: int) -> Tensor:
        """Copy of a window: B C height width."""
        strips = [
            rows[..., max(top - start, 0) : max(top + height - start, 0), left : left + width]
            for start, rows in zip(self._starts, self._rows)
        ]
        return torch.cat(strips, -2)


@dataclass(frozen=True)
class Tiles:
    """Tiling of an image: tiles of `side` pixels that overlap by `overlap` pixels, less than half of `side`.

    Each of `threads` threads processes `batch` tiles at a time, as one tensor; they share the cores, which on a CPU is
    faster than parallel operations. `progress` wraps the iteration over tiles. At most `ahead` batches are prefetched
    by another thread. Raises ValueError for an overlap out of range.
    """

    side: int
    overlap: int
    batch: int = 1
    progress: Callable[[Iterable], Iterable] = iter
    ahead: int = 0
    threads: int = 1

    def __post_init__(self) -> None:
        if not 0 <= 2 * self.overlap < self.side:
            raise ValueError(
                f"tiles of {self.side} pixels need an overlap below {(self.side + 1) // 2}, got {self.overlap}"
            )

    def enlarged(self, scale: int) -> "Tiles":
        """Corresponding tiles of an image that is larger by `scale`."""
        return replace(self, side=self.side * scale, overlap=self.overlap * scale)

    def places(self, shape: tuple[int, int]) -> list[tuple[int, int]]:
        """Corner (top, left) of every tile of an image of this height and width, row by row."""
        tops, lefts = (starts(length, self.side, self.overlap) for length in shape)
        return [(top, left) for top in tops for left in lefts]

    def sampled(self, function: Function, image: Windows, most: int) -> Iterator[Tensor]:
        """Apply `function` to at most `most` tiles, evenly spread over the image, one by one and without progress."""
        corners = self.places(image.shape)
        chosen = sorted({round(k * (len(corners) - 1) / max(most - 1, 1)) for k in range(min(most, len(corners)))})
        for k in chosen:
            yield function(self._stack(image, [corners[k]]))

    def results(self, function: Function, image: Windows) -> Iterator[tuple[tuple[int, int], Tensor]]:
        """Corner (top, left) and result of `function` (B ...) of every tile."""
        corners = self.places(image.shape)
        groups = [corners[at : at + self.batch] for at in range(0, len(corners), self.batch)]
        steps = iter(self.progress(corners))
        stacks = read_ahead((self._stack(image, group) for group in groups), self.ahead)
        for group, parts in zip(groups, self._map_stacks(function, stacks, len(groups))):
            yield from ((next(steps), part) for part in parts.chunk(len(group)))
        next(steps, None)  # lets a progress bar end

    def _map_stacks(self, function: Function, stacks: Iterator[Tensor], count: int) -> Iterator[Tensor]:
        """Apply `function` to all stacks: by all threads while each has one, then one by one on all cores."""
        if self.threads > 1:
            share = partial(torch.set_num_threads, max(1, torch.get_num_threads() // self.threads))
            shared = islice(stacks, count - count % self.threads)
            yield from side_by_side(_with_thread_state(function), shared, self.threads, share)
        yield from map(function, stacks)

    def _stack(self, image: Windows, corners: list[tuple[int, int]]) -> Tensor:
        height, width = (min(self.side, length) for length in image.shape)
        return torch.cat([image.read(top, left, height, width) for top, left in corners])

    def rows(self, function: Function, image: Windows, scale: int = 1) -> Iterator[Tensor]:
        """Blend the results of `function` (B C h w -> B C' h*scale w*scale), in rows from the top down.

        Yields: B C' n W*scale, rows that no later tile changes, 64 at most. float16 and bfloat16 are summed as float32.
            The outer quarter of an overlap has weight 0 and its middle half a linear ramp, so the result equals the
            untiled one if `overlap / 4` is at least the radius of the function's receptive field.
        """
        height, width = image.shape
        down, across = (_Shares(length, self.side, self.overlap, scale) for length in image.shape)
        total: Tensor | None = None
        above = 0  # first row of `total`
        for (top, left), part in self.results(function, image):
            if total is None:
                size = (min(self.side, height) * scale, width * scale)
                total = part.new_zeros(*part.shape[:-2], *size, dtype=torch.promote_types(part.dtype, torch.float32))
            if top > above:
                done, above = (top - above) * scale, top
                yield from _chunks(total[..., :done, :], part.dtype)
                # move the partial sums of unfinished rows to the top, with zeros below
                rest = total[..., done:, :].clone()
                total[..., : rest.shape[-2], :] = rest
                total[..., rest.shape[-2] :, :] = 0
            share = down.of(top, total)[:, None] * across.of(left, total)
            total[..., left * scale : left * scale + part.shape[-1]].addcmul_(part.to(total.dtype), share)
        yield from _chunks(total, part.dtype)


def _with_thread_state(function: Function) -> Function:
    """Bind this thread's grad mode and autocast to `function`, for calls from other threads."""
    grad, autocast = torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")
    dtype = torch.get_autocast_dtype("cpu")

    def call(x: Tensor) -> Tensor:
        with torch.set_grad_enabled(grad), torch.autocast("cpu", dtype, enabled=autocast):
            return function(x)

    return call


def _chunks(rows: Tensor, dtype: torch.dtype) -> Iterator[Tensor]:
    """Copies of a few rows each, since the memory of finished rows is reused."""
    for chunk in rows.split(_CHUNK, -2):
        yield chunk.to(dtype, copy=True)


def tiled(
    function: Function,
    x: Tensor,
    tile: int,
    overlap: int,
    scale: int = 1,
    progress: Callable[[Iterable], Iterable] = iter,
) -> Tensor:
    """Compute `function(x)` tile by tile: the blended rows of `Tiles.rows` as one tensor, B C' H*scale W*scale.

    Args:
        function: B C h w -> B C' h*scale w*scale.
        x: B C H W.
        tile: side of a tile, input pixels. overlap: of neighbouring tiles, input pixels, less than half of `tile`.
        progress: wraps the iteration over tiles.
    """
    return torch.cat(list(Tiles(tile, overlap, progress=progress).rows(function, Whole(x), scale)), -2)


def starts(length: int, tile: int, overlap: int) -> list[int]:
    """First pixels of the tiles that cover `length`; the last tile ends with the image."""
    last = max(length - tile, 0)
    return [*range(0, last, tile - overlap), last]


def fitting_side(shape: tuple[int, int], most: int, overlap: int, step: int) -> int:
    """Tile side (`most` minus a multiple of `step`) with the fewest pixels in all tiles; the largest of equal ones."""

    def work(side: int) -> int:
        return math.prod(len({*starts(length, side, overlap)}) * min(side, length) for length in shape)

    return min(range(most, max(most // 2, 2 * overlap), -step), key=work)


class _Shares:
    """Blending weights of the tiles along one side, which sum to 1 at every pixel."""

    def __init__(self, length: int, tile: int, overlap: int, scale: int):
        windows = {start: _window(start, length, tile, overlap, scale) for start in starts(length, tile, overlap)}
        total = torch.zeros(length * scale, dtype=torch.float64)
        for start, window in windows.items():
            total[start * scale : start * scale + len(window)] += window
        self._shares = {
            start: window / total[start * scale : start * scale + len(window)] for start, window in windows.items()
        }

    def of(self, start: int, like: Tensor) -> Tensor:
        """Weights of the tile that starts at pixel `start`, with the dtype and device of `like`."""
        share = self._shares[start]
        if share.device != like.device or share.dtype != like.dtype:
            share = self._shares[start] = share.to(like.dtype).to(like.device)
        return share


def _window(start: int, length: int, tile: int, overlap: int, scale: int) -> Tensor:
    """Weights along one side of a tile: 0, a rising ramp, 1, a falling ramp, 0; no ramp at the image border."""
    size = min(tile, length)
    position = (torch.arange(size * scale, dtype=torch.float64) + 0.5) / scale
    window = torch.ones_like(position)
    if not overlap:
        return window
    margin, ramp = overlap / 4, overlap / 2
    if start > 0:
        window = window * ((position - margin) / ramp).clamp(0, 1)
    if start + size < length:
        window = window * ((size - position - margin) / ramp).clamp(0, 1)
    return window


def moments_of(image: Tensor, valid: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Mean and (biased) variance of each image (B C H W) and channel: B C 1 1 each.

    `valid`: B 1 H W, 1 on valid pixels, 0 elsewhere; None: all are. An image without valid pixels has moments of 0.
    `F.instance_norm` of torch 2.14 has a wrong gradient for a single image that comes in channels_last.
    """
    if valid is None:
        variance, mean = torch.var_mean(image, (-2, -1), correction=0, keepdim=True)
        return mean, variance
    weight = valid.to(image.dtype)
    weight = weight / weight.sum((-2, -1), keepdim=True).clamp(min=1)
    mean = (image * weight).sum((-2, -1), keepdim=True)
    return mean, ((image - mean).square() * weight).sum((-2, -1), keepdim=True)


class Moments:
    """Running moments of each image and channel over valid pixels, from parts of B C n W each.

    No tensors of a part are kept: thousands of small tensors between large ones would fragment the allocator's memory.
    """

    def __init__(self) -> None:
        self._count: Tensor | int = 0
        self._mean = self._variance = torch.zeros(())

    def add(self, rows: Tensor, valid: Tensor | None = None) -> None:
        """Add a part; `valid`: B 1 n W, as for `moments_of`.

        By Chan, Golub and LeVeque (1979, eq. 2.1), which is accurate where sums of squares are not; in float64 if the
        device supports it.
        """
        precise = torch.float32 if rows.device.type == "mps" else torch.float64
        rows = rows.float() if valid is None else rows.to(precise)
        mean, variance = (x.to(precise) for x in moments_of(rows, valid))
        if valid is None:
            count = rows.shape[-2] * rows.shape[-1]
            share = count / (self._count + count)
        else:
            count = valid.to(precise).sum((-2, -1), keepdim=True)
            share = count / (self._count + count).clamp(min=1)
        self._mean, self._variance, self._count = self._mean.to(mean), self._variance.to(mean), self._count + count
        difference = mean - self._mean
        self._variance = self._variance + share * (variance - self._variance) + share * (1 - share) * difference**2
        self._mean = self._mean + share * difference

    def result(self) -> tuple[Tensor, Tensor]:
        """Mean and (biased) variance, B C 1 1 float32 each."""
        return self._mean.float(), self._variance.float()


def reduced_valid(valid: Tensor | None, scale: int) -> Tensor | None:
    """Reduce valid pixels (B 1 H W) to LQ size (B 1 h w bool): valid if half or more of the block are."""
    return None if valid is None else F.avg_pool2d(valid.float(), scale) >= 0.5


def valid_rows(lq: Windows, top: int, count: int, scale: int) -> Tensor | None:
    """Mask of valid pixels of `count` rows of the SR image, B 1 count W bool; None: all of the image are valid."""
    if not getattr(lq, "masked", False):
        return None
    first, last = top // scale, -(-(top + count) // scale)
    valid = lq.valid(first, 0, last - first, lq.shape[1])
    if valid is None:
        return torch.ones(1, 1, count, lq.shape[1] * scale, dtype=torch.bool)
    large = valid.repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    return large[..., top - first * scale : top - first * scale + count, :] > 0


def for_each_tile(value: Tensor | None, part: Tensor) -> Tensor | None:
    """Repeat values of B images (B ...) for a stack of n tiles of each (n*B ...)."""
    return None if value is None else repeat(value, "b ... -> (n b) ...", n=len(part) // len(value))
