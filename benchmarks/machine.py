"""Circumstances of a benchmark: the machine, versions, revision, and the rates that bound all work on it."""

import importlib.metadata
import os
import platform
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

ROOT = Path(__file__).parents[1]
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
PACKAGES = (
    "torch", "torchvision", "accelerate", "deepspeed", "timm", "kornia", "numpy", "scipy",
    "opencv-python-headless", "simplejpeg", "cssr",
)  # fmt: skip
PRECISIONS = ("float32", "bfloat16")
SIDE, IMAGES, CHANNELS = 2048, 8, 128  # of matrices; of a 3x3 convolution over images of 64 x 64
COPIED = 1 << 29  # bytes, more than caches hold: of both arrays together twice as many


def facts() -> dict[str, Any]:
    """Processor, cores, memory, GPU, load, system, versions and revision, for JSON."""
    installed = {d.metadata["Name"]: d.version for d in importlib.metadata.distributions()}
    return {
        "processor": processor(), "cores": len(os.sched_getaffinity(0)), "memory_gib": memory_gib(),
        "gpu": gpu(), "load": os.getloadavg(), "system": platform.platform(), "revision": revision(),
        "versions": {"python": platform.python_version(), **{n: installed[n] for n in PACKAGES if n in installed}},
    }  # fmt: skip


def processor() -> str:
    """Name of the processor, as far as the system gives one."""
    path = Path("/proc/cpuinfo")
    names = [line for line in path.read_text().splitlines() if "model name" in line] if path.is_file() else []
    return names[0].partition(":")[2].strip() if names else platform.processor()


def memory_gib() -> float:
    """Memory of the whole machine."""
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)


def gpu() -> str | None:
    """Name of the accelerator that training would use, or None."""
    if not torch.accelerator.is_available():
        return None
    device = torch.accelerator.current_accelerator()
    return torch.cuda.get_device_name() if device.type == "cuda" else device.type


def revision() -> str | None:
    """Commit of the checkout, `-dirty` where files differ from it; None outside a checkout."""
    words = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--exclude", "*"]
    done = subprocess.run(words, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else None


def finish() -> None:
    """Wait until an accelerator has finished its work."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


# ---- rates ----


_measured: dict[tuple[str, str, int], dict[str, float]] = {}  # by device, clock and threads


def rates(device: str, clock: str, threads: int) -> dict[str, float]:
    """Rates of the device with so many threads: FLOP/s of `matmul` and `conv` by precision, bytes/s of `copy`.

    The greatest of few turns each, as a bound has to be; measured once in a process. A copy counts what it reads and
    what it writes.
    """
    key = (device, clock, threads)
    if key not in _measured:
        reached = {"copy": 2 * COPIED / fastest(copying(device), clock)}
        conv = 2 * IMAGES * 64 * 64 * CHANNELS**2 * 9
        for precision in PRECISIONS:
            reached[f"matmul {precision}"] = 2 * SIDE**3 / fastest(multiplying(device, precision), clock)
            reached[f"conv {precision}"] = conv / fastest(convolving(device, precision), clock)
        _measured[key] = reached
    return _measured[key]


def measured() -> list[dict[str, Any]]:
    """All rates that this process has measured, for JSON."""
    return [
        {"device": device, "clock": clock, "threads": threads, **reached}
        for (device, clock, threads), reached in _measured.items()
    ]


def fastest(work: Callable[[], object], clock: str, turns: int = 5) -> float:
    """Seconds of the fastest of some turns, after one that warms up."""
    return min(seconds(work, clock) for _ in range(turns + 1))


def seconds(work: Callable[[], object], clock: str) -> float:
    """Seconds of one turn, an accelerator's work included."""
    now = CLOCKS[clock]
    finish()
    began = now()
    work()
    finish()
    return now() - began


def multiplying(device: str, precision: str) -> Callable[[], object]:
    """Call that multiplies two square matrices, the same in all precisions."""
    a, b = drawn(2, SIDE, SIDE).to(device, getattr(torch, precision))
    return lambda: a @ b


def convolving(device: str, precision: str) -> Callable[[], object]:
    """Call of a 3x3 convolution in channels_last, the fastest layout on accelerators and CPUs."""
    x, weight = (
        drawn(*shape).to(device, getattr(torch, precision), memory_format=torch.channels_last)
        for shape in ((IMAGES, CHANNELS, 64, 64), (CHANNELS, CHANNELS, 3, 3))
    )
    return lambda: F.conv2d(x, weight, padding=1)


def drawn(*shape: int) -> torch.Tensor:
    """Random normal tensor, always the same."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def copying(device: str) -> Callable[[], object]:
    """Call that copies one array to another."""
    source = torch.ones(COPIED // 4, device=device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)
