"""Cores and memory of this machine, against which processes are held before they are started; memory of this one."""

import os
import resource
from contextlib import suppress
from pathlib import Path

import psutil

_MEMORY_LIMIT = Path("/sys/fs/cgroup/memory.max")


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
