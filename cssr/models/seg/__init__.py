"""Segmentation networks: one file each.

Contract: a registered function `name(pretrained=False, **settings) -> nn.Module`. Its `forward(x) -> (logits, *aux)`
takes the normalised image `x` (B 3 H W) and returns crack logits (B 1 H W) and those of auxiliary heads, if any.
It is the last module, `head`, of what `features(x) -> (features, *aux)` gives, so that a wrapper can come in between.
With `takes_kernel = True` the forward is `forward(x, kernel)`, the kernel B 1 k k.
A network on an encoder is an `EncoderDecoder` (cssr/models/encoders.py): its `features` are `decode` of the maps of
`encode`, which losses can compare, and its parameters below `encoder` are a group of their own.
H and W are multiples of the module's `stride` (an int attribute): the joint model pads and crops. `pretrained` is True
(download through timm), "package" (of an installed package), a path of a local weight file, or False.
"""

from cssr.config.registry import Registry

SEG = Registry("segmentation network", __name__)
