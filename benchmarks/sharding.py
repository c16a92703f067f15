"""Sharding by one worker and by two: `python benchmarks/sharding.py`.

Seconds a sample of `make_shards.py` on drawn photographs of 448 x 448, start-up left out as far as a run on four images
shows it; in turns, medians. The shards are compared byte for byte.
"""

import hashlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from statistics import median

from decode import drawn
from machine import ROOT
from pairs import Result, command


def pairs(quick: bool) -> Iterable[Result]:
    """Two workers against one."""
    count, rounds = (40, 1) if quick else (1500, 3)
    with tempfile.TemporaryDirectory() as scratch:
        few, folder = (drawn(Path(scratch) / f"drawn-{number}", number) for number in (4, count))
        seconds: dict[int, list[float]] = {1: [], 2: []}
        for number in range(rounds):
            for workers, found in seconds.items():
                out = Path(scratch) / f"{workers}-{number}"
                found.append(sharding(folder, out, workers) - sharding(few, Path(f"{out}-few"), workers))
        if digest(Path(scratch) / "1-0") != digest(Path(scratch) / "2-0"):
            raise ValueError("the shards of one worker and of two differ")
    one, two = (median(found) / count for found in seconds.values())
    each = [a / b for a, b in zip(*seconds.values())]
    yield Result("sharding by two workers", "by one", one, two, rounds=each, difference=0.0, tolerance=0.0)


def sharding(folder: Path, out: Path, workers: int) -> float:
    """Seconds that the command takes."""
    command = [sys.executable, ROOT / "shards" / "make_shards.py", "folder", "--root", folder, "--out", out]
    began = time.monotonic()
    subprocess.run([str(word) for word in (*command, "--workers", workers)], check=True, capture_output=True)
    return time.monotonic() - began


def digest(directory: Path) -> str:
    """Of all files of a set."""
    whole = hashlib.sha256()
    for path in sorted(directory.iterdir()):
        whole.update(path.read_bytes())
    return whole.hexdigest()


if __name__ == "__main__":
    command(__doc__, pairs)
