"""Files of a remote set, over http(s), in an object store or from a command; retried, bounded, reported.

`http://`, `https://`: a file is `ROOT/NAME`. Any other `scheme://` (`s3://`, `gs://`, ...): whatever fsspec knows. A
template `pipe:COMMAND`: a shell's output, `{name}` standing for the file's name.
"""

import contextlib
import errno
import functools
import hashlib
import http.client
import os
import random
import re
import selectors
import shlex
import signal
import socket
import subprocess
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO, NamedTuple

from cssr.utils.text import message_of

_BLOCK = 1 << 18  # bytes read at once
_STALLED = 1 << 16  # bytes; a transfer that moves fewer in `timeout` seconds is broken off
_SLOW = 1 << 20  # bytes a second; a transfer that falls below over `timeout` seconds is reported
_ENDLESS = 1 << 62  # bytes
_LONGEST_WAIT = 60.0  # seconds between two tries
_PASSING = {408, 425, 429}  # http statuses below 500 that may pass
_LOCAL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG}  # the fault of this machine's disk

Notify = Callable[[str], None]


class DataError(ValueError):
    """The data cannot be used as it is; the message is one line with the remedy."""


class Unreachable(DataError):
    """A remote file cannot be fetched, after every retry, or stored: nothing takes its place, the run stops."""


class _Broken(OSError):
    """Content that is not what the index says; another attempt may help."""


class _Stream(NamedTuple):
    """Stream of a server: `read(n)`, at most n bytes (b"" at the end), the offset at which it begins, and
    its size and time, as far as they are known.
    """

    read: Callable[[int], bytes]
    start: int
    stamp: str = ""


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
            with _open(self.root, name, 0, self.timeout) as stream:
                self._copy(name, stream, limit + 1, data.extend, notify)
            return bytes(data)

        data = self._persist(name, attempt, notify)
        if len(data) > limit:
            raise Unreachable(f"{self.address(name)} is larger than {limit >> 20} MiB: this is no set of shards")
        return data

    def stamp(self, name: str, notify: Notify) -> str:
        """Size and time of a file in words, "" where they are not known: another one when it changes."""

        def attempt() -> str:
            with _open(self.root, name, 0, self.timeout) as stream:
                return stream.stamp

        return self._persist(name, attempt, notify)

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
            with _open(self.root, name, file.tell(), self.timeout) as stream:
                file.seek(stream.start)
                self._copy(name, stream, _ENDLESS if size is None else size + 1, file.write, notify)
            file.flush()
            received = file.tell()
            if size is None:
                return received, _digest(file, received)
            if received < size:
                raise _Broken(f"ended after {received} of {size} bytes")
            if received > size or _digest(file, size) != sha256:
                file.seek(0)
                raise _Broken(
                    f"more than its {size} bytes" if received > size else "its sha256 is not that of the index"
                )
            return size, sha256

        return self._persist(name, attempt, notify)

    def _copy(self, name: str, stream: _Stream, end: int, write: Callable[[bytes], Any], notify: Notify) -> None:
        """At most up to `end`, watching the pace."""
        position, since, before, warned = stream.start, time.monotonic(), stream.start, False
        while position < end and (block := stream.read(min(_BLOCK, end - position))):
            write(block)
            position += len(block)
            seconds = time.monotonic() - since
            if seconds > self.timeout:
                if position - before < min(_STALLED, end - 1 - before):
                    raise TimeoutError(f"only {position - before} bytes in {seconds:.2g} s")
                if position - before < _SLOW * seconds and not warned:
                    notify(f"{self.address(name)} is slow: {(position - before) / seconds / 1e6:.2g} MB/s")
                    warned = True
                since, before = time.monotonic(), position

    def _persist(self, name: str, attempt: Callable[[], Any], notify: Notify) -> Any:
        for number in range(self.retries + 1):
            try:
                return attempt()
            except Exception as error:
                reason = message_of(error)[:300] or type(error).__name__
                if getattr(error, "errno", None) in _LOCAL:
                    raise Unreachable(f"data.cache: {reason}, while fetching {self.address(name)}") from error
                if number == self.retries or not _may_pass(error):
                    tries = f" (tried {number + 1} times)" if number else ""
                    raise Unreachable(
                        f"{self.address(name)} cannot be fetched{tries}: {reason}; see that it is there, "
                        "then run the same command again"
                    ) from error
                wait = _wait(number, error)
                notify(f"{self.address(name)}: {reason}; try {number + 2} of {self.retries + 1}")
                time.sleep(wait)
        raise AssertionError


def _may_pass(error: Exception) -> bool:
    """Return whether trying again may help."""
    if isinstance(error, urllib.error.HTTPError):
        return error.code >= 500 or error.code in _PASSING
    if isinstance(error, urllib.error.URLError) and not isinstance(error.reason, OSError):
        return False  # an address that is none
    return not isinstance(error, (FileNotFoundError, PermissionError, IsADirectoryError, ImportError, ValueError))


def _wait(number: int, error: Exception) -> float:
    """Seconds: doubling, scattered so that a cluster's workers do not all come back together; or as the server asks."""
    asked = error.headers.get("Retry-After", "") if isinstance(error, urllib.error.HTTPError) else ""
    wait = float(asked) if asked.isdigit() else 0.5 * 2**number * random.SystemRandom().uniform(0.5, 1)
    return min(wait, _LONGEST_WAIT)


def _digest(file: BinaryIO, size: int) -> str:
    """The sha256 of a file, which is left at its end."""
    digest = hashlib.sha256()
    file.seek(0)
    while block := file.read(min(_BLOCK, size - file.tell())):
        digest.update(block)
    return digest.hexdigest()


# ---- ways to a file ----


def _open(root: str, name: str, start: int, timeout: float) -> AbstractContextManager[_Stream]:
    """A file from place `start` on, or from the beginning where that cannot be had."""
    if root.startswith("pipe:"):
        return _pipe(root.removeprefix("pipe:"), name, timeout)
    return (_http if re.match("https?:", root) else _fsspec)(root, name, start, timeout)


@contextmanager
def _http(root: str, name: str, start: int, timeout: float) -> Iterator[_Stream]:
    parts = urllib.parse.urlsplit(root)
    url = urllib.parse.urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{urllib.parse.quote(name)}"))
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    deadline = _Deadline(timeout)
    with (
        contextlib.closing(deadline),
        deadline.watch(lambda: deadline.opener().open(request, timeout=timeout)) as response,
    ):
        goes_on = response.status == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {start}-")
        if response.status != 200 and not goes_on:
            raise _Broken(f"HTTP status {response.status}")
        stamp = " ".join(response.headers.get(name, "") for name in ("Content-Length", "Last-Modified")).strip()
        yield _Stream(lambda count: deadline.watch(lambda: _read1(response, count)), start if goes_on else 0, stamp)


class _Deadline:
    """Cuts connections that take longer than `seconds` over a step: connection and headers, or a block of the body.

    A socket's own timeout begins anew with every byte, so that a server that drips would hold a reader for ever.
    """

    def __init__(self, seconds: float):
        self._seconds, self._sockets, self._late = seconds, [], False

    def opener(self) -> urllib.request.OpenerDirector:
        """urllib's opener, of connections that can be cut."""

        def connection(kind: type, *arguments: Any, **settings: Any) -> http.client.HTTPConnection:
            made = kind(*arguments, **settings)
            made._create_connection = self._connect
            return made

        class Http(urllib.request.HTTPHandler):
            def http_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
                return self.do_open(functools.partial(connection, http.client.HTTPConnection), request)

        class Https(urllib.request.HTTPSHandler):
            def https_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
                make = functools.partial(connection, http.client.HTTPSConnection)
                return self.do_open(make, request, context=self._context)

        return urllib.request.build_opener(Http, Https)

    def _connect(self, *arguments: Any, **settings: Any) -> socket.socket:
        connection = socket.create_connection(*arguments, **settings)
        self._sockets.append(connection.dup())  # TLS takes the socket itself
        return connection

    def watch(self, work: Callable[[], Any]) -> Any:
        """Return what `work` returns; TimeoutError once it was late."""
        timer = threading.Timer(self._seconds, self._cut)
        timer.daemon = True
        timer.start()
        try:
            result = work()
        except Exception as error:
            if self._late:
                raise TimeoutError(f"no answer in {self._seconds:g} s") from error
            raise
        finally:
            timer.cancel()
        if self._late:
            raise TimeoutError(f"no answer in {self._seconds:g} s")
        return result

    def _cut(self) -> None:
        self._late = True
        for one in self._sockets:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Forget the connections."""
        for one in self._sockets:
            one.close()


def _read1(response: http.client.HTTPResponse, count: int) -> bytes:
    """Read what has arrived of a response, which need not end where it says that it would."""
    data = response.read1(count)
    if not data and response.length:
        raise _Broken(f"the connection was closed, {response.length} bytes too early")
    return data


@contextmanager
def _fsspec(root: str, name: str, start: int, timeout: float) -> Iterator[_Stream]:
    import fsspec  # here, as it is slow to import and seldom needed

    with fsspec.open(f"{root.rstrip('/')}/{name}", "rb") as file:
        file.seek(start)
        yield _Stream(file.read, start, str(getattr(file, "size", "")))


@contextmanager
def _pipe(command: str, name: str, timeout: float) -> Iterator[_Stream]:
    command = command.replace("{name}", shlex.quote(name))
    with tempfile.TemporaryFile() as messages:
        process = subprocess.Popen(
            command,
            shell=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=messages,
            start_new_session=True,
        )
        try:
            with selectors.DefaultSelector() as selector:
                selector.register(process.stdout, selectors.EVENT_READ)
                yield _Stream(lambda count: _from_process(process, selector, count, timeout, messages), 0)
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.stdout.close()
            process.wait()


def _from_process(process: subprocess.Popen, selector: Any, count: int, timeout: float, messages: BinaryIO) -> bytes:
    if not selector.select(timeout):
        raise TimeoutError(f"the command gave nothing for {timeout:g} s")
    data = os.read(process.stdout.fileno(), count)
    if not data and process.wait(timeout):
        messages.seek(max(0, messages.seek(0, os.SEEK_END) - 300))
        last = messages.read().decode(errors="replace").strip().splitlines()[-1:]
        raise _Broken(": ".join([f"the command ended with status {process.returncode}", *last]))
    return data
