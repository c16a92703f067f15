"""The server behind the page: its files, the facts of the model, predictions and measurements.

    GET  /            the page; its style and scripts lie beside it (/demo.css, ...), and nothing else is served
    GET  /facts       the model and the limits, as JSON
    POST /predict     a photograph's bytes -> lines of JSON, and behind the last one the pictures that it lists
    POST /measure     the probability PNG of a prediction -> cracks, their files and the mask at ?threshold=, as JSON

A refusal is JSON too, {"error": one sentence}, with status 4xx or 5xx; once lines have begun, it is the last line.
"""

from importlib.resources import files
from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from cssr.config.schema import segments
from cssr.demo.access import Access
from cssr.demo.endpoints import Measure, Predict
from cssr.demo.limits import Limits
from cssr.demo.turns import Full, Turns
from cssr.models.joint import JointModel

_KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
PAGES = ("demo.html", "demo.css", "demo.js", "demo_view.js", "demo_part.js", "demo_zip.js")


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
        Route("/measure", Measure(limits, model.scale), methods=["POST"]),
    ]
    handlers = {HTTPException: _error, Full: _full}
    app = Starlette(routes=routes, middleware=[Middleware(Access, names=names)], exception_handlers=handlers)
    app.state.turns = turns
    return app


def _page(file: str) -> Route:
    content, kind = files("cssr.demo").joinpath("pages", file).read_bytes(), _KINDS[Path(file).suffix]
    path = "/" if kind == "text/html" else f"/{file}"
    return Route(path, lambda request: Response(content, media_type=kind))


def _error(request: Request, error: HTTPException) -> Response:
    return JSONResponse({"error": error.detail}, error.status_code, headers=error.headers)


def _full(request: Request, error: Full) -> Response:
    sentence = "The server is busy, and as many as may wait are waiting: try again in a minute."
    return JSONResponse({"error": sentence}, 503, headers={"Retry-After": "60"})
