"""A web server on the loopback that serves a folder, with byte ranges, and fails as it is asked to."""

import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Server(ThreadingHTTPServer):
    """`requests`: (name, first byte asked for) of each, in order. `fault(count, name)`: what to do instead of serving:
    a status, "cut" (close in the middle), "short" (say less and send less), "hang", "drip" (a byte at a time), "slow",
    "headers", "chunks" (drip for ever in these),
    "spoil" (change a byte), "all" (ignore the range), or None.
    """

    daemon_threads = True

    def __init__(self, root: Path, fault: Callable[[int, str], int | str | None]):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.root, self.fault, self.requests, self.lock = root, fault, [], threading.Lock()
        self.stopped = threading.Event()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/set"

    def handle_error(self, request, client_address) -> None:
        """A client that has gone is no error."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_) -> None: ...

    def do_GET(self) -> None:
        name = unquote(urlsplit(self.path).path.removeprefix("/set/"))
        start = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        first = int(start[1]) if start else 0
        with self.server.lock:
            self.server.requests.append((name, first))
            fault = self.server.fault(len(self.server.requests), name)
        path = self.server.root / name
        if isinstance(fault, int) or not path.is_file():
            self.send_response(fault or 404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self._send(path.read_bytes(), 0 if fault == "all" else first, fault)

    def _drip_for_ever(self, begin: bytes) -> None:
        """A header, or the size of a chunk, that does not end."""
        self.wfile.write(b"HTTP/1.1 200 OK\r\n" + begin)
        for _ in range(400):
            self.wfile.write(b"1")
            if self.server.stopped.wait(0.05):
                return

    def _send(self, data: bytes, first: int, fault: str | None) -> None:
        whole = len(data)
        if fault in ("headers", "chunks"):
            self._drip_for_ever(b"X-Padding: " if fault == "headers" else b"Transfer-Encoding: chunked\r\n\r\n")
            return
        if fault == "spoil":
            data = data[:700] + bytes([data[700] ^ 1]) + data[701:]
        data = data[first : whole // 2 if fault == "short" else whole]
        self.send_response(206 if first else 200)
        if first:
            self.send_header("Content-Range", f"bytes {first}-{whole - 1}/{whole}")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if fault == "hang":
            self.server.stopped.wait(20)
        steps = {"cut": len(data) // 2, "drip": 1, "slow": max(1, len(data) // 6)}
        size = steps.get(fault, max(1, len(data)))
        for place in range(0, len(data), size):
            self.wfile.write(data[place : place + size])
            if fault == "cut":
                self.close_connection = True
                return
            if fault in ("drip", "slow"):
                time.sleep(0.05)
            if self.server.stopped.is_set():
                return


@contextmanager
def serving(root: Path, fault: Callable[[int, str], int | str | None] = lambda count, name: None) -> Iterator[Server]:
    """A server of the folder, until the end of the block."""
    server = Server(root, fault)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.stopped.set()
        server.shutdown()
        server.server_close()
        thread.join()
