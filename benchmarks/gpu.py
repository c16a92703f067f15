"""Everything that a turn on a GPU needs, in under nine minutes: `benchmarks/gpu.sh [--dry-run] [--out DIR]`.

Writes DIR/gpu.json and DIR/gpu.md (default: benchmarks/results). Of CSBSR-PSPNet at full size (224 x 224, joint phase):

    correctness  losses and gradients of a step against the CPU's: float32, bf16, recomputed
    step         images a second and memory by precision, batches of 6 to the largest that fits, beside the forecast
    kernels      what takes the time of a step, and how much of it the GPU computes
    epoch        training out of shards: whether the loader keeps ahead, and 100,000 samples against ten minutes
    compiled     the step with train.compile

Each stage is a process of its own with a time of its own, and leaves what it has measured when that is over. A
`--dry-run` takes the same way with small sizes on the CPU.
"""

import argparse
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import machine
import torch
from harness import write
from model_sizes import sizes
from scaling import Case, Workspace
from step_memory import Memory
from training_step import BATCHES, ROUNDING, SIDE, SMALL, VARIANTS, Step, difference, loss_difference, settings

from cssr.training.log import memory_gib
from cssr.utils.text import markdown_table

LIMITS = {"correctness": 80, "step": 170, "kernels": 50, "epoch": 110, "compiled": 110}  # seconds; 520 of 540
DRY_RUN_FACTOR = 5  # times as long in a dry run, on few cores that others use too
SAMPLES, MINUTES = 100_000, 10  # of 224 x 224, to be trained on within
MAX_LOSS_DIFFERENCE = 0.1  # relative, of bf16
MAX_DATA_WAIT = 0.02  # share of a step
WAYS = ("bfloat16", "float32", "bfloat16, recomputed")


@dataclass(frozen=True)
class Turn:
    """Sizes of a run of all stages; `save` stores the measurements of a stage so far."""

    dry: bool
    out: Path
    end: float  # of the stage, seconds of `time.monotonic`
    save: Callable[[Any], None] = lambda measured: None

    @property
    def side(self) -> int:
        return SMALL if self.dry else SIDE

    @property
    def batches(self) -> tuple[int, ...]:
        return (2,) if self.dry else BATCHES

    @property
    def rates(self) -> dict[str, float]:
        """FLOP/s of matrices by precision."""
        dry = {f"matmul {precision}": 1e12 for precision in machine.PRECISIONS}
        return dry if self.dry else machine.rates("cuda", "wall", torch.get_num_threads())

    @property
    def fastest(self) -> dict[str, Any]:
        """Measurements of the batch with most images/s in bf16; the smallest batch and a guess if none was timed."""
        path = self.out / "step.json"
        lines = json.loads(path.read_text())["sizes"] if path.is_file() else []
        timed = [line for line in lines if line["way"] == "bfloat16" and line["images_per_s"]]
        guess = {"batch": self.batches[0], "images_per_s": 100.0}
        return max(timed, key=lambda line: line["images_per_s"], default=guess)

    @property
    def best(self) -> int:
        """Size of the fastest batch."""
        return self.fastest["batch"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status: 1 where a stage failed or a result is wrong."""
    arg_parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = arg_parser.add_argument
    add("--dry-run", action="store_true", help="small sizes, on the CPU")
    add("--out", type=Path, default=machine.ROOT / "benchmarks" / "results", help="directory")
    add("--only", nargs="+", choices=STAGES, default=[*STAGES], metavar="STAGE", help=", ".join(STAGES))
    add("--stage", choices=[*STAGES, "reference"], help=argparse.SUPPRESS)
    add("--seconds", type=float, default=0, help=argparse.SUPPRESS)
    options = arg_parser.parse_args(arguments)
    if options.stage:
        return stage(options)
    if not options.dry_run and not torch.cuda.is_available():
        arg_parser.error("there is no GPU: --dry-run takes the same way on the CPU")
    options.out.mkdir(parents=True, exist_ok=True)
    began, report = time.monotonic(), {"machine": machine.facts(), "dry_run": options.dry_run, "stages": {}}
    for name in options.only:
        report["stages"][name] = run(name, options)
        report["seconds"] = time.monotonic() - began
        write(report, options.out / "gpu.json")
        (options.out / "gpu.md").write_text(page(report), encoding="utf-8")
    print(page(report))
    print(f"{options.out / 'gpu.json'}, {options.out / 'gpu.md'}")
    return 1 if any(not result.get("right", True) or "failure" in result for result in report["stages"].values()) else 0


def run(name: str, options: Namespace) -> dict[str, Any]:
    """Measurements of a stage in a process of its own; `failure` says why it ended early."""
    path, began = options.out / f"{name}.json", time.monotonic()
    limit = LIMITS[name] * (DRY_RUN_FACTOR if options.dry_run else 1)
    path.unlink(missing_ok=True)
    words = [sys.executable, str(Path(__file__)), "--stage", name, "--seconds", str(limit)]
    words += ["--out", str(options.out), *(["--dry-run"] if options.dry_run else [])]
    hidden = {"CUDA_VISIBLE_DEVICES": ""} if options.dry_run else {}
    process = subprocess.Popen(
        words, env={**os.environ, **hidden}, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        stderr = process.communicate(timeout=limit)[1]
        failure = {} if process.returncode == 0 else {"failure": (stderr.strip().splitlines() or ["it ended"])[-1]}
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # a training of its own too
        process.communicate()
        failure = {"failure": f"not done after {limit} s"}
    measured = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return {**measured, **failure, "seconds": time.monotonic() - began}


def stage(options: Namespace) -> int:
    """Run one stage in this process."""
    path = options.out / f"{options.stage}.json"
    end = time.monotonic() + 0.9 * options.seconds
    turn = Turn(options.dry_run, options.out, end, lambda measured: write(measured, path))
    turn.save(reference(turn) if options.stage == "reference" else STAGES[options.stage](turn))
    return 0


# ---- correctness ----


def reference(turn: Turn) -> dict[str, Any]:
    """Save what the step gives on the CPU."""
    torch.save(Step("float32", turn.side, 2, keep=True)(), turn.out / "reference.pt")
    return {}


def correctness(turn: Turn) -> dict[str, Any]:
    """Differences from the CPU's float32: of losses and, in float32, of all gradients."""
    words = [sys.executable, str(Path(__file__)), "--stage", "reference", "--out", str(turn.out)]
    words += ["--dry-run"] if turn.dry else []
    subprocess.run(words, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""}, check=True)
    on_cpu = torch.load(turn.out / "reference.pt")
    for name in ("reference.pt", "reference.json"):
        (turn.out / name).unlink()
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    result: dict[str, Any] = {"differences": {}, "right": True}
    for way in ("float32", *(way for way in WAYS if way != "float32")):
        ours = Step(way, turn.side, 2, keep=way == "float32")()
        losses, exact = loss_difference(on_cpu, ours), way == "float32"
        gradients = difference(on_cpu, ours) if exact else None
        result["differences"][way] = {"losses": losses, "gradients": gradients}
        result["right"] &= losses <= MAX_LOSS_DIFFERENCE and (gradients is None or gradients <= ROUNDING)
        turn.save(result)
    return result


# ---- time and memory ----


def step(turn: Turn) -> dict[str, Any]:
    """Each way by batch, until one does not fit or the way's share of the time is over."""
    result: dict[str, Any] = {"sizes": [], "rates": turn.rates}
    began = time.monotonic()
    for number, way in enumerate(WAYS, 1):
        memory = Memory(settings(turn.side, *VARIANTS[way][1]), half=way != "float32")
        until, last = began + (turn.end - began) * number / len(WAYS), 0.0
        for count in turn.batches:
            if time.monotonic() + 2 * last > until:
                break
            last = time.monotonic()
            line = {"way": way, "batch": count, "forecast_gib": memory.of(count) / 2**30}
            result["sizes"].append({**line, **throughput(way, turn.side, count, result["rates"])})
            last = time.monotonic() - last
            turn.save(result)
            if result["sizes"][-1]["images_per_s"] is None:
                break
    return result


def throughput(way: str, side: int, count: int, rates: dict[str, float]) -> dict[str, Any]:
    """Images a second over steps without synchronization between them, share of the matrix rate, memory."""
    if device_type() == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    try:
        once = Step(way, side, count)
        first = machine.seconds(once, "wall")
        warm = machine.seconds(lambda: [once() for _ in range(2)], "wall") / 2
        turns = min(max(math.ceil(2 / warm), 2), 20)  # two seconds, where steps are short
        seconds = machine.seconds(lambda: [once() for _ in range(turns)], "wall") / turns
    except torch.OutOfMemoryError:
        return {"images_per_s": None}
    arithmetic = 6 * sizes(settings(side).model, side)[1] * count / seconds
    share = arithmetic / rates["matmul float32" if way == "float32" else "matmul bfloat16"]
    gib = memory_gib(torch.device(device_type()))
    return {"images_per_s": count / seconds, "share": share, "memory_gib": gib, "first_step_s": first}


def device_type() -> str:
    """Type of the device."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def compiled(turn: Turn) -> dict[str, Any]:
    """Time of the compiled step at the fastest batch size."""
    rates = turn.rates
    way = "bfloat16" if turn.dry else "bfloat16, compiled"  # compilation on a CPU takes minutes
    return {"sizes": [{"way": way, "batch": turn.best, **throughput(way, turn.side, turn.best, rates)}]}


# ---- kernels ----


def kernels(turn: Turn) -> dict[str, Any]:
    """The kernels that take most of a step's time, and the share of it that all kernels take."""
    activity, once = torch.profiler.ProfilerActivity, Step("bfloat16", turn.side, turn.best)
    for _ in range(2):
        once()
    kinds = [activity.CPU, *([activity.CUDA] if device_type() == "cuda" else [])]
    steps, field = 3, "self_device_time_total" if device_type() == "cuda" else "self_cpu_time_total"
    with torch.profiler.profile(activities=kinds) as profile:
        seconds = machine.seconds(lambda: [once() for _ in range(steps)], "wall")
    if device_type() == "cuda":
        entries = [entry for entry in profile.key_averages() if entry.device_type != torch.autograd.DeviceType.CPU]
    else:
        entries = [*profile.key_averages()]
    entries.sort(key=lambda entry: -getattr(entry, field))
    shares = [(entry.key[:100], entry.count / steps, getattr(entry, field) / 1e6 / seconds) for entry in entries]
    lines = [{"name": name, "calls": calls, "share": share} for name, calls, share in shares[:25]]
    return {"batch": turn.best, "busy": sum(share for *_, share in shares), "kernels": lines}


# ---- an epoch ----


def epoch(turn: Turn) -> dict[str, Any]:
    """Training by the command, out of shards, over steady steps."""
    batch, cores = turn.best, len(os.sched_getaffinity(0))
    workers = 0 if turn.dry else max(cores - 2, 1)
    with tempfile.TemporaryDirectory() as scratch:
        workspace = Workspace(Path(scratch), Namespace(recipe=None, crop=turn.side if not turn.dry else 32))
        case = Case("one", "cpu.yaml" if turn.dry else "single_gpu.yaml", 1)
        steps = 6 if turn.dry else max(int(40 * turn.fastest["images_per_s"] / batch), 12)
        lines = workspace.run(case, steps, batch, f"data.workers={workers}")
    steady = lines[len(lines) // 3 :]
    rate = median(line["images_per_s"] for line in steady)
    waits = median(line["data_wait"] * line["images_per_s"] / batch for line in steady)
    return {
        "batch": batch, "workers": workers, "cores": cores, "steps": len(lines), "images_per_s": rate,
        "waits_for_data": waits, "loader_ahead": waits <= MAX_DATA_WAIT, "minutes": SAMPLES / rate / 60,
        "asked_minutes": MINUTES,
    }  # fmt: skip


STAGES = {"correctness": correctness, "step": step, "kernels": kernels, "epoch": epoch, "compiled": compiled}


# ---- the page ----


def page(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    facts, stages = report["machine"], report["stages"]
    subject = "dry run on a CPU, small sizes: no figure means anything" if report["dry_run"] else facts["gpu"]
    torch_version = facts["versions"]["torch"]
    summary = f"{subject}; torch {torch_version}; {facts['revision']}; {report['seconds']:.0f} s"
    lines = ["# A turn on a GPU", "", summary]
    for name, result in stages.items():
        lines += ["", f"## {name.capitalize()} ({result['seconds']:.0f} s)", ""]
        lines += [f"**{result['failure']}**", ""] if "failure" in result else []
        lines += PAGES[name](result) if len(result) > 1 + ("failure" in result) else []
    return "\n".join(lines) + "\n"


def correctness_lines(result: dict[str, Any]) -> list[str]:
    rows = [
        (way, f"{line['losses']:.2g}", "" if line["gradients"] is None else f"{line['gradients']:.2g}")
        for way, line in result["differences"].items()
    ]
    allowed = f"Allowed: gradients {ROUNDING}, losses {MAX_LOSS_DIFFERENCE}: {'met' if result['right'] else 'NOT MET'}."
    return [markdown_table(("against the CPU", "losses", "gradients"), rows, right=(1, 2)), "", allowed]


def size_lines(result: dict[str, Any]) -> list[str]:
    heads = ("step", "batch", "images/s", "of the matrix rate", "GiB", "GiB forecast", "first step, s")
    return [markdown_table(heads, [*map(_cells, result["sizes"])], right=range(1, 7))]


def _cells(line: dict[str, Any]) -> tuple[str, ...]:
    forecast = f"{line['forecast_gib']:.1f}" if "forecast_gib" in line else ""
    if line["images_per_s"] is None:
        return line["way"], str(line["batch"]), "does not fit", "", "", forecast, ""
    share, seconds = f"{100 * line['share']:.0f} %", f"{line['first_step_s']:.1f}"
    return (
        line["way"],
        str(line["batch"]),
        f"{line['images_per_s']:.1f}",
        share,
        f"{line['memory_gib']:.2f}",
        forecast,
        seconds,
    )


def kernel_lines(result: dict[str, Any]) -> list[str]:
    rows = [(f"`{line['name']}`", f"{line['calls']:.0f}", f"{100 * line['share']:.1f} %") for line in result["kernels"]]
    busy = f"Batch {result['batch']}: all of them take {100 * result['busy']:.0f} % of the step."
    return [busy, "", markdown_table(("kernel", "calls a step", "of the step"), rows, right=(1, 2))]


def epoch_lines(result: dict[str, Any]) -> list[str]:
    met = "met" if result["minutes"] <= result["asked_minutes"] else "NOT MET"
    ahead = "keeps ahead" if result["loader_ahead"] else "does NOT keep ahead"
    return [
        f"Batch {result['batch']}, {result['workers']} workers on {result['cores']} cores: "
        f"{result['images_per_s']:.1f} images/s; the loader {ahead} ({100 * result['waits_for_data']:.1f} % of a step "
        f"waits). {SAMPLES:,} samples: {result['minutes']:.1f} minutes, asked {result['asked_minutes']}: {met}."
    ]


PAGES = {
    "correctness": correctness_lines, "step": size_lines, "kernels": kernel_lines, "epoch": epoch_lines,
    "compiled": size_lines,
}  # fmt: skip

if __name__ == "__main__":
    sys.exit(main())
