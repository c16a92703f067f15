"""CrackFormer: an encoder and decoder of self-attention blocks, with a gated side output at each of five sizes.

Liu et al., "CrackFormer: Transformer Network for Fine-Grained Crack Detection", ICCV 2021, in its second version
(CrackFormer-II) as CSBSR trains it: the attention is a lambda layer (Bello, "LambdaNetworks: Modeling Long-Range
Interactions Without Attention", ICLR 2021), which never holds a weight for a pair of pixels.

The published weight files hold tensors that the published network never uses: a third block in the last three stages
of the encoder (the second one runs again in its place), and one normalisation in every block. They are left out here.

A training step in float32 at the published size takes about 1.2 GiB a sample of 224 x 224 pixels, and four times as
much at 448 x 448 (measured on a CPU).
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from math import gcd

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from cssr.config.registry import Count, KernelSide, Share
from cssr.models.blocks import conv_relu
from cssr.models.seg import SEG

_ENCODER = (1, 2, 4, 8, 8)  # channels of each stage, in widths
_DECODER = ((8, 8, 8, 8), (8, 8, 8, 4), (4, 4, 4, 2), (2, 2, 1), (1, 1, 1))  # around each block, deepest stage first
_HEADS, _KEYS = 4, 16  # query vectors of a pixel, and their length


def _groups(channels: int) -> int:
    """Groups of four channels, as normalisation and the MLP have them; of fewer where four do not fit."""
    return channels // gcd(channels, 4)


def _conv_norm(inputs: int, outputs: int, size: int, groups: int = 1, bias: bool = True) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, size, padding=size // 2, groups=groups, bias=bias)
    return nn.Sequential(conv, nn.GroupNorm(_groups(outputs), outputs))


class SelfAttention(nn.Module):
    """Lambda layer: B C H W to the same shape, C a multiple of the heads.

    Each pixel's queries read a small matrix (keys x values), the sum of two: one of the whole image, where keys say
    how much each pixel counts, and one of the window around the pixel, where learned weights say it.
    """

    def __init__(self, channels: int, window: int):
        super().__init__()
        self.queries = _conv_norm(channels, _HEADS * _KEYS, 1, bias=False)
        self.keys = _conv_norm(channels, _KEYS, 1, bias=False)
        self.values = _conv_norm(channels, channels // _HEADS, 1, bias=False)
        self.positions = nn.Conv3d(1, _KEYS, (1, window, window), padding=(0, window // 2, window // 2), bias=False)
        nn.init.normal_(self.positions.weight)

    def forward(self, x: Tensor) -> Tensor:
        queries = rearrange(self.queries(x), "b (heads keys) h w -> b heads keys h w", heads=_HEADS)
        values = self.values(x)  # B V H W
        shares = rearrange(self.keys(x), "b keys h w -> b keys (h w)").softmax(2)
        image = shares @ rearrange(values, "b v h w -> b (h w) v")  # B keys V
        matrix = self.positions(rearrange(values, "b v h w -> b 1 v h w"))
        matrix = matrix + rearrange(image, "b keys v -> b keys v 1 1")
        # Head by head, since one product of all heads would copy the matrices, the largest tensors of the block;
        # unsqueeze, since torch.export takes a rearrange of what is not contiguous for B > 1 alone.
        return torch.cat([(query.unsqueeze(2) * matrix).sum(1) for query in queries.unbind(1)], 1)


def _mlp(channels: int, dropout: float) -> nn.Sequential:
    hidden = channels // 4
    return nn.Sequential(
        _conv_norm(channels, hidden, 1),
        _conv_norm(hidden, hidden, 3, groups=_groups(hidden)).append(nn.GELU()),
        nn.Dropout(dropout),
        _conv_norm(hidden, channels, 1),
        nn.Dropout(dropout),
    )


class Block(nn.Module):
    """Bottleneck around self-attention and an MLP, at a quarter of the channels, with a shortcut."""

    def __init__(self, inputs: int, outputs: int, window: int, dropout: float):
        super().__init__()
        hidden = max(inputs, outputs) // 4
        self.squeeze = _conv_norm(inputs, hidden, 1, bias=False).append(nn.GELU())
        self.attention = _init_by_outputs(SelfAttention(hidden, window))
        self.mlp = _init_by_outputs(_mlp(hidden, dropout))
        self.expand = _conv_norm(hidden, outputs, 1, bias=False).append(nn.GELU())
        self.shortcut = nn.Identity() if inputs == outputs else _conv_norm(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.squeeze(x)
        hidden = hidden + self.attention(hidden)
        hidden = hidden + self.mlp(hidden)
        return F.gelu(self.expand(F.gelu(hidden)) + self.shortcut(x))


def _init_by_outputs(module: nn.Module) -> nn.Module:
    """Initialise 2D convolutions: normal weights of variance 2 / (kernel area x outputs of a group), zero biases."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            fan_out = layer.weight[0, 0].numel() * layer.out_channels // layer.groups
            nn.init.normal_(layer.weight, std=(2 / fan_out) ** 0.5)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return module


class Stage(nn.Module):
    """Layers of one size, the last of which runs `repeats` times; returns what comes out of each run."""

    def __init__(self, layers: Sequence[nn.Module], repeats: int = 1):
        super().__init__()
        self.layers, self.repeats = nn.ModuleList(layers), repeats

    def forward(self, x: Tensor) -> list[Tensor]:
        outputs = []
        for layer in (*self.layers, *[self.layers[-1]] * (self.repeats - 1)):
            x = layer(x)
            outputs.append(x)
        return outputs


class Side(nn.Module):
    """Crack logits (B 1 H W) of what two stages of one size made: their results, gated by what led to them."""

    def __init__(self, encoded: int, decoded: int, width: int):
        super().__init__()
        self.gate = nn.Sequential(nn.GELU(), _conv_norm(encoded, width, 3), _conv_norm(width, width, 3), nn.Sigmoid())
        self.merge = conv_relu(encoded + decoded, width)
        self.logits = nn.Conv2d(width, 1, 3, padding=1)

    def forward(self, encoded: list[Tensor], decoded: list[Tensor], size: Sequence[int]) -> Tensor:
        gate = self.gate(sum((*encoded[:-1], *decoded[:-1])))
        merged = self.merge(torch.cat((encoded[-1], decoded[-1]), 1))
        return F.interpolate(self.logits(gate * merged), size, mode="bilinear")


class CrackFormer(nn.Module):
    """Five stages down and five up, where unpooling puts values back to their places; five side outputs, then one."""

    stride = 2 ** len(_ENCODER)

    def __init__(self, width: int, block: Callable[[int, int], nn.Module]):
        super().__init__()
        self.encoder = nn.ModuleList([Stage([conv_relu(3, width), block(width, width)])])
        for inputs, outputs in pairwise(width * n for n in _ENCODER):
            repeats = 2 if len(self.encoder) > 1 else 1  # two blocks at half size, three below
            self.encoder.append(Stage([block(inputs, outputs), block(outputs, outputs)], repeats))
        self.decoder = nn.ModuleList(
            Stage([block(width * inputs, width * outputs) for inputs, outputs in pairwise(stage)]) for stage in _DECODER
        )
        self.sides = nn.ModuleList(Side(width * stage[0], width * stage[-1], width) for stage in _DECODER)
        self.head = nn.Conv2d(len(self.sides), 1, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        features, *aux = self.features(x)
        return self.head(features), *aux

    def features(self, x: Tensor) -> tuple[Tensor, ...]:
        """The side outputs' logits, deepest first: joined (B 5 H W), then each by itself (B 1 H W)."""
        size, ways, sides = x.shape[-2:], [], []
        for stage in self.encoder:
            encoded = stage(x)
            x, indices = F.max_pool2d(encoded[-1], 2, return_indices=True)
            ways.append((encoded, indices))
        for stage, side in zip(self.decoder, self.sides):
            encoded, indices = ways.pop()
            decoded = stage(F.max_unpool2d(x, indices, 2))
            x = decoded[-1]
            sides.append(side(encoded, decoded, size))
        return torch.cat(sides, 1), *sides


@SEG.register
def crackformer(
    pretrained: bool | str = False, width: Count = 64, window: KernelSide = 7, dropout: Share = 0.3
) -> CrackFormer:
    """CrackFormer: x (B 3 H W, H and W multiples of 32) -> crack logits and five side logits (B 1 H W each).

    The side logits come deepest first; the crack logits are a weighted sum of them. The defaults are those of CSBSR.

    Args:
        pretrained: False; there are no pretrained weights to start from.
        width: channels at full size, a multiple of 16; up to 8 times as many below.
        window: side of the window of a pixel's attention, in the pixels of a stage, odd.
        dropout: share of values dropped inside and after each MLP.
    Raises:
        ValueError: one line: a setting out of range.
    """
    where = "segmentation network 'crackformer':"
    if pretrained:
        raise ValueError(f"{where} there are no pretrained weights, got pretrained={pretrained!r}; leave it out")
    if width < 1 or width % 16:
        raise ValueError(f"{where} width must be a multiple of 16, got {width}; the published one is 64")
    if window < 1 or window % 2 == 0:
        raise ValueError(f"{where} window must be odd and at least 1, got {window}; the published one is 7")
    if not 0 <= dropout < 1:
        raise ValueError(f"{where} dropout must be in [0, 1), got {dropout}; the published one is 0.3")
    return CrackFormer(width, partial(Block, window=window, dropout=dropout))
