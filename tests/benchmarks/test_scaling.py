"""Scaling: closed forms against numbers by hand, and the page's table."""

import re
import sys

import pytest
from paths import ROOT

sys.path.append(str(ROOT / "benchmarks"))

import scaling
from forecast import LINKS, Prediction, arithmetic_seconds, exchanged, markdown, predict, step_seconds
from harness import write
from model_sizes import sizes

from cssr.config.loading import load_config

PAGE = ROOT / "docs" / "scaling.md"

# ---- on paper ----


@pytest.mark.parametrize(
    "strategy, ranks, expected",
    [("ddp", 2, 4000), ("ddp", 8, 7000), ("zero1", 8, 7000), ("zero2", 8, 7000), ("zero3", 8, 10500), ("ddp", 1, 0)],
)
def test_bytes_that_a_rank_sends_for_a_thousand_parameters(strategy, ranks, expected):
    assert exchanged(strategy, 1000, ranks) == pytest.approx(expected)


@pytest.mark.parametrize(
    "exchange, overlaps, expected", [(1, False, 4), (1, True, 3), (2, True, 3), (5, True, 6), (5, False, 8)]
)
def test_a_step_of_three_seconds_hides_two_at_most(exchange, overlaps, expected):
    assert step_seconds(3, exchange, overlaps) == pytest.approx(expected)


def test_arithmetic_of_a_step():
    assert arithmetic_seconds(macs=1e9, batch=5, peak=1e12, share=0.3) == pytest.approx(0.1)


def test_a_prediction_by_hand():
    """8 GPUs over 450 GB/s: 2 x 7/8 x 4 x 90e6 bytes take 1.4 ms; 10.0 ms become 11.4, or stay."""
    found = next(row for row in predict([0.01], 5, 90e6) if row.link == "NVLink")
    assert found.exchange == pytest.approx(1.4e-3) and found.gpus == 8
    assert found.images(overlaps=False) == pytest.approx(40 / 0.0114) and found.images(overlaps=True) == 4000
    assert found.share(overlaps=False) == pytest.approx(10 / 11.4) and found.share(overlaps=True) == 1


def test_bounds_are_in_order_and_no_link_is_left_out():
    found = predict([1e-3, 1e-2, 1.0], 6, 90e6)
    assert {row.link for row in found} == set(LINKS) and {row.gpus for row in found} == {8, 64}
    for row in found:
        assert row.images(overlaps=False) <= row.images(overlaps=True) <= row.gpus * row.batch / row.alone * (1 + 1e-12)


# ---- the page ----


def page_rows(text: str) -> list[list[str]]:
    """Cells of the table of predictions."""
    after = text.partition("| GPUs |")[2].partition("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in after]


def test_the_page_has_the_table_that_its_command_prints(capsys):
    text = PAGE.read_text(encoding="utf-8")
    command = re.search(r"python benchmarks/scaling.py (--predict .*)", text)
    scaling.main(command[1].split())
    printed = capsys.readouterr().out
    assert len(page_rows(text)) == 12 and page_rows(text) == page_rows(printed)


def test_step_times_of_the_page_are_those_shares_of_the_peak():
    config = load_config(ROOT / "configs" / "csbsr_pspnet.yaml", ["model.seg.pretrained=false"])
    groups, macs = sizes(config.model)
    assert sum(groups.values()) == pytest.approx(scaling.PARAMETERS, rel=1e-3)
    defaults = scaling.parser().parse_args([])
    expected = [arithmetic_seconds(macs, defaults.batch, 990e12, share) for share in (0.5, 0.3, 0.1)]
    assert defaults.step_seconds == pytest.approx(expected, rel=0.01)


def test_markdown_of_one_row():
    line = markdown([Prediction(64, "InfiniBand", 0.02, 0.02, 5)])[-1]
    assert line == "| 64 | InfiniBand | 20.0 | 20.0 | 8,000 (50 %) | 12,000 (75 %) |"


# ---- what is measured ----


def test_ratio_of_medians():
    """Ten samples in 0.5 s by one, twenty in 0.625 s by two: 1.6 times; rounds 1.5 and 2."""
    one = scaling.Case("one", "cpu.yaml", 1, [[0.45, 0.6, 0.4], [0.5, 0.5, 0.5]])
    two = scaling.Case("two", "cpu_2proc.yaml", 2, [[0.6, 0.6, 0.65], [0.65, 0.65, 0.5]])
    found = scaling.summary(two, one, 10)
    assert found["step_seconds"] == pytest.approx(0.625) and found["images_per_s"] == pytest.approx(32)
    assert found["ratio"] == pytest.approx(1.6) and found["ratio_of_rounds"] == pytest.approx([1.5, 20 / 13])
    assert scaling.summary(one, one, 10)["ratio"] == 1


def test_a_gpu_is_measured_by_the_same_launch_files():
    for on_device in (False, True):
        for case in scaling.cases(on_device, strategies=True):
            assert (ROOT / "launch" / case.file).is_file() and case.ranks == (1 if on_device else case.ranks)
    assert [case.ranks for case in scaling.cases(False, False)] == [1, 2]


def test_a_run_that_fails_is_reported_in_its_own_line():
    assert scaling.reason("W1 warning\nerror: optim.ema=0.9 does not go\nTraceback\n") == "optim.ema=0.9 does not go"
    assert scaling.reason("Killed") == "Killed"


@pytest.mark.parametrize("arguments", [["--steps", "2"], ["--rounds", "0"]])
def test_mistakes_end_with_a_line(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        scaling.main(arguments)
    assert ended.value.code == 2 and arguments[0] in capsys.readouterr().err


def test_a_report_is_written_whole(tmp_path):
    write({"a": 1}, tmp_path / "found.json")
    assert [path.name for path in tmp_path.iterdir()] == ["found.json"]
