"""Files: written whole or not at all, on disk before going on, and known by their sha256."""

import fcntl
import functools
import hashlib
import itertools
import json
import os
import shutil
import time
from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

PARTIAL = ".partial"  # in the names of files that are being written
_BLOCK = 1 << 22  # bytes hashed at once


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Name `path` in an error of writing to it, which by itself says what, but not where."""
    try:
        yield
    except OSError as error:
        free = ""
        with suppress(OSError):
            free = f" ({shutil.disk_usage(path.parent).free / 2**30:.1f} GiB are free there)"
        raise ValueError(
            f"{path} cannot be written: {error.strerror or error}{free}; make room, or choose another place, and run "
            "the same command again"
        ) from error


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a file, text as UTF-8, under another name first; it is on disk when it takes its own."""
    temporary = path.with_name(f"{path.name}{PARTIAL}-{os.getpid()}")
    try:
        with naming(path), open(temporary, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def identity(path: Path) -> dict[str, Any]:
    """Size in bytes and sha256 of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return {"bytes": path.stat().st_size, "sha256": digest.hexdigest()}


def sha256_of(path: Path) -> str:
    """The sha256 of a file, read once as long as it does not change, by its stat."""
    stat = path.stat()
    return _sha256_as_it_is(path, stat.st_ino, stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=256)
def _sha256_as_it_is(path: Path, *_: int) -> str:
    return identity(path)["sha256"]


def digest(state: Mapping[str, Any]) -> str:
    """The sha256 of a state, which it carries."""
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def sync(directory: Path) -> None:
    """Have a directory and the files in it on disk before going on."""
    for path in [*(p for p in directory.iterdir() if p.is_file()), directory]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def lock_file(file: IO[bytes] | int, patience: float = 0.0) -> bool:
    """Lock an open file; the lock lasts until the file is closed, here and in the processes that have inherited it.

    flock itself, as filelock gives its lock up in a forked process, and these files hold text of ours.

    Args:
        patience: seconds to wait for another holder.
    Returns: False where another process holds the lock. File systems without locks are taken at their word: True.
    """
    end = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= end:
                return False
            time.sleep(0.1)
        except OSError:
            return True


def free_stem(name: Path, taken: Container[str]) -> str:
    """A stem for a file that no other has: without its suffix, with it, or numbered."""
    plain, full = str(name.with_suffix("")), str(name)
    numbered = (f"{full}-{number}" for number in itertools.count(2))
    return next(stem for stem in itertools.chain((plain, full), numbered) if stem not in taken)
