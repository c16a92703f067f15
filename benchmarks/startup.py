"""Starting up, against what is allowed: `python benchmarks/startup.py`.

Seconds of CPU time (of all processes of a command, so that other work on the machine matters little; on an idle machine
the wall clock shows less) that pass until the package is imported, a command has printed its help, and `tiny` has taken
its first step, its end included. The least of three.
"""

import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from harness import Result, command
from machine import ROOT

PROGRAMS = (
    *(f"cssr/{name}.py" for name in ("train", "evaluate", "predict", "measure", "deploy", "hub", "convert")),
    *(f"cssr/{name}/__main__.py" for name in ("report", "demo")),
    *(f"shards/{name}.py" for name in ("make_shards", "make_benchmark", "doctor", "show")),
    *(f"launch/{name}.py" for name in ("evaluate", "sweep", "doctor")),
)


def pairs(quick: bool) -> Iterable[Result]:
    """CPU seconds of each command, against the seconds allowed."""
    turns = 1 if quick else 3
    yield result("import cssr", 2, least(["-c", "import cssr"], turns))
    for program in PROGRAMS:
        yield result(f"{program} --help", 3, least([str(ROOT / program), "--help"], turns))
    with tempfile.TemporaryDirectory() as scratch:
        yield result("first training step of tiny", 15, first_step(Path(scratch)))


def result(name: str, allowed: float, seconds: float) -> Result:
    """A line of the table."""
    return Result(name, "what is allowed", plain=allowed, ours=seconds, asked=1, item="")


def least(words: Sequence[str], turns: int) -> float:
    """CPU seconds of a Python command."""
    return min(cpu_seconds(words) for _ in range(turns))


def cpu_seconds(words: Sequence[str]) -> float:
    """CPU seconds of a command and its own processes; RuntimeError with what it says where it fails."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)}: {done.stderr[-2000:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def first_step(scratch: Path) -> float:
    """CPU seconds of a run of one step of configs/tiny.yaml on a few drawn photographs."""
    make = [ROOT / "shards" / "make_shards.py", "synthetic", "--out", scratch / "shards", "--count", 32, "--size", 128]
    cpu_seconds([str(word) for word in make])
    settings = [f"data.train={scratch}/shards", f"train.run_dir={scratch}/run", "train.steps=1", "train.val_every=0"]
    return cpu_seconds([str(ROOT / "cssr/train.py"), str(ROOT / "configs/tiny.yaml"), *settings])


if __name__ == "__main__":
    command(__doc__, pairs)
