"""A limit on the size of a network, checked while it is built."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from cssr.utils.machine import memory

_MAX_TENSORS = 20_000  # of weights; the deepest networks of the registries' defaults have 2,000
_MUCH = 1 << 30  # bytes of weights above which the rest is counted before it is filled, which would take minutes


class TooLarge(ValueError):
    """Networks that this machine cannot hold, or that cannot be meant."""


@contextmanager
def build_limit(trained: bool, build: Callable[[], object] | None = None) -> Iterator[None]:
    """Stop building modules once it is known that their weights exceed this machine's memory.

    Args:
        trained: whether gradients and an optimizer's two moments come on top of the weights, on a CPU.
        build: builds the same modules; called on the device `meta`, where nothing is filled, once there are many
            weights. None: this is such a call, and tensors on `meta` count, which otherwise do not.
    Raises: TooLarge, one line.
    """
    copies = 4 if trained and not torch.accelerator.is_available() else 1
    there, size, count, looked = memory(), 0, 0, build is None

    def add(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal size, count, looked
        if parameter is None or (parameter.device.type == "meta") != (build is None):
            return
        size, count = size + copies * parameter.nbytes, count + 1
        if size > there:
            more = ", with gradients and an optimizer's moments" if copies > 1 else ""
            raise TooLarge(
                f"model: the weights take more than the {there / 2**30:.0f} GiB of memory that this machine has{more}: "
                "make model.sr or model.seg smaller (widths, stages, kernels)"
            )
        if count > _MAX_TENSORS:
            raise TooLarge(
                f"model: the networks have more than {_MAX_TENSORS} tensors of weights: give model.sr or model.seg "
                "fewer stages, groups, blocks or layers"
            )
        if size > _MUCH and not looked:
            looked = True
            _look_ahead(trained, build)

    hook = register_module_parameter_registration_hook(add)
    try:
        yield
    finally:
        hook.remove()


def _look_ahead(trained: bool, build: Callable[[], object]) -> None:
    try:
        with torch.device("meta"), build_limit(trained):
            build()
    except TooLarge:
        raise
    except Exception:  # of a network that needs the contents of its weights; mistakes are named by the true call
        pass
