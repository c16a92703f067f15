"""No segmentation: for training SR alone, on images without masks."""

import torch
from torch import Tensor, nn

from cssr.models.seg import SEG


class NoSegmentation(nn.Module):
    """Logits of 0 everywhere."""

    stride = 1

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (torch.zeros_like(x[:, :1]),)


@SEG.register
def none() -> NoSegmentation:
    """Nothing: with loss.beta=0, for SR pre-training."""
    return NoSegmentation()
