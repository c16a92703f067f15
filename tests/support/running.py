"""Whole runs of the command for tests: small settings, launching, waiting, killing, reading what was logged."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
from paths import ROOT, SUPPORT

SMALL = [
    "model.sr={name: dbpn, stages: 2, width: 4, features: 8}",
    "model.seg={name: smp, architecture: fpn, encoder: tu-test_resnet, decoder_dropout: 0.3, "
    "decoder_pyramid_channels: 64}",
    "data.crop=32", "data.workers=1", "train.batch_size=4", "train.log_every=1", "train.val_every=4",
    "train.save_every=3", "train.tensorboard=false", "optim.lr=1e-3", "optim.ema=0.9", "eval.limit=3",
]  # fmt: skip


def settings(shards: Path, run_dir: Path, *more: str) -> list[str]:
    """The arguments of a small run."""
    return [*SMALL, f"data.train={shards}", f"data.val={shards}", f"train.run_dir={run_dir}", *more]


def command(arguments: list[str], processes: int = 1, file: str | None = None) -> list[str]:
    """The command of a run, by the launch file of so many processes on a CPU, or by another one."""
    file = file or {1: "cpu.yaml", 2: "cpu_2proc.yaml"}[processes]
    chosen = ["--config_file", str(ROOT / "launch" / file)]
    port = ["--main_process_port", "0"] if processes > 1 else []
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--quiet"]
    return [*launcher, *chosen, *port, str(ROOT / "cssr/train.py"), *arguments]


def environment() -> dict[str, str]:
    """One thread a process; this checkout and modules of the tests are imported; ninja is found, for DeepSpeed."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    modules = f"{ROOT}{os.pathsep}{SUPPORT}"
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": modules, "PATH": path}


def launch(arguments: list[str], processes: int = 1, file: str | None = None, **kwargs) -> subprocess.CompletedProcess:
    """Run the command until it ends."""
    words, how = command(arguments, processes, file), {"capture_output": True, "text": True, "timeout": 400}
    return subprocess.run(words, env=environment(), **how, **kwargs)


def start(arguments: list[str], processes: int, **kwargs) -> subprocess.Popen:
    """The command in a process group of its own."""
    return subprocess.Popen(command(arguments, processes), start_new_session=True, env=environment(), **kwargs)


def kill_all(process: subprocess.Popen) -> None:
    """kill -9 of the launcher and every process below it (torchrun's workers have sessions of their own)."""
    family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    for member in family:
        member.kill()
    psutil.wait_procs(family, timeout=30)
    process.wait()


def logged(run_dir: Path) -> dict[int, dict]:
    """What was logged, by step."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert len({line["step"] for line in lines}) == len(lines), "a step is logged twice"
    return {line["step"]: line for line in lines}


def losses(run_dir: Path) -> dict[int, tuple]:
    """The three losses by step."""
    return {step: (line["loss"], line["sr_loss"], line["seg_loss"]) for step, line in logged(run_dir).items()}


def wait_for_step(run_dir: Path, step: int, process: subprocess.Popen) -> None:
    """Until metrics.jsonl has a step, two minutes at most."""
    for _ in range(1200):
        path = run_dir / "metrics.jsonl"
        if path.is_file() and any(
            json.loads(line)["step"] >= step for line in path.read_text().splitlines() if line.endswith("}")
        ):
            return
        assert process.poll() is None, "the run ended by itself"
        time.sleep(0.1)
    raise AssertionError(f"step {step} never came")
