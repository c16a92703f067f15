"""A bound on what a network may come to, held while it is built."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from cssr.utils.machine import memory

_MOST_TENSORS = 20_000  # of weights; the deepest networks of the registries' defaults have 2,000


@contextmanager
def build_limit(trained: bool) -> Iterator[None]:
    """Stop building modules once their weights exceed this machine's memory, before these are filled.

    Args:
        trained: whether gradients and an optimizer's two moments will stand beside the weights, on a CPU.
    Raises: ValueError, one line. Tensors on the device `meta` take no memory and do not count.
    """
    copies = 4 if trained and not torch.accelerator.is_available() else 1
    there, size, count = memory(), 0, 0

    def add(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal size, count
        if parameter is None or parameter.device.type == "meta":
            return
        size, count = size + copies * parameter.nbytes, count + 1
        if size > there:
            more = ", with gradients and an optimizer's moments" if copies > 1 else ""
            raise ValueError(
                f"model: the weights take more than the {there / 2**30:.0f} GiB of memory that this machine has{more}: "
                "make model.sr or model.seg smaller (widths, stages, kernels)"
            )
        if count > _MOST_TENSORS:
            raise ValueError(
                f"model: the networks have more than {_MOST_TENSORS} tensors of weights: give model.sr or model.seg "
                "fewer stages, groups, blocks or layers"
            )

    hook = register_module_parameter_registration_hook(add)
    try:
        yield
    finally:
        hook.remove()
