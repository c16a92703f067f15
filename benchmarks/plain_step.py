"""A training step of CSBSR as it is usually written: what `training_step.py` compares with.

The predicted kernel becomes a map as large as the features and is convolved with them in every stage; images are
blurred one by one; distances come from scipy, within the step; float32, one order in memory, an update of one tensor
after the other.
"""

from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import distance_transform_edt
from torch import Tensor, nn

from cssr.config.schedules import Progress
from cssr.data.batch import Batch
from cssr.models.blocks import JoinedBranch
from cssr.models.sr.kernel_predictors import StagePredictor, normalized
from cssr.training.task import Task

SLOPE = 0.01  # of the predictor's leaky ReLU


class PlainStep:
    """Steps on a task with a network that is made to work on full-size maps."""

    def __init__(self, task: Task, degrade, lr: float, device: torch.device):
        self.task, self.degrade, self.device = with_full_maps(task).to(device), degrade, device
        self.optimizer = torch.optim.Adam(task.model.parameters(), lr=lr, foreach=False)

    def __call__(self, batch: Batch, progress: Progress, seed: int) -> dict[str, Tensor]:
        """One step; returns the losses."""
        batch = self.degraded(batch)
        torch.manual_seed(seed)
        terms = self.task(batch, progress)
        terms["loss"].backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return {name: value.detach() for name, value in terms.items()}

    def degraded(self, batch: Batch) -> Batch:
        """Batch on the device with LQ images, kernels and distances, computed one sample at a time."""
        distance = torch.from_numpy(np.stack([by_scipy(mask[0].numpy()) for mask in batch.mask])[:, None])
        batch = batch.to(self.device)
        pairs = [self.degrade(batch.hr[n : n + 1], batch.seed[n : n + 1]) for n in range(len(batch))]
        lq, kernel = (torch.cat(parts) for parts in zip(*pairs))
        return Batch(batch.hr, batch.mask, distance.to(self.device), batch.seed, batch.key, lq, kernel)


def by_scipy(mask: np.ndarray) -> np.ndarray:
    """`signed_distance` of a mask by scipy, both sides of the whole image; H W float32."""
    if not mask.any():
        return np.zeros(mask.shape, np.float32)
    return (distance_transform_edt(mask == 0) - distance_transform_edt(mask)).astype(np.float32)


def with_full_maps(task: Task) -> Task:
    """Replace the parts of KBPN that take a kernel by versions that convolve it at full size."""
    for module in task.modules():
        plain = {StagePredictor: corrected, JoinedBranch: branch}.get(type(module))
        if plain:
            module.forward = partial(plain, module)
    return task


def corrected(net: StagePredictor, sr: Tensor, kernel: Tensor, valid: None = None) -> Tensor:
    """`StagePredictor`: the kernel as a map of the image's size, convolved twice, joined, convolved twice, averaged."""
    of_kernel = net.of_kernel(full_map(kernel.flatten(1)[..., None, None].to(sr.dtype), sr))
    joined = F.leaky_relu(F.conv2d(torch.cat((net.of_image(sr), of_kernel), 1), net.join.weight), SLOPE)
    values = F.conv2d(net.mix(joined), net.delta.weight, padding=1).mean((2, 3), keepdim=True)
    return normalized(kernel + net.resize(values))


def branch(net: nn.Module, features: Tensor, vector: Tensor) -> Tensor:
    """`JoinedBranch`: features and kernel map joined and convolved twice."""
    joined = torch.cat((features, full_map(vector, features)), 1)
    return net.second(net.act(F.conv2d(joined, net.first.weight, net.first.bias, padding=1)))


def full_map(vector: Tensor, like: Tensor) -> Tensor:
    """B C 1 1 at every pixel, in memory."""
    return vector.expand(-1, -1, *like.shape[-2:]).contiguous()
