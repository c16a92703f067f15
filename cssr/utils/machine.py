"""Cores and memory of this machine, checks of what is asked of them before it is started; memory of this process."""

import ctypes
import os
import resource
import sys
from contextlib import suppress
from pathlib import Path

import psutil

_MEMORY_LIMIT = Path("/sys/fs/cgroup/memory.max")
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -2, -3, -4, -8  # options of mallopt(3)
# The heap grows by 128 MiB and never shrinks; all threads use it, as one of their own holds no array above 64 MiB.
_KEPT = {_TRIM_THRESHOLD: -1, _TOP_PAD: 1 << 27, _MMAP_MAX: 0, _ARENA_MAX: 1}
_RETURNED = {_TRIM_THRESHOLD: 1 << 17, _TOP_PAD: 1 << 17, _MMAP_MAX: 1 << 16, _MMAP_THRESHOLD: 1 << 22}


def cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0))


def memory() -> int:
    """Bytes of memory that this machine has, or that a container may use of it."""
    total = psutil.virtual_memory().total
    limit = _MEMORY_LIMIT.read_text(encoding="ascii").strip() if _MEMORY_LIMIT.is_file() else ""
    return min(total, int(limit)) if limit.isdigit() else total


def peak_memory() -> int:
    """Largest number of bytes that this process has held at once.

    `ru_maxrss` begins with what the process held that started this one, so that a small child of a large parent shows
    the parent; it is for systems without /proc.
    """
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) << 10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def check_processes(count: int, option: str, gib: float, per_core: int = 4, least: int = 0) -> None:
    """Refuse more processes than this machine can bear.

    Args:
        count: of processes in all. option: the option or setting that asks for them, for the message.
        gib: memory that each takes at least.
        per_core: processes for each core that may still be meant; 16 always may. least: the smallest number allowed.
    Raises: ValueError, one line.
    """
    if count < least:
        raise ValueError(f"{option} is {count}; give at least {least}")
    most = max(cores(), min(max(16, per_core * cores()), int(memory() / 2**30 / gib)))
    if count > most:
        raise ValueError(
            f"{option}: {count} processes are more than this machine can bear ({cores()} cores, "
            f"{memory() / 2**30:.0f} GiB of memory; each takes {gib:g} GiB or more): give at most {most}"
        )


def keep_freed_memory(keep: bool = True) -> None:
    """Let this process keep memory that it frees, and take large arrays from it too; or, `keep` false, return it.

    Of itself glibc asks the kernel for new pages for each array above 32 MiB, which are filled with zeros again and
    again: a fifth of the CPU time of a prediction. What is kept is between arrays that stay, so a process takes more
    memory, up to half as much again; returned, all of an array above 4 MiB. Nothing is done on other systems, or where
    the environment has settings of malloc.
    """
    if sys.platform != "linux" or any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", lambda option, value: None)
    for option, value in (_KEPT if keep else _RETURNED).items():
        mallopt(option, value)
