"""Sweeps: the grid and its names, what is trained and evaluated, the table over seeds, mistakes."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import SMALL_MODEL, draw_shards
from paths import ROOT
from test_evaluate_launcher import stub_sbatch

from cssr.config.loading import load_config, parse_value
from cssr.evaluate import main as evaluate_main
from cssr.evaluation.definitions import KEYS
from cssr.evaluation.results import compose
from cssr.launch import evaluations as launcher
from cssr.launch import sweeps as sweep
from cssr.launch.grid import Point, points, read_grid, resolve, split_values
from cssr.launch.sweep_table import Entry, summarize, table_rows, write_tables
from cssr.train import main as train_main

RECIPE = str(ROOT / "configs" / "tiny.yaml")

# ---- the grid ----


@pytest.mark.parametrize(
    "text, parts",
    [
        ("0.1,0.3", ["0.1", "0.3"]),
        ("[0.4, 0.4, 0.2],[1,0]", ["[0.4, 0.4, 0.2]", "[1,0]"]),
        ("pspnet,{name: unet, encoder: {a: [1,2]}}", ["pspnet", "{name: unet, encoder: {a: [1,2]}}"]),
        ("'a,b',\"c,d\"", ["'a,b'", '"c,d"']),
        ("{name: 'x}', n: 1},2", ["{name: 'x}', n: 1}", "2"]),
        ("1,,2", ["1", "", "2"]),
    ],
)
def test_values_are_split_outside_of_brackets_and_quotes(text, parts):
    assert split_values(text) == parts


@pytest.mark.parametrize(
    "name, key",
    [
        ("beta", "loss.beta"),
        ("seed", "train.seed"),
        ("lr", "optim.lr"),
        ("batch_size", "train.batch_size"),
        ("tile", "eval.tile"),
        ("degradation", "degradation"),
        ("model.sr", "model.sr"),
        ("model.sr.stages", "model.sr.stages"),
    ],
)
def test_short_names_are_settings(name, key):
    assert resolve(name) == key


@pytest.mark.parametrize(
    "texts, message",
    [
        (["betta=1"], "no setting is called 'betta' (did you mean beta"),
        (["sr=dbpn"], "'sr' may be model.sr or loss.sr: write one of them out"),
        (["beta"], "'beta': write what is swept as KEY=V1,V2"),
        (["beta="], "'beta=' has no values"),
        (["beta=1,,2"], "an empty value"),
        (["lr=1e-4,0.0001"], "0.0001 is there twice"),
        (
            [f"{name}={','.join(map(str, range(1000)))}" for name in ("seed", "steps")],
            "1,000,000 points, each a training",
        ),
        (["beta=1", "loss.beta=2"], "loss.beta is swept twice"),
        (["run_dir=a,b"], "train.run_dir cannot be swept"),
        (["model.seg={name: unet"], "not valid YAML"),
    ],
)
def test_mistakes_in_the_grid(texts, message):
    with pytest.raises(ValueError) as caught:
        read_grid(texts)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def names(*texts: str) -> list[str]:
    return [point.name for point in points(read_grid(texts))]


def test_points_are_every_combination_the_last_fastest():
    assert names("beta=0.1,0.3", "seed=0,1") == [f"beta={b},seed={s}" for b in (0.1, 0.3) for s in (0, 1)]
    first = points(read_grid(["lr=1e-4", "model.sr={name: dbpn, stages: 4}"]))[0]
    assert first.overrides == ["optim.lr=1e-4", "model.sr={name: dbpn, stages: 4}"]
    assert first.setting == {"lr": "0.0001", "sr": "{name: dbpn, stages: 4}"} and first.seed is None


def test_names_tell_values_apart_and_are_safe():
    found = names("model.seg={name: unet, width: 4},[name, unet, width, 4],unet", "ema=null,0.5")
    assert len(set(found)) == 6
    assert all("/" not in name and " " not in name and len(name.encode()) < 200 for name in found)
    assert found[4:] == ["seg=unet,ema=null", "seg=unet,ema=0.5"]
    long = names("data.train=" + "a" * 300 + "," + "a" * 301)
    assert len(set(long)) == 2 and max(map(len, long)) < 200


def test_a_name_does_not_depend_on_what_else_is_swept_over():
    assert set(names("beta=0.3,0.1", "seed=0,1")) > set(names("beta=0.1", "seed=1"))
    assert names("model.sr=a", "loss.sr=b") == ["model.sr=a,loss.sr=b"]


# ---- the table ----


def result(path: Path, hits: int, psnr: float) -> Path:
    """A results file of one image that finds `hits` of 100 crack pixels at every threshold."""
    row = {"tp": [hits] * 99, "fp": [0] * 99, "fn": [100 - hits] * 99, "pixels": 1024, "ssim": 0.5, "kernel_psnr": None}
    row |= {"key": "a", "psnr": psnr, "mse": 0.1}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(compose([row], {"name": path.parent.name, "data": "d"})))
    return path


@pytest.fixture
def filled(tmp_path) -> tuple[list[Entry], list[Point]]:
    """Three seeds of beta=0.1 with IoUs of 0.2, 0.3, 0.7, one infinite PSNR; one seed of 0.3; none of 0.5."""
    grid = points(read_grid(["beta=0.1,0.3,0.5", "seed=0,1,2"]))
    found = {"beta=0.1,seed=0": (20, 30.0), "beta=0.1,seed=1": (30, 32.0), "beta=0.1,seed=2": (70, float("inf"))}
    found |= {"beta=0.3,seed=1": (40, 31.0)}
    entries = [
        Entry(p, "val", result(tmp_path / p.name / "results.json", *found[p.name])) for p in grid if p.name in found
    ]
    return entries, grid


def test_table_is_mean_and_deviation_over_seeds(filled, tmp_path):
    entries, grid = filled
    text = write_tables(entries, grid, tmp_path, "configs/tiny.yaml", "A note.")
    assert text == (tmp_path / "table.md").read_text() and text.startswith("# tiny\n\nA note.\n\n## val\n\n| beta |")
    lines = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in text.splitlines() if line[:1] == "|"]
    assert lines[0] == ["beta", "n", "IoU_max", "AIU", "F1", "PSNR [dB]", "SSIM"]
    assert lines[2][:3] == ["0.1", "3", "0.400 ± 0.265"]  # (0.04 + 0.01 + 0.09) / 2 = 0.07 is the variance
    assert lines[2][5] == "31.00 ± 1.41 (n = 2)" and lines[2][6] == "0.500 ± 0.000"
    assert lines[3][:3] == ["0.3", "1", "0.400 ± -"] and lines[3][5] == "31.00 ± -"
    assert lines[4] == ["0.5", "0", "-", "-", "-", "-", "-"]


def test_tables_of_numbers_hold_them_in_full(filled, tmp_path):
    entries, grid = filled
    write_tables(entries, grid, tmp_path, "r.yaml")
    rows = json.loads((tmp_path / "table.json").read_text())["rows"]
    assert [row["setting"] for row in rows] == [{"beta": "0.1"}, {"beta": "0.3"}, {"beta": "0.5"}]
    assert rows[0]["seeds"] == ["0", "1", "2"]
    found = rows[0]["measures"]["pooled"]["iou_max"]
    assert found["mean"] == pytest.approx(np.mean(found["values"]), rel=1e-12)
    assert found["deviation"] == pytest.approx(np.std(found["values"], ddof=1), rel=1e-12)
    assert rows[1]["measures"]["image"]["iou_max"]["deviation"] is None
    with open(tmp_path / "table.csv", encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 6 and {f"{key}_std" for key in KEYS} < lines[0].keys()
    assert float(lines[1]["iou_max_std"]) == found["deviation"] and lines[1]["aggregation"] == "pooled"
    assert lines[2]["iou_max_std"] == "" and lines[4]["iou_max"] == ""


def test_a_sweep_of_seeds_alone_is_one_line(tmp_path):
    grid = points(read_grid(["seed=0,1"]))
    entries = [Entry(p, "val", result(tmp_path / p.name / "results.json", 50 + n, 30)) for n, p in enumerate(grid)]
    assert "| tiny   | 2   | 0.505 ± 0.007 |" in write_tables(entries, grid, tmp_path, "configs/tiny.yaml")
    assert len(table_rows(entries, grid)) == 1


@pytest.mark.parametrize("values", [[1.5], [1.0, 2.0, 4.0], [3.0, None, 5.0], [None, None], [1e9, 1e9 + 1, 1e9 + 2]])
def test_summary_equals_numpy(values):
    found, numbers = summarize(values), np.array([v for v in values if v is not None])
    assert found["n"] == len(numbers) and found["values"] == values
    assert found["mean"] == (pytest.approx(numbers.mean()) if len(numbers) else None)
    assert found["deviation"] == (pytest.approx(numbers.std(ddof=1)) if len(numbers) > 1 else None)


# ---- runs ----


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """A set to train on, `train`, and two to be measured on, `one` and `two`."""
    root = tmp_path_factory.mktemp("shards")
    draw_shards(root / "train", 40, 64)
    draw_shards(root / "one", 3, 48, "--seed", "1")
    draw_shards(root / "two", 2, 48, "--seed", "2")
    return root


@pytest.fixture
def in_process(monkeypatch):
    """Jobs run here, without processes; the names of those that ran."""
    ran: list[str] = []

    def run(todo, places):
        assert places
        for job in todo:
            ran.append(job.name)
            for name, main in (("train", train_main), ("evaluate", evaluate_main)):
                script = str(ROOT / f"cssr/{name}.py")
                if script in job.command:
                    main(list(job.command)[job.command.index(script) + 1 :])
        return [job for job in todo if job.missing()]

    monkeypatch.setattr(launcher, "run_jobs", run)
    monkeypatch.setattr(sweep, "run_jobs", run)
    return ran


def fixed(shards: Path, *more: str) -> list[str]:
    model = [f"model.{name}={json.dumps(value)}" for name, value in SMALL_MODEL.items()]
    data = [f"data.train={shards / 'train'}", "data.crop=32", "data.workers=0"]
    length = ["train.steps=2", "train.batch_size=2", "train.val_every=0", "train.tensorboard=false", "optim.warmup=0"]
    return ["--", *model, *data, *length, *more]


def words(shards: Path, out: Path, *more: str) -> list[str]:
    measured = ["--benchmarks", "one", "two", "--benchmark-root", str(shards), "--out", str(out)]
    return [RECIPE, "beta=0.1,0.9", "seed=0,1", *measured, *more]


@pytest.mark.slow
def test_a_sweep_trains_evaluates_and_tabulates_and_continues(shards, tmp_path, in_process, capsys):
    out = tmp_path / "out"
    arguments = [*words(shards, out), *fixed(shards)]
    assert sweep.main([*words(shards, out, "--task", "3"), *fixed(shards)]) == 0
    assert in_process == ["training beta=0.9,seed=1", "beta=0.9,seed=1 on one", "beta=0.9,seed=1 on two"]
    assert sweep.main(arguments) == 0
    assert len(in_process) == 12 and len(set(in_process)) == 12
    assert "1 of 4 runs are trained" in capsys.readouterr().out
    rows = json.loads((out / "table.json").read_text())["rows"]
    assert [(row["benchmark"], row["setting"]["beta"]) for row in rows][1:3] == [("one", "0.9"), ("two", "0.1")]
    results = [out / f"beta=0.9,seed={seed}" / "evaluations" / "one" / "results.json" for seed in (0, 1)]
    values = [json.loads(path.read_text())["metrics"]["image"]["psnr"] for path in results]
    assert rows[1]["measures"]["image"]["psnr"]["values"] == values and values[0] != values[1]
    assert rows[1]["measures"]["image"]["psnr"]["deviation"] == pytest.approx(np.std(values, ddof=1))
    config = load_config(out / "beta=0.9,seed=1" / "config.yaml")
    assert (config.loss.beta, config.train.seed, config.train.steps) == (0.9, 1, 2)
    assert sweep.main(arguments) == 0 and len(in_process) == 12
    assert "| 0.9  | 2 " in capsys.readouterr().out
    check_that_other_settings_are_refused(shards, out, in_process, capsys)


def check_that_other_settings_are_refused(shards, out, in_process, capsys) -> None:
    """What changes a run is refused where it has begun; what does not, and a larger grid, is not."""
    assert sweep.main([*words(shards, out), *fixed(shards, "optim.lr=0.5")]) == 2
    output = capsys.readouterr().err
    assert "was begun with other settings (optim.lr: 0.001 -> 0.5)" in output and output.count("\n") == 1
    assert sweep.main([*words(shards, out), *fixed(shards, "train.log_every=1", "data.workers=1")]) == 0
    assert len(in_process) == 12
    larger = [RECIPE, "beta=0.1", "seed=0,2", "--benchmarks", str(shards / "two"), "--out", str(out)]
    assert sweep.main([*larger, "--dry-run", *fixed(shards)]) == 0
    output = capsys.readouterr().out
    assert "# training beta=0.1,seed=0: done" in output and "# training beta=0.1,seed=2: not begun" in output
    assert "# beta=0.1,seed=0 on two: done" in output and output.count("accelerate") == 2


def test_without_benchmarks_data_val_is_taken_and_said(shards, tmp_path, in_process, capsys):
    arguments = [RECIPE, "seed=4", "--out", str(tmp_path / "out"), *fixed(shards, f"data.val={shards / 'two'}")]
    assert sweep.main(arguments) == 0
    assert in_process == ["training seed=4", "seed=4 on two"]
    output = capsys.readouterr().out
    assert "No --benchmarks were named: evaluated on data.val" in output and "± -" in output
    assert "No --benchmarks were named" in (tmp_path / "out/table.md").read_text()


def test_a_training_that_fails_is_missing_from_the_table(shards, tmp_path, in_process, monkeypatch, capsys):
    run = sweep.run_jobs
    monkeypatch.setattr(sweep, "run_jobs", lambda todo, places: run(todo[1:], places))
    arguments = [RECIPE, "seed=0,1", "--benchmarks", str(shards / "two"), "--out", str(tmp_path / "out")]
    assert sweep.main([*arguments, *fixed(shards)]) == 1
    output = capsys.readouterr().out
    assert "missing: seed=0: not begun; log: " in output and in_process == ["training seed=1", "seed=1 on two"]
    assert "| tiny   | 1 " in output


def test_an_interrupted_training_is_not_finished(tmp_path):
    point = points(read_grid(["seed=0"]))[0]
    run = sweep.Run(point, tmp_path, load_config(None, ["train.steps=10"]), ())
    assert run.missing() == "not begun"
    (tmp_path / "checkpoints" / "step_00000004").mkdir(parents=True)
    assert run.missing() == "it is at step 4 of 10"
    (tmp_path / "checkpoints" / "step_00000010").mkdir()
    assert run.missing() == "it has no export yet"
    (tmp_path / "export").mkdir()
    assert run.missing() == ""


@pytest.mark.parametrize(
    "line, message",
    [
        ("nowhere.yaml beta=1 --benchmarks one", "config: no recipe at nowhere.yaml"),
        ("RECIPE", "required: KEY=V1,V2"),
        ("RECIPE betta=1 --benchmarks one", "no setting is called 'betta'"),
        ("RECIPE train.betta=1 --benchmarks one", "betta"),
        ("RECIPE beta= --benchmarks one", "has no values"),
        ("RECIPE steps=many --benchmarks one", "train.steps"),
        ("RECIPE beta=1 --benchmarks three", "--benchmarks three: no shards in"),
        ("RECIPE beta=1", "no --benchmarks are named and data.val is not set"),
        ("RECIPE val=a,b", "data.val is swept"),
        ("RECIPE beta=1 --benchmarks one -- loss.beta=2", "loss.beta=2 after `--`: it is swept"),
        ("RECIPE beta=1 --benchmarks one -- train.run_dir=x", "the sweep decides that"),
        ("RECIPE beta=1 --benchmarks one -- beta", "write it as a.b=value"),
        ("RECIPE beta=1 --benchmarks one --config-file gpu8", "no such file; in launch/ there are"),
        ("RECIPE beta=1 --benchmarks one --task 1", "--task 1: there are tasks 0 to 0"),
        ("RECIPE beta=1 --benchmarks one --out RECIPE", "cannot be written"),
    ],
)
def test_mistakes_are_one_line_and_start_nothing(line, message, shards, tmp_path, in_process, capsys):
    arguments = line.replace("RECIPE", RECIPE).split()
    own = ["--benchmark-root", str(shards), *([] if "--out" in line else ["--out", str(tmp_path / "out")])]
    end = arguments.index("--") if "--" in arguments else len(arguments)
    assert sweep.main([*arguments[:end], *own, *arguments[end:]]) == 2
    output = capsys.readouterr().err
    assert message in output and output.startswith("error: ") and output.count("\n") == 1 and in_process == []


def test_a_damaged_record_is_reported(shards, tmp_path, in_process, capsys):
    (tmp_path / "sweep.json").write_text("{")
    assert sweep.main([*words(shards, tmp_path), *fixed(shards)]) == 2
    assert "sweep.json is damaged" in capsys.readouterr().err and in_process == []


def test_slurm_gets_a_task_a_run(shards, tmp_path, in_process, monkeypatch, capsys):
    calls = stub_sbatch(tmp_path, monkeypatch, runs=False)
    assert sweep.main([*words(shards, tmp_path / "out", "--slurm", "--jobs", "2"), *fixed(shards)]) == 0
    array, after = calls.read_text().splitlines()
    assert "--array=0-3%2" in array and "--dependency=afterany:77" in after and in_process == []
    task = (tmp_path / "out/slurm/task.sh").read_text()
    assert f'cssr sweep --task "$SLURM_ARRAY_TASK_ID" {RECIPE} beta=0.1,0.9' in task and " -- " in task


def test_values_reach_training_as_they_were_meant():
    run = sweep.plan(RECIPE, read_grid(["lr=1e-4", "seed=3"]), ["loss.beta=0.7"], Path("runs/a: b"))[0]
    assert (run.config.optim.lr, run.config.train.seed, run.config.loss.beta) == (1e-4, 3, 0.7)
    key, _, value = run.words[-1].partition("=")
    assert key == "train.run_dir" and parse_value(value, key) == "runs/a: b/lr=0.0001,seed=3"


@pytest.mark.thorough
@pytest.mark.slow
def test_two_jobs_at_a_time_and_slurm_end_with_the_same_table(shards, tmp_path, monkeypatch):
    stub_sbatch(tmp_path, monkeypatch, runs=True)
    line = [sys.executable, str(ROOT / "launch/sweep.py"), RECIPE, "seed=0,1", "--benchmarks", str(shards / "two")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for name, how in (("local", ["--jobs", "2"]), ("slurm", ["--slurm"])):
        whole = [*line, "--out", str(tmp_path / name), *how, *fixed(shards)]
        done = subprocess.run(whole, capture_output=True, text=True, timeout=500, env=environment)
        assert done.returncode == 0, done.stdout + done.stderr
    local, slurm = (json.loads((tmp_path / name / "table.json").read_text()) for name in ("local", "slurm"))
    assert local == slurm and local["rows"][0]["seeds"] == ["0", "1"]
