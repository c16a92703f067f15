"""The benchmarks' common ground: what is compared, what is reported, and that the rest continues where a part fails."""

import json
import sys

import numpy as np
import pytest
import torch
from paths import ROOT

sys.path.append(str(ROOT / "benchmarks"))
import harness
import run
import tables
from harness import Limit, Pair, Result, Settings

QUICK = Settings(threads=1, quick=True)


def pair(name: str = "p", plain=lambda: 1.0, ours=lambda: 1.0, **rest) -> Pair:
    return Pair(name, "plainly", plain, ours, rounds=1, **rest)


# ---- differences ----


@pytest.mark.parametrize("plain, ours, expected", [
    (1.0, 3.0, 2.0),
    (np.ones(3), torch.tensor([1.0, 1.5, 1.0]), 0.5),
    ({"a": [1, 2]}, {"a": (1, 4)}, 2.0),
    (torch.zeros(2, 3), torch.zeros(3, 2), float("inf")),
    ([], [], 0.0),
])  # fmt: skip
def test_differences(plain, ours, expected):
    assert harness.largest_difference(plain, ours) == expected


def test_results_that_differ_are_a_failure_and_the_rest_continues():
    found = [pair("first", ours=lambda: 2.0), pair("nan", ours=lambda: float("nan")), pair("second")]
    results, failures = harness.gather(lambda quick: found, QUICK)
    assert [result.name for result in results] == ["second"] and results[0].difference == 0
    assert [failure["name"] for failure in failures] == ["first", "nan"] and "differ by 1" in failures[0]["reason"]


def test_a_part_that_breaks_keeps_what_it_had():
    def broken(quick):
        yield pair("whole")
        raise ValueError("no data")

    results, failures = harness.gather(broken, QUICK)
    assert [result.name for result in results] == ["whole"] and failures[0]["reason"] == "ValueError: no data"


# ---- figures ----


def test_turns_alternate_and_each_is_warm(monkeypatch):
    seen = []
    monkeypatch.setattr(harness, "SHORTEST", 0.0)
    harness.in_turn([lambda: seen.append("a"), lambda: seen.append("b")], "wall", 2)
    assert "".join(seen) == "ab" + "ab" + "ba"


def test_shares_of_bounds(monkeypatch):
    """4 items in a call: 2 s and 2 TFLOP a call of 4 TFLOP/s; 3 TB a call of 2 TB/s take longer, and are the bound."""
    rates = {"copy": 2e12, "matmul float32": 4e12, "conv float32": 1e12}
    monkeypatch.setattr(harness.machine, "rates", lambda *_: rates)
    slow = pair(items=4, limit=Limit(flops=2e12))
    assert harness.bounded(slow, 0.5, None, "wall", 1) == {
        "by": "arithmetic, float32", "achieved": 1e12, "rate": 4e12, "share": 0.25,
    }  # fmt: skip
    both = harness.bounded(pair(items=4, limit=Limit(flops=2e12, bytes=3e12)), 0.5, None, "wall", 1)
    assert both["by"] == "memory" and both["share"] == 0.75
    bare = harness.bounded(pair(limit=Limit(bare=lambda: 0, bare_name="decoding")), 2.0, 0.5, "wall", 1)
    assert bare == {"by": "decoding", "achieved": 2.0, "rate": 0.5, "share": 0.25}


def test_a_result_is_what_is_asked_or_not():
    assert Result("a", "b", 10, 2, asked=5).met and not Result("a", "b", 10, 2.1, asked=5).met
    assert Result("a", "b", 10, 2).met is None and Result("a", "b", 10, 2).ratio == 5


@pytest.mark.parametrize(
    "value, unit, text",
    [(2.5, "s", "2.5 s"), (0.0123, "s", "12.3 ms"), (3e-9, "s", "0.003 us"), (3 << 29, "B", "1.5 GiB")],
)
def test_figures(value, unit, text):
    assert tables.figure(value, unit) == text


# ---- the command ----


def test_a_part_alone_writes_its_report(tmp_path, capsys):
    path = tmp_path / "found.json"
    with pytest.raises(SystemExit) as ended:
        harness.command("Doc.", lambda quick: [Result("it", "plainly", 3, 1, asked=2)], ["--json", str(path)])
    found = json.loads(path.read_text())
    assert ended.value.code == 0 and found["results"][0]["ratio"] == 3 and found["results"][0]["met"]
    assert "plainly" in capsys.readouterr().out and [p.name for p in tmp_path.iterdir()] == ["found.json"]


def test_a_part_that_leaves_no_report_is_named_and_the_rest_is_shown(tmp_path, monkeypatch, capsys):
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "losses.py").write_text("raise SystemExit(3)")
    line = {"name": "it", "formulation": "plainly", "plain": 3, "ours": 1, "asked": None, "unit": "s", "item": "",
            "threads": 1, "rounds": [], "bound": {}, "ratio": 3, "met": None}  # fmt: skip
    report = {"settings": {"threads": 1}, "rates": [], "results": [line], "failures": []}
    code = f"import sys, pathlib; pathlib.Path(sys.argv[-1]).write_text({json.dumps(json.dumps(report))})"
    (tmp_path / "parts" / "data.py").write_text(code)
    monkeypatch.setattr(run, "HERE", tmp_path / "parts")
    assert run.main(["--only", "losses", "data", "--out", str(tmp_path / "out")]) == 1
    assert "FAILED losses: no report (exit status 3)" in capsys.readouterr().out
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["report.json"]
    assert run.main(["--markdown", "--out", str(tmp_path / "out")]) == 0
    assert "| it | plainly | 3 s | 1 s | 3 |" in capsys.readouterr().out


def test_a_report_that_is_missing_is_reported(tmp_path, capsys):
    with pytest.raises(SystemExit):
        run.main(["--markdown", "--out", str(tmp_path)])
    assert "run the benchmarks first" in capsys.readouterr().err


def test_every_part_is_there():
    assert [part for part in run.PARTS if not (run.HERE / f"{part}.py").is_file()] == []
