"""Threads: read ahead of use, write behind it, and call a function of many items side by side."""

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any

_END = object()


class _Failure:
    """An error of the other thread."""

    def __init__(self, error: BaseException):
        self.error = error


def read_ahead(items: Iterable[Any], count: int) -> Iterator[Any]:
    """`items`, made by a thread of their own, `count` of them at most ahead of use; 0: as they are asked for.

    What is raised there is raised here. The thread ends when this iterator is closed or forgotten.
    """
    if not count:
        yield from items
        return
    buffer: queue.Queue[Any] = queue.Queue(count)
    stop = threading.Event()
    thread = threading.Thread(target=_fill, args=(items, buffer, stop), daemon=True)
    thread.start()
    try:
        while (item := buffer.get()) is not _END:
            if isinstance(item, _Failure):
                raise item.error
            yield item
    finally:
        stop.set()
        with suppress(queue.Empty):  # make room: a thread that waits for it continues, and sees that it is to stop
            while True:
                buffer.get_nowait()
        thread.join()


def _fill(items: Iterable[Any], buffer: queue.Queue, stop: threading.Event) -> None:
    try:
        for item in items:
            if stop.is_set():
                return
            buffer.put(item)
            del item  # free it while the next one is made
        buffer.put(_END)
    except BaseException as error:
        buffer.put(_Failure(error))


def side_by_side(
    function: Callable[[Any], Any], items: Iterable[Any], count: int, begin: Callable[[], None] | None = None
) -> Iterator[Any]:
    """`function` of each item, in their order, by `count` threads, each of which calls `begin` first.

    One item more than there are threads is taken ahead of use. What a call raises is raised in its turn, and what has
    not begun by then is left out.
    """
    waiting: deque[Future] = deque()
    with ThreadPoolExecutor(count, initializer=begin) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                del item
                if len(waiting) > count:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


class WriteBehind:
    """Calls that one thread makes, in the order in which they were given, `count` of them at most waiting.

    `with WriteBehind(2) as later: later(function, argument)`; what a call raises is raised by the next one, or at the
    end of the block.
    """

    def __init__(self, count: int):
        self._calls: queue.Queue[Any] = queue.Queue(count)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, daemon=True)

    def __enter__(self) -> "WriteBehind":
        self._thread.start()
        return self

    def __call__(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Queue `function(*arguments)`; waits while the queue is full."""
        self._calls.put((function, arguments))
        self._raise()

    def wait(self) -> None:
        """Wait until all calls are done."""
        self._calls.join()
        self._raise()

    def __exit__(self, kind: type | None, *_: Any) -> None:
        self._calls.put(_END)
        self._thread.join()
        if kind is None:
            self._raise()

    def _work(self) -> None:
        while (call := self._calls.get()) is not _END:
            if self._error is None:  # else the rest is skipped
                try:
                    call[0](*call[1])
                except BaseException as error:
                    self._error = error
            del call  # free its arguments while this thread waits
            self._calls.task_done()

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error
