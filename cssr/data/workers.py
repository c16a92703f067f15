"""A webdataset loader with worker processes: samples one by one and in order, errors in one line.

Nothing lives in shared memory: arrays come through pipes, so that a killed run leaves nothing behind.
"""

import atexit
import fcntl
import re
import shutil
import signal
import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import reduce
from pathlib import Path
from typing import Any

import cv2
import torch
import webdataset as wds
from torch.utils.data import DataLoader

from cssr.data.remote import DataError
from cssr.utils.interrupts import signals_blocked
from cssr.utils.text import message_of

_SHARED = Path("/dev/shm")
_SEMAPHORES = 1 << 16  # bytes for those of a worker's queues

_PIPE = 1 << 20  # bytes; the most that Linux gives without privileges
_GRACE = 30  # seconds that a worker outlives a SIGTERM, for the training process to finish its step and save


def worker_share(indices: range) -> range:
    """The share of `indices` of this worker process; all of them in the main process."""
    worker = torch.utils.data.get_worker_info()
    return indices[worker.id :: worker.num_workers] if worker else indices


def load(pipeline: Sequence[Any], workers: int, prefetch: int, stages: Sequence[Any]) -> Iterator[Any]:
    """The result of `stages`, in this process, over the samples that `pipeline` makes in worker processes.

    Args:
        pipeline: stages of a `webdataset.DataPipeline`; the first gives the share of its worker.
        workers: 0 runs the pipeline in this process.
        prefetch: samples that each worker may be ahead of use.
    Raises: DataError, as a worker has met it, for a worker that has ended, or without room for what workers share.
    """
    if workers and _SHARED.is_dir() and shutil.disk_usage(_SHARED).free < workers * _SEMAPHORES:
        raise DataError(
            f"{_SHARED}, the shared memory, has less than the {workers * _SEMAPHORES >> 10} KiB free that {workers} "
            "loader processes need: set data.workers=0 (--workers 0), or give this machine or container more "
            "(docker run --shm-size=1g)"
        )
    loader = _Loader(
        wds.DataPipeline(*pipeline, _errors_as_samples),
        batch_size=None,
        num_workers=workers,
        collate_fn=_identity,
        worker_init_fn=_init_worker,
        prefetch_factor=prefetch if workers else None,
    )
    stream = iter(loader.compose(*stages))
    _open_streams.add(stream)
    return stream


class _Loader(wds.WebLoader):
    """A `WebLoader` with workers that leave a terminal's signals to this process, and send through wide pipes."""

    def iterator1(self) -> Iterator[Any]:
        stages = iter(self.pipeline)
        samples = _samples(next(stages))
        try:
            yield from reduce(lambda source, stage: self.invoke(stage, source), stages, samples)
        finally:
            samples.close()  # where a stage fails, its traceback keeps what it reads, and so the workers


def _errors_as_samples(samples: Iterator[Any]) -> Iterator[Any]:
    """Pass samples on, and a DataError as the last of them: raised in a worker it would come as a traceback."""
    try:
        yield from samples
    except DataError as error:
        yield error


def _samples(loader: DataLoader) -> Iterator[Any]:
    """The samples of the workers; an error of theirs is raised here."""
    try:
        for sample in _start_workers(loader):  # without a name, which a traceback would keep, and with it the workers
            _name_dead_workers()  # torch has set its handler by now
            if isinstance(sample, DataError):
                raise sample
            yield sample
    except RuntimeError as error:
        raise _data_error(error) from None


def _start_workers(loader: DataLoader) -> Iterator[Any]:
    """Start the workers.

    A sample goes through their pipe at once; by Linux's default it holds an eighth of one of 224 x 224.
    Raises: DataError where processes, or the semaphores of their queues, cannot be had.
    """
    try:
        with signals_blocked():
            samples = iter(loader)
    except OSError as error:
        raise DataError(
            f"data.workers: loader processes cannot be started ({error.strerror}); raise the limit of processes or the "
            "room of /dev/shm (in a container: --shm-size=1g), or set data.workers=0"
        ) from error
    queue = getattr(samples, "_worker_result_queue", None)  # of torch; without it, or the right to, it stays as it is
    with suppress(AttributeError, OSError):
        fcntl.fcntl(queue._reader.fileno(), fcntl.F_SETPIPE_SZ, _PIPE)
    return samples


def _name_dead_workers() -> None:
    """torch's handler of SIGCHLD raises RuntimeError wherever the program is when a worker ends: make it one line.

    It has to be there: a main process that waits for the rest of what a killed worker had begun to send waits for ever.
    """
    previous = signal.getsignal(signal.SIGCHLD)
    if threading.current_thread() is not threading.main_thread() or not callable(previous):
        return
    if getattr(previous, "names_dead_workers", False):
        return

    def handle(*arguments: Any) -> None:
        try:
            previous(*arguments)
        except RuntimeError as error:
            raise _data_error(error) from None

    handle.names_dead_workers = True
    signal.signal(signal.SIGCHLD, handle)


def _data_error(error: RuntimeError) -> Exception:
    """DataError for what torch says of a worker that has ended; any other error as it is."""
    text = message_of(error)
    if not re.match(r"DataLoader worker \(pid", text):
        return error
    end = re.sub(r"^DataLoader worker ", "a loader worker ", text.split(". ")[0].rstrip("."))
    return DataError(
        f"{end}; if memory ran out, lower data.workers or train.batch_size, or set data.workers=0 to see why; "
        "the same command continues from the last checkpoint"
    )


_open_streams: weakref.WeakSet = weakref.WeakSet()


@atexit.register
def _close_streams() -> None:
    """At exit, streams that something still holds end their workers, which would not heed multiprocessing's SIGTERM."""
    for stream in list(_open_streams):
        stream.close()


def _init_worker(_: int) -> None:
    """A SIGTERM to the whole group is the training process's to answer: a worker ends after a grace period."""
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(_GRACE))
    cv2.setNumThreads(0)


def _identity(sample: Any) -> Any:
    return sample
