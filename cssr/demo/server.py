"""The server behind the page: its files, the facts of the model, predictions and measurements.

    GET  /            the page; its style and scripts are beside it (/demo.css, ...), and nothing else is served
    GET  /facts       the model and the limits, as JSON
    POST /predict     a photograph's bytes -> lines of JSON, and behind the last one the pictures that it lists
    POST /measure     the probability PNG of a prediction -> cracks, their files and the mask at ?threshold=, as JSON;
                      in mm by ?mm= of a pixel, or ?known=x1,y1,x2,y2,mm, two points of the photograph

A refusal is JSON too, {"error": one sentence}, with status 4xx or 5xx; once lines have begun, it is the last line.
"""

import ipaddress
import json
import math
import sys
import traceback
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import aclosing
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import anyio
import anyio.to_thread
import torch
from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cssr.config.schema import segments
from cssr.demo.jobs import BoundedQueue, Full, Job, JobQueue, Limits
from cssr.demo.responses import open_photograph, predict_parts
from cssr.models.joint import JointModel

_KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
PAGES = ("demo.html", "demo.css", "demo.js", "demo_view.js", "demo_part.js", "demo_zip.js")
UPLOAD = 60.0  # seconds within which a body must arrive
MEASURE = 20.0  # seconds that a measurement may take
_WAITING = 8  # measurements that wait for one
_SLACK = 1.1, 10_000  # by which the PNG of pixels that cannot be compressed is larger than they
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_MEGA = 1_000_000
_FAR = 1e6  # pixels, and mm, of two points of known distance


def create_app(model: JointModel, limits: Limits, name: str = "", names: tuple[str, ...] = ()) -> Starlette:
    """The server as an ASGI application.

    Args:
        model: in evaluation mode, on the device where it is to work.
        name: of the model, to be shown.
        names: host names, beside `localhost`, by which a browser may reach the server.
    """
    queue = JobQueue(limits.waiting, limits.seconds)
    facts = {"name": name, "scale": model.scale, "segments": segments(model.config)}
    facts |= {bound: getattr(limits, bound) for bound in ("bytes", "pixels", "seconds")}
    routes = [_page(file) for file in PAGES]
    routes += [
        Route("/facts", lambda request: JSONResponse(facts)),
        Route("/predict", Predict(model, limits, queue), methods=["POST"]),
        Route("/measure", Measure(limits, model.scale), methods=["POST"]),
    ]
    busy = {"error": "The server is busy, and as many as may wait are waiting: try again in a minute."}
    handlers = {
        HTTPException: lambda _, e: JSONResponse({"error": e.detail}, e.status_code, headers=e.headers),
        Full: lambda *_: JSONResponse(busy, 503, headers={"Retry-After": "60"}),
    }
    app = Starlette(routes=routes, middleware=[Middleware(Access, names=names)], exception_handlers=handlers)
    app.state.queue = queue
    return app


def _page(file: str) -> Route:
    content, kind = files("cssr.demo").joinpath("pages", file).read_bytes(), _KINDS[Path(file).suffix]
    path = "/" if kind == "text/html" else f"/{file}"
    return Route(path, lambda request: Response(content, media_type=kind))


class Refused(Exception):
    """Work that failed, with a sentence for the page."""


class Predict:
    """POST /predict, as an ASGI endpoint, so that its place in the queue is given back however the request ends."""

    def __init__(self, model: JointModel, limits: Limits, queue: JobQueue):
        self.model, self.limits, self.queue = model, limits, queue

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        with self.queue.place():
            body = await read_body(request, self.limits.bytes, UPLOAD)
            try:
                image, notes = await anyio.to_thread.run_sync(open_photograph, body, self.limits.pixels)
            except ValueError as error:
                raise HTTPException(422, str(error)) from None
            job = self.queue.start(lambda job: predict_parts(self.model, image, self.limits.tile, job.progress))
            async with aclosing(self._answer(job, notes)) as answer:
                await StreamingResponse(answer, media_type="application/x-ndjson")(scope, receive, send)

    async def _answer(self, job: Job, notes: list[str]) -> AsyncIterator[bytes]:
        try:
            async with aclosing(self.queue.follow(job)) as ticks:
                async for _ in ticks:
                    yield _line(event="progress", **self._progress(job))
            parts = result_of(job)
        except TimeoutError:
            yield _line(event="error", error=f"It took longer than {self.queue.seconds:g} seconds, the limit here.")
        except Refused as error:
            yield _line(event="error", error=str(error))
        else:
            listed = [{"name": part.name, "type": part.type, "bytes": len(part.data)} for part in parts]
            yield _line(event="result", notes=notes, parts=listed)
            for part in parts:
                yield part.data

    def _progress(self, job: Job) -> dict[str, Any]:
        """Progress of the work: tiles done, of those of all rounds; none are known of what is processed as a whole."""
        count = self.model.rounds * job.count
        return {"began": job.began is not None, "done": job.before + job.done, "of": count}


def _line(**fields: Any) -> bytes:
    return json.dumps(fields).encode() + b"\n"


def result_of(job: Job) -> Any:
    """Result of a job that is done. Raises: Refused, with a sentence for the page."""
    try:
        return job.future.result()
    except (MemoryError, torch.OutOfMemoryError):
        raise Refused("There is not enough memory for this photograph: choose a part of it.") from None
    except ValueError as error:
        raise Refused(str(error)) from None
    except Exception:
        traceback.print_exc(file=sys.stderr)
        raise Refused("The model failed on this photograph; the server's log says why.") from None


class Measure:
    """POST /measure?threshold=&mm=&known=, as an ASGI endpoint: one at a time, in a process that can be ended."""

    def __init__(self, limits: Limits, scale: int):
        self.scale, self.max_pixels = scale, limits.pixels * scale**2
        self.places, self.turn = BoundedQueue(_WAITING), anyio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        with self.places.place():
            options = ["--scale", str(self.scale), "--most", str(self.max_pixels), *_options(request.query_params)]
            body = await read_body(request, round(self.max_pixels * _SLACK[0] + _SLACK[1]), UPLOAD)
            answer = await self._measured(options, body, receive)
        if answer is not None:
            await answer(scope, receive, send)

    async def _measured(self, options: list[str], body: bytes, receive: Receive) -> Response | None:
        """The answer; None where the client has disconnected."""
        answer = None
        async with anyio.create_task_group() as group:

            async def leave() -> None:
                while (await receive())["type"] != "http.disconnect":
                    pass
                group.cancel_scope.cancel()

            group.start_soon(leave)
            async with self.turn:
                answer = await _measure(options, body)
            group.cancel_scope.cancel()
        return answer


def _options(query: Mapping[str, str]) -> list[str]:
    """The query as arguments; HTTPException 422 where it is out of range."""
    options = []
    for name, default, limit in (("threshold", "0.5", 1.0), ("mm", "", 1e6)):
        text = query.get(name, default)
        try:
            valid = not text or 0 < float(text) <= limit
        except ValueError:
            valid = False
        if not valid:
            raise HTTPException(422, f"{name} must be a number above 0, at most {limit:g}.")
        options += [f"--{name}", text] if text else []
    return options + _known_distance(query.get("known", ""))


def _known_distance(text: str) -> list[str]:
    """X1,Y1,X2,Y2,MM as arguments; HTTPException 422 for anything else."""
    try:
        numbers = [float(number) for number in text.split(",")] if text else []
    except ValueError:
        numbers = [math.nan]
    if len(numbers) not in (0, 5) or not all(0 <= number <= _FAR for number in numbers):
        raise HTTPException(422, f"known must be x1,y1,x2,y2,mm: five numbers from 0 to {_FAR:g}.")
    return ["--known", *map(str, numbers)] if numbers else []


async def _measure(options: list[str], body: bytes) -> Response:
    with anyio.move_on_after(MEASURE) as limit:
        command = [sys.executable, "-m", "cssr.demo.measure_process", *options]
        done = await anyio.run_process(command, input=body, check=False, stderr=None)
    if limit.cancelled_caught:
        sentence = f"The mask is too ragged to be measured within {MEASURE:g} seconds: raise the threshold."
        return JSONResponse({"error": sentence}, 422)
    if done.returncode:
        return JSONResponse({"error": "The cracks could not be measured; the server's log says why."}, 500)
    return Response(done.stdout, 422 if done.stdout.startswith(b'{"error"') else 200, media_type="application/json")


class Access:
    """Middleware that refuses foreign hosts and origins, and adds `HEADERS` to every answer.

    A page elsewhere can make its own name lead to this machine (DNS rebinding), but then the request names that host.
    A number cannot be rebound, so every address is let in, and of names only `localhost` and `names`.
    """

    def __init__(self, app: ASGIApp, names: Iterable[str] = ()):
        self.app, self.names = app, {"localhost", *(name.lower() for name in names)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        refusal = self._refusal(scope["method"], Headers(scope=scope))
        answer = JSONResponse({"error": refusal}, 403) if refusal else self.app
        await answer(scope, receive, send_with_headers)

    def _refusal(self, method: str, headers: Headers) -> str | None:
        host = headers.get("host", "")
        if not self._is_own_name(host):
            return "This server does not go by the name in the request: open it by its address, or by localhost."
        origin, site = headers.get("origin"), headers.get("sec-fetch-site", "same-origin")
        foreign = (origin is not None and _host_of(origin) != host) or site not in ("same-origin", "none")
        if method not in ("GET", "HEAD") and foreign:
            return "Only this server's own page may send photographs to it."
        return None

    def _is_own_name(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
            if name in self.names:
                return True
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True


async def read_body(request: Request, max_bytes: int, seconds: float) -> bytes:
    """The body of a request, held in memory only.

    Raises: HTTPException 413 for more than `max_bytes` bytes, stated or sent, 408 if it takes longer than `seconds`,
        400 where it is empty or breaks off.
    """
    too_large = HTTPException(413, f"The file is too large: at most {max_bytes / _MEGA:g} MB are taken.")
    stated = request.headers.get("content-length", "")
    if stated.isdigit() and int(stated) > max_bytes:
        raise too_large
    body = bytearray()
    try:
        with anyio.fail_after(seconds):
            async for chunk in request.stream():
                body += chunk
                if len(body) > max_bytes:
                    raise too_large
    except TimeoutError:
        raise HTTPException(408, f"The file did not arrive within {seconds:g} seconds.") from None
    except ClientDisconnect:
        raise HTTPException(400, "The file broke off.") from None
    if not body:
        raise HTTPException(400, "The file is empty: it has no bytes.")
    return bytes(body)


def _host_of(origin: str) -> str | None:
    """Host and port of an origin; None for what is not one, as `http://[`."""
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return None
