"""The evaluation launcher: names, devices, the queue, what is skipped and what is done again, Slurm, mistakes."""

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import draw_shards
from paths import ROOT

from cssr.config.schema import ModelConfig
from cssr.evaluate import main as evaluate_main
from cssr.launch import evaluations as launcher
from cssr.launch import jobs, slurm
from cssr.launch.jobs import Job, run_jobs
from cssr.launch.launcher import devices, make_launcher
from cssr.launch.options import distinct_names
from cssr.models.joint import build_model
from cssr.models.load import choose
from cssr.utils.files import lock_file

MODEL = {"scale": 4, "sr": {"name": "bicubic"}, "seg": {"name": "unet", "encoder": "vgg11", "depth": 2, "width": 4}}


@pytest.fixture(scope="module")
def benchmarks(tmp_path_factory):
    """A folder of two benchmarks, `one` and `two`."""
    root = tmp_path_factory.mktemp("benchmarks")
    draw_shards(root / "one", 5, 48)
    draw_shards(root / "two", 3, 48, "--seed", "1")
    return root


def write_model(path: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    build_model(ModelConfig(**MODEL)).save_pretrained(path, degradation={"name": "gaussian"})
    return path


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Three exports that differ: `a`, `b` and `c`."""
    root = tmp_path_factory.mktemp("models")
    return [write_model(root / name, seed) for seed, name in enumerate("abc")]


@pytest.fixture
def models(written, tmp_path):
    """Copies of `a` and `b`, for a test to do with as it likes."""
    return [shutil.copytree(path, tmp_path / "models" / path.name) for path in written[:2]]


@pytest.fixture
def in_process(monkeypatch):
    """Jobs run here, without processes; the names of those that ran."""
    ran: list[str] = []

    def run(todo, places):
        assert places
        for job in todo:
            ran.append(job.name)
            evaluate_main(list(job.command)[job.command.index(str(ROOT / "cssr/evaluate.py")) + 1 :])
        return [job for job in todo if job.missing()]

    monkeypatch.setattr(launcher, "run_jobs", run)
    return ran


@pytest.fixture
def no_report(monkeypatch):
    """What a report costs is spared where it is not looked at."""
    monkeypatch.setattr(launcher, "_report", lambda *_, **__: None)


def words(models, benchmarks, out, *more) -> list[str]:
    return [
        *map(str, models),
        "--benchmarks",
        "one",
        "two",
        "--benchmark-root",
        str(benchmarks),
        "--out",
        str(out),
        *more,
    ]


# ---- what is done, what is not ----


@pytest.mark.slow
def test_all_pairs_once_and_one_report(models, benchmarks, tmp_path, in_process, capsys):
    arguments = words(models, benchmarks, tmp_path / "out")
    assert launcher.main(arguments) == 0
    assert in_process == ["a on one", "b on one", "a on two", "b on two"]
    results = json.loads((tmp_path / "out/b/two/results.json").read_text())
    assert (results["name"], results["images"], results["options"]["batch_size"]) == ("b", 3, 1)
    report = (tmp_path / "out/report/report.md").read_text()
    assert all(f"| {name} " in report for name in ("a (one)", "b (one)", "a (two)", "b (two)"))
    assert "WARNING" not in (tmp_path / "out/report/on-two/report.md").read_text()
    capsys.readouterr()
    assert launcher.main(arguments) == 0
    assert len(in_process) == 4 and "| b " in capsys.readouterr().out


def test_only_what_is_missing_or_stale_is_done_again(
    models, written, benchmarks, tmp_path, in_process, no_report, capsys
):
    arguments = [*map(str, models), "--benchmarks", str(benchmarks / "two"), "--out", str(tmp_path / "out")]
    assert launcher.main(arguments) == 0
    first, second = (tmp_path / f"out/{name}/two/results.json" for name in "ab")
    whole, before = first.read_text(), second.read_text()
    first.write_text(whole[: len(whole) // 2])
    shutil.rmtree(models[1])
    shutil.copytree(written[2], models[1])
    assert launcher.main(arguments) == 0
    output = capsys.readouterr().out
    assert output.count("computed anew") == 2 and "b on two: computed anew: the checkpoint has changed since" in output
    assert f"a on two: computed anew: {first} is damaged" in output
    assert first.read_text() == whole and second.read_text() != before
    first.unlink()
    assert launcher.main(arguments) == 0
    assert in_process[4:] == ["a on two"] and "computed anew" not in capsys.readouterr().out


@pytest.mark.slow
def test_other_options_and_other_data_are_computed_anew(models, benchmarks, tmp_path, in_process, no_report, capsys):
    root = shutil.copytree(benchmarks, tmp_path / "benchmarks")
    assert launcher.main(words(models[:1], root, tmp_path / "out")) == 0
    in_process.clear()
    shutil.rmtree(root / "two")
    draw_shards(root / "two", 3, 48, "--seed", "5")
    assert launcher.main(words(models[:1], root, tmp_path / "out")) == 0
    assert in_process == ["a on two"] and "the data has changed since" in capsys.readouterr().out
    assert launcher.main(words(models[:1], root, tmp_path / "out", "--limit", "2")) == 0
    assert in_process[1:] == ["a on one", "a on two"] and "limit was None, is 2" in capsys.readouterr().out


@pytest.mark.slow
def test_results_from_before_there_was_tta_are_kept_and_with_it_computed_anew(
    models, benchmarks, tmp_path, in_process, no_report, capsys
):
    arguments = [str(models[0]), "--benchmarks", str(benchmarks / "one"), "--out", str(tmp_path / "out")]
    assert launcher.main(arguments) == 0
    path = tmp_path / "out/a/one/results.json"
    old = json.loads(path.read_text())
    del old["tta"], old["options"]["tta"]
    path.write_text(json.dumps(old))
    assert launcher.main(arguments) == 0 and in_process == ["a on one"]
    assert launcher.main([*arguments, "--tta"]) == 0 and in_process[1:] == ["a on one"]
    assert "tta was False, is True" in capsys.readouterr().out and json.loads(path.read_text())["tta"] is True


@pytest.mark.slow
def test_the_result_of_another_set_of_the_same_name_is_not_overwritten(
    models, benchmarks, tmp_path, in_process, no_report, capsys
):
    other = draw_shards(tmp_path / "other" / "one", 2, 48, "--seed", "7")
    where = ["--out", str(tmp_path / "out"), "--benchmarks"]
    assert launcher.main([str(models[0]), *where, str(benchmarks / "one")]) == 0
    assert launcher.main([str(models[0]), *where, str(other)]) == 2 and in_process == ["a on one"]
    assert "out/a/one holds a result of other data than" in capsys.readouterr().err


@pytest.mark.slow
def test_a_result_that_does_not_say_what_it_came_from_is_computed_anew(
    models, benchmarks, tmp_path, in_process, no_report, capsys
):
    assert launcher.main(words(models[:1], benchmarks, tmp_path / "out")) == 0
    path = tmp_path / "out/a/one/results.json"
    found = json.loads(path.read_text())
    del found["data_sha256"]
    path.write_text(json.dumps(found))
    assert launcher.main(words(models[:1], benchmarks, tmp_path / "out")) == 0
    assert "does not say what it was computed from" in capsys.readouterr().out and in_process[2:] == ["a on one"]


@pytest.mark.slow
def test_what_fails_is_named_and_the_rest_is_reported(models, benchmarks, tmp_path, in_process, monkeypatch, capsys):
    todo = launcher.plan(launcher.read_arguments(words(models, benchmarks, tmp_path / "out")))
    run = launcher.run_jobs
    monkeypatch.setattr(launcher, "run_jobs", lambda work, places: run(work[:3], places))
    assert launcher.main(words(models, benchmarks, tmp_path / "out")) == 1
    output = capsys.readouterr().out
    assert "missing: b on two: not there yet" in output and output.count("missing:") == 1
    assert [bool(evaluation.missing()) for evaluation in todo] == [False, False, False, True]
    assert (tmp_path / "out/report/report.md").is_file()


def test_collecting_starts_nothing(models, benchmarks, tmp_path, in_process, capsys):
    assert launcher.main(words(models, benchmarks, tmp_path / "out", "--collect")) == 1
    assert in_process == [] and capsys.readouterr().out.count("missing:") == 4


def test_a_dry_run_prints_commands_and_writes_nothing(models, benchmarks, tmp_path, in_process, capsys):
    assert launcher.main(words(models, benchmarks, tmp_path / "out", "--dry-run", "--processes", "2")) == 0
    output = capsys.readouterr().out.splitlines()
    assert (
        output[0] == "# a on one: not there yet" and "--num_processes 2" in output[1] and "cpu_2proc.yaml" in output[1]
    )
    assert len(output) == 8 and in_process == [] and not (tmp_path / "out").exists()


# ---- checkpoints, benchmarks and their names ----


@pytest.mark.parametrize(
    "paths, names",
    [
        (["/x/a", "/x/b"], ["a", "b"]),
        (["/x/a/val", "/x/b/val"], ["a_val", "b_val"]),
        (["/x/a/val", "/x/b/val", "/x/test"], ["a_val", "b_val", "test"]),
        (["/x/a/1/val", "/x/b/1/val"], ["a_1_val", "b_1_val"]),
        (["/x/a b", "/x/a;b"], ["x_a-b", "x_a-b-2"]),
        (["/x/val", "/y/x/val"], ["x_val", "y_x_val"]),
    ],
)
def test_names_are_as_short_as_they_may_be(paths, names):
    assert distinct_names([Path(path).parts for path in paths]) == names


def fake_run(root: Path, name: str, *steps: int) -> Path:
    """A run directory with checkpoints, as far as names go, and a folder for its export."""
    run = root / name
    (run / "export").mkdir(parents=True)
    for step in steps:
        (run / "checkpoints" / f"step_{step:08d}").mkdir(parents=True)
    best = {"checkpoint": f"step_{steps[0]:08d}", "measure": "iou_max", "value": 1}
    (run / "checkpoints" / "best.json").write_text(json.dumps(best))
    return run


def test_checkpoints_of_every_kind(tmp_path, monkeypatch):
    monkeypatch.setattr(launcher, "degradation_of", lambda path, which: which == "export" or choose(Path(path), which))
    run, other = fake_run(tmp_path, "run", 5, 9), fake_run(tmp_path / "more", "run", 3)
    (tmp_path / "report").mkdir()
    texts = [str(run), f"{run}@best", f"{run}@last", f"{run}@0009", f"{other}/export", f"{tmp_path}/report"]
    found = launcher.find_checkpoints(texts)
    assert [c.which for c in found] == ["export", "best", "last", "9", "export", "export"]
    names = [c.name for c in found]
    assert names == [f"{tmp_path.name}_run", "run@best", "run@last", "run@9", "more_run", "report-run"]
    with pytest.raises(ValueError, match="no checkpoint '4' in .*step_00000005, step_00000009"):
        launcher.find_checkpoints([f"{run}@4"])


def test_a_directory_may_have_an_at_sign(written, tmp_path):
    shutil.copytree(written[0], tmp_path / "run@best")
    assert launcher.find_checkpoints([f"{tmp_path}/run@best"])[0].which == "export"


MISTAKES = [
    ("nowhere --benchmarks one", "checkpoint nowhere: no run or export at nowhere"),
    ("MODEL@best --benchmarks one", "no checkpoint 'best' in"),
    ("MODEL@12 --benchmarks one", "no checkpoint '12' in"),
    ("MODEL MODEL/ --benchmarks one", "is given twice"),
    ("MODEL --benchmarks three", "--benchmarks three: no shards in three or"),
    ("MODEL --benchmarks three", "there are: one, two"),
    ("MODEL --benchmarks one ROOT/one", "benchmark one is given twice"),
    ("MODEL --benchmarks one --out MODEL/config.json", "cannot be written: "),
    ("MODEL --benchmarks one --config-file gpu8", "--config-file gpu8: no such file; in launch/ there are"),
    ("MODEL --benchmarks one --config-file MODEL/config.json", "says no num_processes"),
    ("MODEL --benchmarks one --jobs 0", "--jobs must be at least 1"),
    ("MODEL --benchmarks one --batch-size 0", "--batch-size must be at least 1"),
    ("MODEL --benchmarks one --sbatch-args=x", "give --slurm as well"),
    ("MODEL --benchmarks one --slurm --sbatch-args='x", "No closing quotation"),
    ("MODEL --benchmarks one --task 4", "--task 4: there are tasks 0 to 0"),
    ("MODEL", "--benchmarks"),
]


@pytest.mark.parametrize("line, message", MISTAKES)
def test_mistakes_are_one_line_and_start_nothing(line, message, models, benchmarks, tmp_path, in_process, capsys):
    arguments = line.replace("MODEL", str(models[0])).replace("ROOT", str(benchmarks)).split()
    out = [] if "--out" in line else ["--out", str(tmp_path / "out")]
    assert launcher.main([*arguments, *out, "--benchmark-root", str(benchmarks)]) == 2
    output = capsys.readouterr().err
    assert message in output and output.startswith("error: ") and output.count("\n") == 1 and in_process == []


def test_the_environment_says_where_benchmarks_are(models, benchmarks, tmp_path, monkeypatch):
    monkeypatch.setenv("CSSR_BENCHMARKS", str(benchmarks))
    options = launcher.read_arguments([str(models[0]), "--benchmarks", "two", "--out", str(tmp_path)])
    assert [e.benchmark.data for e in launcher.plan(options)] == [str(benchmarks / "two")]


# ---- devices ----


def lend(monkeypatch, names: list[str], variable: str | None = "CUDA_VISIBLE_DEVICES") -> None:
    monkeypatch.setattr("cssr.launch.launcher.devices", lambda: names)
    monkeypatch.setattr("cssr.launch.launcher._visible", lambda: variable)


def test_each_job_has_devices_of_its_own(monkeypatch):
    lend(monkeypatch, ["2", "5", "7", "GPU-x"])
    seen = [place["CUDA_VISIBLE_DEVICES"] for place in make_launcher(None, None, None).places]
    assert seen == ["2", "5", "7", "GPU-x"]
    seen = [place["CUDA_VISIBLE_DEVICES"] for place in make_launcher(2, None, None).places]
    assert seen == ["2,5", "7,GPU-x"]
    assert (
        make_launcher(1, None, None).file.name == "single_gpu.yaml"
        and make_launcher(2, None, None).file.name == "multi_gpu.yaml"
    )


def test_more_jobs_than_devices_share_them(monkeypatch):
    lend(monkeypatch, ["0", "1"])
    assert [place["CUDA_VISIBLE_DEVICES"] for place in make_launcher(1, 3, None).places] == ["0", "1", "0"]
    with pytest.raises(ValueError, match="--processes 3: there are 2 devices"):
        make_launcher(3, None, None)


def test_a_kind_without_a_variable_has_one_job_a_device(monkeypatch):
    lend(monkeypatch, ["0"], None)
    assert make_launcher(None, None, None).places == ({},)


def test_cores_are_shared_out_where_there_are_no_devices(monkeypatch):
    lend(monkeypatch, [])
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    assert len(make_launcher(None, None, None).places) == 8 and make_launcher(None, None, None).threads == 1
    assert len(make_launcher(3, None, None).places) == 2 and make_launcher(1, 2, None).threads == 4
    assert make_launcher(1, 2, None, threads=1).threads == 1
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert make_launcher(1, 2, None, threads=1).threads == 3


def test_a_launch_file_says_how_many_processes(monkeypatch):
    lend(monkeypatch, [])
    launcher = make_launcher(None, 1, "cpu_2proc")
    assert launcher.processes == 2 and "--main_process_port" in launcher.command("cssr/evaluate.py")
    assert make_launcher(3, 1, str(ROOT / "launch/cpu_2proc.yaml")).processes == 3


def test_devices_are_those_that_the_environment_allows(monkeypatch):
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 3)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("xpu"))
    monkeypatch.delenv("ZE_AFFINITY_MASK", raising=False)
    assert devices() == ["0", "1", "2"]
    monkeypatch.setenv("ZE_AFFINITY_MASK", "4,6")
    assert devices() == ["4", "6"]
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert devices() == []


# ---- the queue ----


def shell(tmp_path: Path, name: str, line: str) -> Job:
    """A job of the shell in `tmp_path`; it is done when the file of its name is there."""
    done = tmp_path / name
    command = ["bash", "-c", f"cd {tmp_path}; {line}"]
    return Job(name, command, tmp_path / "logs" / f"{name}.log", lambda: "" if done.exists() else "no file")


def test_jobs_run_side_by_side_one_in_each_place(tmp_path):
    """Each waits for another to be there: two places let all end, in twos."""
    line = "touch began_$N; until [ $(ls began_* | wc -l) -ge 2 ]; do sleep 0.05; done; echo $WHERE >> seen; touch "
    todo = [shell(tmp_path, str(n), f"N={n}; {line}{n}") for n in range(4)]
    assert run_jobs(todo, [{"WHERE": "here"}, {"WHERE": "there"}]) == []
    assert set((tmp_path / "seen").read_text().split()) <= {"here", "there"}
    assert all((tmp_path / str(n)).exists() for n in range(4))


def test_a_job_that_fails_is_a_line_and_the_others_run(tmp_path, capsys):
    todo = [
        shell(tmp_path, "one", "echo begin; echo 'error: no luck' >&2; echo trace; exit 3"),
        shell(tmp_path, "two", "touch two; exit 1"),  # all is there: the exit status does not count
        shell(tmp_path, "three", "true"),
    ]
    assert [job.name for job in run_jobs(todo, [{}])] == ["one", "three"]
    first, second, third = capsys.readouterr().out.splitlines()
    assert first == f"[1/3] one: FAILED (exit 3): error: no luck; log: {tmp_path}/logs/one.log"
    assert second.startswith("[2/3] two: done") and "FAILED (exit 0): it said nothing" in third


def test_a_job_that_has_no_space_for_its_log_is_no_job_that_said_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    run_jobs([shell(tmp_path, "one", "exit 1")], [{}])
    assert "FAILED (exit 1): there is no space for its log: make room" in capsys.readouterr().out


def test_no_two_commands_work_on_one_thing(tmp_path, capsys):
    job, log = shell(tmp_path, "one", "touch one"), tmp_path / "logs/one.log"
    log.parent.mkdir()
    with log.open("ab") as held:
        assert lock_file(held)
        assert run_jobs([job], [{}]) == [job]
    assert "another command is at work on it" in capsys.readouterr().out and not (tmp_path / "one").exists()
    assert run_jobs([job], [{}]) == []


def test_a_job_is_over_when_all_of_its_processes_are(tmp_path):
    """The command ends at once, what it started in a session of its own goes on: the place is not free yet."""
    first = shell(tmp_path, "one", "setsid bash -c 'sleep 1; touch one' & exit 0")
    second = shell(tmp_path, "two", "[ -e one ] && touch two")
    assert run_jobs([first, second], [{}]) == []


QUEUE = """
import sys
from pathlib import Path
from cssr.launch.jobs import Job, run_jobs
from cssr.utils.cli import run_command
def job(n):
    line = f"cd {out}; trap 'sleep 0.3; echo saved >> saved; exit 1' TERM; touch began_{{n}}; "
    line += "while true; do sleep 0.05; done"
    return Job(f"job {{n}}", ["bash", "-c", line], Path({out!r}) / f"{{n}}.log", lambda: "endless")
sys.exit(run_command(lambda _: run_jobs([job(n) for n in range(4)], [{{}}, {{}}]), []))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_jobs_save_ends_them_and_says_what_is_left(tmp_path, number):
    code = QUEUE.format(out=str(tmp_path))
    with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True) as process:
        wait_for(lambda: len(list(tmp_path.glob("began_*"))) == 2, process)
        process.send_signal(number)
        output = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert output == "error: interrupted; 4 (job 0, job 1, job 2, job 3) left of 4: the same command continues\n"
    assert (tmp_path / "saved").read_text() == "saved\nsaved\n" and len(list(tmp_path.glob("began_*"))) == 2
    assert not any(jobs._locked(tmp_path / f"{n}.log") for n in range(2))


def wait_for(condition, process) -> None:
    """Until something holds, two minutes at most."""
    for _ in range(2400):
        if condition():
            return
        assert process.poll() is None, "it ended by itself"
        time.sleep(0.05)
    raise AssertionError("it never came")


# ---- Slurm ----

SBATCH = """#!{python}
import os, re, subprocess, sys
from pathlib import Path
here, words = Path({here!r}), sys.argv[1:]
with open(here / "calls", "a") as calls:
    print(*words, file=calls)
given = dict(word[2:].split("=", 1) for word in words if word.startswith("--") and "=" in word)
tasks = []
for part in given.get("array", "").split("%")[0].split(","):
    first, _, last = part.partition("-")
    tasks += range(int(first), int(last or first) + 1) if part else []
if {runs}:
    for task in tasks or [None]:
        environment = dict(os.environ) | ({{}} if task is None else {{"SLURM_ARRAY_TASK_ID": str(task)}})
        with open(here / "output", "a") as output:
            subprocess.run([words[-1]], env=environment, stdout=output, stderr=output)
print("77;cluster")
"""


def stub_sbatch(folder: Path, monkeypatch, runs: bool) -> Path:
    """A `sbatch` on PATH that writes down its words, and runs the tasks at once if told to."""
    path = folder / "bin" / "sbatch"
    path.parent.mkdir(parents=True)
    path.write_text(SBATCH.format(python=sys.executable, here=str(folder), runs=runs))
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{path.parent}{os.pathsep}{os.environ['PATH']}")
    return folder / "calls"


def test_slurm_gets_an_array_of_what_is_missing_and_a_report(
    models, benchmarks, tmp_path, in_process, monkeypatch, capsys
):
    calls = stub_sbatch(tmp_path, monkeypatch, runs=False)
    arguments = words(models, benchmarks, tmp_path / "out")
    assert launcher.main([*arguments, "--task", "1"]) == 0 and in_process == ["b on one"]
    slurm = ["--slurm", "--jobs", "2", "--sbatch-args=--gres=gpu:1 --time=1:00:00"]
    assert launcher.main([*arguments, *slurm]) == 0
    array, after = calls.read_text().splitlines()
    assert "--array=0,2-3%2 --gres=gpu:1 --time=1:00:00" in array and "--dependency=afterany:77 --gres=gpu:1" in after
    assert "submitted 3 tasks as job 77" in capsys.readouterr().out and in_process == ["b on one"]
    task, report = ((tmp_path / f"out/slurm/{name}.sh").read_text() for name in ("task", "collect"))
    assert f'cssr evaluations --task "$SLURM_ARRAY_TASK_ID" {models[0]}' in task and "--collect" in report


def test_without_sbatch_the_commands_are_printed(models, benchmarks, tmp_path, in_process, monkeypatch, capsys):
    monkeypatch.setattr(slurm.shutil, "which", lambda _: None)
    assert launcher.main([*words(models, benchmarks, tmp_path / "out"), "--slurm"]) == 0
    output = capsys.readouterr().out.splitlines()
    assert "sbatch is not here" in output[0] and "--array=0-3" in output[1] and "afterany:JOB" in output[2]


def test_what_sbatch_refuses_is_reported(models, benchmarks, tmp_path, in_process, monkeypatch, capsys):
    calls = stub_sbatch(tmp_path, monkeypatch, runs=False)
    (calls.parent / "bin" / "sbatch").write_text("#!/bin/sh\necho 'sbatch: error: no such partition' >&2; exit 1\n")
    assert launcher.main([*words(models, benchmarks, tmp_path / "out"), "--slurm"]) == 2
    assert capsys.readouterr().err == "error: sbatch refused: sbatch: error: no such partition\n"


@pytest.mark.parametrize("tasks, ranges", [([0], "0"), ([0, 1, 2, 5], "0-2,5"), ([3, 1, 0], "0-1,3"), ([2, 4], "2,4")])
def test_tasks_as_slurm_writes_them(tasks, ranges):
    assert slurm._ranges(tasks) == ranges


# ---- the whole, with processes ----


def command(*arguments) -> subprocess.CompletedProcess:
    line = [sys.executable, str(ROOT / "launch/evaluate.py"), *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(line, capture_output=True, text=True, timeout=500, env=environment)


@pytest.mark.slow
def test_results_are_the_same_bytes_for_any_number_of_processes_and_jobs(
    models, benchmarks, tmp_path, in_process, no_report
):
    assert launcher.main(words(models[:1], benchmarks, tmp_path / "one", "--distances")) == 0
    for name, how in (("two", ["--processes", "2", "--jobs", "1"]), ("jobs", ["--jobs", "2"])):
        done = command(*words(models[:1], benchmarks, tmp_path / name, "--distances", *how))
        assert done.returncode == 0, done.stdout + done.stderr
    for benchmark in ("one", "two"):
        found = [(tmp_path / name / "a" / benchmark / "results.json").read_bytes() for name in ("one", "two", "jobs")]
        assert found[0] == found[1] == found[2]


@pytest.mark.thorough
@pytest.mark.slow
def test_a_damaged_model_fails_alone_and_slurm_does_the_rest(models, benchmarks, tmp_path, monkeypatch):
    """The first model's weights are cut short: its tasks fail, the others' are done, the job that collects says so."""
    stub_sbatch(tmp_path, monkeypatch, runs=True)
    weights = models[0] / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:100])
    arguments = [*map(str, models), "--benchmarks", str(benchmarks / "one"), "--out", str(tmp_path / "out")]
    assert command(*arguments, "--slurm").returncode == 0
    output = (tmp_path / "output").read_text()
    assert output.count("FAILED") == output.count("missing: a on") == 1 and "cannot be read as safetensors" in output
    assert "| b " in (tmp_path / "out/report/report.md").read_text()
    weights.write_bytes(whole)
    again = command(*arguments)
    assert again.returncode == 0 and "1 of 2 evaluations are done" in again.stdout, again.stdout + again.stderr
