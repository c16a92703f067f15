"""Schedules: settings that change during a run, as pure functions of the samples seen.

A schedule is a number (constant) or a component, e.g. `{name: linear, begin: 180000, until: 1020000}`.
Everything counts samples, so that another batch size or number of processes trains the same method.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cssr.config.registry import Registry, Samples, Weight
from cssr.utils.annotations import fits

SCHEDULES = Registry("schedule")
_FAR = 10**15  # samples that no run reaches: every schedule has its last value there


@dataclass(frozen=True)
class Progress:
    """Progress of a run."""

    samples: int  # seen before this step
    total: int  # over the whole run


Schedule = Callable[[Progress], float]
ScheduleSetting = float | str | Mapping[str, Any]  # a number, or a component of SCHEDULES


def build_schedule(setting: ScheduleSetting) -> Schedule:
    """The schedule that a setting describes; a plain number is constant."""
    if not fits(setting, ScheduleSetting):
        raise ValueError(f"a schedule is a number or one of {', '.join(SCHEDULES.names())}; got {setting}")
    if isinstance(setting, (int, float)):
        return constant(float(setting))
    return SCHEDULES.build(setting)


def bounded_schedule(setting: ScheduleSetting, low: float, high: float, name: str) -> Schedule:
    """The schedule that a setting describes; ValueError, which names it, where a value leaves low..high."""
    schedule, ends = build_schedule(setting), breakpoints(setting)
    total = max(ends, default=0) + 1
    for samples in (0, *ends, total, _FAR):
        value = schedule(Progress(samples, total))
        if not low <= value <= high:
            raise ValueError(f"{name} must be {low:g} to {high:g}, got {value:g} at {samples} samples")
    return schedule


def breakpoints(setting: ScheduleSetting) -> list[int]:
    """The numbers of samples at which a schedule may turn: those in its setting."""
    numbers = setting.values() if isinstance(setting, Mapping) else []
    flat = [n for value in numbers for n in (value if isinstance(value, (list, tuple)) else [value])]
    return sorted({n for n in flat if isinstance(n, int) and not isinstance(n, bool) and n >= 0})


@SCHEDULES.register
def constant(value: float = 1.0) -> Schedule:
    """`value` throughout."""
    return lambda progress: value


@SCHEDULES.register
def linear(until: Samples, begin: Samples = 0, start: float = 0.0, end: float = 1.0) -> Schedule:
    """Ramp from `start` at `begin` samples to `end` at `until`, constant outside (CSBSR's rising beta)."""
    _check_window(begin, until)
    return lambda progress: start + (end - start) * _share(progress.samples, begin, until)


@SCHEDULES.register
def staircase(
    every: Samples, begin: Samples = 0, start: float = 1.0, end: float = 0.01, step: Weight = 0.01
) -> Schedule:
    """`start` less `step` after each `every` samples from `begin` on, down to `end`.

    CSSR's alpha of the boundary losses: 1 to 0.01, 0.01 an epoch, held at 1 while only SR trains (`begin`).
    """
    if every < 1:
        raise ValueError(f"schedule 'staircase': every must be at least 1 sample, got {every}")
    return lambda progress: max(end, start - step * (max(progress.samples - begin, 0) // every))


@SCHEDULES.register
def cosine(floor: float = 0.0, begin: Samples = 0, until: Samples | None = None) -> Schedule:
    """Half a cosine from 1 at `begin` to `floor` at `until` (the end of the run by default)."""

    def value(progress: Progress) -> float:
        share = _share(progress.samples, begin, until or progress.total)
        return floor + (1 - floor) * (1 + math.cos(math.pi * share)) / 2

    return value


@SCHEDULES.register
def steps(at: Sequence[Samples], factor: float = 0.1) -> Schedule:
    """1, multiplied by `factor` at each sample count of `at`."""
    return lambda progress: factor ** sum(progress.samples >= sample for sample in at)


@SCHEDULES.register
def window(begin: Samples, until: Samples, factor: float = 10.0) -> Schedule:
    """`factor` between `begin` and `until` samples, 1 outside (CSBSR's learning rate times 10)."""
    _check_window(begin, until)
    return lambda progress: factor if begin <= progress.samples < until else 1.0


def warmed_up(schedule: Schedule, warmup: int, start: float = 0.0) -> Schedule:
    """`schedule` times a linear rise from `start` to 1 over the first `warmup` samples."""
    if not warmup:
        return schedule
    return lambda progress: schedule(progress) * (start + (1 - start) * _share(progress.samples, 0, warmup))


def phase_at(phases: Sequence[Any], samples: int) -> Any:
    """The phase (with an `until`, None for the last) in which a run is after `samples` samples."""
    return next(phase for phase in phases if phase.until is None or samples < phase.until)


def _share(samples: int, begin: Samples, until: Samples) -> float:
    return min(max((samples - begin) / max(until - begin, 1), 0.0), 1.0)


def _check_window(begin: Samples, until: Samples) -> None:
    if until <= begin:
        raise ValueError(f"a schedule's until ({until}) must be beyond its begin ({begin}), in samples")
