"""Memory of a rank for a training step, estimated without allocating it.

Forward and backward pass run on fake tensors (shapes without contents) of the true crop and micro-batch, while every
live storage is counted. What no tensor holds is left out: the workspace of convolutions, the allocator's
gaps, the libraries themselves, the loader's processes, and validation on whole images.

DeepSpeed's own `estimate_zero2_model_states_mem_needs` counts weights of 16 bits, Adam and no activations; here weights
are float32 under autocast, the optimizer is any of timm's, and activations are most of the memory.
"""

import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import timm.optim
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cssr.config.schedules import Progress
from cssr.config.schema import Config
from cssr.data.batch import Batch
from cssr.launch.launch_file import LaunchFile
from cssr.models.joint import JointModel, build_model
from cssr.training.activation_checkpointing import recompute_blocks
from cssr.training.task import Task
from cssr.utils.text import message_of

FLOAT = 4  # bytes


@dataclass(frozen=True)
class Need:
    """A need for memory of a rank, in bytes, and its reason."""

    name: str
    bytes: float
    reason: str = ""


class LiveStorages(TorchDispatchMode):
    """Count the bytes of live storages that operations have made: `now`, and at most, `peak`.

    `own`: tensors that were there before; operations give views of them.
    """

    def __init__(self, own: Iterable[Tensor] = ()):
        super().__init__()
        self.now = self.peak = 0
        self._known: dict[int, Any] = {tensor.untyped_storage()._cdata: None for tensor in own}

    def __torch_dispatch__(self, operation: Callable, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = operation(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known[key] = weakref.finalize(storage, self._forget, key, size)
        self.now += size
        self.peak = max(self.peak, self.now)

    def _forget(self, key: int, size: int) -> None:
        self._known.pop(key, None)
        self.now -= size


class FakeTask:
    """A task on fake tensors: its shapes are true, it needs no memory.

    Raises: ValueError, one line, for settings that make no model.
    """

    def __init__(self, config: Config):
        self.config, self._mode = config, FakeTensorMode()
        with self._mode:
            self.model: JointModel = build_model(config.model)
            self.task = Task(self.model, config).train()
        if config.train.recompute:
            recompute_blocks(self.model)

    @property
    def parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.model.parameters())

    @property
    def bytes(self) -> int:
        """Bytes of parameters and buffers."""
        return _bytes([*self.model.parameters(), *self.model.buffers()])

    def groups(self) -> dict[str, int]:
        """Parameters by the group that phases weigh and hold still."""
        sizes = {name: parameter.numel() for name, parameter in self.model.named_parameters()}
        return {group: sum(sizes[name] for name in names) for group, names in self.model.groups().items()}

    def activations(self, micro_batch: int, kernel: tuple[int, ...] | None, half: bool) -> int:
        """Bytes that forward and backward pass of a micro-batch need beside the weights and their gradients, at most.

        Args:
            kernel: shape of the blur kernel that the degradation gives (1 k k).
            half: whether under bfloat16 autocast.
        """
        with self._mode:
            batch = self._batch(micro_batch, kernel)
            total = self.config.train.steps * self.config.train.batch_size
            progress = Progress(total - self.config.train.batch_size, total)  # the joint phase: all losses count
            inputs = [value for value in vars(batch).values() if isinstance(value, Tensor)]
            with LiveStorages([*self.model.parameters(), *self.model.buffers(), *inputs]) as live:
                with torch.autocast("cpu", torch.bfloat16, enabled=half):
                    loss = self.task(batch, progress)["loss"]
                forward = live.peak
                loss.backward()
        self.model.zero_grad(set_to_none=True)
        return _bytes(inputs) + max(forward, live.peak - FLOAT * self.parameters)

    def _batch(self, count: int, kernel: tuple[int, ...] | None) -> Batch:
        side, scale = self.config.data.crop, self.config.model.scale
        return Batch(
            hr=torch.zeros(count, 3, side, side),
            mask=torch.zeros(count, 1, side, side),
            distance=torch.zeros(count, 1, side, side) if self.task.needs_distance else None,
            lq=torch.zeros(count, 3, side // scale, side // scale),
            kernel=torch.zeros(count, *kernel) if kernel else None,
        )


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def make_optimizer(config: Config) -> torch.optim.Optimizer:
    """The optimizer of the settings, of a small network's parameters, once stepped; ValueError if it refuses them."""
    sample = nn.Sequential(nn.Conv2d(16, 32, 3), nn.Conv2d(32, 16, 1))
    try:
        optimizer = timm.optim.create_optimizer_v2(
            sample, opt=config.optim.optimizer, lr=config.optim.lr, **config.optim.arguments
        )
    except (TypeError, ValueError, ImportError, AssertionError) as error:
        refused = f"optim: {config.optim.optimizer} refuses its settings: {message_of(error)}"
        raise ValueError(refused) from error
    for parameter in sample.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return optimizer


def state_values_per_parameter(optimizer: torch.optim.Optimizer) -> float:
    """Float32 values of its state for each parameter, counted in one that has stepped."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    tensors = [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
    return _bytes(value for value in tensors if value.numel() > 1) / _bytes(parameters)


def needs(launch: LaunchFile, fake: FakeTask, optimizer: torch.optim.Optimizer, activations: int) -> list[Need]:
    """The needs of a rank on its device during a step."""
    each = state_values_per_parameter(optimizer)
    strategy_needs = {1: _zero, 2: _zero, 3: _zero3}.get(launch.zero_stage, _plain)
    strategy_needs = _fsdp if launch.strategy == "fsdp" else strategy_needs
    needed = strategy_needs(launch, fake, each)
    if fake.config.optim.ema:
        needed.append(Need("average", fake.bytes, "optim.ema"))
    return [*needed, Need("activations", activations, "with the batch and what the losses need")]


def bytes_on_cpu(launch: LaunchFile, fake: FakeTask, optimizer: torch.optim.Optimizer) -> float:
    """Bytes of a rank that the strategy has put into the CPU's memory: weights, gradients and state of its part."""
    part = FLOAT * fake.parameters / launch.world
    return part * (2 + state_values_per_parameter(optimizer)) if launch.offloads else 0.0


def _plain(launch: LaunchFile, fake: FakeTask, each: float) -> list[Need]:
    size = FLOAT * fake.parameters
    needed = [Need("model", fake.bytes), Need("gradients", size), _state(size * each, each)]
    return [*needed, Need("exchange", size, "DDP's buckets")] if launch.strategy == "ddp" else needed


def _zero(launch: LaunchFile, fake: FakeTask, each: float) -> list[Need]:
    """ZeRO-1 and 2 keep a second float32 copy of a rank's part of the weights beside the state."""
    size, stage = FLOAT * fake.parameters, launch.zero_stage
    part = size / launch.world
    gradients = Need("gradients", size if stage == 1 else 0 if launch.offloads else part, _part(launch, stage > 1))
    state = Need("optimizer", 0, "on the CPU") if launch.offloads else _state(part * (each + 1), each, launch)
    return [Need("model", fake.bytes), gradients, state, Need("exchange", size, "DeepSpeed's bucket")]


def _zero3(launch: LaunchFile, fake: FakeTask, each: float) -> list[Need]:
    """DeepSpeed lets up to a thousand million gathered weights live, which is all of such networks."""
    size = FLOAT * fake.parameters
    part = size / launch.world
    state = Need("optimizer", 0, "on the CPU") if launch.offloads else _state(part * (each + 1), each, launch)
    return [
        Need("model", fake.bytes - size + part, _part(launch)),
        Need("gathered", size, "weights, whole while they are used"),
        Need("gradients", 0 if launch.offloads else part, _part(launch)),
        state,
        Need("exchange", size, "DeepSpeed's bucket"),
    ]


def _fsdp(launch: LaunchFile, fake: FakeTask, each: float) -> list[Need]:
    """The file wraps the network as a whole: all weights and gradients are there at once, in the lower precision."""
    size = FLOAT * fake.parameters
    part, gathered = size / launch.world, size / (1 if launch.precision == "no" else 2)
    return [
        Need("model", fake.bytes - size + part, _part(launch)),
        Need("gathered", 2 * gathered, "weights and gradients, whole while they are used"),
        Need("gradients", part, _part(launch)),
        _state(part * each, each, launch),
    ]


def _state(size: float, each: float, launch: LaunchFile | None = None) -> Need:
    copy = " and its own float32 weights" if launch and launch.zero_stage else ""
    part = f", {_part(launch)}" if launch else ""
    return Need("optimizer", size, f"{each:.3g} values a parameter{copy}{part}")


def _part(launch: LaunchFile, in_parts: bool = True) -> str:
    return f"1/{launch.world} of them" if in_parts else ""


def largest_micro_batch(needed: Mapping[str, float], memory: float, micro_batch: int) -> int:
    """The micro-batch that would fit, where activations grow with it; 0 if none does."""
    fixed = sum(size for name, size in needed.items() if name != "activations")
    return max(int((memory - fixed) / (needed["activations"] / micro_batch)), 0)
