"""Fault tolerance: stop signals, hang watchdog, skipped steps, the run lock, hints for errors of the machine."""

import faulthandler
import fcntl
import os
import signal
import socket
import sys
import threading
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import torch
from accelerate import Accelerator

from cssr.config.schema import Config
from cssr.training.log import append_line
from cssr.utils.distributed import AnyRank, from_main_process
from cssr.utils.files import lock_file, naming_path
from cssr.utils.interrupts import detach_terminal, handled_signals
from cssr.utils.text import message_of

STUCK = 75  # exit status of a process that its watchdog has ended: try again
_BACKSTOP = 30  # seconds after which C code writes the stacks, where no Python runs any more
_PATIENCE = 60.0  # seconds for an earlier process on the same run directory to end


class StopSignal:
    """True once this process is asked to stop: by SIGINT (Ctrl-C), SIGHUP (a connection that closes), SIGTERM, SIGUSR1
    (Slurm's warning), or the launcher's death.

    A second Ctrl-C, or a signal after `close`, ends the process at once. What is ignored (nohup) stays so, but SIGUSR1.
    """

    def __init__(self):
        self.number: int | None = None  # of the signal that came
        self._launcher = os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else None
        # SIGUSR1 always: launch/slurm.sh has its launcher ignore it, and processes inherit that.
        self._before = {number: signal.signal(number, self._note) for number in (*handled_signals(), signal.SIGUSR1)}

    def __bool__(self) -> bool:
        orphaned = self._launcher is not None and os.getppid() != self._launcher
        return self.number is not None or orphaned

    def close(self) -> None:
        """Restore the previous signal handlers."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: Any) -> None:
        if number == signal.SIGINT == self.number:
            os.write(2, b"interrupted again: the same command continues from the last checkpoint\n")
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self.number = number
        if number == signal.SIGHUP:
            detach_terminal()
        if number == signal.SIGINT and os.isatty(2) and os.environ.get("RANK", "0") == "0":
            os.write(2, b"\nstopping: this step is finished and a checkpoint written; Ctrl-C again ends at once\n")


class Watchdog:
    """End this process, after writing its stacks, when it has made no progress for `seconds`.

    A rank that hangs keeps all others waiting in a collective: each writes its stacks, and when the first one ends,
    the launcher ends the others.
    """

    def __init__(self, seconds: float, stacks: Path):
        self._seconds, self._stacks = seconds, stacks
        self._closed = threading.Event()
        self.alive()
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def alive(self) -> None:
        """Report progress."""
        self._deadline = time.monotonic() + self._seconds
        faulthandler.dump_traceback_later(self._seconds + _BACKSTOP, exit=True, file=sys.__stderr__)

    def close(self) -> None:
        """Watch no longer."""
        self._closed.set()
        faulthandler.cancel_dump_traceback_later()

    def _watch(self) -> None:
        while not self._closed.wait(max(0.0, self._deadline - time.monotonic())):
            if time.monotonic() >= self._deadline:
                self._end()

    def _end(self) -> NoReturn:
        self._stacks.parent.mkdir(parents=True, exist_ok=True)
        with open(self._stacks, "w", encoding="utf-8") as file:
            faulthandler.dump_traceback(file, all_threads=True)
        print(
            f"error: {self._stacks.stem} has made no progress for {self._seconds:g} s (train.hang_timeout): "
            f"{self._stacks} shows where it is; the same command continues from the last checkpoint",
            file=sys.stderr,
            flush=True,
        )
        os._exit(STUCK)


class SkippedSteps:
    """The steps skipped for a loss that was not finite, a line each in `skipped.jsonl`; too many end the run."""

    def __init__(self, path: Path, limit: int):
        self._path, self._limit = path, limit
        self.count = len(path.read_bytes().splitlines()) if path.is_file() else 0

    def note(self, step: int, ranks: list[dict[str, Any]], writes: bool) -> str:
        """Count a step. `ranks`: {rank, loss, keys} of each rank. Returns a message.

        Raises: ValueError at one step too many.
        """
        self.count += 1
        if writes:
            append_line(self._path, {"step": step, "ranks": ranks})
        bad = next(rank for rank in ranks if not rank["finite"])
        message = f"the loss is {bad['loss']} at step {step}, on rank {bad['rank']}; its samples are in {self._path}"
        if self.count > self._limit:
            raise ValueError(
                f"{message}; this is the {self.count}. such step, more than train.max_skipped={self._limit}: lower "
                "optim.lr, set optim.clip_norm, or look at those samples"
            )
        return f"left out a step: {message}"


def explain(error: BaseException, config: Config, micro_batch: int, building: bool = False) -> ValueError | None:
    """One line for an error of a machine or another rank, or of sizes that show in a step only; None for any other.

    Args:
        building: whether the model was being built, or tried on an image, before the first batch.
    """
    if building and is_of_memory(error):
        return ValueError(
            f"out of memory before the first batch: make the model smaller (model.sr={config.model.sr}, "
            f"model.seg={config.model.seg}: widths, stages, the encoder), or set eval.tile for large validation images "
            f"({message_of(error)[:200]})"
        )
    return (
        _memory_hint(error, config, micro_batch)
        or _lost_rank_hint(error)
        or _batch_norm_hint(error, config, micro_batch)
    )


def is_of_memory(error: BaseException) -> bool:
    """Return whether an error is one of too little memory, of a device or of this machine."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)


def _memory_hint(error: BaseException, config: Config, micro_batch: int) -> ValueError | None:
    if not is_of_memory(error):
        return None
    text = message_of(error)
    return ValueError(
        f"out of memory: lower train.micro_batch (here {micro_batch}; batch_size={config.train.batch_size} stays, "
        f"gradients are accumulated), data.crop={config.data.crop} or eval.batch_size={config.eval.batch_size}, or use "
        f"bf16 or ZeRO (launch/); `python launch/doctor.py` estimates what fits ({text[:200]})"
    )


def _batch_norm_hint(error: BaseException, config: Config, micro_batch: int) -> ValueError | None:
    if "Expected more than 1 value per channel" not in str(error):
        return None
    return ValueError(
        f"BatchNorm sees a single value of each channel: raise data.crop={config.data.crop} or the micro-batch of "
        f"{micro_batch}, or set optim.batch_norm=held"
    )


def _lost_rank_hint(error: BaseException) -> ValueError | None:
    text = message_of(error)
    lost = isinstance(error, torch.distributed.DistError) or "gloo" in text or "Connection closed by peer" in text
    if not (lost and torch.distributed.is_initialized()):
        return None
    return ValueError(
        f"rank {torch.distributed.get_rank()} has lost another rank (its own message says why); the same command "
        f"continues from the last checkpoint ({text[:160]})"
    )


class RunLock:
    """Lock on a run directory: one run at a time, held by rank 0; all nodes must see the same directory.

    Raises: ValueError where another run holds it, or a node sees another directory of that name.
    """

    def __init__(self, run_dir: Path, engine: Accelerator, any_rank: AnyRank):
        self._path, self._file = run_dir / "lock", None
        token, fault = from_main_process(engine, self._take)
        if fault:
            raise ValueError(fault)
        if any_rank(not self._sees(token)):
            raise ValueError(
                f"train.run_dir: {run_dir} is not the same directory on all nodes: put it on a file system that they "
                "share"
            )

    def release(self) -> None:
        """Release the lock."""
        if self._file:
            with suppress(OSError):
                fcntl.flock(self._file, fcntl.LOCK_UN)  # of the loader's workers too, who have inherited it
            self._file.close()
            self._file = None

    def _take(self) -> list[Any]:
        """Take the lock. Returns [token, fault], one of them None."""
        with naming_path(self._path.parent):
            self._path.parent.mkdir(parents=True, exist_ok=True)
        with naming_path(self._path):
            self._file = open(self._path, "a+b")  # noqa: SIM115, its lock lasts as long as the run
        if not lock_file(self._file, _PATIENCE):
            self._file.seek(0)
            holder = self._file.read().decode(errors="replace").strip()
            return [None, f"train.run_dir: another run writes to {self._path.parent} ({holder}): stop it first"]
        token = f"process {os.getpid()} on {socket.gethostname()}, {uuid.uuid4().hex[:8]}"
        with naming_path(self._path):
            self._file.truncate(0)
            self._file.write(token.encode())
            self._file.flush()
            os.fsync(self._file.fileno())
        return [token, None]

    def _sees(self, token: str) -> bool:
        with suppress(OSError):
            return self._path.read_text(encoding="utf-8").strip() == token
        return False
