"""What is done with a photograph, and with a probability at a threshold, that come in by POST."""

import json
import sys
import traceback
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from typing import Any

import anyio
import anyio.to_thread
import torch
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from cssr.demo.access import read_body
from cssr.demo.answers import open_photograph, predicted
from cssr.demo.limits import Limits
from cssr.demo.turns import Job, Places, Turns
from cssr.models.joint import JointModel

UPLOAD = 60.0  # seconds within which a body must arrive
MEASURE = 20.0  # seconds that a measurement may take
_WAITING = 8  # measurements that wait for one
_SLACK = 1.1, 10_000  # by which the PNG of pixels that cannot be compressed is larger than they


class Refused(Exception):
    """Work that came to nothing; the sentence is for the page."""


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
                    yield _line(event="progress", **self._place(job))
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

    def _place(self, job: Job) -> dict[str, Any]:
        """How far the work is: tiles done, of those of all rounds; none are known of what is worked as a whole."""
        of = self.model.rounds * job.of
        return {"began": job.began is not None, "done": job.before + job.done, "of": of}


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


class Measure:
    """POST /measure?threshold=&mm=, as an ASGI endpoint: one measurement at a time, in a process that can be ended."""

    def __init__(self, limits: Limits, scale: int):
        self.scale, self.most = scale, limits.pixels * scale**2
        self.places, self.turn = Places(_WAITING), anyio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        with self.places.place():
            options = ["--scale", str(self.scale), "--most", str(self.most), *_options(request.query_params)]
            body = await read_body(request, round(self.most * _SLACK[0] + _SLACK[1]), UPLOAD)
            answer = await self._measured(options, body, receive)
        if answer is not None:
            await answer(scope, receive, send)

    async def _measured(self, options: list[str], body: bytes, receive: Receive) -> Response | None:
        """The answer; None for who has left."""
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
    found = []
    for name, default, most in (("threshold", "0.5", 1.0), ("mm", "", 1e6)):
        text = query.get(name, default)
        try:
            good = not text or 0 < float(text) <= most
        except ValueError:
            good = False
        if not good:
            raise HTTPException(422, f"{name} must be a number above 0, at most {most:g}.")
        found += [f"--{name}", text] if text else []
    return found


async def _measure(options: list[str], body: bytes) -> Response:
    with anyio.move_on_after(MEASURE) as limit:
        command = [sys.executable, "-m", "cssr.demo.measuring", *options]
        done = await anyio.run_process(command, input=body, check=False, stderr=None)
    if limit.cancelled_caught:
        sentence = f"The mask is too ragged to be measured within {MEASURE:g} seconds: raise the threshold."
        return _refusal(sentence, 422)
    if done.returncode:
        return _refusal("The cracks could not be measured; the server's log says why.", 500)
    return Response(done.stdout, 422 if done.stdout.startswith(b'{"error"') else 200, media_type="application/json")


def _refusal(sentence: str, status: int) -> Response:
    return Response(json.dumps({"error": sentence}), status, media_type="application/json")
