"""A queue of jobs over the devices of a machine: start, watch, and end them on a signal.

A job holds a lock on its log, the standard output of all its processes: the lock is held as long as any of them lives,
so that no two commands do the same work at a time.
"""

import os
import shutil
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from cssr.utils.files import lock_file
from cssr.utils.interrupts import handled_signals

_POLL = 0.1  # seconds
_MIN_LOG = 1 << 16  # bytes
_PATIENCE = 120  # seconds that a job that was asked to end may take to write what it has


@dataclass(frozen=True)
class Job:
    """A command to run; `missing()` gives the reason, or "" once the work is done."""

    name: str
    command: Sequence[str]
    log: Path
    missing: Callable[[], str] = field(compare=False)


class _Running:
    """A running job, in a session of its own, so that Ctrl-C reaches it through this process alone."""

    def __init__(self, job: Job, log: IO[bytes], device: dict[str, str]):
        self.job, self.device, self.began = job, device, time.monotonic()
        streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": subprocess.STDOUT}
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", **device}
        self.process = subprocess.Popen(job.command, env=environment, start_new_session=True, **streams)
        log.close()

    @property
    def ended(self) -> bool:
        """Return whether the command has ended, and with it all of its processes, or its work is done."""
        return self.process.poll() is not None and not (_locked(self.job.log) and self.job.missing())

    def send(self, number: signal.Signals) -> None:
        """Send a signal to all of its processes, launcher and trainer alike."""
        with suppress(ProcessLookupError, PermissionError):  # it has gone meanwhile
            os.killpg(self.process.pid, number)


def run_jobs(jobs: Sequence[Job], devices: Sequence[dict[str, str]]) -> list[Job]:
    """Run all jobs, one at a time on each device; print a line for each. Returns those that failed.

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
                    free.append(running.device)
                    done = len(jobs) - len(waiting) - len(working)
                    print(f"[{done}/{len(jobs)}] {_conclude(running, failed)}", flush=True)
                time.sleep(_POLL if working else 0)
        finally:  # after an interruption or an error too: no job is left running
            _end(working, arrived)
        if arrived:
            unfinished = [job.name for job in (*(running.job for running in working), *waiting) if job.missing()]
            names = ", ".join(unfinished[:5]) + (", ..." if len(unfinished) > 5 else "")
            count_text = f"{len(unfinished)} ({names})" if unfinished else "nothing"
            raise KeyboardInterrupt(f"interrupted; {count_text} left of {len(jobs)}: the same command continues")
    return failed


@contextmanager
def _signals() -> Iterator[list[int]]:
    """The signals that ask for an end, as they arrive; one that is ignored (nohup) stays so."""
    arrived: list[int] = []
    previous = {number: signal.signal(number, lambda n, _: arrived.append(n)) for number in handled_signals()}
    try:
        yield arrived
    finally:
        for number, handler in previous.items():
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
    """A line on a finished job, by its results: on a CPU, DeepSpeed may abort with an error after all is written."""
    job, seconds = running.job, time.monotonic() - running.began
    if not job.missing():
        return f"{job.name}: done in {seconds:.0f} s"
    failed.append(job)
    return f"{job.name}: FAILED (exit {running.process.returncode}): {error_of_log(job.log)}; log: {job.log}"


def error_of_log(log: Path) -> str:
    """The line of a log that says most likely what went wrong."""
    text = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    full = not lines and log.is_file() and shutil.disk_usage(log.parent).free < _MIN_LOG
    nothing = "there is no space for its log: make room, and run the same command again" if full else "it said nothing"
    errors = [line for line in lines if line.startswith("error:")] or lines or [nothing]
    return errors[-1][:300]


def _end(working: Sequence[_Running], arrived: list[int]) -> None:
    """Have the jobs end: SIGTERM, upon which training writes a checkpoint; SIGKILL after a while or another signal."""
    signals_before = len(arrived)
    for number, patience in ((signal.SIGTERM, _PATIENCE), (signal.SIGKILL, 5)):
        deadline = time.monotonic() + patience
        for running in working:
            if not running.ended:
                running.send(number)
        while not all(running.ended for running in working):
            if time.monotonic() > deadline or (number == signal.SIGTERM and len(arrived) > signals_before):
                break
            time.sleep(_POLL)
