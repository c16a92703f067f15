"""Batched operations on pictures of different sizes, each in the top left corner of a canvas of common size.

Pixels of a canvas beyond its picture are never used: before any operation on neighbourhoods they are overwritten by the
picture's own border, reflected or repeated. The canvas size is the same for all samples and draws, so that the result
of a sample does not depend on the rest of the batch.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import kornia.filters
import torch
from torch import Tensor

from cssr.data.batch import send
from cssr.degradations.draws import Rngs, normal
from cssr.degradations.ops import jpeg, without_denormals

METHODS = ("area", "bilinear", "bicubic")  # as `F.interpolate` without antialias
LUMA = (0.299, 0.587, 0.114)
LEVELS = 256  # of an 8-bit photograph: a Poisson count is a value times this


class Canvas(NamedTuple):
    """A batch of B pictures."""

    pixels: Tensor  # B 3 H W
    heights: Tensor  # B int64, CPU
    widths: Tensor  # B int64, CPU


def whole(images: Tensor) -> Canvas:
    """Canvas of images (B 3 H W) that fill it."""
    batch, _, height, width = images.shape
    return Canvas(images, torch.full((batch,), height), torch.full((batch,), width))


def blur(canvas: Canvas, kernel: Tensor) -> Canvas:
    """Correlate each picture with its kernel (B k k), the border reflected."""
    half = kernel.shape[-1] // 2
    padded = _extend(canvas, half, _reflect)
    kernel = send(without_denormals(kernel), padded.device, padded.dtype)
    return canvas._replace(pixels=kornia.filters.filter2d(padded, kernel, padding="valid"))


def compress(canvas: Canvas, quality: Tensor) -> Canvas:
    """Compress each picture as JPEG of its own quality (B, 1..100) and clip to 0..1."""
    return canvas._replace(
        pixels=jpeg(_extend(canvas, 0, lambda index, size: index.clamp(min=0).minimum(size - 1)), quality)
    )


def resize(canvas: Canvas, heights: Tensor, widths: Tensor, methods: Sequence[str], size: tuple[int, int]) -> Canvas:
    """Resize each picture to its own size (B int64, CPU) by its own method, on canvases of `size` (H, W).

    Equal to `F.interpolate(picture, size=(height, width), mode=method)`, as two matrix products per picture.
    """
    x = canvas.pixels
    down = resize_matrices(canvas.heights, heights, methods, (size[0], x.shape[2]), x.device)[:, None]
    across = resize_matrices(canvas.widths, widths, methods, (size[1], x.shape[3]), x.device)[:, None]
    return Canvas(down @ x @ across.mT, heights, widths)


def add_noise(canvas: Canvas, rngs: Rngs, level: Tensor, poisson: Tensor, gray: Tensor) -> Canvas:
    """Add Gaussian or Poisson noise and clip to 0..1.

    Poisson noise is its normal approximation of variance value / 256 (0..1 units), so that both kinds share one draw.

    Args:
        level: B, standard deviation (Gaussian, 0..1 units) or factor on the noise (Poisson).
        poisson: B bool, Poisson instead of Gaussian noise. gray: B bool, the same noise in all channels.
    """
    x = canvas.pixels
    sizes = list(zip(canvas.heights.tolist(), canvas.widths.tolist()))
    noise = send(normal(rngs, sizes, tuple(x.shape[-2:]), gray.tolist()), x.device)
    level, poisson, gray = (send(v, x.device)[:, None, None, None] for v in (level.float(), poisson, gray))
    luma = send(torch.tensor(LUMA, dtype=x.dtype).view(3, 1, 1), x.device)
    light = torch.where(gray, (x * luma).sum(1, keepdim=True), x)
    count = light.clamp(min=1 / LEVELS)  # the root has no gradient at 0
    deviation = torch.where(poisson, (count / LEVELS).sqrt(), torch.ones_like(count)) * level
    return canvas._replace(pixels=(x + deviation * noise).clamp(0, 1))


def select(condition: Tensor, first: Canvas, second: Canvas) -> Canvas:
    """Select pictures of `first` where `condition` (B bool, CPU), else of `second`; canvases of equal size."""
    pixels = torch.where(send(condition, first.pixels.device)[:, None, None, None], first.pixels, second.pixels)
    sizes = (torch.where(condition, a, b) for a, b in zip(first[1:], second[1:]))
    return Canvas(pixels, *sizes)


def resize_matrices(
    before: Tensor, after: Tensor, methods: Sequence[str], shape: tuple[int, int], device: torch.device
) -> Tensor:
    """Matrices (B rows columns float32) that resize vectors of `before` to `after` pixels (B int64 each).

    Args: shape: rows and columns, at least the largest of `after` and of `before`. Rows beyond `after` are arbitrary.
    """
    first, last, weights = _taps(before, after, methods, shape[0])
    column = torch.arange(shape[1], device=device)
    first, last, weights = send(first, device), send(last, device), send(weights, device, torch.float32)
    share = 1 / (last - first + 1)
    area = ((column >= first[..., None]) & (column <= last[..., None])) * share[..., None]
    taps = (first[..., None] + torch.arange(4, device=device)).clamp(min=0)
    taps = taps.minimum((send(before, device) - 1)[:, None, None])  # the border repeated
    points = sum(weights[..., t, None] * (column == taps[..., t, None]) for t in range(4))
    is_area = send(torch.tensor([method == "area" for method in methods]), device)
    return torch.where(is_area[:, None, None], area, points)


def _taps(before: Tensor, after: Tensor, methods: Sequence[str], rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """First and last input pixel of each row (B rows), and weights of four (B rows 4 float64; unused for area)."""
    row = torch.arange(rows)
    before, after = before[:, None], after[:, None]
    centre = (row + 0.5) * before / after.double() - 0.5
    offset = centre - centre.floor()
    distance = (offset[..., None] - torch.arange(-1, 3)).abs()
    bicubic = torch.tensor([method == "bicubic" for method in methods])[:, None, None]
    weights = torch.where(bicubic, _cubic(distance), (1 - distance).clamp(min=0))
    area = torch.tensor([method == "area" for method in methods])[:, None]
    first = torch.where(area, row * before // after, centre.floor().long() - 1)
    last = torch.where(area, -(-(row + 1) * before // after) - 1, first + 3)
    return first, last, weights


def _cubic(distance: Tensor, a: float = -0.75) -> Tensor:
    """Cubic convolution kernel of Keys (1981) with torch's parameter, for distances of up to 2."""
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
    return torch.where(distance <= 1, near, far)


def _extend(canvas: Canvas, margin: int, border: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Extend each picture by its border over its canvas and `margin` pixels around it."""
    x, device = canvas.pixels, canvas.pixels.device
    rows = send(border(torch.arange(-margin, x.shape[2] + margin), canvas.heights[:, None]), device)
    columns = send(border(torch.arange(-margin, x.shape[3] + margin), canvas.widths[:, None]), device)
    return x.take_along_dim(rows[:, None, :, None], 2).take_along_dim(columns[:, None, None, :], 3)


def _reflect(index: Tensor, size: Tensor) -> Tensor:
    """Reflect positions into 0..size-1: -1 becomes 1, `size` becomes `size` - 2, and so on, at any distance."""
    period = (2 * size - 2).clamp(min=1)
    folded = index % period
    return folded.minimum(period - folded).minimum(size - 1)
