"""Who writes to a run directory: one run at a time, of which all nodes see the same directory."""

import fcntl
import os
import socket
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from cssr.utils.distributed import AnyRank

_PATIENCE = 60.0  # seconds for an earlier process on the same run directory to end


class Claim:
    """A run directory is one run's: rank 0 holds a lock in it, and all ranks see the same directory.

    Raises: ValueError where another run holds it, or a node sees another directory of that name.
    """

    def __init__(self, run_dir: Path, engine: Accelerator, any_rank: AnyRank):
        self._path, self._file = run_dir / "lock", None
        told: list[Any] = [None, None]
        if engine.is_main_process:
            told = self._take()
        if engine.num_processes > 1:
            broadcast_object_list(told)
        token, fault = told
        if fault:
            raise ValueError(fault)
        if any_rank(not self._sees(token)):
            raise ValueError(
                f"train.run_dir: {run_dir} is not the same directory on all nodes: put it on a file system that they "
                "share"
            )

    def release(self) -> None:
        """Let others have it."""
        if self._file:
            with suppress(OSError):
                fcntl.flock(self._file, fcntl.LOCK_UN)  # of the loader's workers too, who have inherited it
            self._file.close()

    def _take(self) -> list[Any]:
        """[token, what is wrong]."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(self._path, "a+b")  # noqa: SIM115, its lock lasts as long as the run
        if not _locked(self._file):
            self._file.seek(0)
            holder = self._file.read().decode(errors="replace").strip()
            return [None, f"train.run_dir: another run writes to {self._path.parent} ({holder}): stop it first"]
        token = f"process {os.getpid()} on {socket.gethostname()}, {uuid.uuid4().hex[:8]}"
        self._file.truncate(0)
        self._file.write(token.encode())
        self._file.flush()
        os.fsync(self._file.fileno())
        return [token, None]

    def _sees(self, token: str) -> bool:
        with suppress(OSError):
            return self._path.read_text(encoding="utf-8").strip() == token
        return False


def _locked(file: BinaryIO) -> bool:
    """Whether the lock could be had, in time; file systems without locks are taken at their word."""
    end = time.monotonic() + _PATIENCE
    while time.monotonic() < end:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            time.sleep(0.5)
        except OSError:
            return True
    return False
