"""Sharding by one worker and by two: `python benchmarks/sharding.py [FOLDER]`, FOLDER/images and FOLDER/masks.

Samples a second of `make_shards.py`, start-up left out as far as a run on four images shows it; in turns, medians.
Without a folder, photographs of 448 x 448 are drawn. The shards are compared byte for byte.
"""

import argparse
import hashlib
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from decode import ROOT, drawn


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, help="folder with images/ and masks/")
    parser.add_argument("--count", type=int, default=1500, help="drawn pairs (1500)")
    parser.add_argument("--repeat", type=int, default=3, help="rounds (3)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        few = drawn(Path(scratch) / "few", 4)
        folder = options.folder or drawn(Path(scratch) / "drawn", options.count)
        count = sum(1 for _ in (folder / "images").iterdir())
        seconds: dict[int, list[float]] = {1: [], 2: []}
        for number in range(options.repeat):
            for workers, found in seconds.items():
                out = Path(scratch) / f"{workers}-{number}"
                found.append(sharding(folder, out, workers) - sharding(few, Path(f"{out}-few"), workers))
        same = digest(Path(scratch) / "1-0") == digest(Path(scratch) / "2-0")
    one, two = (statistics.median(found) for found in seconds.values())
    print(f"one worker   {count / one:7.0f} samples/s   ({one:.1f} s for {count})")
    print(f"two workers  {count / two:7.0f} samples/s   {one / two:.2f} times; the shards are equal: {same}")


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
    main()
