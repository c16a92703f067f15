"""Gather a full state, keyed by parameter name, from any engine, and scatter it back.

DDP keeps a model and its optimizer whole. DeepSpeed lays the parameters of a group end to end and gives each
rank a part of them and of their moments (ZeRO-1, 2), of the parameters themselves as well (ZeRO-3). FSDP gives each
rank a part of each tensor. Checkpoints are independent of that, so that a run may resume under another strategy.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from cssr.utils.distributed import base_optimizer

Named = Iterable[tuple[str, Tensor]]


def gather_weights(model: nn.Module) -> Named:
    """The tensors of the model's `state_dict`, whole, on its device; every rank of ZeRO-3 and FSDP must consume all."""
    parameters = dict(model.named_parameters())
    for name, value in model.state_dict().items():
        yield name, _full_tensor(parameters.get(name, value))


def gather_moments(module: nn.Module, model: nn.Module, optimizer: Any) -> tuple[Named, dict[str, Any]]:
    """The optimizer's tensors as `parameter/moment`, and its other values likewise; `groups.K/step` is a group's.

    Args:
        module: the prepared task. model: the joint model in it.
        optimizer: the prepared optimizer. Every rank must consume all tensors.
    """
    zero = _zero_optimizer(module)
    if zero is not None:
        return _zero_moments(model, zero), {}
    optimizer = base_optimizer(optimizer)
    names = {parameter: name for name, parameter in model.named_parameters()}
    entries = {f"{names[p]}/{key}": value for p, state in optimizer.state.items() for key, value in state.items()}
    entries |= {f"groups.{k}/step": group["step"] for k, group in enumerate(optimizer.param_groups) if "step" in group}
    tensors = ((key, _full_tensor(value)) for key, value in entries.items() if isinstance(value, Tensor))
    return tensors, {key: value for key, value in entries.items() if not isinstance(value, Tensor)}


def copy_to_cpu(tensors: Named, keep: bool = True) -> dict[str, Tensor]:
    """Copies in the CPU's memory. All are consumed, as ranks gather them together; `keep`: keep them."""
    return {name: value.detach().to("cpu", copy=True).contiguous() for name, value in tensors if keep}


def scatter_moments(module: nn.Module, model: nn.Module, optimizer: Any, entries: Mapping[str, Any]) -> None:
    """Give every rank its part of what `gather_moments` returned; the arguments are the same."""
    by_name: dict[str, dict[str, Any]] = {}
    for key, value in entries.items():
        name, _, moment = key.rpartition("/")
        by_name.setdefault(name, {})[moment] = value
    zero = _zero_optimizer(module)
    if zero is None:
        _fill(model, base_optimizer(optimizer), by_name)
    else:
        _fill_zero(model, zero, by_name)


def _full_tensor(value: Tensor) -> Tensor:
    """A tensor of which this rank may have a part only."""
    if hasattr(value, "ds_id"):  # ZeRO-3's
        from deepspeed.utils import safe_get_full_fp32_param

        return safe_get_full_fp32_param(value)
    return value.full_tensor() if isinstance(value, DTensor) else value


def _fill(model: nn.Module, optimizer: torch.optim.Optimizer, by_name: Mapping[str, dict[str, Any]]) -> None:
    names = {parameter: name for name, parameter in model.named_parameters()}
    ordered = [p for group in optimizer.param_groups for p in group["params"]]
    state_dict = optimizer.state_dict()
    state_dict["state"] = {
        index: {key: _like_parameter(value, p) for key, value in by_name[names[p]].items()}
        for index, p in enumerate(ordered)
        if names[p] in by_name
    }
    optimizer.load_state_dict(state_dict)
    for k, group in enumerate(optimizer.param_groups):
        group |= by_name.get(f"groups.{k}", {})


def _like_parameter(value: Any, parameter: nn.Parameter) -> Any:
    """A moment as its parameter is: in parts, or whole and in the same order in memory, as fused updates need it."""
    if not isinstance(value, Tensor) or not value.dim() or value.shape != parameter.shape:
        return value
    if isinstance(parameter, DTensor):
        return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)
    return torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)


# ---- DeepSpeed ----


def _zero_optimizer(module: nn.Module) -> Any:
    """ZeRO's optimizer, where DeepSpeed trains with it."""
    optimizer = getattr(module, "optimizer", None)
    return optimizer if hasattr(optimizer, "bit16_groups") or hasattr(optimizer, "fp16_groups") else None


def _flat_groups(zero: Any) -> Iterator[tuple[list[nn.Parameter], Tensor]]:
    """Parameters, and the tensor of float32 in which this rank has its part of them, laid end to end."""
    if hasattr(zero, "fp32_partitioned_groups_flat"):  # ZeRO-3
        return zip(zero.fp16_groups, zero.fp32_partitioned_groups_flat)
    return zip(zero.bit16_groups, zero.single_partition_of_fp32_groups)


def _zero_moments(model: nn.Module, zero: Any) -> Iterator[tuple[str, Tensor]]:
    from deepspeed.utils import safe_get_full_optimizer_state

    names = {parameter: name for name, parameter in model.named_parameters()}
    _link_parts(zero)
    for parameters, flat in _flat_groups(zero):
        state = zero.optimizer.state[flat]
        for parameter in parameters:
            for key, value in state.items():
                if isinstance(value, Tensor) and value.shape == flat.shape:
                    yield f"{names[parameter]}/{key}", safe_get_full_optimizer_state(parameter, key)
                else:  # the count of steps
                    yield f"{names[parameter]}/{key}", torch.as_tensor(value, dtype=torch.float32).cpu()


def _fill_zero(model: nn.Module, zero: Any, by_name: Mapping[str, dict[str, Any]]) -> None:
    """The moments of a group are made first, of zeros; one that has never been stepped has none."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    for parameters, flat in _flat_groups(zero):
        moments = by_name.get(names[parameters[0]], {})
        zero.optimizer.state[flat].update(
            {key: _empty_moment(key, value, flat, zero) for key, value in moments.items()}
        )
    _link_parts(zero)
    for parameter, name in names.items():
        for key, value in by_name.get(name, {}).items():
            if value.dim():
                _set_moment(parameter, key, value)


def _empty_moment(key: str, value: Tensor, flat: Tensor, zero: Any) -> Any:
    if value.dim():
        return torch.zeros_like(flat)
    if "DeepSpeed" in type(zero.optimizer).__name__:  # its own Adam counts in ints
        return int(value)
    return value.to(flat.device if zero.optimizer.defaults.get("fused") else value.device, copy=True)


def _set_moment(parameter: nn.Parameter, key: str, value: Tensor) -> None:
    """This rank's part; of ZeRO-3 by the local accessor, as the other one fails where ranks do not divide the size."""
    from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

    if not hasattr(parameter, "ds_id"):
        safe_set_full_optimizer_state(parameter, value, key)
        return
    size, rank = parameter.ds_tensor.numel(), torch.distributed.get_rank()
    padded = nn.functional.pad(value.flatten(), (0, size * torch.distributed.get_world_size() - value.numel()))
    safe_set_local_optimizer_state(parameter, padded.narrow(0, size * rank, size), key)


def _link_parts(zero: Any) -> None:
    """Have ZeRO-1 and 2 know the owner of each part of their state: it is noted once, groups may come to life later."""
    from deepspeed.utils import lazy_init_hp_params_optimizer_state

    if hasattr(zero, "bit16_groups"):
        for parameters, flat in _flat_groups(zero):
            lazy_init_hp_params_optimizer_state(parameters, flat, zero.optimizer.state)


def all_finite(states: Iterable[Mapping[str, Tensor]]) -> bool:
    """Return whether no number in any of them is infinite or nan."""
    return all(bool(value.isfinite().all()) for state in states for value in state.values())
