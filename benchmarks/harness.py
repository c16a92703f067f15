"""Benchmark harness: time a plain formulation and ours in turn, in one process, once their results are equal.

A part of the suite is a module here with

    def pairs(quick: bool) -> Iterable[Pair | Result]:    # a generator: each pair is freed before the next
    if __name__ == "__main__":
        command(__doc__, pairs)

which runs alone (`python benchmarks/PART.py --quick --json FILE`) and within `run.py`, in a process of its own.
`quick` asks for small sizes, to see that it works. What cannot be timed as two calls (memory, whole commands) is
measured by the part itself and yielded as a `Result`.
"""

import argparse
import dataclasses
import json
import math
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import cv2
import machine
import numpy as np
import torch
from tables import table

from cssr.utils.files import write_atomic

SHORTEST = 0.02  # seconds of a turn; shorter calls are repeated within it


@dataclass(frozen=True)
class Limit:
    """Bound of one call of ours: arithmetic, memory (the slower of both), or a bare call that cannot be left out."""

    flops: float = 0.0  # floating-point operations, two a multiply-accumulate
    bytes: float = 0.0  # read and written at least once
    precision: str = "float32"  # of the arithmetic
    device: str = "cpu"
    bare: Callable[[], Any] | None = None  # timed in turn with the pair, e.g. decoding alone
    bare_name: str = ""  # what it is: "decoding", "the forward pass"


@dataclass(frozen=True)
class Pair:
    """Two implementations of one computation; `plain` and `ours` return its result for comparison."""

    name: str  # what is done, with its size
    formulation: str  # the plain way, in words
    plain: Callable[[], Any]
    ours: Callable[[], Any]
    tolerance: float = 0.0  # largest difference of the results
    differ: Callable[[Any, Any], float] | None = None  # difference of the results; None: `largest_difference`
    asked: float | None = None  # least ratio
    items: float = 1.0  # done by a call
    item: str = "image"
    limit: Limit | None = None
    rounds: int = 7  # turns of each, of which the medians count
    threads: int | None = None  # None: those of the command line


@dataclass(frozen=True)
class Result:
    """A measurement: figures of both ways, the less the better."""

    name: str
    formulation: str
    plain: float  # of one item
    ours: float
    asked: float | None = None
    unit: str = "s"
    item: str = "image"
    threads: int | None = None
    rounds: Sequence[float] = ()  # ratio of each round
    difference: float | None = None  # of the results
    tolerance: float | None = None
    bound: dict[str, Any] = field(default_factory=dict)  # by what, achieved, rate, share: see `bounded`

    @property
    def ratio(self) -> float:
        """The plain way's figure over ours."""
        return self.plain / self.ours

    @property
    def met(self) -> bool | None:
        """Return whether the ratio is at least what is asked; None if nothing is."""
        return None if self.asked is None else self.ratio >= self.asked


@dataclass(frozen=True)
class Settings:
    """Settings of a measurement."""

    threads: int
    clock: str = "wall"
    quick: bool = False


def largest_difference(plain: Any, ours: Any) -> float:
    """Largest difference of numbers, arrays, tensors, or tuples, lists and dicts of them; infinite if shapes differ."""
    if isinstance(plain, dict):
        plain, ours = list(plain.values()), [ours[key] for key in plain]
    if isinstance(plain, (tuple, list)):
        return max((largest_difference(a, b) for a, b in zip(plain, ours, strict=True)), default=0.0)
    a, b = (
        np.asarray(x.detach().cpu().double() if isinstance(x, torch.Tensor) else x, np.float64) for x in (plain, ours)
    )
    return float(np.abs(a - b).max(initial=0.0)) if a.shape == b.shape else math.inf


# ---- measuring ----


def measure(pair: Pair, settings: Settings) -> Result:
    """Compare the results of both, then time them in turn; ValueError where the results differ."""
    threads, clock = pair.threads or settings.threads, settings.clock
    use_threads(threads)
    difference = (pair.differ or largest_difference)(pair.plain(), pair.ours())
    if not difference <= pair.tolerance:
        raise ValueError(f"the results differ by {difference:.3g}, allowed is {pair.tolerance:.3g}")
    bare = pair.limit.bare if pair.limit else None
    calls = [pair.plain, pair.ours, *([bare] if bare else [])]
    turns = in_turn(calls, clock, min(pair.rounds, 3) if settings.quick else pair.rounds)
    plain, ours, *alone = (median(seconds) / pair.items for seconds in turns)
    return Result(
        pair.name, pair.formulation, plain, ours, pair.asked, item=pair.item, threads=threads,
        rounds=[a / b for a, b in zip(*turns[:2])], difference=difference, tolerance=pair.tolerance,
        bound=bounded(pair, ours, alone[0] if alone else None, clock, threads),
    )  # fmt: skip


def use_threads(count: int) -> None:
    """Set the threads of torch and OpenCV, 1 or more: to OpenCV, 0 means no threads beside the caller."""
    torch.set_num_threads(count)
    cv2.setNumThreads(count)


def in_turn(calls: Sequence[Callable[[], Any]], clock: str, rounds: int) -> list[list[float]]:
    """Seconds of a call in each round: A B, B A, A B, ..., so that neither always comes first; all are warm."""
    repeats = [max(1, math.ceil(SHORTEST / max(machine.seconds(call, clock), 1e-9))) for call in calls]
    seconds: list[list[float]] = [[] for _ in calls]
    for turn in range(rounds):
        for n in range(len(calls))[:: -1 if turn % 2 else 1]:
            work, times = calls[n], repeats[n]
            seconds[n].append(
                machine.seconds(lambda work=work, times=times: [work() for _ in range(times)], clock) / times
            )
    return seconds


def bounded(pair: Pair, ours: float, bare: float | None, clock: str, threads: int) -> dict[str, Any]:
    """The bound of a pair, what ours achieves of which rate, and the share of the bound, 0..1.

    `ours` and `bare` are seconds of an item. `achieved` and `rate` are FLOP/s or bytes/s; where a bare call is the
    bound, seconds of an item by ours and by it.
    """
    limit = pair.limit
    if limit is None:
        return {}
    if bare is not None:
        return {"by": limit.bare_name, "achieved": ours, "rate": bare, "share": bare / ours}
    rates = machine.rates(limit.device, clock, threads)
    arithmetic = max(rates[f"{kind} {limit.precision}"] for kind in ("matmul", "conv"))
    ways = {f"arithmetic, {limit.precision}": (limit.flops, arithmetic), "memory": (limit.bytes, rates["copy"])}
    by, (amount, rate) = max(ways.items(), key=lambda way: way[1][0] / way[1][1])
    achieved = amount / (ours * pair.items)
    return {"by": by, "achieved": achieved, "rate": rate, "share": achieved / rate}


# ---- command ----


def command(
    doc: str,
    pairs: Callable[[bool], Iterable[Pair | Result]],
    arguments: Sequence[str] | None = None,
    parents: Sequence[argparse.ArgumentParser] = (),
) -> None:
    """The command line of a part; exits with 1 where a pair failed. `parents`: its own options, read already."""
    options = parser(doc, parents).parse_args(arguments)
    settings = Settings(options.threads, options.clock, options.quick)
    results, failures = gather(pairs, settings)
    facts = report(results, failures, settings)
    print("\n".join(table(facts)))
    if options.json:
        write(facts, options.json)
    sys.exit(1 if failures else 0)


def parser(doc: str, parents: Sequence[argparse.ArgumentParser] = ()) -> argparse.ArgumentParser:
    """Parser of the options that all parts have."""
    arg_parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter, parents=parents
    )
    arg_parser.add_argument("--quick", action="store_true", help="small sizes and few rounds: whether it works")
    arg_parser.add_argument("--threads", type=positive, default=len(os.sched_getaffinity(0)), help="default: all cores")
    arg_parser.add_argument(
        "--clock", choices=machine.CLOCKS, default="wall", help="cpu: where others use the machine too (wall)"
    )
    arg_parser.add_argument("--json", type=Path, metavar="FILE", help="write figures, settings, machine and versions")
    return arg_parser


def positive(text: str) -> int:
    """Parse an integer of 1 or more."""
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, got {text}")
    return int(text)


def gather(
    pairs: Callable[[bool], Iterable[Pair | Result]], settings: Settings
) -> tuple[list[Result], list[dict[str, str]]]:
    """All results of a part, and what failed with its reason; a failure does not end the part."""
    results: list[Result] = []
    failures: list[dict[str, str]] = []
    use_threads(settings.threads)
    remaining = iter(pairs(settings.quick))
    while True:
        pair, name = None, "what comes next"
        try:
            pair = next(remaining)
            name = pair.name
            results.append(pair if isinstance(pair, Result) else measure(pair, settings))
        except StopIteration:
            return results, failures
        except Exception as error:
            traceback.print_exc()
            failures.append({"name": name, "reason": " ".join(f"{type(error).__name__}: {error}".split())})


def report(results: Sequence[Result], failures: Sequence[dict[str, str]], settings: Settings) -> dict[str, Any]:
    """Contents of the JSON."""
    lines = [{**dataclasses.asdict(result), "ratio": result.ratio, "met": result.met} for result in results]
    return {
        "machine": machine.facts(),
        "settings": dataclasses.asdict(settings),
        "rates": machine.measured(),
        "results": lines,
        "failures": list(failures),
    }


def write(facts: Any, path: Path) -> None:
    """Write JSON atomically."""
    write_atomic(path, json.dumps(facts, indent=1) + "\n")
