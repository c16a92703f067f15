"""Files: written whole or not at all, on disk before going on, and known by their sha256."""

import errno
import fcntl
import functools
import hashlib
import itertools
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import IO, Any

from cssr.utils.text import message_of

_REMEDIES = {
    errno.ENAMETOOLONG: "choose a shorter name",
    **dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM), "choose a place that can be written to"),
}
_FULL = (errno.ENOSPC, errno.EDQUOT)
PARTIAL = ".partial"  # in the names of files that are being written
_BLOCK = 1 << 22  # bytes hashed at once


@contextmanager
def naming_path(path: Path) -> Iterator[None]:
    """Name `path`, or the file below it, and the remedy in an error of writing, which by itself says neither.

    Raises: ValueError, one line; OSErrors that are not the system's pass.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise ValueError(_unwritten(error, path)) from None


def error_line(error: Exception) -> str:
    """The message of an error in one line, with the remedy where a disk is full or takes no files."""
    if isinstance(error, OSError) and error.errno in (*_FULL, errno.EROFS):
        return _unwritten(error, Path(error.filename or tempfile.gettempdir()))
    return message_of(error)


def _unwritten(error: OSError, path: Path) -> str:
    remedy = _REMEDIES.get(error.errno, "choose another place")
    with suppress(OSError):
        if error.errno in _FULL:
            there = next(place for place in (path, *path.parents) if place.is_dir())
            free = shutil.disk_usage(there).free / 2**30
            remedy = f"{free:.1f} GiB are free there: make room, or choose another place"
    reason = error.strerror or error
    return f"{error.filename or path} cannot be written: {reason} ({remedy}, and run the same command again)"


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a file, text as UTF-8, under another name first; it is on disk when it takes its own."""
    write_together({path: content})


def replace_file(path: Path, content: str | bytes) -> None:
    """Write as `write_atomic` does, but leave OSErrors as they are."""
    write_together({path: content}, nullcontext)


def write_together(
    contents: Mapping[Path, str | bytes], within: Callable[[Path], AbstractContextManager] = naming_path
) -> None:
    """Write files, text as UTF-8, under other names first; all are on disk when the first takes its own.

    Each is written `within` a context that may turn errors of its path into others.
    """
    temporaries = {path: path.with_name(f"{path.name}{PARTIAL}-{os.getpid()}") for path in contents}
    try:
        for path, content in contents.items():
            with within(path), open(temporaries[path], "wb") as file:
                file.write(content.encode() if isinstance(content, str) else content)
                file.flush()
                os.fsync(file.fileno())
        for path, temporary in temporaries.items():
            os.replace(temporary, path)
    except BaseException:
        for temporary in temporaries.values():
            with suppress(OSError):
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


def sync(directory: Path, with_files: bool = True) -> None:
    """Have the names in a directory, and the files themselves unless they are there already, on disk."""
    for path in [*(p for p in directory.iterdir() if with_files and p.is_file()), directory]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        except OSError:
            if path != directory:  # some network file systems cannot sync a directory
                raise
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


def safe_name(text: str, also: str = "", empty: str = "unnamed") -> str:
    """Text as the name of a file or folder: runs of all but letters, digits and `_.-` become one hyphen.

    Args:
        also: further characters that stay. empty: the name where nothing is left.
    """
    return re.sub(rf"[^\w.{also}-]+", "-", text).strip("-.") or empty


def free_name(name: str, taken: Container[str]) -> str:
    """The name or, where it is taken, the first of name-2, name-3, ... that is not."""
    choices = itertools.chain((name,), (f"{name}-{number}" for number in itertools.count(2)))
    return next(choice for choice in choices if choice not in taken)


def free_stem(name: Path, taken: Container[str]) -> str:
    """A stem for a file that no other has: without its suffix, with it, or numbered."""
    plain = str(name.with_suffix(""))
    return plain if plain not in taken else free_name(str(name), taken)
