"""Disk cache of remote shards: whole files named by their sha256, bounded in size, shared by all processes.

No process owns the cache, and its state is on disk alone. A reader holds a shared lock on its file, a download an
exclusive lock on its partial file, and whoever makes room one on the directory. Locks end with their process.
"""

import contextlib
import fcntl
import hashlib
import os
import queue
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from cssr.config.schema import DataConfig
from cssr.data.remote import DataError, Notify, Remote, Unreachable
from cssr.utils.files import PARTIAL

_OURS = re.compile(r"[0-9a-f]{64}\.(tar|partial)")  # anything else in the directory is left alone
_TRIES = 100  # to lock a file before another process removes it
_PATIENCE = 600.0  # seconds to wait for files in use to be released


@dataclass(frozen=True)
class Entry:
    """A remote file: its name, size in bytes, and sha256 in hexadecimal."""

    name: str
    size: int
    sha256: str


def cache_directory(data: DataConfig) -> Path:
    """The directory in which remote files are kept, by the settings."""
    return Path(data.cache or os.environ.get("CSSR_CACHE") or Path.home() / ".cache" / "cssr")


@dataclass(frozen=True)
class Cache:
    """Files of `remote`, kept in `directory` up to `capacity` bytes; the least recently used one goes first."""

    remote: Remote
    directory: Path
    capacity: int

    @classmethod
    def of(cls, root: str, data: DataConfig) -> "Cache":
        """The cache that settings ask for, for the files under `root`."""
        return cls(Remote(root, data.retries, data.timeout), cache_directory(data), int(data.cache_gib * 2**30))

    @contextmanager
    def use(self, entry: Entry, notify: Notify) -> Iterator[BinaryIO]:
        """The file, open, downloaded if need be; while it is open nobody removes it.

        Raises: Unreachable, as well if it is larger than the cache, or the disk is full.
        """
        with self._open(entry, notify) as file:
            with contextlib.suppress(OSError):  # a cache that others filled may be read-only
                os.utime(file.fileno())  # the time of last use
            yield file

    def add(self, name: str, notify: Notify) -> Entry:
        """Fetch and keep a file of unknown size and sha256. Returns its entry.

        Raises: Unreachable, as `use`.
        """
        partial = self.directory / f"{hashlib.sha256(self.remote.address(name).encode()).hexdigest()}{PARTIAL}"
        with self._partial(partial) as file:
            os.truncate(file.fileno(), 0)
            try:
                entry = Entry(name, *self.remote.download(name, file, None, None, notify))
                os.fsync(file.fileno())
                if entry.size > self.capacity:
                    raise Unreachable(f"{self._limit()} holds no {name} of {entry.size / 2**30:.3g} GiB; raise it")
                with self._exclusive():
                    self._make_room(0)
                    os.rename(partial, self._path(entry))
            except BaseException:
                partial.unlink(missing_ok=True)
                raise
        return entry

    def holds(self, entry: Entry) -> bool:
        """Return whether the file is there already."""
        return self._path(entry).exists()

    def _path(self, entry: Entry) -> Path:
        return self.directory / f"{entry.sha256}.tar"

    def _open(self, entry: Entry, notify: Notify) -> BinaryIO:
        """The file with a shared lock. Another process may remove it after its download, so this is repeated."""
        for _ in range(_TRIES):
            file = _open_locked(self._path(entry), entry.size)
            if file:
                return file
            self._fill(entry, self._path(entry), notify)
        raise Unreachable(f"data.cache: {self._path(entry)} cannot be replaced, or vanishes; choose another directory")

    def _fill(self, entry: Entry, path: Path, notify: Notify) -> None:
        """Download to a partial file, unless another process has done so in the meantime."""
        partial = path.with_suffix(PARTIAL)
        with self._partial(partial) as file:
            if path.exists() or not _is_same_file(file, partial):
                return
            try:
                self._reserve(file, entry)
                self.remote.download(entry.name, file, entry.size, entry.sha256, notify)
                os.fsync(file.fileno())
                with self._exclusive():
                    os.rename(partial, path)
            except BaseException:
                partial.unlink(missing_ok=True)
                raise

    @contextmanager
    def _partial(self, path: Path) -> Iterator[BinaryIO]:
        """A partial file, locked; waits for another process that is filling it."""
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise Unreachable(f"data.cache: {self.directory} cannot be written: {error.strerror}") from error
        with open(handle, "r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield file

    def _reserve(self, file: BinaryIO, entry: Entry) -> None:
        """Make room for a file, and give it its full size."""
        if entry.size > self.capacity:
            raise Unreachable(f"{self._limit()} holds no {entry.name} of {entry.size / 2**30:.3g} GiB; raise it")
        end = time.monotonic() + _PATIENCE
        while time.monotonic() < end:
            with self._exclusive():
                os.truncate(file.fileno(), 0)
                if self._make_room(entry.size):
                    try:
                        os.posix_fallocate(file.fileno(), 0, entry.size)
                    except OSError as error:
                        raise Unreachable(
                            f"data.cache: {self.directory} has no room for {entry.size} bytes: {error.strerror}"
                        ) from error
                    return
            time.sleep(0.1)
        raise Unreachable(f"{self._limit()}: every shard in {self.directory} is in use; raise it")

    def _limit(self) -> str:
        return f"data.cache_gib={self.capacity / 2**30:.3g}"

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        """Keep other processes from adding and removing files."""
        with open(self.directory / "lock", "a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _make_room(self, size: int) -> bool:
        """Remove the least recently used files that are not in use. Returns whether there is room."""
        files = []
        with os.scandir(self.directory) as entries:
            for entry in entries:
                if _OURS.fullmatch(entry.name):
                    with contextlib.suppress(FileNotFoundError):  # removed by who failed to fill it
                        files.append((entry.stat(follow_symlinks=False), entry.path))
        total = sum(stat.st_size for stat, _ in files)
        for stat, path in sorted(files, key=lambda file: file[0].st_mtime_ns):
            if total + size <= self.capacity:
                break
            total -= stat.st_size if _remove(path) else 0
        return total + size <= self.capacity


def _open_locked(path: Path, size: int) -> BinaryIO | None:
    """A file with a shared lock, or None if it is not there; one of another size is removed."""
    try:
        file = path.open("rb")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise Unreachable(f"data.cache: {path} cannot be read: {error.strerror}") from error
    fcntl.flock(file, fcntl.LOCK_SH)
    if _is_same_file(file, path) and os.fstat(file.fileno()).st_size == size:
        return file
    file.close()
    _remove(path)
    return None


def _is_same_file(file: BinaryIO, path: Path) -> bool:
    """Return whether an open file is still the one at `path`."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _remove(path: str | Path) -> bool:
    """Remove a file, unless somebody reads or fills it."""
    with contextlib.suppress(OSError), open(path, "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.unlink(path)
        return True
    return False


class Prefetcher:
    """Download, in a thread, files that will be needed soon; an error is reported when they are used."""

    def __init__(self, notify: Notify):
        self._queue: queue.Queue = queue.Queue(8)
        self._notify = notify
        self._thread: threading.Thread | None = None

    def request(self, cache: Cache, entry: Entry) -> None:
        """Request a file; requests are dropped where too many wait."""
        if cache.holds(entry):
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, daemon=True)
            self._thread.start()
        with contextlib.suppress(queue.Full):
            self._queue.put_nowait((cache, entry))

    def close(self) -> None:
        """Drop the requests that wait; a download under way is finished in the background."""
        with contextlib.suppress(queue.Empty):
            while True:
                self._queue.get_nowait()
        self._queue.put(None)

    def _work(self) -> None:
        while request := self._queue.get():
            cache, entry = request
            with contextlib.suppress(DataError, OSError), cache.use(entry, self._notify):
                pass
