"""Ctrl-C, a closed connection, SIGTERM: every command answers in one line, and training keeps what it has done."""

import os
import pty
import signal
import subprocess
import sys
import time

import psutil
import pytest
from helpers import draw_shards
from PIL import Image
from running import ROOT, command, environment, settings, wait_for_step

from cssr.models.load import read_state
from cssr.training import checkpoint as store
from cssr.training.fault_tolerance import StopSignal
from cssr.training.log import has_step
from cssr.training.run import run as train
from cssr.training.trainer import Run
from cssr.utils import interrupts

ENDLESS = ["train.steps=4000", "train.save_every=4000", "train.val_every=0", "optim.batch_norm=held"]


@pytest.fixture
def handlers():
    """The signals' handlers are those of before again."""
    before = {number: signal.getsignal(number) for number in (*interrupts.ENDING, signal.SIGUSR1)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return draw_shards(tmp_path_factory.mktemp("shards") / "set", 24, 64)


def begin(words: list[str], **how) -> subprocess.Popen:
    """A command in a process group of its own, with the signals as a terminal's programs have them."""

    def default_signals() -> None:
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)

    how = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **how}
    return subprocess.Popen(
        words, start_new_session=True, env=environment(), cwd=ROOT, preexec_fn=default_signals, **how
    )


def output(process: subprocess.Popen, number: int) -> tuple[str, str]:
    """Output and errors after a signal to the whole group, of which nothing is left."""
    family = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, number)
    out, err = process.communicate(timeout=90)
    assert psutil.wait_procs(family, timeout=30)[1] == []
    return out, err


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_a_run_finishes_its_step_and_writes_a_checkpoint(number, shards, tmp_path):
    run_dir = tmp_path / "run"
    process = begin([sys.executable, "cssr/train.py", *settings(shards, run_dir, *ENDLESS)])
    wait_for_step(run_dir, 2, process)
    out, err = output(process, number)
    assert process.returncode == 128 + number and err == ""
    assert out.splitlines()[-1].startswith("stopped at step ") and "checkpoint written" in out
    assert read_state(store.newest_intact(run_dir))["step"] >= 2


def test_a_last_validation_that_a_signal_ends_is_made_up_for_before_the_export(shards, tmp_path, monkeypatch, handlers):
    run_dir = tmp_path / "run"
    words = settings(shards, run_dir, "train.steps=2", "train.val_every=2", "eval.limit=2", "data.workers=0")
    watched = Run._watched

    def interrupt(run, batches):
        signal.raise_signal(signal.SIGINT)
        return watched(run, batches)

    with monkeypatch.context() as patched, pytest.raises(SystemExit) as end:
        patched.setattr(Run, "_watched", interrupt)
        train(words)
    assert end.value.code == 130 and not (run_dir / "export").exists()
    assert "stopped at step 2 on a signal, checkpoint written" in (run_dir / "log.txt").read_text()
    train(words)
    assert (run_dir / "export").is_dir() and has_step(run_dir / "validation.jsonl", 2)


@pytest.mark.parametrize("writes", ["_write_files", "exported_model"])
def test_a_signal_while_files_are_written_waits_for_them(writes, shards, tmp_path, monkeypatch, handlers):
    """Of a checkpoint, which a thread writes, and of the export, with which the run is finished."""
    run_dir, write = tmp_path / "run", getattr(store, writes)

    def interrupt(*arguments):
        monkeypatch.setattr(store, writes, write)  # a second one would end this process
        os.kill(os.getpid(), signal.SIGINT)
        return write(*arguments)

    monkeypatch.setattr(store, writes, interrupt)
    steps = 400 if writes == "_write_files" else 2
    words = settings(shards, run_dir, f"train.steps={steps}", "train.val_every=0", "train.save_every=2")
    if writes == "_write_files":
        with pytest.raises(SystemExit) as end:
            train(words)
        assert end.value.code == 130 and "on a signal, checkpoint written" in (run_dir / "log.txt").read_text()
    else:
        train(words)
    assert (run_dir / "export").is_dir() == (writes == "exported_model")
    assert store.newest_intact(run_dir) and not [*run_dir.rglob("*.partial*"), *run_dir.rglob("*.damaged")]


def test_slurms_warning_is_heeded_where_the_launcher_ignores_it(handlers):
    """launch/slurm.sh has it so; what is ignored by nohup stays ignored."""
    for number in (signal.SIGUSR1, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    stop = StopSignal()
    signal.raise_signal(signal.SIGHUP)
    assert not stop
    signal.raise_signal(signal.SIGUSR1)
    assert stop
    stop.close()


@pytest.mark.slow
@pytest.mark.parametrize("processes", [pytest.param(1, marks=pytest.mark.thorough), 2])
def test_under_a_launcher_it_does_so_too(processes, shards, tmp_path):
    """What the launcher itself says of Ctrl-C is accelerate's."""
    run_dir = tmp_path / "run"
    process = begin(command(settings(shards, run_dir, *ENDLESS), processes))
    wait_for_step(run_dir, 2, process)
    out, err = output(process, signal.SIGINT)
    assert "checkpoint written" in out and "train.py" not in err
    assert read_state(store.newest_intact(run_dir))["step"] >= 2


@pytest.mark.slow
def test_a_second_ctrl_c_ends_at_once(shards, tmp_path):
    run_dir = tmp_path / "run"
    slow = "loss.seg={name: faulty, kind: hang, samples: [8]}"
    words = settings(shards, run_dir, *ENDLESS, "imports=[faulty_loss]", slow)
    process = begin([sys.executable, "cssr/train.py", *words])
    wait_for_step(run_dir, 2, process)
    time.sleep(0.5)
    os.killpg(process.pid, signal.SIGINT)
    time.sleep(0.5)
    assert process.poll() is None
    began = time.monotonic()
    _, err = output(process, signal.SIGINT)
    assert time.monotonic() - began < 20 and process.returncode == -signal.SIGINT
    assert err == "interrupted again: the same command continues from the last checkpoint\n"


@pytest.mark.slow
def test_a_closed_terminal_costs_no_checkpoint(shards, tmp_path):
    run_dir = tmp_path / "run"
    ours, theirs = pty.openpty()
    words = [sys.executable, "cssr/train.py", *settings(shards, run_dir, *ENDLESS)]
    process = begin(words, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    os.set_blocking(ours, False)
    wait_for_step(run_dir, 2, process)
    os.close(ours)
    os.killpg(process.pid, signal.SIGHUP)
    process.wait(90)
    assert read_state(store.newest_intact(run_dir))["step"] >= 2
    assert "checkpoint written" in (run_dir / "log.txt").read_text()


COMMANDS = {
    "cssr/train.py": ["configs/tiny.yaml"],
    "cssr/evaluate.py": ["MODEL", "--data", "SET"],
    "-m cssr.predict": ["MODEL", "x.png", "--out", "OUT"],
    "-m cssr.measure": ["x.png", "--out", "OUT"],
    "-m cssr.deploy": ["MODEL", "--out", "OUT"],
    "-m cssr.convert": ["x.pth", "--recipe", "configs/tiny.yaml", "--out", "OUT"],
    "-m cssr.report": ["x", "--out", "OUT"],
    "-m cssr.hub": ["push", "MODEL", "a/b", "--license", "mit"],
    "-m cssr.demo": ["MODEL"],
    "shards/make_shards.py": ["folder", "--root", "x", "--out", "OUT"],
    "shards/make_benchmark.py": ["--data", "x", "--degradation", "x", "--out", "OUT"],
    "shards/doctor.py": ["folder", "--root", "x"],
    "shards/show.py": ["x"],
    "shards/extract.py": ["x", "--out", "OUT"],
    "launch/doctor.py": [],
    "launch/evaluate.py": ["x", "--benchmarks", "x"],
    "launch/sweep.py": ["configs/tiny.yaml", "seed=0,1"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_answers_in_one_line_while_it_imports(name, tmp_path):
    """The signal comes from within, at the first import of numpy, yaml or argparse after the answer is set up."""
    (tmp_path / "argparse.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    environ = {**environment(), "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    words = [sys.executable, *name.split(), *COMMANDS[name]]
    done = subprocess.run(words, env=environ, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode in (-signal.SIGINT, 130)
    assert done.stderr == "error: interrupted; the same command begins again\n"


def test_a_tilde_after_an_equals_sign_is_the_home(monkeypatch, tmp_path, handlers):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["predict", "~", "--out=~/a", "--name=a=~", "data.train=~/b"])
    assert interrupts.run(lambda: sys.argv[1:]) == ["~", f"--out={tmp_path}/a", "--name=a=~", "data.train=~/b"]


@pytest.mark.parametrize("word", ["", "--out=", "--crack-values="])
def test_an_empty_argument_is_a_mistake(word, monkeypatch, handlers):
    """As of `--out "$OUT"`, which would write into the working directory."""
    monkeypatch.setattr(sys, "argv", ["measure", "a.png", "--out", word])
    with pytest.raises(SystemExit, match=f"error: an argument is empty .'{word}'."):
        interrupts.run(lambda: pytest.fail("it ran"))


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_names_that_the_terminal_cannot_show_are_no_failures(encoding, tmp_path):
    """A name of no text, and one in letters that the encoding has not: each is measured and printed."""
    names = [b"bad\xff_mask.png", "Brücke ✓_mask.png".encode()]
    for name in names:
        Image.new("L", (8, 8)).save(tmp_path / "mask.png")
        os.replace(tmp_path / "mask.png", os.path.join(os.fsencode(tmp_path), name))
    found = subprocess.run(
        [sys.executable, "-m", "cssr.measure", str(tmp_path), "--out", str(tmp_path / "out")],
        env=environment() | {"PYTHONIOENCODING": encoding},
        capture_output=True,
    )
    assert found.returncode == 0 and not found.stderr, found.stderr
    assert b"bad\\udcff_mask.png: no cracks" in found.stdout and b"2 masks" in found.stdout


def test_a_reader_that_goes_costs_no_work(tmp_path):
    """As with `| head`: nobody reads the output from the first line on."""
    for number in range(3):
        Image.new("L", (8, 8)).save(tmp_path / f"{number}.png")
    theirs, ours = os.pipe()
    os.close(theirs)
    words = [sys.executable, "-m", "cssr.measure", str(tmp_path), "--out", str(tmp_path / "out")]
    done = subprocess.run(words, env=environment(), stdout=ours, stderr=subprocess.PIPE, text=True, timeout=60)
    os.close(ours)
    assert done.returncode == 0 and not done.stderr and len([*tmp_path.glob("out/*.csv")]) == 3


def test_escape_codes_do_not_reach_the_terminal():
    """A program on a pseudo-terminal, of which a file's name has escape codes."""
    ours, theirs = pty.openpty()
    code = "from cssr.utils.interrupts import run; import sys; run(lambda: sys.exit('error: \\x1b[31m\\x07a\\tb'))"
    words = [sys.executable, "-c", code]
    subprocess.run(words, env=environment(), stdin=theirs, stdout=theirs, stderr=theirs, timeout=60)
    os.close(theirs)
    assert os.read(ours, 1000) == b"error: \\x1b[31m\\x07a\tb\r\n"
    os.close(ours)
