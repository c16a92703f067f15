"""Optimizer, learning rates and what holds a parameter group still."""

import timm.optim
import torch

from cssr.config import Config, PhaseConfig
from cssr.models.joint import JointModel
from cssr.registry import did_you_mean
from cssr.schedules import SCHEDULES, Progress, warmed_up


def build_optimizer(model: JointModel, config: Config) -> torch.optim.Optimizer:
    """The optimizer of the settings, one parameter group for each of the model's groups that has parameters."""
    settings, parameters = config.optim, dict(model.named_parameters())
    groups = [
        {"params": [parameters[name] for name in names], "group": group}
        for group, names in model.groups().items()
        if names
    ]
    if settings.optimizer not in timm.optim.list_optimizers():
        raise ValueError(
            f"optim.optimizer: unknown {settings.optimizer!r}"
            f"{did_you_mean(settings.optimizer, timm.optim.list_optimizers())}"
        )
    try:
        return timm.optim.create_optimizer_v2(
            groups, opt=settings.optimizer, lr=settings.lr, weight_decay=settings.weight_decay, **settings.arguments
        )
    except (TypeError, ValueError, ImportError, AssertionError) as error:
        raise ValueError(f"optim: {settings.optimizer} refuses its settings: {' '.join(str(error).split())}") from error


class LearningRate:
    """lr x schedule x warm-up x the phase's factor, for each parameter group, as a function of the samples seen."""

    def __init__(self, config: Config):
        self.base = config.optim.lr
        schedule = SCHEDULES.build(config.optim.schedule)
        self.factor = warmed_up(schedule, config.optim.warmup, config.optim.warmup_start)

    def apply(self, optimizer: torch.optim.Optimizer, progress: Progress, phase: PhaseConfig) -> float:
        """Set every group's learning rate for the next step; returns that of an unscaled group."""
        lr = self.base * self.factor(progress)
        for group in optimizer.param_groups:
            group["lr"] = lr * phase.lr.get(group["group"], 1.0)
        return lr


def held_groups(phase: PhaseConfig) -> frozenset[str]:
    """The parameter groups that a phase holds still."""
    return frozenset(group for group, factor in phase.lr.items() if factor == 0)


def drop_held_gradients(optimizer: torch.optim.Optimizer, held: frozenset[str]) -> None:
    """Take the gradients of groups held still away: they count neither in the clipped norm nor in the moments.

    With zeros instead, Adam's moments would fade and its step count run on during the rest, and the first update after
    it would be sqrt(10) times the learning rate.
    """
    for group in optimizer.param_groups:
        if group["group"] in held:
            for parameter in group["params"]:
                parameter.grad = None
