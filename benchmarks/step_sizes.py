"""Training steps on a GPU: batches of 6 to the largest that fits, beside what bounds them, and what must keep ahead."""

import gc
import os
import resource
import tempfile
import time
from collections.abc import Iterable, Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path
from statistics import median

import machine
import torch
from decode import drawn, sharded
from pairs import Result
from sizes import sizes
from steps import SIDE, SMALL, VARIANTS, Step, device, settings

from cssr.config.schema import DataConfig
from cssr.data.checks import open_train_sets
from cssr.data.loader import train_stream
from cssr.degradations import DEGRADATIONS

GIB, GOAL = 2**30, 600.0  # seconds in which 100,000 samples are to be trained
BATCHES = (6, 12, 24, 48, 96, 192, 384)
WARM, STEPS = 3, 10


def by_size(quick: bool) -> Iterable[Result]:
    """Seconds of an image by precision and batch, beside float32 in batches of 6; then the rest, beside the best."""
    side, seconds = SMALL if quick else SIDE, []
    for name in VARIANTS:
        yield from sweep(name, side, batches(name, quick), seconds)
    best = min(seconds)
    yield Result(
        f"100,000 samples of {side} x {side}", "10 minutes", GOAL, 1e5 * best, None if quick else 1.0, item="run"
    )
    yield Result("degradation beside the step", "the step", best, degrading(side, 2 if quick else 48), 1.0)
    yield Result("loader beside the step", "the step", best, loading(side, 4 if quick else 100), 1.0)


def batches(name: str, quick: bool) -> Sequence[int]:
    """Sizes to try; compilation takes its time for each."""
    if quick:
        return () if "compiled" in name else (1, 2)
    return BATCHES[::2] if "compiled" in name else BATCHES


def sweep(name: str, side: int, counts: Sequence[int], seconds: list[float]) -> Iterable[Result]:
    """Until a batch does not fit; `seconds` of an image are added to those found before, float32's first."""
    for count in counts:
        torch._dynamo.reset()  # or it gives up after some sizes
        gc.collect()
        try:
            found, memory = timed(name, side, count)
        except torch.OutOfMemoryError:
            return
        seconds.append(found)
        yield Result(
            f"step of {side} x {side}, {name}, batch {count}, {memory:.1f} GiB", f"float32, batch {counts[0]}",
            seconds[0], found, bound=bound(name, side, found),
        )  # fmt: skip


def timed(name: str, side: int, count: int) -> tuple[float, float]:
    """Seconds an image, the median of some steps, and the most GiB at once."""
    if device().type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    step = Step(name, side, count)
    for _ in range(WARM):
        step()
    return median(machine.seconds(step, "wall") for _ in range(STEPS)) / count, peak()


def peak() -> float:
    """GiB at most so far: allocated on the GPU, or in the memory of this process."""
    if device().type == "cuda":
        return torch.cuda.max_memory_allocated() / GIB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB


def bound(name: str, side: int, seconds: float) -> dict:
    """A step is three forward passes of arithmetic, at best at the rate of large matrices."""
    precision = "float32" if name == "float32" else "bfloat16"
    rates = machine.rates(device().type, "wall", torch.get_num_threads())
    achieved, rate = 6 * sizes(settings(side).model, side)[1] / seconds, rates[f"matmul {precision}"]
    return {"by": f"arithmetic, {precision}", "achieved": achieved, "rate": rate, "share": achieved / rate}


def degrading(side: int, count: int) -> float:
    """Seconds an image of degradation on the device."""
    config = settings(side)
    degrade = DEGRADATIONS.build(config.degradation, scale=config.model.scale)
    hr, seeds = torch.rand(count, 3, side, side, device=device()), torch.arange(count)
    degrade(hr, seeds)
    return median(machine.seconds(lambda: degrade(hr, seeds), "wall") for _ in range(STEPS)) / count


def loading(side: int, count: int, batch: int = 8) -> float:
    """Seconds an image of the loader, on as many cores as there are, up to 16; what fills its pipes is not counted."""
    workers = 1 << (min(len(os.sched_getaffinity(0)), 16).bit_length() - 1)
    with tempfile.TemporaryDirectory() as scratch:
        sharded(drawn(Path(scratch) / "drawn", 64), Path(scratch) / "shards")
        data = DataConfig(train=str(Path(scratch) / "shards"), workers=workers, crop=side)
        with closing(train_stream(open_train_sets(data), data, 0, 0, batch)) as stream:
            list(islice(stream, 2 * workers))
            began = time.monotonic()
            list(islice(stream, count))
            return (time.monotonic() - began) / count / batch
