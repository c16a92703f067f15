"""Memory limit of a network, checked while it is built."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from cssr.utils.machine import memory

_MAX_TENSORS = 20_000  # of weights; the deepest networks of the registries' defaults have 2,000
_LARGE = 1 << 30  # bytes of weights above which the network is counted on `meta` before more is initialised


class TooLarge(ValueError):
    """Raised for a network that exceeds this machine's memory or has implausibly many weight tensors."""


@contextmanager
def build_limit(trained: bool, build: Callable[[], object] | None = None) -> Iterator[None]:
    """Raise `TooLarge` as soon as the modules built in this context exceed this machine's memory.

    Args:
        trained: count gradients and two optimizer moments too, on a CPU.
        build: builds the same modules; called once on the device `meta`, without initialisation, when the weights
            exceed 1 GiB. None: this is that call, which counts tensors on `meta` only.
    Raises: TooLarge, one line.
    """
    copies = 4 if trained and not torch.accelerator.is_available() else 1
    limit, size, count, checked_ahead = memory(), 0, 0, build is None

    def add(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal size, count, checked_ahead
        if parameter is None or (parameter.device.type == "meta") != (build is None):
            return
        size, count = size + copies * parameter.nbytes, count + 1
        if size > limit:
            more = ", with gradients and an optimizer's moments" if copies > 1 else ""
            raise TooLarge(
                f"model: the weights take more than the {limit / 2**30:.0f} GiB of memory that this machine has{more}: "
                "make model.sr or model.seg smaller (widths, stages, kernels)"
            )
        if count > _MAX_TENSORS:
            raise TooLarge(
                f"model: the networks have more than {_MAX_TENSORS} tensors of weights: give model.sr or model.seg "
                "fewer stages, groups, blocks or layers"
            )
        if size > _LARGE and not checked_ahead:
            checked_ahead = True
            _check_whole(trained, build)

    hook = register_module_parameter_registration_hook(add)
    try:
        yield
    finally:
        hook.remove()


def _check_whole(trained: bool, build: Callable[[], object]) -> None:
    try:
        with torch.device("meta"), build_limit(trained):
            build()
    except TooLarge:
        raise
    except Exception:  # of a network that reads its weights; real errors are raised by the actual build
        pass
