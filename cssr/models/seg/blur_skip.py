"""BlurSkip: the blur kernel that the SR network predicts modulates the features of any segmentation network.

Kondo and Ukita, "Joint Learning of Blind Super-Resolution and Crack Segmentation for Realistic Degraded Images"
(CSBSR), where the network is PSPNet and only the layers of BlurSkip are trained, on top of a finished CSBSR.

A kernel is one vector for the whole image: where the published code convolves it as a full-size map, only the part near
the border and one pixel of the inside are computed here, which are all the values that such a map can have.

Compared with golden vectors: PSPNet on ResNet-34, kernels of 21, two layers, modulated by features and kernel, and by
the kernel alone. Unverified against the published code by any test, for lack of golden vectors: reduced kernels and
other numbers of layers. (Run beside the published code once, each agreed within 1e-5 of the probabilities' range, and
in training mode within 1e-3 of every gradient.) Other networks than PSPNet have no published counterpart.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal, get_args

import torch.nn.functional as F
from torch import Tensor, nn

from cssr.config.registry import Count, KernelSide, did_you_mean
from cssr.models.blocks import JoinedBranch, Modulation, VectorBranch
from cssr.models.seg import SEG

ModulateBy = Literal["features_and_kernel", "kernel"]

_BRANCHES = {"features_and_kernel": JoinedBranch, "kernel": VectorBranch}
_SLOPE = 0.01  # of PReLU at the start
_WHERE = "segmentation network 'blur_skip':"


class Layer(nn.Module):
    """Features (B C h w) modulated by a kernel (B 1 k k), then convolved: B C h w."""

    def __init__(self, channels: int, conditions: int, branch: type[nn.Module]):
        super().__init__()
        self.modulation = Modulation(channels, conditions, branch, partial(nn.PReLU, init=_SLOPE))
        convolution = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.conv = nn.Sequential(convolution, nn.BatchNorm2d(channels), nn.ReLU(inplace=True))
        self._init_as_published()

    def forward(self, features: Tensor, kernel: Tensor) -> Tensor:
        return self.conv(self.modulation(features, kernel))

    def _init_as_published(self) -> None:
        """Initialise: Kaiming-normal before an activation, Xavier-normal before scale and shift, zero biases."""
        nn.init.kaiming_normal_(self.conv[0].weight, nonlinearity="relu")
        for branch in (self.modulation.scale, self.modulation.shift):
            nn.init.kaiming_normal_(branch.first.weight, a=_SLOPE)
            nn.init.xavier_normal_(branch.second.weight)
            nn.init.zeros_(branch.first.bias)
            nn.init.zeros_(branch.second.bias)


class BlurSkip(nn.Module):
    """Segmentation network with features modulated by a kernel before the head; auxiliary logits are unchanged."""

    takes_kernel = True

    def __init__(self, net: nn.Module, layers: list[Layer], kernel_size: int, reduce: int | None):
        super().__init__()
        self.stride = getattr(net, "stride", 1)
        self.kernel_size, self.reduce = kernel_size, reduce
        self.net, self.blur_skip = net, nn.ModuleList(layers)

    def forward(self, x: Tensor, kernel: Tensor) -> tuple[Tensor, ...]:
        """Crack logits (B 1 H W) and the network's auxiliary ones.

        Args:
            x: B 3 H W, normalised image.
            kernel: B 1 k k, of each image, k the setting `kernel_size`; sums to 1.
        Raises: ValueError for a kernel of another shape.
        """
        features, *aux = self.features(x, kernel)
        return self.net.head(features), *aux

    def features(self, x: Tensor, kernel: Tensor) -> tuple[Tensor, ...]:
        """Modulated features for the network's head, and its auxiliary logits (B 1 H W each)."""
        kernel = self._reduced(self._checked(kernel, x.shape[0]))
        features, *aux = self.net.features(x)
        modulated = features
        for layer in self.blur_skip:
            modulated = layer(modulated, kernel)
        return features + modulated, *aux

    def _reduced(self, kernel: Tensor) -> Tensor:
        """Resize a kernel; its values keep their size, so that the sum of a reduced one falls."""
        if self.reduce is None:
            return kernel
        return F.interpolate(kernel, self.reduce, mode="bicubic", align_corners=True)

    def _checked(self, kernel: Tensor | None, batch: int) -> Tensor:
        if kernel is None:
            raise ValueError(f"{_WHERE} a kernel is needed, got none; use a model.form and model.sr that predict one")
        expected = (batch, 1, self.kernel_size, self.kernel_size)
        if kernel.shape != expected:
            raise ValueError(
                f"{_WHERE} the kernel must be {list(expected)}, got {list(kernel.shape)}; "
                "set model.seg.kernel_size to that of model.sr"
            )
        return kernel


@SEG.register
def blur_skip(
    net: str | dict[str, Any] = "pspnet",
    pretrained: bool | str = False,
    kernel_size: KernelSide = 21,
    reduce: KernelSide | None = None,
    modulate_by: ModulateBy = "features_and_kernel",
    layers: Count = 2,
) -> BlurSkip:
    """BlurSkip around a segmentation network: x (B 3 H W) and kernel (B 1 k k) -> what that network gives.

    The defaults are those of CSBSR. As published, it is trained with all else held still: phases with `lr` 0 for
    the groups sr, kernel and seg. (The published code still lets the BatchNorm statistics of those drift; a group that
    is held still here keeps them.) On PSPNet, 224 x 224 pixels take 151 GMAC instead of 31, and training keeps 1050 MiB
    of activations per sample instead of 160; with `reduce=7` 61 GMAC and 450 MiB, with `modulate_by="kernel"` 35 GMAC
    and 270 MiB.

    Args:
        net: a segmentation registered network, by name or with settings.
        pretrained: that network's weights, as it takes them.
        kernel_size: side k of the kernels that the SR network gives, odd.
        reduce: side to which they are reduced first (bicubic, corners aligned), odd and below `kernel_size`; None: not.
            The published variant with reduced kernels has 7.
        modulate_by: whether scale and shift are made of features and kernel, or, as SFT was first described and as a
            published variant does, of the kernel alone.
        layers: modulations, each with a convolution after it.
    Raises:
        ValueError: one line: a setting out of range, or a network without features to modulate.
    """
    _check(net, kernel_size, reduce, modulate_by, layers)
    settings = {"name": net} if isinstance(net, str) else net
    if pretrained and isinstance(settings, Mapping):
        settings = {**settings, "pretrained": pretrained}
    inner = SEG.build(settings)
    channels, conditions = _head_inputs(inner, net), (reduce or kernel_size) ** 2
    each = [Layer(channels, conditions, _BRANCHES[modulate_by]) for _ in range(layers)]
    return BlurSkip(inner, each, kernel_size, reduce)


def _check(net: str | dict[str, Any], kernel_size: int, reduce: int | None, modulate_by: str, layers: int) -> None:
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(f"{_WHERE} kernel_size must be odd, got {kernel_size}; set it to that of model.sr")
    if reduce is not None and (not 1 <= reduce < kernel_size or reduce % 2 == 0):
        raise ValueError(f"{_WHERE} reduce must be odd and below kernel_size ({kernel_size}), or null, got {reduce}")
    if modulate_by not in _BRANCHES:
        known = get_args(ModulateBy)
        raise ValueError(f"{_WHERE} unknown modulate_by={modulate_by!r}{did_you_mean(modulate_by, known)}")
    if layers < 1:
        raise ValueError(f"{_WHERE} layers must be at least 1, got {layers}; for none, take model.seg=net by itself")
    if isinstance(net, Mapping) and "pretrained" in net:
        raise ValueError(f"{_WHERE} net takes no pretrained; set model.seg.pretrained={net['pretrained']} instead")


def _head_inputs(net: nn.Module, setting: str | dict[str, Any]) -> int:
    """Channels of the features that the network's head takes: those of its first convolution."""
    layers = getattr(net, "head", nn.Identity()).modules()
    convolution = next((layer for layer in layers if isinstance(layer, nn.Conv2d)), None)
    if getattr(net, "takes_kernel", False) or convolution is None or not hasattr(net, "features"):
        raise ValueError(
            f"{_WHERE} net must have `features(x)` and a `head` that begins with a convolution (see cssr.models.seg), "
            f"which {setting!r} has not; take another one, e.g. pspnet"
        )
    return convolution.in_channels
