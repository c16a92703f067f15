"""Activation checkpointing: blocks of a network keep only their inputs, and recompute the rest in the backward pass."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

_WITH_WEIGHTS = (nn.modules.conv._ConvNd, nn.Linear)


def recompute_blocks(network: nn.Module) -> list[str]:
    """Have the blocks of a network recomputed in the backward pass; returns their names.

    Results are those without, BatchNorm's statistics and dropout too. Where no gradients are asked for nothing changes.
    """
    names = {module: name for name, module in network.named_modules()}
    blocks = list(dict.fromkeys(blocks_of(network)))
    for block in blocks:
        block.forward = partial(_recomputed, block, block.forward)
    return [names[block] for block in blocks]


def blocks_of(module: nn.Module) -> Iterator[nn.Module]:
    """The blocks that are recomputed one by one.

    Those that a module names itself, as the property `recomputed`; else the smallest ones of two or more layers with
    weights. What a block is given must stay as it is until the backward pass: tuples, no lists that grow.
    """
    if hasattr(module, "recomputed"):
        yield from module.recomputed
        return
    inner = [block for child in module.children() for block in blocks_of(child)]
    is_block = (
        not inner
        and sum(isinstance(layer, _WITH_WEIGHTS) for layer in module.modules()) > 1
        and type(module) not in (nn.ModuleList, nn.ModuleDict)
    )
    yield from [module] if is_block else inner


def _recomputed(block: nn.Module, forward: Callable, *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    if torch.compiler.is_compiling():  # the compiler recomputes pure operations only
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)
    return checkpoint(
        forward, *args, use_reentrant=False, context_fn=lambda: (nullcontext(), _restore_buffers(block)), **kwargs
    )


@contextmanager
def _restore_buffers(block: nn.Module) -> Iterator[None]:
    """Undo changes of buffers during recomputation: BatchNorm's statistics see each batch once."""
    layers = [layer for layer in block.modules() if layer.training and layer._buffers]
    saved = [dict(layer._buffers) for layer in layers]
    for layer, buffers in zip(layers, saved):
        layer._buffers.update({name: None if value is None else value.clone() for name, value in buffers.items()})
    try:
        yield
    finally:
        for layer, buffers in zip(layers, saved):
            layer._buffers.update(buffers)
