"""Files of a remote set, over http(s), in an object store or from a command: retried, bounded, reported.

`http://`, `https://`: a file is `ROOT/NAME`. Any other `scheme://` (`s3://`, `gs://`, ...): whatever fsspec knows. A
template `pipe:COMMAND`: a shell's output, `{name}` in it the file's name. `transports.py` opens the streams.
"""

import errno
import hashlib
import random
import re
import time
import urllib.error
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO

from cssr.data.transports import Broken, Stream, open_stream
from cssr.utils.text import message_of

_BLOCK = 1 << 18  # bytes read at once
_STALLED = 1 << 16  # bytes; a transfer that moves fewer in `timeout` seconds is broken off
_SLOW = 1 << 20  # bytes a second; a transfer that falls below over `timeout` seconds is reported
_ENDLESS = 1 << 62  # bytes
_MAX_WAIT = 60.0  # seconds between two tries
_TRANSIENT = {408, 425, 429}  # http statuses below 500 worth another try
_LOCAL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG}  # the fault of this machine's disk

Notify = Callable[[str], None]


class DataError(ValueError):
    """The data cannot be used as it is; the message is one line with the remedy."""


class Unreachable(DataError):
    """A remote file cannot be fetched, after every retry, or stored: nothing takes its place, the run stops."""


def is_remote(root: Any) -> bool:
    """Return whether a set's root is elsewhere: an address or a command, no path."""
    return str(root).startswith("pipe:") or bool(re.match(r"(?!file:)[a-z][a-z0-9+.-]*://", str(root)))


@dataclass(frozen=True)
class Remote:
    """The files under a root.

    Args:
        root: as above.
        retries: further tries after the first, the waits between them doubling from half a second.
        timeout: seconds without progress after which a try is given up.
    """

    root: str
    retries: int = 5
    timeout: float = 30.0

    def __post_init__(self):
        if self.root.startswith("pipe:") and "{name}" not in self.root:
            raise DataError(
                f"{self.root}: a command needs {{name}} where the file's name goes: 'pipe:cat DIR/{{name}}'"
            )

    def address(self, name: str) -> str:
        """Address of a file for people, without passwords and tokens."""
        if self.root.startswith("pipe:"):
            return f"{self.root} ({name})"
        parts = urllib.parse.urlsplit(self.root)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}/{name}"

    def fetch(self, name: str, limit: int, notify: Notify) -> bytes:
        """A small file, whole. Raises: Unreachable, as well if it is larger than `limit` bytes."""

        def attempt() -> bytes:
            data = bytearray()
            with open_stream(self.root, name, 0, self.timeout) as stream:
                self._copy(name, stream, limit + 1, data.extend, notify)
            return bytes(data)

        data = self._retry(name, attempt, notify)
        if len(data) > limit:
            raise Unreachable(f"{self.address(name)} is larger than {limit >> 20} MiB: this is no set of shards")
        return data

    def stamp(self, name: str, notify: Notify) -> str:
        """Size and time of a file in words, "" where they are not known: another one when it changes."""

        def attempt() -> str:
            with open_stream(self.root, name, 0, self.timeout) as stream:
                return stream.stamp

        return self._retry(name, attempt, notify)

    def download(
        self, name: str, file: BinaryIO, size: int | None, sha256: str | None, notify: Notify
    ) -> tuple[int, str]:
        """A file into an empty `file`; a broken transfer is continued, if the server can.

        Args:
            size, sha256: that the file must have; None: nobody knows.
        Returns: its size and sha256.
        Raises: Unreachable, as well if what comes is not what was announced, however often.
        """

        def attempt() -> tuple[int, str]:
            with open_stream(self.root, name, file.tell(), self.timeout) as stream:
                file.seek(stream.start)
                self._copy(name, stream, _ENDLESS if size is None else size + 1, file.write, notify)
            file.flush()
            received = file.tell()
            if size is None:
                return received, _digest(file, received)
            if received < size:
                raise Broken(f"ended after {received} of {size} bytes")
            if received > size or _digest(file, size) != sha256:
                file.seek(0)
                raise Broken(
                    f"more than its {size} bytes" if received > size else "its sha256 is not that of the index"
                )
            return size, sha256

        return self._retry(name, attempt, notify)

    def _copy(self, name: str, stream: Stream, end: int, write: Callable[[bytes], Any], notify: Notify) -> None:
        """Copy up to `end`; TimeoutError for a transfer that stalls, a notice of a slow one."""
        position, start, bytes_at_start, warned = stream.start, time.monotonic(), stream.start, False
        while position < end and (block := stream.read(min(_BLOCK, end - position))):
            write(block)
            position += len(block)
            seconds = time.monotonic() - start
            if seconds > self.timeout:
                if position - bytes_at_start < min(_STALLED, end - 1 - bytes_at_start):
                    raise TimeoutError(f"only {position - bytes_at_start} bytes in {seconds:.2g} s")
                if position - bytes_at_start < _SLOW * seconds and not warned:
                    notify(f"{self.address(name)} is slow: {(position - bytes_at_start) / seconds / 1e6:.2g} MB/s")
                    warned = True
                start, bytes_at_start = time.monotonic(), position

    def _retry(self, name: str, attempt: Callable[[], Any], notify: Notify) -> Any:
        for number in range(self.retries + 1):
            try:
                return attempt()
            except Exception as error:
                reason = message_of(error)[:300] or type(error).__name__
                if getattr(error, "errno", None) in _LOCAL:
                    raise Unreachable(f"data.cache: {reason}, while fetching {self.address(name)}") from error
                if number == self.retries or not _is_transient(error):
                    tries = f" (tried {number + 1} times)" if number else ""
                    raise Unreachable(
                        f"{self.address(name)} cannot be fetched{tries}: {reason}; see that it is there, "
                        "then run the same command again"
                    ) from error
                wait = _wait(number, error)
                notify(f"{self.address(name)}: {reason}; try {number + 2} of {self.retries + 1}")
                time.sleep(wait)
        raise AssertionError


def _is_transient(error: Exception) -> bool:
    """Return whether trying again may help."""
    if isinstance(error, urllib.error.HTTPError):
        return error.code >= 500 or error.code in _TRANSIENT
    if isinstance(error, urllib.error.URLError) and not isinstance(error.reason, OSError):
        return False  # an address that is none
    return not isinstance(error, (FileNotFoundError, PermissionError, IsADirectoryError, ImportError, ValueError))


def _wait(number: int, error: Exception) -> float:
    """Seconds: doubling, scattered so that a cluster's workers do not all come back together; or as the server asks."""
    retry_after = error.headers.get("Retry-After", "") if isinstance(error, urllib.error.HTTPError) else ""
    wait = float(retry_after) if retry_after.isdigit() else 0.5 * 2**number * random.SystemRandom().uniform(0.5, 1)
    return min(wait, _MAX_WAIT)


def _digest(file: BinaryIO, size: int) -> str:
    """The sha256 of a file, which is left at its end."""
    digest = hashlib.sha256()
    file.seek(0)
    while block := file.read(min(_BLOCK, size - file.tell())):
        digest.update(block)
    return digest.hexdigest()
