"""Streams of a remote file: over http(s), by what fsspec knows, or of a command; each with a deadline.

A stream begins at the requested offset, or at the beginning where the server cannot do that.
"""

import contextlib
import functools
import http.client
import os
import re
import selectors
import shlex
import signal
import socket
import subprocess
import tempfile
import threading
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, BinaryIO, NamedTuple


class Broken(OSError):
    """Content that is not what the index says; another attempt may help."""


class Stream(NamedTuple):
    """Stream of a server: `read(n)`, at most n bytes (b"" at the end), the offset at which it begins, and
    its size and time, as far as they are known.
    """

    read: Callable[[int], bytes]
    start: int
    stamp: str = ""


def open_stream(root: str, name: str, start: int, timeout: float) -> AbstractContextManager[Stream]:
    """Open a file from byte `start` on, or from the beginning where the server cannot do that."""
    if root.startswith("pipe:"):
        return _pipe(root.removeprefix("pipe:"), name, timeout)
    return (_http if re.match("https?:", root) else _fsspec)(root, name, start, timeout)


@contextmanager
def _http(root: str, name: str, start: int, timeout: float) -> Iterator[Stream]:
    parts = urllib.parse.urlsplit(root)
    url = urllib.parse.urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{urllib.parse.quote(name)}"))
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    deadline = _Deadline(timeout)
    with (
        contextlib.closing(deadline),
        deadline.watch(lambda: deadline.opener().open(request, timeout=timeout)) as response,
    ):
        continues = response.status == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {start}-")
        if response.status != 200 and not continues:
            raise Broken(f"HTTP status {response.status}")
        stamp = " ".join(response.headers.get(name, "") for name in ("Content-Length", "Last-Modified")).strip()
        yield Stream(lambda count: deadline.watch(lambda: _read1(response, count)), start if continues else 0, stamp)


class _Deadline:
    """Cuts connections that take longer than `seconds` over a step: connection and headers, or a block of the body.

    A socket's own timeout begins anew with every byte, so that a server that drips would hold a reader for ever.
    """

    def __init__(self, seconds: float):
        self._seconds, self._sockets, self._late = seconds, [], False

    def opener(self) -> urllib.request.OpenerDirector:
        """urllib's opener, of connections that can be cut."""

        def connection(kind: type, *arguments: Any, **settings: Any) -> http.client.HTTPConnection:
            created = kind(*arguments, **settings)
            created._create_connection = self._connect
            return created

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
        for connection in self._sockets:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Forget the connections."""
        for connection in self._sockets:
            connection.close()


def _read1(response: http.client.HTTPResponse, count: int) -> bytes:
    """Read what has arrived of a response, which need not end where it says that it would."""
    data = response.read1(count)
    if not data and response.length:
        raise Broken(f"the connection was closed, {response.length} bytes too early")
    return data


@contextmanager
def _fsspec(root: str, name: str, start: int, timeout: float) -> Iterator[Stream]:
    import fsspec  # here, as it is slow to import and seldom needed

    with fsspec.open(f"{root.rstrip('/')}/{name}", "rb") as file:
        file.seek(start)
        yield Stream(file.read, start, str(getattr(file, "size", "")))


@contextmanager
def _pipe(command: str, name: str, timeout: float) -> Iterator[Stream]:
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
                yield Stream(lambda count: _from_process(process, selector, count, timeout, messages), 0)
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
        raise Broken(": ".join([f"the command ended with status {process.returncode}", *last]))
    return data
