"""Optimise a model for prediction on a CPU: the same function up to rounding, in less time.

BatchNorm is folded into the convolution before it, DBPN works on blocks (`cssr/models/sr/dbpn_folded.py`), and weights
are in channels_last. Measured: docs/speed.md.
"""

import copy

import torch
from timm.layers import BatchNormAct2d, Conv2dSame
from torch import nn
from torch.fx import Tracer

from cssr.models.joint import JointModel
from cssr.models.sr.dbpn import DBPN
from cssr.models.sr.dbpn_folded import SCALE, FoldedDBPN

_CONVS = (nn.Conv2d, Conv2dSame)
_NORMS = (nn.BatchNorm2d, BatchNormAct2d)


def for_inference(model: JointModel) -> JointModel:
    """Optimised copy of a model in evaluation mode; the model itself if it is not on a CPU.

    The copy has other parameters: do not train or save it.
    """
    if model.mean.device.type != "cpu":
        return model
    model = copy.deepcopy(model).eval().requires_grad_(False)
    for network in filter(None, (model.sr, model.seg)):
        fold_batch_norm(network)
    if type(model.sr) is DBPN and model.sr.scale == SCALE:
        model.sr = FoldedDBPN(model.sr)
    for weight in model.parameters():
        if weight.dim() == 4:
            weight.data = weight.data.contiguous(memory_format=torch.channels_last)
    return model


def fold_batch_norm(network: nn.Module) -> int:
    """Fold each BatchNorm that is the only consumer of a convolution into that convolution, in place.

    Only layers of exactly the classes listed here, without hooks: subclasses and parametrised layers may compute
    something else.
    Returns: number of folded layers; 0 for a network that torch.fx cannot trace.
    """
    layers = dict(network.named_modules(remove_duplicate=False))
    try:
        nodes = _LayerTracer().trace(network).nodes
    except Exception:  # of control flow that depends on values, which a network may have
        return 0
    calls = [node.target for node in nodes if node.op == "call_module"]
    pairs = [
        (node.args[0].target, node.target)
        for node in nodes
        if node.op == "call_module" and _is_plain(layers[node.target], _NORMS)
        if node.args[0].op == "call_module" and _is_plain(layers[node.args[0].target], _CONVS)
        if layers[node.target].running_var is not None
        if len(node.args[0].users) == 1 and calls.count(node.args[0].target) == calls.count(node.target) == 1
    ]
    for conv, norm in pairs:
        _fold(layers[conv], layers[norm])
        holder, _, name = norm.rpartition(".")
        setattr(network.get_submodule(holder), name, getattr(layers[norm], "act", nn.Identity()))  # timm's has one
    return len(pairs)


def _is_plain(layer: nn.Module, classes: tuple[type, ...]) -> bool:
    return type(layer) in classes and not (layer._forward_pre_hooks or layer._forward_hooks)


class _LayerTracer(Tracer):
    """Tracer of torch.fx with convolutions and BatchNorms as leaves, those of libraries too."""

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, (nn.Conv2d, nn.BatchNorm2d)) or super().is_leaf_module(module, name)


@torch.no_grad()
def _fold(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
    scale = (norm.running_var + norm.eps).rsqrt() * (1 if norm.weight is None else norm.weight)
    shift = (0 if conv.bias is None else conv.bias) - norm.running_mean
    conv.bias = nn.Parameter(shift * scale + (0 if norm.bias is None else norm.bias), requires_grad=False)
    conv.weight = nn.Parameter(conv.weight * scale[:, None, None, None], requires_grad=False)
