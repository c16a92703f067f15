"""Distance maps for the boundary loss: `python benchmarks/losses.py`.

Against scipy's, of masks of drawn cracks, a thread each; and a boundary loss with maps from the batch, as the
loader makes them, against making them within the step, as published code does.
"""

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import torch
from evaluation import drawn
from harness import Limit, Pair, command
from plain_step import by_scipy

from cssr.config.schedules import Progress
from cssr.data.batch import Batch, Outputs
from cssr.data.transforms import signed_distance
from cssr.losses import LOSSES


def pairs(quick: bool) -> Iterable[Pair]:
    """Pairs of whole images, of crops, and of a batch of crops."""
    for side, asked in ((64, None),) if quick else ((448, 4), (224, 4)):
        masks = [drawn(seed, side)[1].astype(np.uint8) for seed in range(8)]
        yield Pair(
            f"distance maps, {side} x {side}", "scipy, inside and outside",
            plain=lambda masks=masks: [by_scipy(mask) for mask in masks],
            ours=lambda masks=masks: [signed_distance(mask) for mask in masks],
            tolerance=1e-4, asked=asked, items=len(masks), threads=1, limit=Limit(bytes=5.0 * side**2 * len(masks)),
        )  # fmt: skip
    yield in_the_step(6, 32 if quick else 224)


def in_the_step(count: int, side: int) -> Pair:
    """CSSR's loss with its gradient, maps made before against maps made by scipy within."""
    masks = [drawn(seed, side)[1].astype(np.uint8) for seed in range(count)]
    mask = torch.from_numpy(np.stack(masks))[:, None]
    ready = Batch(
        torch.zeros(count, 3, side, side),
        mask.float(),
        torch.from_numpy(np.stack(list(map(signed_distance, masks))))[:, None],
    )
    loss, generator = LOSSES.build({"name": "boundary_combo"}), torch.Generator().manual_seed(0)
    logits = torch.randn(mask.shape, generator=generator).requires_grad_()

    def step(batch: Batch) -> torch.Tensor:
        total = loss(Outputs(sr=batch.hr, logits=logits), batch, Progress(0, 10**6)).sum()
        return torch.autograd.grad(total, logits)[0]

    def with_scipy() -> torch.Tensor:
        maps = [torch.from_numpy(by_scipy(image[0].numpy())) for image in mask]
        return step(replace(ready, distance=torch.stack(maps)[:, None]))

    return Pair(
        f"boundary loss and its gradient, {count} x {side} x {side}", "scipy's maps within the step",
        plain=with_scipy, ours=lambda: step(ready), tolerance=1e-6, items=count, threads=1,
    )  # fmt: skip


if __name__ == "__main__":
    command(__doc__, pairs)
