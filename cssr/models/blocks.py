"""Layers that several networks share."""

import torch.nn.functional as F
from torch import Tensor, nn


def conv_prelu(inputs: int, outputs: int, size: int, stride: int = 1, padding: int = 0) -> nn.Sequential:
    """Convolution, then PReLU with one slope."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, size, stride, padding), nn.PReLU())


def deconv_prelu(inputs: int, outputs: int, size: int, stride: int, padding: int) -> nn.Sequential:
    """Transposed convolution, then PReLU with one slope."""
    return nn.Sequential(nn.ConvTranspose2d(inputs, outputs, size, stride, padding), nn.PReLU())


def conv_relu(inputs: int, outputs: int) -> nn.Sequential:
    """3x3 convolution that keeps the size, then ReLU."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU(inplace=True))


def init_kaiming(module: nn.Module) -> nn.Module:
    """Kaiming-normal weights (fan in) and zero biases in every convolution, as the published SR networks start."""
    for layer in module.modules():
        if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.kaiming_normal_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return module


def pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """B C H W, extended at the right and bottom by its edge pixels to multiples of `multiple`."""
    height, width = x.shape[-2:]
    pad = (-width % multiple, -height % multiple)
    return F.pad(x, (0, pad[0], 0, pad[1]), mode="replicate") if any(pad) else x
