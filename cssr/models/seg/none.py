"""No segmentation: for training SR alone, on images without masks."""

import torch
from torch import Tensor, nn

from cssr.models.seg import SEG


class NoCrack(nn.Module):
    """Head that maps features (B C H W) to zeros (B 1 H W)."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x[:, :1])


class NoSegmentation(nn.Module):
    """Logits of 0 everywhere."""

    stride = 1

    def __init__(self):
        super().__init__()
        self.head = NoCrack()

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (self.head(*self.features(x)),)

    def features(self, x: Tensor) -> tuple[Tensor]:
        """The image x (B 3 H W) itself."""
        return (x,)


@SEG.register
def none() -> NoSegmentation:
    """Nothing: with loss.beta=0, for SR pre-training."""
    return NoSegmentation()
