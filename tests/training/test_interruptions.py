"""What happens to runs, for real, on two processes: after each, the same command continues as if nothing had been."""

import json
import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from helpers import draw_shards
from paths import SUPPORT
from running import ROOT, environment, launch, logged, losses, settings, start, wait_for_step

from cssr.models.load import checkpoints, read_state
from cssr.train import main
from cssr.training import checkpoint as store

RUN = ["train.steps=10", "train.save_every=3", "train.val_every=0", "optim.batch_norm=held", "imports=[faulty_loss]"]
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Forty drawn photographs of 64 pixels, in two shards."""
    return draw_shards(tmp_path_factory.mktemp("shards") / "set", 40, 64, "--shard-size", "24")


def arguments(shards: Path, run_dir: Path, *more: str, kind: str = "none", at: int = 0, rank: int = 0) -> list[str]:
    """Of a run with an accident of some kind before step `at` is done, which happens once."""
    fault = f"{{name: faulty, kind: {kind}, samples: [{4 * (at - 1)}], rank: {rank}, once: {run_dir}.happened}}"
    return [*settings(shards, run_dir, *RUN), f"loss.seg={fault}", *more]


@pytest.fixture(scope="module")
def straight(shards, tmp_path_factory):
    """A run on two processes that nothing has interrupted."""
    run_dir = tmp_path_factory.mktemp("straight") / "run"
    done = launch(arguments(shards, run_dir), 2)
    assert done.returncode == 0, done.stderr
    return run_dir


def one_error(output: str, said: str) -> str:
    """The one line of all the ranks' errors that says something."""
    (line,) = [line for line in output.splitlines() if line.startswith("error: ") and said in line]
    return line


def goes_on(words: list[str], run_dir: Path, straight: Path) -> str:
    """The same command again: until the end, to the losses of the run that was not interrupted."""
    done = launch(words, 2)
    assert done.returncode == 0, done.stderr
    assert losses(run_dir) == losses(straight)
    return done.stdout + done.stderr


# ---- a rank ends, hangs, or runs out of memory ----


@pytest.mark.slow
def test_one_rank_is_killed(shards, straight, tmp_path):
    words = arguments(shards, tmp_path / "run", kind="kill", at=8, rank=1)
    done = launch(words, 2)
    assert done.returncode != 0
    assert "resumed from step" in goes_on(words, tmp_path / "run", straight)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["hang", pytest.param("stop", marks=pytest.mark.thorough)])
def test_a_rank_that_hangs_ends_the_run_with_its_stacks(kind, shards, straight, tmp_path):
    """A sleeping rank says itself where it stands; of a stopped one the others say that they wait."""
    words = arguments(shards, tmp_path / "run", "train.hang_timeout=8", kind=kind, at=8, rank=1)
    process = start(words, 2, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    family: list[psutil.Process] = []
    wait_for_step(tmp_path / "run", 7, process)
    family = psutil.Process(process.pid).children(recursive=True)
    output = process.communicate(timeout=200)[1]
    assert process.returncode != 0 and psutil.wait_procs(family, timeout=60)[1] == []
    assert "has made no progress for 8 s (train.hang_timeout)" in output
    stacks = {path.stem: path.read_text() for path in (tmp_path / "run" / "stacks").iterdir()}
    assert any("_micro_step" in text for text in stacks.values())
    goes_on(words, tmp_path / "run", straight)


@pytest.mark.slow
def test_out_of_memory_names_the_settings(shards, straight, tmp_path):
    words = arguments(shards, tmp_path / "run", kind="memory", at=5, rank=1)
    done = launch(words, 2)
    line = one_error(done.stderr, "out of memory")
    assert done.returncode != 0 and "train.micro_batch (here 2; batch_size=4" in line and "data.crop=32" in line
    goes_on(words, tmp_path / "run", straight)


@pytest.mark.slow
def test_the_launcher_alone_is_killed(shards, straight, tmp_path):
    """Its ranks, whom nobody ends then, write a checkpoint and end; the same command waits for them."""
    words = settings(shards, tmp_path / "run", *RUN, "train.steps=4000", "train.save_every=4000")
    process = start(words, 2, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for_step(tmp_path / "run", 3, process)
    family = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    assert psutil.wait_procs(family, timeout=90)[1] == []
    (last,) = checkpoints(tmp_path / "run")
    assert read_state(last)["step"] >= 3


@pytest.mark.thorough
@pytest.mark.slow
def test_torchrun_restarts_unattended(shards, straight, tmp_path):
    words = arguments(shards, tmp_path / "run", kind="kill", at=8)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--max_restarts=1"]
    alone = ["--rdzv_backend=c10d", "--rdzv_endpoint=127.0.0.1:0", str(ROOT / "cssr/train.py")]
    done = subprocess.run([*launcher, *alone, *words], env=environment(), capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    assert "resumed from step" in done.stdout and losses(tmp_path / "run") == losses(straight)


# ---- checkpoints ----


@pytest.mark.slow
def test_killed_in_the_middle_of_a_write(shards, straight, tmp_path):
    words = arguments(shards, tmp_path / "run", kind="kill_in_write", at=6)
    assert launch(words, 2).returncode != 0
    assert [path.name for path in (tmp_path / "run" / "checkpoints").glob("*.partial")]
    goes_on(words, tmp_path / "run", straight)
    assert not list((tmp_path / "run" / "checkpoints").glob("*.partial"))


@pytest.mark.slow
def test_a_damaged_newest_checkpoint_is_passed_over(shards, straight, tmp_path):
    words = arguments(shards, tmp_path / "run", kind="kill", at=8)
    launch(words, 2)
    before, newest = checkpoints(tmp_path / "run")[-2:]
    path = newest / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    output = goes_on(words, tmp_path / "run", straight)
    assert f"{newest} is damaged (model.safetensors); it is now {newest.name}.damaged" in output
    assert f"resumed from step {int(before.name[5:])}" in output


@contextmanager
def small_disk(where: Path, size: str):
    """A file system of that size."""
    where.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(where)], capture_output=True)
    if made.returncode:
        pytest.skip("needs to mount a small tmpfs, which is not allowed here")
    try:
        yield where
    finally:
        subprocess.run(["umount", "-l", str(where)], check=True)


@pytest.mark.slow
def test_a_full_disk(shards, straight, tmp_path):
    """The second checkpoint has no room; once there is some, the run goes on from the first."""
    with small_disk(tmp_path / "disk", "31m") as disk:
        run_dir = disk / "run"
        words = arguments(shards, run_dir, "train.keep=1")
        done = launch(words, 2)
        line = one_error(done.stderr, "train.run_dir")
        assert done.returncode != 0 and "No space left" in line and "make room" in line
        assert not list((run_dir / "checkpoints").glob("*.partial")) and store.newest_intact(run_dir) is not None
        subprocess.run(["mount", "-o", "remount,size=2g", str(disk)], check=True)
        goes_on(words, run_dir, straight)


# ---- a loss that is not finite ----


@pytest.mark.slow
def test_a_loss_that_is_not_finite_on_one_rank(shards, tmp_path):
    """All ranks leave the step out; after a resume the same steps have been left out."""
    run_dir = tmp_path / "run"
    fault = "loss.seg={name: faulty, kind: nan, samples: [12, 28], rank: 1}"
    words = [*settings(shards, run_dir, *RUN), fault]
    done = launch([*words, "train.steps=10"], 2)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (run_dir / "skipped.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [4, 8]
    assert [(rank["finite"], len(rank["keys"])) for rank in lines[0]["ranks"]] == [(True, 2), (False, 2)]
    assert sorted(logged(run_dir)) == [1, 2, 3, 5, 6, 7, 9, 10]


@pytest.mark.slow
def test_too_many_losses_that_are_not_finite_end_the_run(shards, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(SUPPORT)
    fault = "loss.seg={name: faulty, kind: nan, samples: [4, 8, 12], rank: 0}"
    words = [*settings(shards, tmp_path / "run", *RUN), fault, "train.max_skipped=2"]
    for _ in range(2):  # the same again after a resume
        with pytest.raises(SystemExit, match="step 4, .* 3. such step, more than train.max_skipped=2"):
            main(words)


@pytest.mark.slow
def test_a_left_out_step_leaves_nothing_behind(shards, tmp_path, monkeypatch):
    """With accumulation: what came before the bad micro-batch is dropped, what comes after it read and left."""
    monkeypatch.syspath_prepend(SUPPORT)
    found = []
    for micro_batch in (4, 1):
        run_dir = tmp_path / str(micro_batch)
        fault = "loss.seg={name: faulty, kind: nan, samples: [12], rank: 0}"
        same = [*settings(shards, run_dir, *RUN), fault, "train.steps=6", "model.seg.decoder_dropout=0"]
        main([*same, f"train.micro_batch={micro_batch}"])
        found.append(losses(run_dir))
    assert sorted(found[0]) == sorted(found[1]) == [1, 2, 3, 5, 6]
    for step, values in found[0].items():
        assert found[1][step] == pytest.approx(values, rel=1e-5)


# ---- one run a directory ----


def test_a_run_directory_is_one_runs(shards, tmp_path, monkeypatch):
    monkeypatch.setattr("cssr.training.fault_tolerance._PATIENCE", 0.2)
    words = settings(shards, tmp_path / "run", *RUN[:3])
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "run")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout.readline().strip() == "held"
    with pytest.raises(SystemExit, match="another run writes to .*process 7 on moon.*: stop it first"):
        main(words)
    holder.communicate("")
    main([*words, "train.steps=1"])


HOLDER = """
import fcntl, pathlib, sys
path = pathlib.Path(sys.argv[1])
path.mkdir()
file = open(path / "lock", "w")
file.write("process 7 on moon")
file.flush()
fcntl.flock(file, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


@pytest.mark.slow
def test_sigterm_ends_validation_too(shards, tmp_path):
    """Within the seconds that a launcher gives: not after all of the images."""
    words = settings(shards, tmp_path / "run", *RUN, "train.val_every=2", "eval.limit=null", "eval.batch_size=1")
    process = start([*words, f"data.val={shards}"], 2, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for_step(tmp_path / "run", 2, process)
    os.killpg(process.pid, signal.SIGTERM)
    assert process.wait(60) is not None
    assert store.newest_intact(tmp_path / "run") is not None
    assert launch(words, 2).returncode == 0
