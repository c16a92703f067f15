"""A Hub on the loopback: as much of the Hugging Face Hub as pushing and pulling a small model asks for."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "c" * 40


class Hub(ThreadingHTTPServer):
    """`models`: {name: {"private", "files"}}; `requests`: (method, path) each; `spoil`: files that are sent changed."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.models: dict[str, dict] = {}
        self.requests: list[tuple[str, str]] = []
        self.spoil: set[str] = set()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_) -> None: ...

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.requests.append(("POST", self.path))
        if self.path == "/api/repos/create":
            return self._create(json.loads(body))
        if self.path == "/api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        found = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(preupload|commit)/main(\?.*)?", self.path)
        if not found or found[1] not in self.server.models:
            return self._json({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
        if found[2] == "preupload":
            files = json.loads(body)["files"]
            return self._json({"files": [{**f, "uploadMode": "regular", "shouldIgnore": False} for f in files]})
        return self._commit(found[1], body)

    def _create(self, asked: dict) -> None:
        name = f"{asked['organization']}/{asked['name']}"
        if name in self.server.models:
            return self._json({"error": "exists", "url": f"{self.server.address}/{name}"}, 409)
        private = asked.get("private") or asked.get("visibility") == "private"
        self.server.models[name] = {"private": private, "files": {}}
        return self._json({"url": f"{self.server.address}/{name}"})

    def _commit(self, name: str, body: bytes) -> None:
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                self.server.models[name]["files"][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        self._json({"success": True, "commitOid": COMMIT, "commitUrl": f"{self.server.address}/{name}/commit/{COMMIT}"})

    def do_HEAD(self) -> None:
        self._get(body=False)

    def do_GET(self) -> None:
        self._get(body=True)

    def _get(self, body: bool) -> None:
        self.server.requests.append((self.command, self.path))
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+?)(/revision/([^/?]+))?(\?.*)?", self.path):
            return self._info(found[1], found[3] or "main")
        found = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self.path)
        model = self.server.models.get(found[1]) if found else None
        if model is None:
            return self._json({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
        if found[2] not in ("main", COMMIT):
            return self._json({"error": "Invalid rev"}, 404, {"X-Error-Code": "RevisionNotFound"})
        if found[3] not in model["files"]:
            return self._json(
                {"error": "Entry not found"}, 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT}
            )
        return self._file(found[3], model["files"][found[3]])

    def _info(self, name: str, revision: str) -> None:
        if name not in self.server.models:
            return self._json({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
        if revision not in ("main", COMMIT):
            return self._json({"error": "Invalid rev"}, 404, {"X-Error-Code": "RevisionNotFound"})
        private = self.server.models[name]["private"]
        facts = {"_id": "1", "id": name, "modelId": name, "sha": COMMIT, "private": private}
        return self._json({**facts, "siblings": [], "tags": []})

    def _file(self, path: str, data: bytes) -> None:
        tag = hashlib.sha256(data).hexdigest()
        if path in self.server.spoil:
            data = data[:-1] + bytes([data[-1] ^ 1])
        self._send(data, 200, {"ETag": f'"{tag}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"})

    def _json(self, value: dict, status: int = 200, headers: dict | None = None) -> None:
        message = {"X-Error-Message": value["error"]} if "error" in value else {}
        self._send(
            json.dumps(value).encode(), status, {"Content-Type": "application/json", **message, **(headers or {})}
        )

    def _send(self, data: bytes, status: int, headers: dict) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


@contextmanager
def hub() -> Iterator[Hub]:
    """A Hub, until the end of the block."""
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
