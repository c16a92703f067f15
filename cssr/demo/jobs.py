"""A queue of jobs for one thread, with bounds on its length and on the time of a job."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

TICK = 0.25  # seconds between looks at the work


@dataclass(frozen=True)
class Limits:
    """Bounds that keep one request from occupying the server."""

    bytes: int = 32_000_000  # of a photograph's file
    pixels: int = 1_000_000  # of a photograph
    seconds: float = 300.0  # of work on it, from its turn on
    waiting: int = 4  # requests that wait while one is processed
    tile: int = 256  # LQ pixels a side of a tile; a request is ended between two tiles


class Full(Exception):
    """The queue is full."""


class Stopped(Exception):
    """The work was stopped."""


class Job:
    """A job in the queue: its progress, and a way to stop it."""

    def __init__(self) -> None:
        self.future: Future = Future()
        self.began: float | None = None  # time.monotonic() at which its turn came
        self.before = self.done = self.count = 0  # tiles of earlier rounds; those done of this round, and all of it
        self._end = threading.Event()

    def progress(self, steps: Iterable) -> Iterator:
        """`steps`, each asked for when a tile is done; raises Stopped instead once `stop` was called."""
        steps = steps if isinstance(steps, Sequence) else list(steps)
        self.before, self.done, self.count = self.before + self.count, 0, len(steps)
        for step in steps:
            self.check()
            self.done += 1
            yield step

    def check(self) -> None:
        """Raises Stopped once `stop` was called."""
        if self._end.is_set():
            raise Stopped

    def stop(self) -> None:
        """Leave the queue, or end at the next check; nothing if it is done."""
        self._end.set()
        self.future.cancel()


class BoundedQueue:
    """A queue's places: one for the request being served, and `waiting` others."""

    def __init__(self, waiting: int):
        self.waiting, self.taken = waiting, 0

    @contextmanager
    def place(self) -> Iterator[None]:
        """A place in the queue, to be taken before anything is read into memory; raises Full where there is none."""
        if self.taken > self.waiting:
            raise Full
        self.taken += 1
        try:
            yield
        finally:
            self.taken -= 1


class JobQueue(BoundedQueue):
    """A queue for one thread.

    Args:
        waiting: how many may wait while one is worked on.
        seconds: how long a job may take, from its turn on.
    """

    def __init__(self, waiting: int, seconds: float):
        super().__init__(waiting)
        self.seconds = seconds
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="jobs")

    def start(self, work: Callable[[Job], Any]) -> Job:
        """Enqueue `work(job)`."""
        job = Job()

        def run() -> Any:
            job.began = time.monotonic()
            job.check()
            return work(job)

        job.future = self._thread.submit(run)
        return job

    async def follow(self, job: Job) -> AsyncIterator[None]:
        """A tick now and then until the work is done; left early, for any reason, it stops the work.

        Raises: TimeoutError once the work has taken its `seconds`. A tile that is being worked on is finished first,
            and the next job waits for that; the caller does not.
        """
        done = asyncio.wrap_future(job.future)
        done.add_done_callback(
            lambda future: future.cancelled() or future.exception()
        )  # its result is not read where the caller has left
        try:
            while not job.future.done():
                await asyncio.wait([done], timeout=TICK)
                if job.began and time.monotonic() - job.began > self.seconds and not job.future.done():
                    raise TimeoutError
                yield
        finally:
            job.stop()

    def close(self) -> None:
        """Let the thread go; what waits is dropped."""
        self._thread.shutdown(wait=False, cancel_futures=True)
