"""Degrading a batch against one image at a time: `python benchmarks/degradation.py`.

CSBSR's: an anisotropic Gaussian blur of 21 x 21 by a kernel of its own for each sample, zeros beyond the border, then
antialiased bicubic reduction by 4. Kernels are drawn before, and are the same for both.
"""

from collections.abc import Callable, Iterable

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from harness import Limit, Pair, command
from scipy import ndimage
from torch import Tensor

from cssr.degradations import DEGRADATIONS

SCALE, SIZE = 4, 21  # the blur and the 16 weights of the reduction make one kernel of 36 x 36, at every 4th pixel
STRIP = 24  # pixels on each side that are blurred as they are


def pairs(quick: bool) -> Iterable[Pair]:
    """A batch on the CPU, by the three ways in which one image at a time is usually blurred."""
    batch, side = (2, 64) if quick else (8, 448)
    hr = torch.rand(batch, 3, side, side, generator=torch.Generator().manual_seed(0))
    degrade, seeds = DEGRADATIONS.build({"name": "gaussian", "size": SIZE}, scale=SCALE), torch.arange(batch)
    kernels = degrade(hr, seeds)[1]
    flops = 2.0 * hr.numel() * ((SIZE + 15) ** 2 / SCALE**2 + 4 * STRIP / side * SIZE**2)
    ways = {
        "conv2d by image": (by_conv2d, 10),
        "OpenCV by image": (by_opencv, None),
        "scipy by plane": (by_scipy, None),
    }
    for way, (blur, asked) in ways.items():
        yield Pair(
            f"degradation, {batch} x {side} x {side}", f"{way}, then interpolate",
            plain=lambda blur=blur: one_by_one(hr, kernels, blur), ours=lambda: degrade(hr, seeds)[0],
            tolerance=2e-6, asked=asked, items=batch, limit=Limit(flops=flops, bytes=4.0 * hr.numel() * (1 + 1 / 16)),
        )  # fmt: skip


def one_by_one(hr: Tensor, kernels: Tensor, blur: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """LQ images of `hr` (B 3 H W), computed one image at a time."""
    size = [side // SCALE for side in hr.shape[-2:]]
    blurred = (blur(image, kernel[0]) for image, kernel in zip(hr, kernels))
    return torch.cat([F.interpolate(image[None], size=size, mode="bicubic", antialias=True) for image in blurred])


def by_conv2d(image: Tensor, kernel: Tensor) -> Tensor:
    """Blur an image (3 H W) by `conv2d`, all channels with the same kernel."""
    weight = kernel.expand(3, 1, *kernel.shape)
    return F.conv2d(image[None], weight, padding=kernel.shape[-1] // 2, groups=3)[0]


def by_opencv(image: Tensor, kernel: Tensor) -> Tensor:
    """Blur an image (3 H W) by OpenCV, which uses Fourier transforms for large kernels."""
    pixels = np.ascontiguousarray(image.permute(1, 2, 0).numpy())
    blurred = cv2.filter2D(pixels, -1, kernel.numpy(), borderType=cv2.BORDER_CONSTANT)
    return torch.from_numpy(blurred).permute(2, 0, 1)


def by_scipy(image: Tensor, kernel: Tensor) -> Tensor:
    """Blur an image (3 H W) by scipy."""
    planes = [ndimage.correlate(plane, kernel.numpy(), mode="constant") for plane in image.numpy()]
    return torch.from_numpy(np.stack(planes))


if __name__ == "__main__":
    command(__doc__, pairs)
