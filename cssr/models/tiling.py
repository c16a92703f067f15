"""A function of an image, applied to an image of any size in overlapping tiles, with blended results.

The image may be one that is never in memory as a whole: it is read by windows, and the result comes in rows.
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
_CHUNK = 64  # rows that are given on at once


class Windows(Protocol):
    """An image that is read by windows."""

    shape: tuple[int, int]  # height, width

    def read(self, top: int, left: int, height: int, width: int) -> Tensor:
        """B C height width, from a window within the image."""


class Whole:
    """A tensor, B C H W, to be read by windows."""

    def __init__(self, x: Tensor, valid: Tensor | None = None):
        self._x, self._valid, self.shape, self.masked = x, valid, (x.shape[-2], x.shape[-1]), valid is not None

    def read(self, top: int, left: int, height: int, width: int) -> Tensor:
        """A view."""
        return self._x[..., top : top + height, left : left + width]

    def valid(self, top: int, left: int, height: int, width: int) -> Tensor | None:
        """Mask of valid pixels, B 1 height width; None where all are."""
        return None if self._valid is None else self._valid[..., top : top + height, left : left + width]


class WithValid:
    """An image that is read by windows, with its valid pixels as a fourth channel: the image's 1 or 255, and 0."""

    def __init__(self, image: Windows):
        self._image, self.shape = image, image.shape

    def read(self, top: int, left: int, height: int, width: int) -> Tensor:
        """B 4 height width."""
        part, valid = (get(top, left, height, width) for get in (self._image.read, self._image.valid))
        one = 255 if part.dtype == torch.uint8 else 1
        valid = torch.ones_like(part[:, :1], dtype=torch.bool) if valid is None else valid.to(part.device)
        return torch.cat((part, valid.to(part.dtype) * one), 1)


class Kept:
    """Rows of a result, B C n W each, kept in memory as they come from the top down, to be read by windows."""

    def __init__(self) -> None:
        self.shape = (0, 0)
        self._rows: list[Tensor] = []
        self._starts: list[int] = []

    def append(self, rows: Tensor) -> None:
        """The next rows."""
        self._rows.append(rows)
        self._starts.append(self.shape[0])
        self.shape = (self.shape[0] + rows.shape[-2], rows.shape[-1])

    def read(self, top: int, left: int, height: int, width: int) -> Tensor:
        """A copy."""
        strips = [
            rows[..., max(top - start, 0) : max(top + height - start, 0), left : left + width]
            for start, rows in zip(self._starts, self._rows)
        ]
        return torch.cat(strips, -2)


@dataclass(frozen=True)
class Tiles:
    """Cutting of an image: tiles of `side` pixels that overlap by `overlap`, less than half of it.

    `batch` tiles are worked at once, as one tensor, by each of `threads` threads, which share the cores: on a CPU they
    wait less for one another than the threads of one operation do. `progress` wraps the iteration over tiles. `ahead`
    batches at most are read by a thread before their turn.
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
        """The same tiles on an image that is larger by `scale`."""
        return replace(self, side=self.side * scale, overlap=self.overlap * scale)

    def places(self, shape: tuple[int, int]) -> list[tuple[int, int]]:
        """(top, left) of every tile of an image of height and width, row by row."""
        tops, lefts = (starts(length, self.side, self.overlap) for length in shape)
        return [(top, left) for top in tops for left in lefts]

    def sampled(self, function: Function, image: Windows, most: int) -> Iterator[Tensor]:
        """Apply `function` to at most so many tiles, evenly over the image, one by one and without progress."""
        corners = self.places(image.shape)
        chosen = sorted({round(k * (len(corners) - 1) / max(most - 1, 1)) for k in range(min(most, len(corners)))})
        for k in chosen:
            yield function(self._stack(image, [corners[k]]))

    def results(self, function: Function, image: Windows) -> Iterator[tuple[tuple[int, int], Tensor]]:
        """(top, left) and what `function` makes of it, B ..., for every tile."""
        corners = self.places(image.shape)
        groups = [corners[at : at + self.batch] for at in range(0, len(corners), self.batch)]
        steps = iter(self.progress(corners))
        stacks = read_ahead((self._stack(image, group) for group in groups), self.ahead)
        for group, parts in zip(groups, self._worked(function, stacks, len(groups))):
            yield from ((next(steps), part) for part in parts.chunk(len(group)))
        next(steps, None)  # lets a progress bar end

    def _worked(self, function: Function, stacks: Iterator[Tensor], count: int) -> Iterator[Tensor]:
        """`function` of each; those that are left over by full turns of the threads by all cores, one by one."""
        if self.threads > 1:
            share = partial(torch.set_num_threads, max(1, torch.get_num_threads() // self.threads))
            shared = islice(stacks, count - count % self.threads)
            yield from side_by_side(_as_in_this_thread(function), shared, self.threads, share)
        yield from map(function, stacks)

    def _stack(self, image: Windows, corners: list[tuple[int, int]]) -> Tensor:
        height, width = (min(self.side, length) for length in image.shape)
        return torch.cat([image.read(top, left, height, width) for top, left in corners])

    def rows(self, function: Function, image: Windows, scale: int = 1) -> Iterator[Tensor]:
        """The blended result of `function` (B C h w -> B C' h*scale w*scale) in rows from the top down.

        Yields: B C' n W*scale, rows that no later tile changes, 64 at most. float16 and bfloat16 are summed as float32.
            The outer quarter of an overlap has weight 0 and its middle half a linear ramp, so the result equals the
            untiled one where `overlap / 4` reaches as far as the function sees (the radius of its receptive field).
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
                # the share of the tiles above in the next rows moves to the top, with zeros below
                rest = total[..., done:, :].clone()
                total[..., : rest.shape[-2], :] = rest
                total[..., rest.shape[-2] :, :] = 0
            share = down.of(top, total)[:, None] * across.of(left, total)
            total[..., left * scale : left * scale + part.shape[-1]].addcmul_(part.to(total.dtype), share)
        yield from _chunks(total, part.dtype)


def _as_in_this_thread(function: Function) -> Function:
    """`function` for other threads, which do not know of this one's `no_grad` and autocast."""
    grad, autocast = torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")
    dtype = torch.get_autocast_dtype("cpu")

    def call(x: Tensor) -> Tensor:
        with torch.set_grad_enabled(grad), torch.autocast("cpu", dtype, enabled=autocast):
            return function(x)

    return call


def _chunks(rows: Tensor, dtype: torch.dtype) -> Iterator[Tensor]:
    """Copies, few rows each: the memory of rows that are done is used again."""
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
    """`function(x)`, tile by tile: the blended rows of `Tiles.rows` as one tensor, B C' H*scale W*scale.

    Args:
        function: B C h w -> B C' h*scale w*scale.
        x: B C H W.
        tile: side of a tile, input pixels. overlap: of neighbouring tiles, input pixels, less than half of `tile`.
        progress: wraps the iteration over tiles.
    """
    return torch.cat(list(Tiles(tile, overlap, progress=progress).rows(function, Whole(x), scale)), -2)


def starts(length: int, tile: int, overlap: int) -> list[int]:
    """First pixels of tiles that cover `length`; the last is moved back to end with the image."""
    last = max(length - tile, 0)
    return [*range(0, last, tile - overlap), last]


def fitting_side(shape: tuple[int, int], most: int, overlap: int, step: int) -> int:
    """Side of tiles, a multiple of `step` up to `most`, by which an image is covered with the least work.

    Work: pixels of all tiles; of sides that make the same, the largest.
    """

    def work(side: int) -> int:
        return math.prod(len({*starts(length, side, overlap)}) * min(side, length) for length in shape)

    return min(range(most, max(most // 2, 2 * overlap), -step), key=work)


class _Shares:
    """Weights of the tiles along one side, which sum to 1 at every pixel."""

    def __init__(self, length: int, tile: int, overlap: int, scale: int):
        windows = {start: _window(start, length, tile, overlap, scale) for start in starts(length, tile, overlap)}
        total = torch.zeros(length * scale, dtype=torch.float64)
        for start, window in windows.items():
            total[start * scale : start * scale + len(window)] += window
        self._shares = {
            start: window / total[start * scale : start * scale + len(window)] for start, window in windows.items()
        }

    def of(self, start: int, like: Tensor) -> Tensor:
        """Weights of the tile that begins at a pixel, in the precision and on the device of a tensor."""
        share = self._shares[start]
        if share.device != like.device or share.dtype != like.dtype:
            share = self._shares[start] = share.to(like.dtype).to(like.device)
        return share


def _window(start: int, length: int, tile: int, overlap: int, scale: int) -> Tensor:
    """Weight along one side of a tile: 0, a rising ramp, 1, a falling ramp, 0; no ramp at the image's own border."""
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
    """Mean and (biased) variance of each image and channel: B C H W to B C 1 1 twice.

    `valid`: B 1 H W, 1 on the pixels that count, 0 elsewhere; None: all do. An image without any has moments of 0.
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
    """Moments of each image and channel, over all pixels that count: parts are B C n W each.

    Nothing is kept of a part: thousands of small tensors between large ones would keep the allocator from using the
    large ones' memory again.
    """

    def __init__(self) -> None:
        self._count: Tensor | int = 0
        self._mean = self._variance = torch.zeros(())

    def add(self, rows: Tensor, valid: Tensor | None = None) -> None:
        """Add a part, combined as by Chan, Golub and LeVeque (1979, eq. 2.1), which loses no digits where sums of
        squares would; in float64 where the device has it. `valid`: B 1 n W, as for `moments_of`.
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
        apart = mean - self._mean
        self._variance = self._variance + share * (variance - self._variance) + share * (1 - share) * apart**2
        self._mean = self._mean + share * apart

    def result(self) -> tuple[Tensor, Tensor]:
        """Mean and (biased) variance, B C 1 1 float32 each."""
        return self._mean.float(), self._variance.float()


def reduced_valid(valid: Tensor | None, scale: int) -> Tensor | None:
    """Valid pixels (B 1 H W) at LQ size, B 1 h w bool: those of which half or more are."""
    return None if valid is None else F.avg_pool2d(valid.float(), scale) >= 0.5


def valid_rows(lq: Windows, top: int, count: int, scale: int) -> Tensor | None:
    """Mask of valid pixels of rows of the SR image, B 1 count W bool; None where all of the image are."""
    if not getattr(lq, "masked", False):
        return None
    first, last = top // scale, -(-(top + count) // scale)
    valid = lq.valid(first, 0, last - first, lq.shape[1])
    if valid is None:
        return torch.ones(1, 1, count, lq.shape[1] * scale, dtype=torch.bool)
    large = valid.repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    return large[..., top - first * scale : top - first * scale + count, :] > 0


def for_each_tile(value: Tensor | None, part: Tensor) -> Tensor | None:
    """Repeat what belongs to each of B images for a stack of tiles of each."""
    return None if value is None else repeat(value, "b ... -> (n b) ...", n=len(part) // len(value))
