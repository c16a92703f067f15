"""The server behind the page: its files, the facts of the model, predictions and measurements.

    GET  /            the page; its style and scripts lie beside it (/demo.css, ...), and nothing else is served
    GET  /facts       the model and the limits, as JSON
    POST /predict     a photograph's bytes -> lines of JSON, and behind the last one the pictures that it lists
    POST /measure     the probability PNG of a prediction -> cracks, their files and the mask at ?threshold=, as JSON

A refusal is JSON too, {"error": one sentence}, with status 4xx or 5xx; once lines have begun, it is the last line.
"""

import json
import sys
import traceback
from collections.abc import AsyncIterator
from contextlib import aclosing
from importlib.resources import files
from pathlib import Path
from typing import Any

import anyio.to_thread
import torch
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from cssr.checks import segments
from cssr.demo.access import Access, read_body
from cssr.demo.answers import open_photograph, predicted
from cssr.demo.limits import Limits
from cssr.demo.turns import Full, Job, Turns
from cssr.models.joint import JointModel

_KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
PAGES = ("demo.html", "demo.css", "demo.js", "demo_view.js", "demo_part.js", "demo_zip.js")
UPLOAD = 60.0  # seconds within which a body must arrive


class Refused(Exception):
    """Work that came to nothing; the sentence is for the page."""


def create_app(model: JointModel, limits: Limits, name: str = "", names: tuple[str, ...] = ()) -> Starlette:
    """The server as an ASGI application.

    Args:
        model: in evaluation mode, on the device where it is to work.
        name: of the model, to be shown.
        names: host names, beside `localhost`, by which a browser may reach the server.
    """
    turns = Turns(limits.waiting, limits.seconds)
    facts = {
        "name": name,
        "scale": model.scale,
        "segments": segments(model.config),
        "bytes": limits.bytes,
        "pixels": limits.pixels,
        "seconds": limits.seconds,
    }
    routes = [_page(file) for file in PAGES]
    routes += [
        Route("/facts", lambda request: JSONResponse(facts)),
        Route("/predict", Predict(model, limits, turns), methods=["POST"]),
    ]
    handlers = {HTTPException: _error, Full: _full}
    app = Starlette(routes=routes, middleware=[Middleware(Access, names=names)], exception_handlers=handlers)
    app.state.turns = turns
    return app


def _page(file: str) -> Route:
    content, kind = files("cssr").joinpath("pages", file).read_bytes(), _KINDS[Path(file).suffix]
    path = "/" if kind == "text/html" else f"/{file}"
    return Route(path, lambda request: Response(content, media_type=kind))


def _error(request: Request, error: HTTPException) -> Response:
    return JSONResponse({"error": error.detail}, error.status_code, headers=error.headers)


def _full(request: Request, error: Full) -> Response:
    sentence = "The server is busy, and as many as may wait are waiting: try again in a minute."
    return JSONResponse({"error": sentence}, 503, headers={"Retry-After": "60"})


class Predict:
    """POST /predict, as an ASGI endpoint, so that its place in the queue is given back however the request ends."""

    def __init__(self, model: JointModel, limits: Limits, turns: Turns):
        self.model, self.limits, self.turns = model, limits, turns

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        with self.turns.place():
            body = await read_body(request, self.limits.bytes, UPLOAD)
            try:
                image, notes = await anyio.to_thread.run_sync(open_photograph, body, self.limits.pixels)
            except ValueError as error:
                raise HTTPException(422, str(error)) from None
            job = self.turns.start(lambda job: predicted(self.model, image, self.limits.tile, job.progress))
            async with aclosing(self._answer(job, notes)) as answer:
                await StreamingResponse(answer, media_type="application/x-ndjson")(scope, receive, send)

    async def _answer(self, job: Job, notes: list[str]) -> AsyncIterator[bytes]:
        try:
            async with aclosing(self.turns.follow(job)) as ticks:
                async for _ in ticks:
                    yield _line(event="progress", began=job.began is not None, **_place(job))
            parts = result_of(job)
        except TimeoutError:
            yield _line(event="error", error=f"It took longer than {self.turns.seconds:g} seconds, the limit here.")
        except Refused as error:
            yield _line(event="error", error=str(error))
        else:
            listed = [{"name": part.name, "type": part.type, "bytes": len(part.data)} for part in parts]
            yield _line(event="result", notes=notes, parts=listed)
            for part in parts:
                yield part.data


def _place(job: Job) -> dict[str, int]:
    return {"stage": job.stage, "done": job.done, "of": job.of}


def _line(**fields: Any) -> bytes:
    return json.dumps(fields).encode() + b"\n"


def result_of(job: Job) -> Any:
    """What a job that is done has made. Raises: Refused, with a sentence for the page."""
    try:
        return job.future.result()
    except (MemoryError, torch.OutOfMemoryError):
        raise Refused("There is not enough memory for this photograph: choose a part of it.") from None
    except ValueError as error:
        raise Refused(str(error)) from None
    except Exception:
        traceback.print_exc(file=sys.stderr)
        raise Refused("The model failed on this photograph; the server's log says why.") from None
