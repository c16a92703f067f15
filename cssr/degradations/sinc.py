"""Ringing: an ideal low-pass filter."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from cssr.config.registry import KernelSide
from cssr.degradations.blurs import Blur, axis, blur_kind, check_size, normalized
from cssr.degradations.draws import Rngs, check_range, uniform


@blur_kind
def sinc(cutoff: Sequence[float] = (1 / 3, 1.0), size: KernelSide = 21) -> Blur:
    """The circular low-pass filter that makes ringing and overshoot (Real-ESRGAN); its kernel has negative lobes.

    Args:
        cutoff: range of the highest frequency kept, in shares of the Nyquist frequency, drawn evenly.
        size: side of the kernel, odd, HR pixels; the lobes beyond are cut.
    """
    check_size("sinc", size)
    check_range("sinc", "cutoff", cutoff, above=0, high=1)

    def kernels(rngs: Rngs) -> Tensor:
        return sinc_kernel(uniform(rngs, cutoff)[:, 0], size)

    return Blur(size, "sinc", kernels)


def sinc_kernel(cutoff: Tensor, size: int) -> Tensor:
    """w J1(w r) / (2 pi r) with w = pi cutoff (B float64), normalised: B size size float64."""
    y, x = torch.meshgrid(axis(size), axis(size), indexing="ij")
    w, r = math.pi * cutoff.double()[:, None, None], torch.hypot(x, y)
    r[size // 2, size // 2] = 1  # any: the centre has its limit below
    kernels = w * torch.special.bessel_j1(w * r) / (2 * math.pi * r)
    kernels[:, size // 2, size // 2] = w[:, 0, 0] ** 2 / (4 * math.pi)
    return normalized(kernels)
