"""Scaling: figures of what is measured, the launch files, and how a run that fails is reported."""

import sys

import pytest
from paths import ROOT

sys.path.append(str(ROOT / "benchmarks"))

import scaling


def test_ratio_of_medians():
    """Ten samples in 0.5 s by one, twenty in 0.625 s by two: 1.6 times; rounds 1.5 and 2."""
    one = scaling.Case("one", "cpu.yaml", 1, [[0.45, 0.6, 0.4], [0.5, 0.5, 0.5]])
    two = scaling.Case("two", "cpu_2proc.yaml", 2, [[0.6, 0.6, 0.65], [0.65, 0.65, 0.5]])
    found = scaling.summary(two, one, 10)
    assert found["step_seconds"] == pytest.approx(0.625) and found["images_per_s"] == pytest.approx(32)
    assert found["ratio"] == pytest.approx(1.6) and found["ratio_of_rounds"] == pytest.approx([1.5, 20 / 13])
    assert scaling.summary(one, one, 10)["ratio"] == 1


def test_differences_of_losses():
    found = scaling.differences("rank", [2.0] * 40, [2.0] * 20 + [3.0] * 10 + [2.0] * 10)
    assert found["mean"] == pytest.approx(0.125) and found["largest"] == 0.5
    assert found["mean_of_last_20"] == pytest.approx(0.25)


def test_a_gpu_is_measured_by_the_same_launch_files():
    for on_device in (False, True):
        for case in scaling.cases(on_device, strategies=True):
            assert (ROOT / "launch" / case.file).is_file() and case.ranks == (1 if on_device else case.ranks)
    assert [case.ranks for case in scaling.cases(False, False)] == [1, 2]


def test_a_run_that_fails_is_told_in_its_own_line():
    assert scaling.reason("W1 warning\nerror: optim.ema=0.9 does not go\nTraceback\n") == "optim.ema=0.9 does not go"
    assert scaling.reason("Killed") == "Killed"


@pytest.mark.parametrize("arguments", [["--steps", "2"], ["--rounds", "0"]])
def test_mistakes_end_with_a_line(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        scaling.main(arguments)
    assert ended.value.code == 2 and arguments[0] in capsys.readouterr().err
