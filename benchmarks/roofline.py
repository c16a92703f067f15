"""The machine's own rates, which bound all else: `python benchmarks/roofline.py`.

A product of large matrices and a convolution in float32 and bfloat16, and a copy from memory to memory. What is
plain here is float32.
"""

from collections.abc import Iterable

import machine
import torch
from pairs import Limit, Pair, command, relative_difference


def pairs(quick: bool) -> Iterable[Pair]:
    """On the device where training would run; bfloat16 rounds its results to 8 bits, relative to the largest."""
    device = torch.accelerator.current_accelerator().type if torch.accelerator.is_available() else "cpu"
    flops = 2 * machine.SIDE**3
    yield Pair(
        f"matrices of {machine.SIDE} x {machine.SIDE}, bfloat16", "float32", machine.multiplying(device, "float32"),
        machine.multiplying(device, "bfloat16"), tolerance=0.02, differ=relative_difference, item="product",
        limit=Limit(flops=flops, precision="bfloat16", device=device),
    )  # fmt: skip
    yield Pair(
        "convolution 3x3, 128 channels, bfloat16", "float32", machine.convolving(device, "float32"),
        machine.convolving(device, "bfloat16"), tolerance=0.02, differ=relative_difference, items=machine.IMAGES,
        limit=Limit(flops=machine.conv_flops(), precision="bfloat16", device=device),
    )  # fmt: skip


if __name__ == "__main__":
    command(__doc__, pairs)
