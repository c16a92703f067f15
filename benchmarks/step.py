"""The training step of CSBSR-PSPNet (KBPN, PSPNet, joint phase, 224 x 224): `python benchmarks/step.py [--quick]`.

Degradation, forward pass, losses, backward pass and update, in turn with the plain formulation (`plain_step.py`): in
float32, where losses and gradients must be equal up to rounding; under bfloat16 autocast, with recomputed activations,
and compiled, where losses must come near. Then what each needs of memory, in a process of its own. On a GPU also images
a second from batches of 6 to the largest that fits, beside what arithmetic alone would take, and whether loading and
degradation keep ahead of it.

    --profile DIR       write a trace (for chrome://tracing or Perfetto) and a picture of what takes the time
"""

import argparse
import gc
import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import machine
import torch
from pairs import Limit, Pair, Result, command
from sizes import sizes
from step_sizes import by_size, peak
from steps import SIDE, SMALL, VARIANTS, Step, device, settings
from torch import Tensor

PLAIN = "kernel maps at full size, samples one by one, scipy, float32"
# Relative difference of all gradients that is rounding: the plain formulation by one thread and by two is 0.010 from
# itself at full size (fresh weights; 34 layers and four rounds of projections amplify it), losses 1e-6.
ROUNDING = 0.03
ASKED = {"float32": 1.4, "bfloat16": 2.5}  # times as fast, at full size


def main() -> None:
    """Command line."""
    options = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    options.add_argument("--profile", type=Path)
    options.add_argument("--memory")  # of one way, for a process of its own
    options.add_argument("--side", type=int, default=SIDE)
    found, rest = options.parse_known_args()
    if found.memory:
        print(json.dumps(memory(found.memory, found.side)))
    elif found.profile:
        profile(found.profile, SMALL if "--quick" in rest else SIDE)
    else:
        command(__doc__, pairs, rest)


def pairs(quick: bool) -> Iterable[Pair | Result]:
    """All of it; `quick`: small images, no compilation."""
    side, rounds = (SMALL, 1) if quick else (SIDE, 3)
    names = [name for name in VARIANTS if not (quick and "compiled" in name)]
    for name in names:
        yield pair(name, side, rounds)
        gc.collect()  # hooks refer to what they hang on
    yield from of_memory(side)
    if quick or device().type == "cuda":
        yield from by_size(quick)


# ---- in turn ----


def pair(name: str, side: int, rounds: int) -> Pair:
    """The plain step and one of ours; float32 must give its losses and gradients, bfloat16 comes near its losses."""
    exact = name == "float32"
    plain, ours = Step("plain", side, keep=exact), Step(name, side, keep=exact)
    macs = sizes(settings(side).model, side)[1]
    return Pair(
        f"step of {side} x {side}, {name}", PLAIN, plain, ours, tolerance=ROUNDING if exact else 0.1,
        differ=difference if exact else of_losses, asked=ASKED.get(name) if side == SIDE else None, rounds=rounds,
        limit=Limit(flops=3 * 2 * macs, precision="float32" if exact else "bfloat16", device=device().type),
    )  # fmt: skip


def of_losses(plain: dict[str, Tensor], ours: dict[str, Tensor]) -> float:
    """The largest relative difference of a loss."""
    both = ((float(plain[name]), float(ours[name])) for name in ("loss", "sr_loss", "seg_loss"))
    return max(abs(a - b) / abs(a) for a, b in both)


def difference(plain: dict[str, Tensor], ours: dict[str, Tensor]) -> float:
    """That, or the length of the difference of all gradients relative to theirs."""
    a, b = plain["gradients"], ours["gradients"]
    return max(of_losses(plain, ours), float((a - b).norm() / a.norm()))


# ---- memory ----


def of_memory(side: int) -> Iterable[Result]:
    """GiB at most during some steps, beyond what the imports take, each way in a process of its own."""
    plain = alone("plain", side)
    for name in ("float32", "bfloat16", "bfloat16, recomputed"):
        asked = 2.0 if name == "bfloat16, recomputed" and side == SIDE else None
        yield Result(
            f"memory of a step of {side} x {side}, {name}", PLAIN, plain, alone(name, side), asked, "GiB", "batch of 1"
        )


def alone(name: str, side: int) -> float:
    words = [sys.executable, __file__, "--memory", name, "--side", str(side)]
    found = subprocess.run(words, capture_output=True, text=True)
    if found.returncode:
        raise RuntimeError(f"{name}: {found.stderr.strip().splitlines()[-1]}")
    return json.loads(found.stdout.splitlines()[-1])


def memory(name: str, side: int) -> float:
    """GiB at most in this process during two steps, beyond the imports; on a GPU, of what is allocated there."""
    before = 0.0 if device().type == "cuda" else peak()
    step = Step(name, side)
    for _ in range(2):
        step()
    return max(peak() - before, 1 / 1024)  # imports may have needed more than small networks do


# ---- profile ----


def profile(out: Path, side: int, name: str = "bfloat16") -> None:
    """Trace of two steps, and a picture of the operations that take the most time."""
    count = 24 if device().type == "cuda" else 1
    step = Step(name, side, count)
    step()
    step()
    with torch.profiler.profile() as found:
        step()
        machine.finish()
    out.mkdir(parents=True, exist_ok=True)
    found.export_chrome_trace(str(out / "trace.json"))
    draw(found, out / "profile.png", f"a step of {count} x {side} x {side}, {name}, {device().type}")
    print(f"{out}/trace.json, {out}/profile.png")


def draw(found: torch.profiler.profile, path: Path, title: str) -> None:
    """Bars of the 15 operations that take the most time themselves."""
    from matplotlib.figure import Figure

    kind = "self_device_time_total" if device().type == "cuda" else "self_cpu_time_total"
    rows = sorted(found.key_averages(), key=lambda row: -getattr(row, kind))
    times, names = [getattr(row, kind) / 1e3 for row in rows[:15]], [row.key[:60] for row in rows[:15]]
    whole = sum(getattr(row, kind) for row in rows) / 1e3
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    bars = axes.barh(names[::-1], times[::-1], color="#3b6ea5")
    axes.bar_label(bars, [f"{100 * t / whole:.0f} %" for t in times[::-1]], padding=3)
    axes.set(xlabel="ms", title=f"{title}: {whole:,.0f} ms")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
