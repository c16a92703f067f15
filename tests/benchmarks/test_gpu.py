"""What a turn on a GPU does, as far as a CPU shows: its dry run, its page, stages that fail, the forecast of memory."""

import json
import os
import subprocess
import sys
from argparse import Namespace

import pytest
from paths import ROOT

sys.path.append(str(ROOT / "benchmarks"))
import gpu
import step_memory
from step_memory import Memory

SIZES = [
    {"way": "bfloat16", "batch": 6, "images_per_s": 200.0, "share": 0.31, "memory_gib": 9.0, "forecast_gib": 8.5,
     "first_step_s": 2.0},
    {"way": "bfloat16", "batch": 12, "images_per_s": 300.0, "share": 0.4, "memory_gib": 14.0, "forecast_gib": 13.0,
     "first_step_s": 2.0},
    {"way": "bfloat16", "batch": 24, "images_per_s": None, "forecast_gib": 150.0},
]  # fmt: skip


@pytest.mark.thorough
@pytest.mark.slow
def test_the_dry_run_goes_all_the_way(tmp_path):
    words = [str(ROOT / "benchmarks" / "gpu.sh"), "--dry-run", "--out", str(tmp_path)]
    done = subprocess.run(
        words, env={**os.environ, "PYTHON": sys.executable}, capture_output=True, text=True, timeout=850
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert [*found["stages"]] == [*gpu.STAGES] and found["stages"]["correctness"]["right"]
    assert not [name for name, result in found["stages"].items() if "failure" in result]
    assert {line["way"] for line in found["stages"]["step"]["sizes"]} == {*gpu.WAYS}
    assert found["stages"]["epoch"]["minutes"] > 0 and found["stages"]["kernels"]["kernels"]
    output = (tmp_path / "gpu.md").read_text()
    assert all(f"## {name.capitalize()}" in output for name in gpu.STAGES) and "no figure means anything" in output


def test_the_page_says_what_failed_and_what_was_measured_until_then():
    facts = {"gpu": "a GPU", "revision": "1234567", "versions": {"torch": "2.14.1"}}
    stages = {
        "correctness": {"failure": "not done after 80 s", "seconds": 80.0},
        "step": {"failure": "CUDA error", "seconds": 9.0, "sizes": SIZES, "rates": {}},
        "epoch": {"seconds": 60.0, "batch": 12, "workers": 14, "cores": 16, "steps": 90, "images_per_s": 250.0,
                  "waits_for_data": 0.05, "loader_ahead": False, "minutes": 6.7, "asked_minutes": 10},
    }  # fmt: skip
    output = gpu.page({"machine": facts, "dry_run": False, "stages": stages, "seconds": 149.0})
    assert "a GPU; torch 2.14.1; 1234567; 149 s" in output and "**not done after 80 s**" in output
    assert "| bfloat16 | 12 | 300.0 | 40 % | 14.00 | 13.0 | 2.0 |" in output and "| 24 | does not fit |" in output
    assert "does NOT keep ahead (5.0 % of a step waits)" in output and "6.7 minutes, asked 10: met" in output


def test_later_stages_take_the_batch_that_was_fastest(tmp_path):
    turn = gpu.Turn(False, tmp_path, 0.0)
    assert turn.best == 6
    (tmp_path / "step.json").write_text(json.dumps({"sizes": SIZES}))
    assert turn.best == 12


def test_a_stage_that_takes_too_long_is_ended_and_keeps_what_it_had(tmp_path, monkeypatch):
    monkeypatch.setitem(gpu.LIMITS, "kernels", 0.05)
    monkeypatch.setattr(gpu, "DRY_RUN_FACTOR", 1)
    found = gpu.run("kernels", Namespace(out=tmp_path, dry_run=True))
    assert found["failure"] == "not done after 0.05 s" and found["seconds"] < 5


def test_all_stages_end_within_nine_minutes():
    assert {*gpu.LIMITS} == {*gpu.STAGES} and sum(gpu.LIMITS.values()) < 540


def test_without_a_gpu_the_dry_run_is_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit):
        gpu.main(["--out", str(tmp_path)])
    assert "there is no GPU: --dry-run" in capsys.readouterr().err


# ---- memory ----


def test_memory_grows_by_the_same_for_each_image():
    config = step_memory.of_recipe("tiny")
    memory = Memory(config, half=False)
    each = memory.of(1) - memory.of(0)
    assert each > 0 and memory.of(8) == pytest.approx(memory.of(0) + 8 * each)
    assert memory.largest(memory.of(5) + each / 2) == 5 and memory.largest(0) == 0


@pytest.mark.slow
def test_memory_is_about_what_a_process_takes():
    name, images, counted, measured, ratio = step_memory.beside("tiny", 16)
    assert (name, images) == ("tiny", "16") and 0.9 < float(ratio) < 1.2
