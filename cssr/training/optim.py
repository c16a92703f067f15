"""Optimizer, learning rates, and parameter groups that are held still (frozen) for a part of a run."""

from collections.abc import Iterable, Iterator
from typing import Literal

import timm.optim
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from cssr.config.registry import did_you_mean
from cssr.config.schedules import Progress, bounded_schedule, warmed_up
from cssr.config.schema import Config, PhaseConfig
from cssr.models.encoders import layers_from_the_end
from cssr.models.joint import JointModel, parent_of
from cssr.utils import distributed as engines
from cssr.utils.text import message_of

_FUSED = (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD)  # with an update in one call, on CPUs and GPUs
# Arguments that choose how the update is computed.
_IMPLEMENTATIONS = {"fused", "foreach", "capturable", "differentiable"}


def build_optimizer(model: JointModel, config: Config) -> torch.optim.Optimizer:
    """The optimizer of the settings, one parameter group for each of the model's groups that has parameters.

    With `optim.layer_decay` the encoder's is one group a layer. It is the fused one where there is one, unless
    `optim.arguments` chooses (`fused: false`).
    """
    settings, parameters = config.optim, dict(model.named_parameters())
    groups = [
        {"params": [parameters[name] for name in names], "group": group, "factor": factor}
        for group, names, factor in _by_layer(model, settings.layer_decay)
    ]
    if settings.optimizer not in timm.optim.list_optimizers():
        raise ValueError(
            f"optim.optimizer: unknown {settings.optimizer!r}"
            f"{did_you_mean(settings.optimizer, timm.optim.list_optimizers())}"
        )
    try:
        kind = timm.optim.get_optimizer_class(settings.optimizer, bind_defaults=False)
        fused = {"fused": True} if kind in _FUSED and not _IMPLEMENTATIONS & settings.arguments.keys() else {}
        basic = {"opt": settings.optimizer, "lr": settings.lr, "weight_decay": settings.weight_decay}
        arguments = dict(**basic, **fused, **settings.arguments)
        weight = nn.Parameter(torch.zeros(2, 2))  # a dummy: some settings are refused only when a step is taken
        weight.grad = torch.zeros(2, 2)
        timm.optim.create_optimizer_v2([weight], **arguments).step()
        return timm.optim.create_optimizer_v2(groups, **arguments)
    except Exception as error:  # optimizers refuse settings in every way: IndexError, KeyError, ...
        reason = message_of(error)[:300]
        raise ValueError(f"optim: {settings.optimizer} refuses its settings: {reason}") from error


def _by_layer(model: JointModel, decay: float | None) -> Iterator[tuple[str, list[str], float]]:
    """Group, parameter names and factor on the learning rate."""
    for group, names in model.groups().items():
        if group != "encoder" or decay is None:
            yield from [(group, names, 1.0)] if names else []
            continue
        layers: dict[int, list[str]] = {}
        for name, layer in zip(names, layers_from_the_end(model.seg, names)):
            layers.setdefault(layer, []).append(name)
        yield from ((group, of_layer, decay**layer) for layer, of_layer in sorted(layers.items()))
    if decay is not None and "encoder" not in model.groups():
        raise ValueError("optim.layer_decay needs a segmentation network on an encoder: model.seg=unet, pspnet or smp")


def skipping_part(engine: Accelerator, optimizer: torch.optim.Optimizer) -> Literal["engine", "device", "host"]:
    """Determine what skips a step with a loss that is not finite: the engine, the device or the host.

    DeepSpeed and loss scaling do by themselves, as the gradients are nan. Fused Adam and AdamW read a flag on the
    device. For any other optimizer the host reads it before the update. Fused SGD does not count as it allocates its
    momentum in the first step, and never fills it where that is skipped; nor does FSDP, as its tensors are no plain
    ones.
    """
    if engines.uses_deepspeed(engine) or engine.scaler is not None:
        return "engine"
    fused = isinstance(optimizer, torch.optim.Adam) and bool(optimizer.defaults.get("fused"))
    return "device" if fused and not engines.flattens(engine) else "host"


class LearningRate:
    """lr x schedule x warm-up x the phase's factor x the layer's, for each group, as a function of the samples seen."""

    def __init__(self, config: Config):
        self.base, self.batch_size = config.optim.lr, config.train.batch_size
        schedule = bounded_schedule(config.optim.schedule, 0, 1e6, "optim.schedule")
        self.factor = warmed_up(schedule, config.optim.warmup, config.optim.warmup_start)

    def apply(self, optimizer: torch.optim.Optimizer, progress: Progress, phase: PhaseConfig) -> float:
        """Set every group's learning rate for the next step; returns that of an unscaled group."""
        lr = self.base * self.factor(progress)
        for group in optimizer.param_groups:
            group["lr"] = lr * factor_of(group["group"], phase) * group.get("factor", 1.0)
        return lr


def factor_of(group: str, phase: PhaseConfig) -> float:
    """The phase's factor on a group's learning rate; the encoder's is segmentation's unless it has its own."""
    return phase.lr.get(group, phase.lr.get(parent_of(group), 1.0))


def held_groups(groups: Iterable[str], phase: PhaseConfig, step: int) -> frozenset[str]:
    """The parameter groups that a phase holds still at a step of the run, its turns included."""
    trained = turn = None
    if phase.alternate:
        trained = {group for turn in phase.alternate for group in turn}
        turn = set(phase.alternate[step % len(phase.alternate)])

    def waits(group: str) -> bool:
        named = group if trained and group in trained else parent_of(group)
        return bool(trained) and named in trained and named not in turn

    return frozenset(group for group in groups if factor_of(group, phase) == 0 or waits(group))


class Hold:
    """Holds parameter groups still under any engine, without a switch that would change the graph.

    Their gradients become zero before any engine gathers them, so that they do not count in the clipped norm; and the
    optimizer sees none for them at its step, whatever flat or partitioned form the engine has given its parameters.
    With zeros there, Adam's moments would fade and its step count run on during the rest, and the first update after
    it would be sqrt(10) times the learning rate.
    """

    def __init__(self, model: JointModel, optimizer: torch.optim.Optimizer):
        self.groups: frozenset[str] = frozenset()
        parameters = dict(model.named_parameters())
        for group, names in model.groups().items():
            for name in names:
                self._watch(parameters[name], group)
        self._hidden: list[tuple[Tensor, Tensor | None]] = []
        optimizer.register_step_pre_hook(self._hide)
        optimizer.register_step_post_hook(self._show)

    def _watch(self, parameter: nn.Parameter, group: str) -> None:
        parameter.register_hook(lambda gradient: torch.zeros_like(gradient) if group in self.groups else None)

    def _hide(self, optimizer: torch.optim.Optimizer, *_: object) -> None:
        for group in optimizer.param_groups:
            if group["group"] in self.groups:
                self._hidden += [(parameter, parameter.grad) for parameter in group["params"]]
        for parameter, _ in self._hidden:
            parameter.grad = None

    def _show(self, *_: object) -> None:
        """Engines that offload keep these buffers from step to step."""
        for parameter, gradient in self._hidden:
            parameter.grad = gradient
        self._hidden.clear()
