"""A pool of worker processes: tasks are handed out one at a time, results come back as they are finished.

The processes are forked, so that what the work needs (sources full of closures) is there without pickling. They end
when the process that made them does, however it ends, and they compute with one thread each: the bytes of a result must
not depend on how many there are.
"""

import ctypes
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from typing import Any

import cv2
from tqdm import tqdm

from cssr.utils.interrupts import signals_blocked

_PR_SET_PDEATHSIG = 1  # linux/prctl.h: the signal that a process gets when its parent ends
_GRACE = 2  # seconds
_STEP, _DONE, _FAILED = range(3)

Work = Callable[[int, Callable[[], None]], Any]


class WorkerDied(ValueError):
    """A process ended without having been asked to."""


def imap_unordered(
    work: Work, count: int, workers: int, step: Callable[[], None] = lambda: None, ahead: int | None = None
):
    """Do tasks 0 to count - 1 in `workers` processes. Yields (task, result) as they are finished, in any order.

    Args:
        work: work(task, step) -> result; it may call step() now and then, upon which `step` is called here.
        ahead: how far beyond the earliest unfinished task others may be begun (None: any).
    Raises: what `work` raised, if a ValueError or OSError; WorkerDied if a process died; KeyboardInterrupt on a signal.
    """
    with _worker_pool(work, min(workers, count)) as free:
        busy: dict[Connection, int] = {}
        next_task = 0
        while busy or next_task < count:
            while free and next_task < count:
                if ahead is not None and next_task - min(busy.values(), default=next_task) >= ahead:
                    break
                pipe = free.pop()
                try:
                    pipe.send(next_task)
                except BrokenPipeError:
                    _receive(pipe)
                busy[pipe], next_task = next_task, next_task + 1
            for pipe in wait(list(busy)):
                kind, value = _receive(pipe)
                if kind == _FAILED:
                    raise value
                if kind == _STEP:
                    step()
                else:
                    free.append(pipe)
                    yield busy.pop(pipe), value


def imap(work: Callable[[int], Any], count: int, workers: int) -> Iterator[Any]:
    """work(0), work(1), ... computed ahead in `workers` processes; a few results are held at a time.

    Raises: the first ValueError or OSError of `work`, in the order of the tasks.
    """
    finished: dict[int, Any] = {}
    next_task = 0
    for task, result in imap_unordered(lambda task, _: _attempt(work, task), count, workers, ahead=2 * workers):
        finished[task] = result
        while next_task in finished:
            value, problem = finished.pop(next_task)
            if problem:
                raise problem
            yield value
            next_task += 1


def with_progress(results: Iterator[Any], total: int, label: str) -> Iterator[Any]:
    """Pass results on under a progress bar on a terminal; closed with them."""
    with closing(results):
        yield from tqdm(results, total=total, desc=label, unit="", leave=False, disable=None)


def _attempt(work: Callable[[int], Any], task: int) -> tuple[Any, Exception | None]:
    try:
        return work(task), None
    except (ValueError, OSError) as problem:
        return None, problem


@contextmanager
def _worker_pool(work: Work, workers: int) -> Iterator[list[Connection]]:
    """Start worker processes, yield the parent's ends of their pipes, and kill them at the end: they hold no state."""
    context, processes, pipes = get_context("fork"), [], []
    sys.stdout.flush()
    try:
        for _ in range(workers):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(work, theirs, os.getpid()), daemon=True)
            with signals_blocked():  # Ctrl-C reaches the whole group; the parent decides
                process.start()
            theirs.close()  # so that the death of the process is the end of its pipe
            processes.append(process)
            pipes.append(ours)
        yield list(pipes)
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.join()
        for pipe in pipes:
            pipe.close()


def _receive(pipe: Connection) -> tuple[int, Any]:
    try:
        return pipe.recv()
    except (EOFError, ConnectionResetError):
        raise WorkerDied(
            "a process of --workers was killed, for lack of memory, perhaps; take fewer --workers and run again"
        ) from None


def _serve(work: Work, pipe: Connection, parent: int) -> None:
    """Do tasks in a worker process until it is killed."""
    _init_worker(parent)
    while True:
        task = pipe.recv()
        try:
            pipe.send((_DONE, work(task, lambda: pipe.send((_STEP, None)))))
        except (ValueError, OSError) as problem:
            pipe.send((_FAILED, problem))
        except MemoryError:
            os.kill(os.getpid(), signal.SIGKILL)  # as the system itself would
        except Exception:  # a fault of the program: say where
            pipe.send((_FAILED, RuntimeError("".join(traceback.format_exc()))))


def _init_worker(parent: int) -> None:
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(_GRACE))  # the parent gets it too, and acts first
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before that took effect
        os._exit(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    cv2.setNumThreads(0)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
