"""OUT.partial, the folder where a set is written until it is complete: finished shards in it survive a kill.

It holds `plan.json` (what was asked for), `journal.jsonl` (one line for each shard that is finished, with its sha256),
`tree/` (what becomes OUT) and `lock`. A shard is written under another name, renamed when it is on the disk, and then
entered into the journal, with sizes and times of the files that it is made of. When the same command runs again, shards
of the journal with the right bytes and unchanged files are kept.
"""

import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cssr.dataset_preparation.parallel import WorkerDied
from cssr.utils.files import PARTIAL, lock_file, naming_path, replace_file, sync
from cssr.utils.json_files import parse_json, read_json

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_PATIENCE = 10  # seconds that a lock is waited for: the processes of a run that was killed end within moments
_OURS = {"lock", "plan.json", "journal.jsonl", "tree"}
_AGAIN = "run the same command again to continue"


class Workspace:
    """The folder beside `out`, locked. `finished` has the records of the journal by (part, shard number).

    `precious`: it holds work of an earlier run, which a mistake of this one must not delete.
    """

    def __init__(self, out: Path):
        self.out, self.path = out, out.with_name(f"{out.name}{PARTIAL}")
        self.tree, self.finished, self.precious = self.path / "tree", {}, False
        self._missing = [parent for parent in out.parents if not parent.exists()]  # nearest first
        with naming_path(out):
            self.path.mkdir(parents=True, exist_ok=True)
        self._lock = _lock(self.path / "lock")

    def begin(self, plan: dict[str, Any]) -> None:
        """Continue what is there, or start."""
        if not (self.path / "plan.json").exists():  # nothing, or what a kill has left of the clearing up
            (self.path / "journal.jsonl").unlink(missing_ok=True)
            shutil.rmtree(self.tree, ignore_errors=True)
        replace_file(self.path / "plan.json", json.dumps(plan))
        self.tree.mkdir(exist_ok=True)
        sync(self.path, with_files=False)
        self.drop_partial()
        self.finished = _read_journal(self.path / "journal.jsonl")
        self.precious = bool(self.finished)

    def note(self, record: dict[str, Any]) -> None:
        """Enter a finished shard: `record` has its part, its number, and what the index needs."""
        with (self.path / "journal.jsonl").open("ab") as file:
            file.write(json.dumps(record).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self.finished[record["part"], record["number"]] = record

    def drop_partial(self) -> None:
        """Remove files that were being written when a run ended."""
        for path in self.tree.rglob(f"*{PARTIAL}*"):
            path.unlink(missing_ok=True)

    def deliver(self) -> None:
        """The tree becomes `out`."""
        for directory in [self.tree, *(path for path in self.tree.iterdir() if path.is_dir())]:
            sync(directory, with_files=False)
        os.rename(self.tree, self.out)
        sync(self.out.parent, with_files=False)
        self.clear()

    def clear(self) -> None:
        """Remove all of it, and the folders above that were made for it."""
        shutil.rmtree(self.path, ignore_errors=True)
        for parent in self._missing:
            if parent.is_dir() and not any(parent.iterdir()):
                parent.rmdir()

    def leave(self) -> None:
        """Release the lock."""
        os.close(self._lock)


@contextmanager
def open_workspace(out: Path, plan: dict[str, Any], keep: bool) -> Iterator[Workspace]:
    """A workspace to write `out` in, which becomes `out` at the end.

    After a mistake or an interruption it is removed, unless `keep` is set or it holds work of an earlier run. Its
    finished shards stay otherwise, and when the disk is full or a process was killed: the same command continues.
    Raises: ValueError (disk full included) or KeyboardInterrupt, saying what is left.
    """
    workspace = Workspace(out)
    try:
        refuse_another(out, plan)
        with _clean_up(workspace, keep):
            workspace.begin(plan)
            yield workspace
            workspace.precious = True  # complete: it must not be lost if OUT has been created meanwhile
            workspace.deliver()
    finally:
        workspace.leave()


@contextmanager
def _clean_up(workspace: Workspace, keep: bool) -> Iterator[None]:
    try:
        yield
    except BaseException as problem:
        full = isinstance(problem, OSError) and problem.errno in FULL
        mistake = isinstance(problem, (ValueError, OSError, KeyboardInterrupt)) and not isinstance(problem, WorkerDied)
        left = _remove_or_keep(workspace, keep or full or workspace.precious or not mistake)
        if isinstance(problem, KeyboardInterrupt):
            raise KeyboardInterrupt(f"interrupted; {left or 'nothing was written, run the command again'}") from None
        if full:
            left = left or "nothing was written"
            raise ValueError(f"{problem.strerror} while writing {workspace.out}: make room; {left}") from problem
        if left and isinstance(problem, (ValueError, OSError)):
            raise ValueError(f"{problem}; {left}") from problem
        raise


def _remove_or_keep(workspace: Workspace, keep: bool) -> str:
    """Clear up after a failure. Returns a clause about what is left, or "" where nothing is."""
    if not (keep and workspace.finished):
        workspace.clear()
        return ""
    workspace.drop_partial()
    count = len(workspace.finished)
    return f"{count} finished shard{'s are' if count > 1 else ' is'} kept in {workspace.path}: {_AGAIN}"


def refuse_another(out: Path, plan: dict[str, Any]) -> None:
    """ValueError if there is an unfinished set beside `out` that was begun with another plan; it names a difference.

    `plan` may be a part of the whole plan: what it lacks is not compared.
    """
    path = out.with_name(f"{out.name}{PARTIAL}")
    if not path.exists():
        return
    remedy = f"give the command that was begun, or remove {path} to start anew"
    try:
        earlier = read_json(path / "plan.json", dict) if (path / "plan.json").exists() else None
    except ValueError:
        raise ValueError(f"{path} is in the way, its plan.json cannot be read; remove it to start anew") from None
    if earlier is None:
        if path.is_dir() and {entry.name.split(PARTIAL)[0] for entry in path.iterdir()} <= _OURS:
            return  # killed while it began, or while it cleared up
        raise ValueError(f"{path} is in the way, and not from this command; remove or rename it") from None
    for name, value in json.loads(json.dumps(plan)).items():
        if earlier.get(name) != value:
            before, now = _short(earlier.get(name)), _short(value)
            raise ValueError(f"{path} was begun by another command: {name} was {before} and is now {now}; {remedy}")


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _lock(path: Path) -> int:
    """A file descriptor that holds the lock until it, and its copies in forked processes, are closed."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    if not lock_file(handle, _PATIENCE):
        os.close(handle)
        raise ValueError(f"another run is writing to {path.parent}; wait for it to end, or end it")
    if not path.exists() or path.stat().st_ino != os.fstat(handle).st_ino:
        os.close(handle)
        raise ValueError(f"another run has just finished or removed {path.parent}; look what is there, and run again")
    return handle


def _read_journal(path: Path) -> dict[tuple[str | None, int], dict[str, Any]]:
    """The records; what a kill has left of a last line is cut off."""
    records, whole = {}, 0
    for line in path.read_bytes().splitlines(keepends=True) if path.exists() else []:
        try:
            record = parse_json(line, str(path), {"part": str | None, "number": int})
        except ValueError:
            break
        if not line.endswith(b"\n"):
            break
        records[record["part"], record["number"]] = record
        whole += len(line)
    if path.exists():
        os.truncate(path, whole)
    return records


def check_free(out: Path) -> None:
    """ValueError unless `out` is absent or an empty directory."""
    if out.is_dir() and any(out.iterdir()):
        raise ValueError(f"--out {out} exists and is not empty; remove it or choose another folder")
    if (out.exists() or out.is_symlink()) and not out.is_dir():
        raise ValueError(f"--out {out} exists and is no folder; choose another name")
