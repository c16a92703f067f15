"""Jobs: a queue of `accelerate launch` commands over the devices at hand, and what launchers share.

A job holds a lock on its log, which is the standard output of all its processes: so the lock is held for as long as any
of them lives, whatever became of the others, and no two commands work on the same thing at a time.
"""

import argparse
import fcntl
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NoReturn

import torch
import yaml

ROOT = Path(__file__).resolve().parents[1]
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_POLL = 0.1  # seconds
_PATIENCE = 120  # seconds that a job which was told to end may take to write what it has
_VISIBLE = {  # the environment variable that says which devices a process sees; mps has none, and one device
    "cuda": "CUDA_VISIBLE_DEVICES",
    "xpu": "ZE_AFFINITY_MASK",
    "npu": "ASCEND_RT_VISIBLE_DEVICES",
    "mlu": "MLU_VISIBLE_DEVICES",
    "musa": "MUSA_VISIBLE_DEVICES",
    "sdaa": "SDAA_VISIBLE_DEVICES",
    "hpu": "HABANA_VISIBLE_MODULES",
}


class Stopped(KeyboardInterrupt):
    """Interrupted; the message says what is left."""


# ---- the command line that launchers share ----


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are exceptions, so that all mistakes end alike."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; `{self.prog} --help` lists the options")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Where and how jobs run."""
    add = parser.add_argument
    add("--processes", type=int, metavar="N", help="processes, and devices, of each job (1)")
    add("--jobs", type=int, metavar="N", help="jobs at a time (as many as the devices, or the cores, are enough for)")
    add("--config-file", metavar="FILE", help="accelerate's launch file (of launch/, by the devices at hand)")
    add("--dry-run", action="store_true", help="print the commands, and what is done already; start and write nothing")
    add("--slurm", action="store_true", help="submit a Slurm array, at most --jobs at a time, and a job that collects")
    add("--sbatch-args", default="", metavar="ARGS", help="for sbatch: --sbatch-args='--gres=gpu:1 --time=2:00:00'")
    add("--task", type=int, metavar="N", help="do this task alone, as a Slurm array does")
    add("--collect", action="store_true", help="start nothing: report what there is")


def check_options(options: argparse.Namespace) -> None:
    """ValueError, one line, for numbers and combinations that make no sense."""
    for name in ("processes", "jobs"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name} must be at least 1, found {value}")
    if options.config_file:
        find_launch_file(options.config_file)
    if options.sbatch_args and not options.slurm:
        raise ValueError("--sbatch-args is for sbatch: give --slurm as well")
    try:
        shlex.split(options.sbatch_args)
    except ValueError as error:
        raise ValueError(f"--sbatch-args {options.sbatch_args}: {error}") from None


def check_writable(out: Path) -> None:
    """Make `out`; ValueError, one line, if nothing can be written there."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise ValueError(f"--out {out} cannot be written: {error.strerror}; choose another folder") from None


def run_command(work: Callable[[list[str]], int], arguments: list[str] | None) -> int:
    """Exit status of a launcher: 0 all done, 1 something failed or is missing, 2 a mistake, 130 interrupted."""
    try:
        return work(sys.argv[1:] if arguments is None else arguments)
    except (ValueError, OSError) as problem:
        print("error:", " ".join(str(problem).split()), file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        print("error:", str(stop) or "interrupted; the same command goes on", file=sys.stderr)
        return 130


# ---- names ----


def distinct_names(paths: Sequence[Sequence[str]]) -> list[str]:
    """A file name for each path, given by its parts: the last part, and as many before it as tell equal ones apart."""
    paths = [[part for part in path if part != "/"] for path in paths]
    depth = [1] * len(paths)
    while True:
        names = [safe_name("_".join(path[-d:])) for path, d in zip(paths, depth)]
        equal = [n for n, name in enumerate(names) if names.count(name) > 1 and depth[n] < len(paths[n])]
        if not equal:
            return _numbered(names)
        for n in equal:
            depth[n] += 1


def _numbered(names: Sequence[str]) -> list[str]:
    """What is equal still, as names lose what a file name cannot hold, by number."""
    taken: list[str] = []
    for name in names:
        choices = (name, *(f"{name}-{number}" for number in range(2, len(names) + 2)))
        taken.append(next(choice for choice in choices if choice not in taken))
    return taken


def safe_name(text: str) -> str:
    """Text as a file name."""
    return re.sub(r"[^\w.@=,+-]+", "-", text).strip("-").lstrip(".")[:120] or "unnamed"


# ---- devices, and accelerate's command for a share of them ----


def devices() -> list[str]:
    """Names of the devices at hand as the environment variable of their kind lists them; none on a CPU."""
    if os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true") or not torch.accelerator.is_available():
        return []
    listed = os.environ.get(_visible() or "", "")
    return listed.split(",") if listed else [str(n) for n in range(torch.accelerator.device_count())]


def _visible() -> str | None:
    kind = torch.accelerator.current_accelerator()
    return _VISIBLE.get(kind.type) if kind else None


@dataclass(frozen=True)
class Crew:
    """How many processes a job has, by which launch file, and the environments of the jobs that run at a time."""

    processes: int
    file: Path
    threads: int  # of each process
    places: tuple[dict[str, str], ...]

    def command(self, script: str, *arguments: str) -> list[str]:
        """`accelerate launch` of a script of this repository; no two jobs ask for the same port."""
        launch = [sys.executable, "-m", "accelerate.commands.launch", "--quiet", "--config_file", str(self.file)]
        launch += ["--num_processes", str(self.processes), "--num_cpu_threads_per_process", str(self.threads)]
        launch += ["--main_process_port", "0"] if self.processes > 1 else []
        return [*launch, str(ROOT / script), *arguments]


def crew(processes: int | None, jobs: int | None, file: str | None, threads: int | None = None) -> Crew:
    """A share of the devices, or of the cores, for each job. `threads`: None shares the cores out.

    Raises: ValueError, one line, for an unknown launch file and for more processes than devices.
    """
    chosen = find_launch_file(file) if file else None
    processes = processes or (_promised(chosen) if chosen else 1)
    there, cores = devices(), len(os.sched_getaffinity(0))
    if there and processes > len(there):
        raise ValueError(f"--processes {processes}: there are {len(there)} devices")
    jobs = jobs or max(1, (len(there) or cores) // processes)
    given = int(os.environ["OMP_NUM_THREADS"]) if os.environ.get("OMP_NUM_THREADS", "").isdigit() else None
    threads = given or threads or max(1, cores // (jobs * processes))
    return Crew(processes, chosen or _default_file(bool(there), processes), threads, _places(there, processes, jobs))


def _places(there: Sequence[str], processes: int, jobs: int) -> tuple[dict[str, str], ...]:
    variable = _visible() if there else None
    if not variable:
        return ({},) * jobs
    turns = [[there[(job * processes + n) % len(there)] for n in range(processes)] for job in range(jobs)]
    return tuple({variable: ",".join(turn)} for turn in turns)


def _default_file(accelerated: bool, processes: int) -> Path:
    one, several = ("single_gpu", "multi_gpu") if accelerated else ("cpu", "cpu_2proc")
    return ROOT / "launch" / f"{one if processes == 1 else several}.yaml"


def find_launch_file(text: str) -> Path:
    """A launch file by its path, or by its name in launch/; ValueError lists those."""
    for path in (Path(text), ROOT / "launch" / text, ROOT / "launch" / f"{text}.yaml"):
        if path.is_file():
            return path
    known = ", ".join(sorted(path.stem for path in (ROOT / "launch").glob("*.yaml")))
    raise ValueError(f"--config-file {text}: no such file; in launch/ there are {known}")


def _promised(path: Path) -> int:
    try:
        return int(yaml.safe_load(path.read_text(encoding="utf-8"))["num_processes"])
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError, ValueError):
        raise ValueError(f"--config-file {path} says no num_processes: it is no launch file of accelerate") from None


# ---- the queue ----


@dataclass(frozen=True)
class Job:
    """A command that is to be run; `missing` says why, and "" once there is nothing left to do."""

    name: str
    command: Sequence[str]
    log: Path
    missing: Callable[[], str] = field(compare=False)


class _Running:
    """A job at work, in a session of its own, so that Ctrl-C is for us to pass on."""

    def __init__(self, job: Job, log: IO[bytes], place: dict[str, str]):
        self.job, self.place, self.began = job, place, time.monotonic()
        how: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": subprocess.STDOUT}
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", **place}
        self.process = subprocess.Popen(job.command, env=environment, start_new_session=True, **how)
        log.close()

    @property
    def ended(self) -> bool:
        """Whether the command has ended, and all of its processes have as well or it has done what it was to do."""
        return self.process.poll() is not None and not (_locked(self.job.log) and self.job.missing())

    def tell(self, number: signal.Signals) -> None:
        """Send a signal to all of its processes, launcher and trainer alike."""
        with suppress(ProcessLookupError, PermissionError):  # it has gone meanwhile
            os.killpg(self.process.pid, number)


def run_jobs(jobs: Sequence[Job], places: Sequence[dict[str, str]]) -> list[Job]:
    """Run all, one in each place at a time; a line for each. Returns those that failed.

    Raises: Stopped on SIGINT, SIGTERM or SIGHUP, when the jobs at work have ended; a second signal kills them.
    """
    waiting, working, failed, free = deque(jobs), [], [], list(places)
    with _signals() as arrived:
        try:
            while (waiting or working) and not arrived:
                while waiting and free:
                    place = free.pop(0)
                    started = _start(waiting.popleft(), place, failed)
                    (working if started else free).append(started or place)
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
            raise Stopped(f"interrupted; {_listed(left)} left of {len(jobs)}: the same command goes on")
    return failed


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    return f"{len(names)} ({shown})" if names else "nothing"


@contextmanager
def _signals() -> Iterator[list[int]]:
    """The signals that ask for an end, as they arrive; one that is ignored (nohup) stays so."""
    arrived: list[int] = []
    heeded = [number for number in _ENDING if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, lambda n, _: arrived.append(n)) for number in heeded}
    try:
        yield arrived
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _start(job: Job, place: dict[str, str], failed: list[Job]) -> _Running | None:
    job.log.parent.mkdir(parents=True, exist_ok=True)
    log = job.log.open("ab")
    if not _lock(log):
        log.close()
        failed.append(job)
        print(f"{job.name}: another command is at work on it ({job.log}); left to that", flush=True)
        return None
    log.truncate(0)
    return _Running(job, log, place)


def _lock(log: IO[bytes]) -> bool:
    try:
        fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system that has no locks
        pass
    return True


def _locked(path: Path) -> bool:
    try:
        with path.open("ab") as log:
            return not _lock(log)
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
    told = [line for line in lines if line.startswith("error:")] or lines or ["it said nothing"]
    return told[-1][:300]


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
