"""Bounds of connections: deadlines for headers and for unread answers, and a number of connections per client."""

import asyncio
from collections import Counter
from typing import Any

HEADERS = 10.0  # seconds for the head of a request
READING = 30.0  # seconds for a client to read what waits for it
A_CLIENT = 24  # connections of one address at a time

_clients: Counter[str] = Counter()


def protocol() -> type:
    """uvicorn's HTTP protocol with these bounds; imported here, as the page is an extra."""
    from uvicorn.protocols.http.h11_impl import H11Protocol

    class Bounded(H11Protocol):
        _waiting: asyncio.TimerHandle | None = None
        _unread: asyncio.TimerHandle | None = None
        _counted = ""

        def connection_made(self, transport: asyncio.Transport) -> None:
            super().connection_made(transport)
            host = self.client[0] if self.client else ""
            if _clients[host] >= A_CLIENT:
                transport.abort()
                return
            _clients[host] += 1
            self._counted = host
            self._await_request()

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            for timer in (self._waiting, self._unread):
                if timer:
                    timer.cancel()
            if self._counted:
                _clients[self._counted] -= 1
                self._counted = ""

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._await_request()

        def _await_request(self) -> None:
            """Close the connection unless another request has begun in time."""
            before: Any = self.cycle
            if self._waiting:
                self._waiting.cancel()
            self._waiting = self.loop.call_later(
                HEADERS, lambda: self.transport.abort() if self.cycle is before else None
            )

        def pause_writing(self) -> None:
            super().pause_writing()
            self._unread = self.loop.call_later(READING, self.transport.abort)

        def resume_writing(self) -> None:
            super().resume_writing()
            if self._unread:
                self._unread.cancel()

    return Bounded
