"""The smallest segmentation network, to be imported by a recipe: cracks are what is darker than the image."""

import torch
from torch import Tensor, nn

from cssr.models.seg import SEG


class OneConvolution(nn.Module):
    """B 3 H W to B 1 H W."""

    stride = 1

    def __init__(self):
        super().__init__()
        self.head = nn.Conv2d(3, 1, 3, padding=1)
        with torch.no_grad():
            self.head.weight.fill_(-4 / 27)
            self.head.bias.fill_(-6)

    def forward(self, x: Tensor) -> tuple[Tensor]:
        """Logits: above 0 where the mean of nine pixels is 1.5 deviations below that of the image."""
        return (self.head(x),)


@SEG.register
def one_convolution() -> OneConvolution:
    """Nothing to choose."""
    return OneConvolution()
