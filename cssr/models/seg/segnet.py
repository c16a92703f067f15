"""SegNet: VGG's convolutions, and their mirror image behind unpooling; with VGG16 it is SrcNet's segmentation network.

Badrinarayanan et al., "SegNet: A Deep Convolutional Encoder-Decoder Architecture for Image Segmentation", PAMI 2017.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from cssr.config.registry import did_you_mean
from cssr.models.encoders import timm_encoder
from cssr.models.seg import SEG

_ENCODERS = ("vgg11_bn", "vgg13_bn", "vgg16_bn", "vgg19_bn")


class SegNet(nn.Module):
    """SegNet: the decoder unpools values to the positions of the encoder's pooling maxima, zeros elsewhere."""

    def __init__(self, stages: list[nn.Sequential]):
        super().__init__()
        self.stride = 2 ** len(stages)
        self.encoder = nn.ModuleList(stages)
        self.decoder = nn.ModuleList(_mirror(stage) for stage in reversed(stages))
        *body, last, _, _ = self.decoder[-1]  # the last convolution gives the logits: no BatchNorm, no ReLU
        self.decoder[-1] = nn.Sequential(*body, nn.Conv2d(last.in_channels, 1, 3, padding=1))

    @property
    def head(self) -> nn.Module:
        """The last stage of the decoder; its parameters keep that name."""
        return self.decoder[-1]

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (self.head(*self.features(x)),)

    def features(self, x: Tensor) -> tuple[Tensor]:
        """Features of the last unpooling (B 64 H W), for `head`, of the image x (B 3 H W)."""
        kept = []
        for stage in self.encoder:
            x, indices = F.max_pool2d(stage(x), 2, return_indices=True)
            kept.append(indices)
        for stage in self.decoder[:-1]:
            x = stage(F.max_unpool2d(x, kept.pop(), 2))
        return (F.max_unpool2d(x, kept.pop(), 2),)


def _mirror(stage: nn.Sequential) -> nn.Sequential:
    """The stage's convolutions in reverse order, each from its outputs to its inputs."""
    layers: list[nn.Module] = []
    for layer in reversed(stage):
        if isinstance(layer, nn.Conv2d):
            inputs, outputs = layer.out_channels, layer.in_channels
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


@SEG.register
def segnet(encoder: str = "vgg16_bn", pretrained: bool | str = False) -> SegNet:
    """SegNet: x (B 3 H W, H and W multiples of 32) -> crack logits (B 1 H W).

    Args:
        encoder: vgg11_bn, vgg13_bn, vgg16_bn (as published) or vgg19_bn, of timm.
        pretrained: whether the encoder starts from ImageNet weights; the published network does not.
    Raises:
        ValueError: one line: another encoder.
    """
    if encoder.split(".")[0] not in _ENCODERS:
        raise ValueError(
            f"segmentation network 'segnet': encoder must be a VGG with BatchNorm, got {encoder!r}"
            f"{did_you_mean(encoder, _ENCODERS)}"
        )
    vgg = timm_encoder(encoder, 5, pretrained, {})
    if not pretrained:  # PyTorch's own initial weights in place of VGG's, as published
        for layer in vgg.modules():
            if isinstance(layer, (nn.Conv2d, nn.BatchNorm2d)):
                layer.reset_parameters()
    return SegNet(_stages(vgg))


def _stages(vgg: nn.Module) -> list[nn.Sequential]:
    """The layers between poolings; SegNet makes the poolings itself, with the positions of their maxima."""
    stages: list[list[nn.Module]] = [[]]
    for layer in vgg.children():
        if isinstance(layer, nn.MaxPool2d):
            stages.append([])
        else:
            stages[-1].append(layer)
    return [nn.Sequential(*layers) for layers in stages]
