"""Samples from worker processes, one by one and in order; what goes wrong in a worker is said here, in one line.

Nothing lives in shared memory: arrays come through pipes, so that a killed run leaves nothing behind.
"""

import atexit
import fcntl
import re
import signal
import threading
import weakref
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import cv2
import torch
from torch.utils.data import DataLoader, IterableDataset

from cssr.data.remote import DataError
from cssr.utils.interrupts import held_back

_PIPE = 1 << 20  # bytes; the most that Linux gives without privileges
_GRACE = 30  # seconds that a worker outlives a SIGTERM, for the training process to finish its step and save


class Samples(IterableDataset):
    """Samples of `self.indices`, of which each worker takes its share in turn."""

    indices: range

    @abstractmethod
    def load(self, index: int) -> Any:
        """One sample; DataError if it cannot be had."""

    def soon(self, index: int) -> None:
        """Called with what this worker will load next, so that it can be fetched."""

    def __iter__(self) -> Iterator[Any]:
        worker = torch.utils.data.get_worker_info()
        offset, stride = (worker.id, worker.num_workers) if worker else (0, 1)
        try:
            for index in self.indices[offset::stride]:
                self.soon(index)
                yield self.load(index)
        except DataError as error:
            yield error
        finally:
            self.end()

    def end(self) -> None:
        """Called when nothing more is wanted."""


def load(samples: Samples, workers: int, prefetch: int) -> Iterator[Any]:
    """What `samples` gives, `prefetch` of each worker at most ahead of use; 0 workers load in this process.

    Raises: DataError, as a worker has met it, or for a worker that has ended.
    """
    loader = DataLoader(
        samples,
        batch_size=None,
        num_workers=workers,
        collate_fn=_as_is,
        worker_init_fn=_init_worker,
        prefetch_factor=prefetch if workers else None,
    )
    stream = _raise_errors(loader)
    _open_streams.add(stream)
    return stream


def _raise_errors(loader: DataLoader) -> Iterator[Any]:
    """What the workers have found wrong, raised here as it was, without their tracebacks."""
    try:
        for sample in _begun(loader):  # without a name, which a traceback would keep, and with it the workers
            _name_dead_workers()  # torch has set its handler by now
            if isinstance(sample, DataError):
                raise sample
            yield sample
    except RuntimeError as error:
        raise _translated(error) from None


def _begun(loader: DataLoader) -> Iterator[Any]:
    """Start the workers, which leave a terminal's signals to this process.

    A sample goes through their pipe at once; by Linux's default it holds an eighth of one of 224 x 224.
    """
    try:
        with held_back():
            samples = iter(loader)
    except OSError as error:  # semaphores, which lie in shared memory, or processes
        raise DataError(
            f"data.workers: loader processes cannot be started ({error.strerror}); see that /dev/shm has room (in a "
            "container: --shm-size=1g), or set data.workers=0"
        ) from error
    queue = getattr(samples, "_worker_result_queue", None)  # of torch; without it, or the right, all goes on as it is
    with suppress(AttributeError, OSError):
        fcntl.fcntl(queue._reader.fileno(), fcntl.F_SETPIPE_SZ, _PIPE)
    return samples


def _name_dead_workers() -> None:
    """torch's handler of SIGCHLD raises RuntimeError wherever the program is when a worker ends: make it one line.

    It has to be there: a main process that waits for the rest of what a killed worker had begun to send waits for ever.
    """
    before = signal.getsignal(signal.SIGCHLD)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        return
    if getattr(before, "names_dead_workers", False):
        return

    def handle(*arguments: Any) -> None:
        try:
            before(*arguments)
        except RuntimeError as error:
            raise _translated(error) from None

    handle.names_dead_workers = True
    signal.signal(signal.SIGCHLD, handle)


def _translated(error: RuntimeError) -> Exception:
    """DataError for what torch says of a worker that has ended; any other error as it is."""
    text = " ".join(str(error).split())
    if not re.match(r"DataLoader worker \(pid", text):
        return error
    end = re.sub(r"^DataLoader worker ", "a loader worker ", text.split(". ")[0].rstrip("."))
    return DataError(
        f"{end}; if memory ran out, lower data.workers or train.batch_size, or set data.workers=0 to see why; "
        "the same command goes on from the last checkpoint"
    )


_open_streams: weakref.WeakSet = weakref.WeakSet()


@atexit.register
def _close_streams() -> None:
    """At exit, streams that something still holds end their workers, which would not heed multiprocessing's SIGTERM."""
    for stream in list(_open_streams):
        stream.close()


def _init_worker(_: int) -> None:
    """A SIGTERM to the whole group is the training process's to answer: a worker goes on for a while, then ends."""
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(_GRACE))
    cv2.setNumThreads(0)


def _as_is(sample: Any) -> Any:
    return sample
