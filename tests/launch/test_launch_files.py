"""Launch files and scripts start what they say: by accelerate's own decision, and for real where there is no GPU."""

import importlib.util
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.commands import launch as accelerate_launch
from helpers import draw_shards
from running import ROOT, environment, losses, settings

from cssr.launch.launch_file import read_launch_file

LAUNCHERS = {
    "simple_launcher": "simple",
    "multi_gpu_launcher": "ddp or fsdp",
    "deepspeed_launcher": "zero",
}
MACHINES = ["--num_machines", "3", "--machine_rank", "2", "--main_process_ip", "10.0.0.1", "--num_processes", "12"]
BARE = {"distributed_type": '"NO"', "num_processes": 2, "num_machines": 1, "machine_rank": 0}
ODD = {
    "no": {},
    "multi_cpu": {"distributed_type": "MULTI_CPU"},
    "npu": {"distributed_type": "MULTI_NPU"},
    "use_cpu": {"distributed_type": "MULTI_GPU", "use_cpu": "true"},
}
WORLD = """
import pathlib
from cssr.utils.distributed import start_engine
engine = start_engine()
found = engine.num_processes, engine.device.type, engine.distributed_type.value, engine.mixed_precision
pathlib.Path(__file__).with_name(f"rank_{engine.process_index}.txt").write_text(" ".join(map(str, found)))
"""


@pytest.fixture
def started(monkeypatch):
    """What accelerate has chosen: launcher and arguments."""
    found = []
    for name in LAUNCHERS:
        monkeypatch.setattr(accelerate_launch, name, lambda arguments, name=name: found.append((name, arguments)))
    return found


def options(words: list[str]) -> dict:
    """The options that `read_launch_file` takes, of an `accelerate launch` command."""
    pairs = dict(zip(words[::2], words[1::2]))
    kinds = {"--num_processes": int, "--num_machines": int, "--machine_rank": int}
    return {name.lstrip("-"): kinds.get(name, str)(value) for name, value in pairs.items()}


def bare_file(folder: Path, **differences) -> Path:
    path = folder / "bare.yaml"
    path.write_text("".join(f"{key}: {value}\n" for key, value in {**BARE, **differences}.items()))
    return path


@pytest.mark.parametrize("path", sorted((ROOT / "launch").glob("*.yaml")), ids=lambda path: path.name)
@pytest.mark.parametrize("more", [[], ["--mixed_precision", "no", "--num_processes", "4"], MACHINES])
def test_a_launch_file_is_what_accelerate_would_start(path, more, started):
    """The launcher, its processes and precision: as in accelerate, whose decision is taken with its own code."""
    parser = accelerate_launch.launch_command_parser()
    accelerate_launch.launch_command(parser.parse_args(["--config_file", str(path), *more, "train.py"]))
    ((launcher, arguments),) = started
    launch = read_launch_file(path, options(more))
    assert launch.strategy in LAUNCHERS[launcher]
    if launch.strategy != "simple":
        assert launch.per_machine == arguments.num_processes // arguments.num_machines
    assert launch.precision == arguments.mixed_precision and launch.machines == arguments.num_machines
    assert launch.main_ip == arguments.main_process_ip
    assert launch.zero_stage == (int(arguments.zero_stage) if launcher == "deepspeed_launcher" else 0)


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("more", [[], ["--cpu"]])
def test_so_it_is_for_files_of_others(name, more, started, tmp_path):
    path = bare_file(tmp_path, **ODD[name])
    parser = accelerate_launch.launch_command_parser()
    accelerate_launch.launch_command(parser.parse_args(["--config_file", str(path), *more, "train.py"]))
    launch = read_launch_file(path, {"cpu": bool(more)})
    assert launch.strategy in LAUNCHERS[started[0][0]]
    assert launch.world == (1 if launch.strategy == "simple" else 2)


def run(tmp_path: Path, *words: str) -> list[str]:
    """The world that each rank of a script finds, started by accelerate."""
    script = tmp_path / "world.py"
    script.write_text(WORLD)
    command = [sys.executable, "-m", "accelerate.commands.launch", *words, str(script)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return [path.read_text() for path in sorted(tmp_path.glob("rank_*.txt"))]


@pytest.mark.slow
@pytest.mark.parametrize("file, world", [
    ("multi_gpu", ["2 cpu MULTI_CPU bf16"] * 2),
    ("zero3", ["2 cpu DEEPSPEED bf16"] * 2),
    pytest.param("zero2_offload", ["2 cpu DEEPSPEED bf16"] * 2, marks=pytest.mark.thorough),
])  # fmt: skip
def test_a_file_starts_what_it_says(file, world, tmp_path):
    """On a machine without GPUs; training by each of them is in test_strategies."""
    if torch.accelerator.is_available():
        pytest.skip("there is a GPU here")
    if "zero" in file and importlib.util.find_spec("deepspeed") is None:
        pytest.skip("needs deepspeed: pip install 'cssr[deepspeed]'")
    port = ["--main_process_port", "0"] if len(world) > 1 else []
    assert run(tmp_path, "--config_file", str(ROOT / f"launch/{file}.yaml"), *port) == world


# ---- torchrun ----


TORCHRUN = """#!/bin/bash
printf '%s\\n' "$CSSR_WORLD_SIZE $ACCELERATE_MIXED_PRECISION" "$@" > "$RECORDS"
"""


def torchrun(tmp_path: Path, *words: str, **variables: str) -> list[str]:
    """The words that the script calls torchrun with, after a line of variables."""
    stub, records = tmp_path / "torchrun", tmp_path / "records"
    stub.write_text(TORCHRUN)
    stub.chmod(stat.S_IRWXU)
    path = f"{tmp_path}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    where = {**os.environ, **variables, "PATH": path, "RECORDS": str(records)}
    done = subprocess.run(["bash", ROOT / "launch/torchrun.sh", *words], env=where, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return records.read_text().splitlines()


def test_torchrun_on_one_machine_stands_alone(tmp_path):
    facts, *words = torchrun(tmp_path, "a recipe.yaml", "train.steps=3", PROCESSES="2")
    assert facts == "2 bf16" and words[:1] == ["--standalone"]
    assert words[words.index("--nproc_per_node") + 1] == "2"
    assert words[-4:] == ["-m", "cssr.train", "a recipe.yaml", "train.steps=3"]


def test_torchrun_in_a_pod_takes_its_index(tmp_path):
    more = {"MACHINES": "3", "JOB_COMPLETION_INDEX": "2", "MAIN": "cssr-0.cssr", "PROCESSES": "4", "PRECISION": "no"}
    facts, *words = torchrun(tmp_path, "r.yaml", **more)
    given = dict(zip(words[:-2:2], words[1:-2:2]))
    assert facts == "12 no" and given["--node_rank"] == "2" and given["--nnodes"] == "3"
    assert given["--master_addr"] == "cssr-0.cssr" and given["--max_restarts"] == "3"


@pytest.mark.slow
def test_torchrun_trains_as_accelerate_does(tmp_path):
    shards = draw_shards(tmp_path / "set", 20, 64)
    words = settings(shards, tmp_path / "run", "train.steps=2", "train.val_every=0", "optim.batch_norm=held")
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    where = {**environment(), "PATH": path, "PROCESSES": "2", "PRECISION": "no"}
    command = ["bash", ROOT / "launch/torchrun.sh", *words]
    done = subprocess.run(command, env=where, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert sorted(losses(tmp_path / "run")) == [1, 2]
    assert "2 x cpu (no)" in (tmp_path / "run" / "log.txt").read_text()
