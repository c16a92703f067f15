"""Schedules against their closed forms, at the edges above all; phases."""

import math

import pytest

from cssr.config.schedules import SCHEDULES, Progress, build_schedule, phase_at, warmed_up
from cssr.config.schema import PhaseConfig


def at(setting, samples: int, total: int = 1000) -> float:
    return build_schedule(setting)(Progress(samples, total))


@pytest.mark.parametrize("samples", [0, 1, 999, 10**9])
def test_a_number_is_constant(samples):
    assert at(0.3, samples) == 0.3 and at(2, samples) == 2.0 and at("constant", samples) == 1.0


@pytest.mark.parametrize(
    "samples, value", [(0, 3.0), (100, 3.0), (101, 2.99), (150, 2.5), (199, 2.01), (200, 2.0), (10**9, 2.0)]
)
def test_linear(samples, value):
    setting = {"name": "linear", "begin": 100, "until": 200, "start": 3.0, "end": 2.0}
    assert at(setting, samples) == pytest.approx(value, abs=1e-12)


@pytest.mark.parametrize(
    "samples, value",
    [(0, 1.0), (39, 1.0), (40, 1.0), (49, 1.0), (50, 0.99), (59, 0.99), (60, 0.98), (1029, 0.02), (1030, 0.01)],
)
def test_staircase_goes_down_by_a_hundredth_an_epoch(samples, value):
    assert at({"name": "staircase", "every": 10, "begin": 40}, samples) == pytest.approx(value, abs=1e-12)


def test_staircase_ends_at_its_floor():
    assert at({"name": "staircase", "every": 10}, 10**9) == 0.01


@pytest.mark.parametrize(
    "share, value", [(0, 1.0), (0.25, 0.1 + 0.9 * (2 + 2**0.5) / 4), (0.5, 0.55), (1, 0.1), (2, 0.1)]
)
def test_cosine_by_default_ends_with_the_run(share, value):
    assert at({"name": "cosine", "floor": 0.1}, round(1000 * share)) == pytest.approx(value)


@pytest.mark.parametrize("samples, value", [(0, 1.0), (200, 1.0), (300, 0.5), (400, 0.0), (900, 0.0)])
def test_cosine_between_given_samples(samples, value):
    assert at({"name": "cosine", "begin": 200, "until": 400}, samples) == pytest.approx(value, abs=1e-12)


@pytest.mark.parametrize("samples, value", [(0, 1), (99, 1), (100, 0.5), (199, 0.5), (200, 0.25), (999, 0.25)])
def test_steps(samples, value):
    assert at({"name": "steps", "at": [100, 200], "factor": 0.5}, samples) == value


@pytest.mark.parametrize("samples, value", [(0, 1), (99, 1), (100, 7), (199, 7), (200, 1)])
def test_window(samples, value):
    assert at({"name": "window", "begin": 100, "until": 200, "factor": 7}, samples) == value


@pytest.mark.parametrize("samples, value", [(0, 0.2), (50, 0.6), (99, 0.992), (100, 1.0), (500, 1.0)])
def test_warm_up(samples, value):
    schedule = warmed_up(build_schedule(3.0), warmup=100, start=0.2)
    assert schedule(Progress(samples, 1000)) == pytest.approx(3 * value)


def test_no_warm_up_leaves_the_schedule_alone():
    schedule = build_schedule(3.0)
    assert warmed_up(schedule, 0)(Progress(0, 10)) == 3.0


@pytest.mark.parametrize(
    "setting, message",
    [
        (True, "a schedule is a number"),
        (None, "a schedule is a number"),
        ("linaer", "did you mean linear"),
        ("linear", "needs until"),
        ({"name": "linear", "until": 5, "begin": 5}, r"until \(5\)"),
        ({"name": "window", "until": 5, "begin": 6}, r"until \(5\)"),
        ({"name": "staircase", "every": 0}, "every"),
    ],
)
def test_what_is_no_schedule(setting, message):
    with pytest.raises(ValueError, match=message):
        build_schedule(setting)


EXAMPLES = {
    "constant": {"value": 0.4},
    "linear": {"begin": 10, "until": 90},
    "staircase": {"every": 7},
    "cosine": {"floor": 0.2},
    "steps": {"at": [10, 40]},
    "window": {"begin": 3, "until": 50},
}


@pytest.mark.parametrize("name", SCHEDULES.names())
def test_every_schedule_is_a_finite_pure_function(name):
    """Asked in another order, by a fresh object, it says the same."""
    setting, places = {"name": name, **EXAMPLES[name]}, [0, 1, 10, 50, 99, 100, 101, 10**7]
    forth, back = build_schedule(setting), build_schedule(setting)
    values = {n: forth(Progress(n, 100)) for n in places}
    assert values == {n: back(Progress(n, 100)) for n in reversed(places)}
    assert all(math.isfinite(value) for value in values.values())


@pytest.mark.parametrize("samples, name", [(0, "a"), (9, "a"), (10, "b"), (29, "b"), (30, "c"), (10**9, "c")])
def test_phase_at(samples, name):
    phases = [PhaseConfig("a", 10), PhaseConfig("b", 30), PhaseConfig("c")]
    assert phase_at(phases, samples).name == name
