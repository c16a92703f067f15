"""The Slurm script and the Kubernetes example, with stubs of srun, scontrol and the launchers."""

import configparser
import os
import re
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import pytest
import yaml
from helpers import draw_shards
from running import ROOT, logged, settings, wait_for_step

from cssr.config.loading import load_config
from cssr.data.sampler import check_split

SCRIPT = ROOT / "launch" / "slurm.sh"
JOB = ROOT / "launch" / "kubernetes" / "job.yaml"
# as Slurm's: a task a node, told its number; signals but TERM are passed on to the tasks, TERM ends them by force
SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do echo "$1" >> "$RECORDS/srun-options"; shift; done
for ((node = 0; node < SLURM_JOB_NUM_NODES; node++)); do
    SLURM_NODEID=$node "$@" &
    tasks+=($!)
done
trap 'kill -USR1 "${tasks[@]}"' USR1
trap 'kill -KILL "${tasks[@]}"' TERM
for task in "${tasks[@]}"; do
    while kill -0 "$task" 2> /dev/null; do wait "$task"; done
    wait "$task" || status=1
done
exit "${status:-0}"
"""
SCONTROL = """#!/bin/bash
if [[ $1 == show ]]; then echo node-a; echo node-b; else echo "$@" >> "$RECORDS/requeued"; fi
"""
ACCELERATE = """#!/bin/bash
echo "$CSSR_WORLD_SIZE" > "$RECORDS/environment-$SLURM_NODEID"
printf '%s\\n' "$@" > "$RECORDS/arguments-$SLURM_NODEID"
exit "${ENDS:-0}"
"""


def stubs(folder: Path, **scripts: str) -> Path:
    """A directory of commands, and where they write down how they were called."""
    folder.mkdir()
    for name, text in scripts.items():
        (folder / name).write_text(text)
        (folder / name).chmod(stat.S_IRWXU)
    return folder


def environment(commands: Path, nodes: int, **more: str) -> dict[str, str]:
    """Slurm's variables for a job of so many nodes, with the stubs before all other commands."""
    path = f"{commands}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    given = {"SLURM_JOB_NUM_NODES": nodes, "SLURM_JOB_NODELIST": "node-[a-b]", "SLURM_JOB_ID": os.getpid()}
    given |= {"SLURM_SUBMIT_DIR": ROOT, "SLURM_GPUS_ON_NODE": 4, "SLURM_CPUS_PER_TASK": 8}
    given |= {"RECORDS": commands, "PATH": path, "OMP_NUM_THREADS": 1}
    return {**os.environ, **{name: str(value) for name, value in given.items()}, **more}


@pytest.fixture
def submit(tmp_path) -> Iterator[Callable[..., subprocess.Popen]]:
    """Run the batch script, from the repository's root; what is left of it when the test ends is killed.

    The last that each job printed is printed then, for a test that fails.
    """
    jobs = []

    def start(variables: Mapping[str, str], *arguments: str) -> subprocess.Popen:
        how = {"cwd": ROOT, "env": dict(variables), "start_new_session": True, "stderr": subprocess.STDOUT}
        with (tmp_path / f"job-{len(jobs)}.txt").open("w") as printed:
            jobs.append(subprocess.Popen(["bash", str(SCRIPT), *arguments], stdout=printed, **how))
        return jobs[-1]

    yield start
    for number, job in enumerate(jobs):
        with suppress(ProcessLookupError):
            os.killpg(job.pid, signal.SIGKILL)
        job.wait()
        print(f"job {number}, exit status {job.returncode}:", (tmp_path / f"job-{number}.txt").read_text()[-3000:])


def options(commands: Path, node: int) -> dict[str, str]:
    """How accelerate was called on a node: options by name, and the words of training under `words`."""
    words = (commands / f"arguments-{node}").read_text().splitlines()
    at = words.index("-m")
    assert words[0] == "launch" and words[at + 1] == "cssr.train"
    return {**dict(zip(words[1:at:2], words[2:at:2])), "words": words[at + 2 :]}


def test_every_node_gets_its_own_rank_and_the_same_place(submit, tmp_path):
    commands = stubs(tmp_path / "bin", srun=SRUN, scontrol=SCONTROL, accelerate=ACCELERATE)
    words = ["configs/tiny.yaml", "train.run_dir=a folder", "model.seg={name: unet, width: 4}"]
    assert submit(environment(commands, 2), *words).wait(60) == 0
    first, second = options(commands, 0), options(commands, 1)
    assert (first.pop("--machine_rank"), second.pop("--machine_rank")) == ("0", "1")
    assert first == second
    port = str(10000 + os.getpid() % 20000)
    expected = {"num_machines": "2", "num_processes": "8", "main_process_ip": "node-a", "main_process_port": port}
    expected |= {"config_file": "launch/multi_node.yaml"}
    assert first == {**{f"--{name}": value for name, value in expected.items()}, "words": words}
    assert {(commands / f"environment-{n}").read_text() for n in (0, 1)} == {"8\n"}
    given = (commands / "srun-options").read_text().split()
    assert set(given) == {"--ntasks-per-node=1", "--cpus-per-task=8", "--kill-on-bad-exit=1"}
    assert not (commands / "requeued").exists()


def test_an_image_is_run_where_the_job_was_submitted(submit, tmp_path):
    commands = stubs(tmp_path / "bin", srun=SRUN, scontrol=SCONTROL, accelerate=ACCELERATE)
    variables = environment(commands, 1, IMAGE="the image.sqsh", MOUNTS="/data:/data")
    assert submit(variables, "configs/tiny.yaml", f"train.run_dir={tmp_path / 'run'}").wait(60) == 0
    given = (commands / "srun-options").read_text().splitlines()
    asked = [f"--container-workdir={ROOT}", f"--container-mounts={ROOT}:{ROOT},/data:/data"]
    assert given[:3] == ["--container-image=the image.sqsh", *asked]


def test_a_run_that_fails_fails_the_job_and_is_not_put_back(submit, tmp_path):
    commands = stubs(tmp_path / "bin", srun=SRUN, scontrol=SCONTROL, accelerate=ACCELERATE)
    job = submit(environment(commands, 1, ENDS="3"), "configs/tiny.yaml", f"train.run_dir={tmp_path / 'run'}")
    assert job.wait(60) != 0 and not (commands / "requeued").exists()


def test_the_image_has_what_it_installs():
    """Extras and files that the Dockerfile names exist; all that can be checked where no daemon builds it."""
    text = (ROOT / "Dockerfile").read_text()
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    extras = re.search(r"ARG EXTRAS=(\S+)", text)[1].split(",")
    assert extras and set(extras) < set(setup["options.extras_require"])
    copied = [word for line in re.findall(r"^COPY (.+)", text, re.M) for word in line.split()[:-1]]
    assert copied and all((ROOT / name).exists() for name in copied)
    workspace = re.search(r"^WORKDIR (\S+)", text, re.M)[1]
    (container,) = list(yaml.safe_load_all(JOB.read_text()))[1]["spec"]["template"]["spec"]["containers"]
    assert container["workingDir"] == workspace


def test_headers_ask_for_what_the_script_relies_on():
    lines = [line for line in SCRIPT.read_text().splitlines() if line.startswith("#SBATCH ")]
    headers = {word for line in lines for word in line.split()}
    assert {"--ntasks-per-node=1", "--signal=B:USR1@180", "--requeue", "--open-mode=append"} <= headers


# a launcher whose trainer ends on USR1, as training does, and that itself would die of it
LAUNCHER = """#!/bin/bash
python "$RECORDS/trainer" &
wait $!
"""
TRAINER = """
import os, pathlib, signal, sys, time
def stop(*_):
    with open(os.environ["RECORDS"] + "/trainers", "a") as file:
        file.write("stopped\\n")
    os.makedirs({run_dir!r}, exist_ok=True)
    with open({run_dir!r} + "/log.txt", "w") as file:
        file.write("12:00:00 " + ("finished: export holds it" if {finishes} else "stopped at step 3") + "\\n")
    sys.exit(0)
signal.signal(signal.SIGUSR1, stop)
pathlib.Path(os.environ["RECORDS"], "ready-" + os.environ["SLURM_NODEID"]).touch()
time.sleep(100)
"""


@pytest.mark.parametrize(
    "number, finishes, requeued",
    [
        (signal.SIGUSR1, False, True),
        (signal.SIGUSR1, True, False),  # it was done just before the time was up
        (signal.SIGTERM, False, False),  # somebody wanted it to end
    ],
)
def test_a_signal_reaches_the_trainers_of_all_nodes(submit, tmp_path, number, finishes, requeued):
    run_dir = tmp_path / "run"
    trainer = TRAINER.format(finishes=finishes, run_dir=str(run_dir))
    commands = stubs(tmp_path / "bin", srun=SRUN, scontrol=SCONTROL, accelerate=LAUNCHER, trainer=trainer)
    job = submit(environment(commands, 2), "configs/tiny.yaml", f"train.run_dir={run_dir}")
    until(lambda: all((commands / f"ready-{node}").exists() for node in (0, 1)), job)
    job.send_signal(number)
    assert job.wait(30) == 0
    assert (commands / "trainers").read_text() == "stopped\nstopped\n"
    assert (commands / "requeued").exists() == requeued
    assert not requeued or (commands / "requeued").read_text() == f"requeue {os.getpid()}\n"


def until(holds, process: subprocess.Popen) -> None:
    for _ in range(600):
        if holds():
            return
        assert process.poll() is None, "it ended by itself"
        time.sleep(0.1)
    raise AssertionError("it never came")


@pytest.mark.slow
def test_a_job_whose_time_is_up_continues_in_its_next_turn(submit, tmp_path):
    """Two processes: a checkpoint, back into the queue, and to the end from there."""
    shards, run_dir = draw_shards(tmp_path / "set", 40, 64, "--shard-size", "24"), tmp_path / "run"
    commands = stubs(tmp_path / "bin", srun=SRUN, scontrol=SCONTROL)
    variables = environment(commands, 1, LAUNCH="launch/cpu_2proc.yaml", SLURM_GPUS_ON_NODE="2")
    words = ["configs/tiny.yaml", *settings(shards, run_dir, "train.steps=40", "train.save_every=1000")]
    job = submit(variables, *words)
    wait_for_step(run_dir, 2, job)
    job.send_signal(signal.SIGUSR1)
    assert job.wait(120) == 0
    stopped = max(logged(run_dir))
    assert [path.name for path in (run_dir / "checkpoints").glob("step_*")] and stopped < 40
    assert (commands / "requeued").read_text() == f"requeue {os.getpid()}\n"
    assert submit(variables, *words).wait(300) == 0
    assert (run_dir / "export").is_dir() and sorted(logged(run_dir)) == list(range(1, 41))
    assert f"resumed from step {stopped}" in (run_dir / "log.txt").read_text()
    assert (commands / "requeued").read_text().count("\n") == 1


# ---- Kubernetes ----


def kubernetes() -> tuple[dict, dict, list[str]]:
    """The job's specification, its container, and the words after `torchrun`."""
    job = next(part for part in yaml.safe_load_all(JOB.read_text()) if part["kind"] == "Job")["spec"]
    (container,) = job["template"]["spec"]["containers"]
    command = container["args"][0].split("&\n")[0].replace("\\\n", " ").split()
    assert container["command"] == ["bash", "-c"] and command[0] == "torchrun"
    return job, container, command[1:]


def test_the_kubernetes_job_names_what_is_there_and_its_numbers_agree():
    job, container, words = kubernetes()
    given = dict(word.lstrip("-").split("=", 1) for word in words if "=" in word)
    option, module, recipe = (word for word in words if "=" not in word)
    assert (option, module) == ("-m", "cssr.train")
    assert job["completionMode"] == "Indexed" and job["completions"] == job["parallelism"] == int(given["nnodes"])
    world = int(given["nnodes"]) * int(given["nproc_per_node"])
    variables = {entry["name"]: entry.get("value") for entry in container["env"]}
    assert int(variables["CSSR_WORLD_SIZE"]) == world
    assert container["resources"]["limits"]["nvidia.com/gpu"] == int(given["nproc_per_node"])
    config = load_config(ROOT / recipe, [word for word in words if "." in word.split("=")[0] and "=" in word])
    check_split(
        config.data.lanes, config.train.batch_size, world, config.data.workers, config.train.batch_size // world
    )
    assert given["master_addr"] == "cssr-train-0.cssr-train" and job["template"]["spec"]["subdomain"] == "cssr-train"


TORCHRUN = """#!/bin/bash
(trap 'exit 0' USR1; touch "$RECORDS/ready-0"; while [[ $STAYS ]]; do /bin/sleep 0.05; done; exit "${ENDS:-0}") &
wait $!
"""


@pytest.mark.parametrize(
    "exported, stops, ends, status",
    [
        (True, False, "0", 0),
        (False, False, "0", 1),  # another pod was told to go: this one must start again with it
        (False, True, "0", 1),
        (False, False, "3", 3),
    ],
)
def test_a_pod_succeeds_only_where_the_run_is_done(tmp_path, exported, stops, ends, status):
    commands = stubs(tmp_path / "bin", torchrun=TORCHRUN, sleep="#!/bin/bash\n")
    if exported:
        (tmp_path / "run" / "export").mkdir(parents=True)
    more = {"RUN_DIR": str(tmp_path / "run"), "ENDS": ends, "STAYS": "yes" if stops else "", "NODE_RANK": "0"}
    script = kubernetes()[1]["args"][0]
    pod = subprocess.Popen(["bash", "-c", script], env=environment(commands, 1, **more), start_new_session=True)
    if stops:
        until(lambda: (commands / "ready-0").exists(), pod)
        pod.terminate()
    assert pod.wait(30) == status
