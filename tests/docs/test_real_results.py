"""The tables of docs/results.md: numbers from evaluations, paired differences, Markdown."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from paths import ROOT

SCRIPT = ROOT / "docs" / "real_results.py"


@pytest.fixture
def script(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("real_results", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "NUMBERS", tmp_path / "numbers" / "real.json")
    return module


def rows(names: list[str], crack: int, hit: int, width_error: float, sigma: float = 2.0) -> list[dict]:
    """Images of `crack` crack pixels, of which `hit` are found at every threshold, and nothing else."""
    counts = {"tp": [hit] * 99, "fp": [0] * 99, "fn": [crack - hit] * 99}
    extra = {"pixels": 1000, "cliou": hit / crack, "width_error": width_error, "blur_sigma": sigma, "psnr": 30.0}
    return [{"key": name, **counts, **extra} for name in names]


def write(root: Path, system: str, part: str, content: list[dict]) -> None:
    folder = root / system / f"heldout_{part}_sigma_0.2_4.0"
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps({"per_image": content}))


@pytest.fixture
def results(tmp_path) -> Path:
    """Two systems on three sets of four images; one has two seeds, of 0.5 and 0.7."""
    for part in ("uav315_test", "uav75", "crackmap"):
        names = [f"{part}-{k}" for k in range(4)]
        write(tmp_path / "results", "hr", part, rows(names, 100, 80, 1.0))
        for seed, hit in enumerate((50, 70)):
            write(tmp_path / "results", f"csbsr_task_driven_seed{seed}", part, rows(names, 100, hit, 2.0 + seed))
    return tmp_path / "results"


def test_seeds_count_as_one_system_and_sets_are_pooled(script, results, tmp_path):
    (tmp_path / "clean.txt").write_text("uav315_test-1\n")
    script.main(["collect", str(results), "--clean", str(tmp_path / "clean.txt")])
    found = json.loads(script.NUMBERS.read_text())["sigma_0.2_4.0"]
    ours, bound = found["csbsr_task_driven"], found["hr"]
    assert (ours["held_out"]["images"], ours["held_out"]["seeds"]) == (12, 2)
    assert ours["held_out"]["iou_max"] == pytest.approx([0.6, 0.6, 0.6], abs=1e-4)
    assert ours["held_out"]["width_error"][0] == pytest.approx(2.5)
    assert ours["differences"]["hr"] == pytest.approx([-0.2, -0.2, -0.2], abs=1e-4)
    assert bound["uav315_clean"]["images"] == 1 and bound["blur"] == {"1.5 to 2.5": pytest.approx(0.8, abs=1e-4)}


def test_intervals_hold_the_mean_of_images_that_differ(script):
    draws = np.random.default_rng(1).integers(1, 100, 60)
    images = [row for k, hit in enumerate(draws) for row in rows([f"{k:02d}"], 100, int(hit), 1.0)]
    value, low, high = script.measures([images])["iou_max"]
    standard_error = draws.std() / 100 / 60**0.5
    assert value == pytest.approx(draws.mean() / 100, abs=1e-3)
    assert (value - low) == pytest.approx(1.96 * standard_error, rel=0.15)
    assert (high - value) == pytest.approx(1.96 * standard_error, rel=0.15)


def test_the_tables_say_the_share_of_hr_and_the_gap(script, results, capsys):
    script.main(["collect", str(results)])
    capsys.readouterr()
    script.main(["table", "--short"])
    table = capsys.readouterr().out
    assert "| HR upper bound | 1 | 0.800 (0.800 to 0.800) | 100.0 %" in table
    assert "CSBSR trained by the task | 2 | 0.600 (0.600 to 0.600) | 75.0 %" in table
    assert "-0.200 (-0.200 to -0.200)" in table and "by set" not in table
    script.main(["table"])
    assert "IoU_max by set" in capsys.readouterr().out


def test_cracks_of_each_width_have_their_share_of_hr(script, tmp_path, capsys):
    """Wide cracks are all found, thin ones by half; the file of the numbers is one's own."""
    for part in ("uav315_test", "uav75", "crackmap"):
        widths = [1.5, 1.5, 6.0, 6.0]
        for system, hits in (("hr", (80, 80, 90, 90)), ("bicubic", (40, 40, 90, 90))):
            images = [row for k, hit in enumerate(hits) for row in rows([f"{part}-{k}"], 100, hit, 1.0)]
            content = [row | {"crack_width": width} for row, width in zip(images, widths)]
            write(tmp_path / "results", system, part, content)
    own = tmp_path / "own.json"
    script.main(["collect", str(tmp_path / "results"), "--numbers", str(own)])
    assert json.loads(own.read_text())["sigma_0.2_4.0"]["bicubic"]["crack_width"] == {
        "0-2 px": [pytest.approx(0.4, abs=1e-4), 6],
        "4-8 px": [pytest.approx(0.9, abs=1e-4), 6],
    }
    script.main(["table", "--numbers", str(own)])
    table = capsys.readouterr().out
    assert "| system | 0-2 px (6 images) | 4-8 px (6 images) |" in table
    assert "| bicubic, then segmentation | 0.400 (50 %) | 0.900 (100 %) |" in table
    assert not script.NUMBERS.exists()


def test_a_folder_without_results_changes_nothing(script, results, tmp_path):
    script.main(["collect", str(results)])
    before = script.NUMBERS.read_bytes()
    (tmp_path / "empty").mkdir()
    for folder in ("empty", "nowhere"):
        with pytest.raises(SystemExit, match="holds no SYSTEM"):
            script.main(["collect", str(tmp_path / folder)])
    assert script.NUMBERS.read_bytes() == before


def test_other_systems_are_kept_without_what_would_need_their_images(script, results):
    script.main(["collect", str(results)])
    before = json.loads(script.NUMBERS.read_text())["sigma_0.2_4.0"]
    again = results.parent / "again"
    for part in ("uav315_test", "uav75", "crackmap"):
        write(again, "hr", part, rows([f"{part}-{k}" for k in range(4)], 100, 90, 1.0))
    script.main(["collect", str(again), "--keep"])
    found = json.loads(script.NUMBERS.read_text())["sigma_0.2_4.0"]
    assert found["hr"]["held_out"]["iou_max"][0] == pytest.approx(0.9, abs=1e-4)
    gaps = before["csbsr_task_driven"].pop("differences")
    assert found["csbsr_task_driven"].pop("differences") == {"csbsr_task_driven": gaps["csbsr_task_driven"]}
    assert found["csbsr_task_driven"] == before["csbsr_task_driven"]


def test_what_is_no_result_of_the_protocol_is_reported(script, results, capsys):
    write(results, "other", "khanhha", rows(["a"], 10, 5, 1.0))
    script.main(["collect", str(results)])
    assert "passed over" in capsys.readouterr().err


def test_the_committed_numbers_give_tables():
    """Results committed beside the text are read by the command that the text names."""
    committed = SCRIPT.parent / "results" / "real.json"
    if not committed.is_file():
        pytest.skip("no results on real photographs are committed yet")
    spec = importlib.util.spec_from_file_location("real_results", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert any(
        line.startswith("| HR upper bound") for line in module.markdown(json.loads(committed.read_text()), False)
    )
