"""Jobs: devices and launch commands for a share of them, a queue of jobs over the devices there are, Slurm arrays.

A job holds a lock on its log, which is the standard output of all its processes: so the lock is held for as long as any
of them lives, whatever became of the others, and no two commands work on the same thing at a time.
"""

import argparse
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import yaml

from cssr.utils.files import lock_file, write_atomic
from cssr.utils.installed import find_file, folder
from cssr.utils.interrupts import heeded
from cssr.utils.machine import check_processes

_POLL = 0.1  # seconds
_PATIENCE = 120  # seconds that a job that was asked to end may take to write what it has


@dataclass(frozen=True)
class Job:
    """A command that is to be run; `missing` says why, and "" once there is nothing left to do."""

    name: str
    command: Sequence[str]
    log: Path
    missing: Callable[[], str] = field(compare=False)


class _Running:
    """A job at work, in a session of its own, so that Ctrl-C is for us to pass on."""

    def __init__(self, job: Job, log: IO[bytes], device: dict[str, str]):
        self.job, self.place, self.began = job, device, time.monotonic()
        how: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": subprocess.STDOUT}
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", **device}
        self.process = subprocess.Popen(job.command, env=environment, start_new_session=True, **how)
        log.close()

    @property
    def ended(self) -> bool:
        """Return whether the command has ended, and with it all of its processes, or its work is done."""
        return self.process.poll() is not None and not (_locked(self.job.log) and self.job.missing())

    def tell(self, number: signal.Signals) -> None:
        """Send a signal to all of its processes, launcher and trainer alike."""
        with suppress(ProcessLookupError, PermissionError):  # it has gone meanwhile
            os.killpg(self.process.pid, number)


def run_jobs(jobs: Sequence[Job], devices: Sequence[dict[str, str]]) -> list[Job]:
    """Run all, one in each place at a time; a line for each. Returns those that failed.

    Raises: KeyboardInterrupt on SIGINT, SIGTERM or SIGHUP, once the jobs at work have ended; a second one kills them.
    """
    waiting, working, failed, free = deque(jobs), [], [], list(devices)
    with _signals() as arrived:
        try:
            while (waiting or working) and not arrived:
                while waiting and free:
                    device = free.pop(0)
                    started = _start(waiting.popleft(), device, failed)
                    (working if started else free).append(started or device)
                for running in [running for running in working if running.ended]:
                    working.remove(running)
                    free.append(running.place)
                    done = len(jobs) - len(waiting) - len(working)
                    print(f"[{done}/{len(jobs)}] {_conclude(running, failed)}", flush=True)
                time.sleep(_POLL if working else 0)
        finally:  # interrupted, or out of order: nothing is left at work
            _end(working, arrived)
        if arrived:
            left = [job.name for job in (*(running.job for running in working), *waiting) if job.missing()]
            shown = ", ".join(left[:5]) + (", ..." if len(left) > 5 else "")
            listed = f"{len(left)} ({shown})" if left else "nothing"
            raise KeyboardInterrupt(f"interrupted; {listed} left of {len(jobs)}: the same command continues")
    return failed


@contextmanager
def _signals() -> Iterator[list[int]]:
    """The signals that ask for an end, as they arrive; one that is ignored (nohup) stays so."""
    arrived: list[int] = []
    before = {number: signal.signal(number, lambda n, _: arrived.append(n)) for number in heeded()}
    try:
        yield arrived
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _start(job: Job, device: dict[str, str], failed: list[Job]) -> _Running | None:
    job.log.parent.mkdir(parents=True, exist_ok=True)
    log = job.log.open("ab")
    if not lock_file(log):
        log.close()
        failed.append(job)
        print(f"{job.name}: another command is at work on it ({job.log}); left to that", flush=True)
        return None
    log.truncate(0)
    return _Running(job, log, device)


def _locked(path: Path) -> bool:
    try:
        with path.open("ab") as log:
            return not lock_file(log)
    except OSError:  # the log was removed
        return False


def _conclude(running: _Running, failed: list[Job]) -> str:
    """A line on a job. What there is counts, not the exit status: DeepSpeed on a CPU may abort after all is written."""
    job, seconds = running.job, time.monotonic() - running.began
    if not job.missing():
        return f"{job.name}: done in {seconds:.0f} s"
    failed.append(job)
    return f"{job.name}: FAILED (exit {running.process.returncode}): {last_words(job.log)}; log: {job.log}"


def last_words(log: Path) -> str:
    """The line of a log that says most likely what went wrong."""
    text = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error:")] or lines or ["it said nothing"]
    return errors[-1][:300]


def _end(working: Sequence[_Running], arrived: list[int]) -> None:
    """Have the jobs end: SIGTERM, upon which training writes a checkpoint; SIGKILL after a while or another signal."""
    asked = len(arrived)
    for number, patience in ((signal.SIGTERM, _PATIENCE), (signal.SIGKILL, 5)):
        until = time.monotonic() + patience
        for running in working:
            if not running.ended:
                running.tell(number)
        while not all(running.ended for running in working):
            if time.monotonic() > until or (number == signal.SIGTERM and len(arrived) > asked):
                break
            time.sleep(_POLL)


_PACKAGE = Path(__file__).resolve().parents[1]
_VISIBLE = {  # the environment variable that says which devices a process sees; mps has none, and one device
    "cuda": "CUDA_VISIBLE_DEVICES",
    "xpu": "ZE_AFFINITY_MASK",
    "npu": "ASCEND_RT_VISIBLE_DEVICES",
    "mlu": "MLU_VISIBLE_DEVICES",
    "musa": "MUSA_VISIBLE_DEVICES",
    "sdaa": "SDAA_VISIBLE_DEVICES",
    "hpu": "HABANA_VISIBLE_MODULES",
}


def devices() -> list[str]:
    """Names of the devices at hand as the environment variable of their kind lists them; none on a CPU."""
    import torch  # here, as it takes seconds: --help needs no device

    if os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true") or not torch.accelerator.is_available():
        return []
    listed = os.environ.get(_visible() or "", "")
    return listed.split(",") if listed else [str(n) for n in range(torch.accelerator.device_count())]


def _visible() -> str | None:
    import torch

    kind = torch.accelerator.current_accelerator()
    return _VISIBLE.get(kind.type) if kind else None


@dataclass(frozen=True)
class Launcher:
    """Launch command of a job: its processes, its launch file, and the environments of the jobs that run at a time."""

    processes: int
    file: Path
    threads: int  # of each process
    places: tuple[dict[str, str], ...]

    def command(self, script: str, *arguments: str) -> list[str]:
        """`accelerate launch` of a script of this repository; no two jobs ask for the same port."""
        launch = [sys.executable, "-m", "accelerate.commands.launch", "--quiet", "--config_file", str(self.file)]
        launch += ["--num_processes", str(self.processes), "--num_cpu_threads_per_process", str(self.threads)]
        launch += ["--main_process_port", "0"] if self.processes > 1 else []
        return [*launch, str(_PACKAGE.parent / script), *arguments]


def make_launcher(processes: int | None, jobs: int | None, file: str | None, threads: int | None = None) -> Launcher:
    """Share the devices, or the cores, among jobs. `threads`: None shares the cores out.

    Raises: ValueError, one line, for an unknown launch file and for more processes than devices.
    """
    chosen = find_launch_file(file) if file else None
    processes = processes or (_processes_of(chosen) if chosen else 1)
    there, cores = devices(), len(os.sched_getaffinity(0))
    if there and processes > len(there):
        raise ValueError(f"--processes {processes}: there are {len(there)} devices")
    jobs = jobs or max(1, (len(there) or cores) // processes)
    check_processes(processes * jobs, f"--processes {processes} x --jobs {jobs}", gib=1, per_core=2)
    given = int(os.environ["OMP_NUM_THREADS"]) if os.environ.get("OMP_NUM_THREADS", "").isdigit() else None
    threads = given or threads or max(1, cores // (jobs * processes))
    one, several = ("single_gpu", "multi_gpu") if there else ("cpu", "cpu_2proc")
    usual = folder("launch") / f"{one if processes == 1 else several}.yaml"
    return Launcher(processes, chosen or usual, threads, _places(there, processes, jobs))


def _places(there: Sequence[str], processes: int, jobs: int) -> tuple[dict[str, str], ...]:
    variable = _visible() if there else None
    if not variable:
        return ({},) * jobs
    turns = [[there[(job * processes + n) % len(there)] for n in range(processes)] for job in range(jobs)]
    return tuple({variable: ",".join(turn)} for turn in turns)


def find_launch_file(text: str) -> Path:
    """A launch file by its path, or by its name in launch/; ValueError lists those."""
    path = find_file(text, "launch")
    if path.is_file():
        return path
    known = ", ".join(sorted(path.stem for path in folder("launch").glob("*.yaml")))
    raise ValueError(f"--config-file {text}: no such file; in launch/ there are {known}")


def _processes_of(path: Path) -> int:
    try:
        return int(yaml.safe_load(path.read_text(encoding="utf-8"))["num_processes"])
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError, ValueError):
        raise ValueError(f"--config-file {path} says no num_processes: it is no launch file of accelerate") from None


_TASK = "$SLURM_ARRAY_TASK_ID"


def submit(command: str, arguments: Sequence[str], out: Path, tasks: Sequence[int], options: argparse.Namespace) -> int:
    """Write `out/slurm`, submit the array of `tasks` and the job that collects; where sbatch is not, say how to.

    Each task is the same `cssr COMMAND` with `--task N`; the job that collects, with `--collect`, runs whatever became
    of them.
    Raises: ValueError, one line, with what sbatch says.
    """
    scripts, name = (out / "slurm").absolute(), f"cssr-{command}"
    scripts.mkdir(parents=True, exist_ok=True)
    own = [sys.executable, "-m", "cssr", command]
    task = _script(scripts / "task.sh", [*own, "--task", _TASK, *arguments])
    collect = _script(scripts / "collect.sh", [*own, "--collect", *arguments])
    more, pattern = shlex.split(options.sbatch_args), str(scripts).replace("%", "%%")
    limit = f"%{options.jobs}" if options.jobs else ""
    # SIGTERM to the launcher two minutes before the time is up: training writes a checkpoint
    array = ["sbatch", "--parsable", f"--job-name={name}", f"--output={pattern}/%A_%a.log", "--signal=B:TERM@120"]
    array += [f"--array={_ranges(tasks)}{limit}", *more, str(task)]
    after = ["sbatch", "--parsable", f"--job-name={name}-report", f"--output={pattern}/report_%j.log"]
    if not shutil.which("sbatch"):
        after += ["--dependency=afterany:JOB", *more, str(collect)]
        print("sbatch is not here; where it is:", f"  {shlex.join(array)}", f"  {shlex.join(after)}", sep="\n")
        return 0
    number = _sbatch(array)
    last = _sbatch([*after, f"--dependency=afterany:{number}", *more, str(collect)])
    print(f"submitted {len(tasks)} tasks as job {number}, the report as job {last}; logs: {scripts}")
    return 0


def _script(path: Path, command: Sequence[str]) -> Path:
    """A batch script that becomes the command: a signal for the script is one for the launcher."""
    words = [f'"{_TASK}"' if word == _TASK else shlex.quote(word) for word in command]
    text = f"#!/usr/bin/env bash\ncd {shlex.quote(os.getcwd())} && exec {' '.join(words)}\n"
    write_atomic(path, text)
    path.chmod(0o755)
    return path


def _ranges(tasks: Sequence[int]) -> str:
    """0,1,2,5 as 0-2,5."""
    runs: list[list[int]] = []
    for task in sorted(tasks):
        if runs and task == runs[-1][1] + 1:
            runs[-1][1] = task
        else:
            runs.append([task, task])
    return ",".join(f"{first}" if first == last else f"{first}-{last}" for first, last in runs)


def _sbatch(command: Sequence[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise ValueError(f"sbatch refused: {' '.join(done.stderr.split()) or f'exit status {done.returncode}'}")
    return done.stdout.strip().split(";")[0]


def pick_task(options: argparse.Namespace, count: int) -> int:
    """The task that `--task` names; ValueError if there are fewer."""
    if not 0 <= options.task < count:
        raise ValueError(f"--task {options.task}: there are tasks 0 to {count - 1}; was the command changed?")
    return options.task
