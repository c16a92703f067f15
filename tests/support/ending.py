"""Processes that tests start end with them, and begin as anybody's would."""

import ctypes
import signal
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

# A background job of a shell and many CI daemons ignore SIGINT, and so would all that tests start: with a handler here,
# children get the default.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
_PR_SET_CHILD_SUBREAPER = 36  # of prctl(2): orphans become children of this process, where they are found
with suppress(OSError, AttributeError):
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


@pytest.fixture(autouse=True)
def no_process_left_behind():
    """Whatever a test has started and left running, in sessions of their own too, is killed after it."""
    before = _children()
    yield
    if _children() <= before:  # almost always; what descends from a child that stays is looked for below
        return
    left = [process for process in psutil.Process().children(recursive=True) if process.pid not in before]
    left = [process for process in left if not _serves_all_tests(process) and not _descends(process, before)]
    for process in left:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(left, timeout=10)


def _children() -> set[int]:
    """Processes begun by this one, and orphans of theirs; by the kernel's lists, as psutil reads all of /proc."""
    lists = [*Path("/proc/self/task").glob("*/children")]  # a kernel may have none
    with suppress(OSError):
        if lists:
            return {int(pid) for file in lists for pid in file.read_text().split()}
    return {process.pid for process in psutil.Process().children()}


def _descends(process: psutil.Process, before: set[int]) -> bool:
    """Whether it was started by a child that was there before the test: a browser's page, a server's worker."""
    with suppress(psutil.Error):
        return any(parent.pid in before for parent in process.parents())
    return False


def _serves_all_tests(process: psutil.Process) -> bool:
    """Whether it is Python's own, started once for all that follows."""
    with suppress(psutil.Error):
        return any(name in " ".join(process.cmdline()) for name in ("resource_tracker", "forkserver"))
    return False
