"""Who may ask the page's server, what every answer says to the browser, and how much of a body is taken."""

import ipaddress
from collections.abc import Iterable
from urllib.parse import urlsplit

import anyio
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

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


class Access:
    """Refuses hosts and origins that are not the page's own, and adds `HEADERS` to every answer.

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
        if not self._known(host):
            return "This server does not go by the name in the request: open it by its address, or by localhost."
        origin, site = headers.get("origin"), headers.get("sec-fetch-site", "same-origin")
        foreign = (origin is not None and _place(origin) != host) or site not in ("same-origin", "none")
        if method not in ("GET", "HEAD") and foreign:
            return "Only this server's own page may send photographs to it."
        return None

    def _known(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
            if name in self.names:
                return True
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True


async def read_body(request: Request, most: int, seconds: float) -> bytes:
    """The body of a request, held in memory only.

    Raises: HTTPException 413 for more than `most` bytes, said or sent, 408 if it takes longer than `seconds`, 400 where
        it is empty or breaks off.
    """
    too_large = HTTPException(413, f"The file is too large: at most {most / _MEGA:g} MB are taken.")
    said = request.headers.get("content-length", "")
    if said.isdigit() and int(said) > most:
        raise too_large
    body = bytearray()
    try:
        with anyio.fail_after(seconds):
            async for chunk in request.stream():
                body += chunk
                if len(body) > most:
                    raise too_large
    except TimeoutError:
        raise HTTPException(408, f"The file did not arrive within {seconds:g} seconds.") from None
    except ClientDisconnect:
        raise HTTPException(400, "The file broke off.") from None
    if not body:
        raise HTTPException(400, "The file is empty: it has no bytes.")
    return bytes(body)


def _place(origin: str) -> str | None:
    """Host and port of an origin; None of what is none, as `http://[`."""
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return None
