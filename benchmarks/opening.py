"""Opening a large set, and going on far into a run: `python benchmarks/opening.py [--shards 10000] [--samples 500]`.

Makes an index of so many shards, all one tar under many names, in a temporary directory, and measures in processes of
their own: seconds to open the set, seconds from a resumed place to the first batch, and what memory each takes.
"""

import argparse
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

OPENING = """
import resource, sys, time
from cssr.data.shards import ShardSet
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
began, cpu = time.monotonic(), time.process_time()
shards = ShardSet.open(sys.argv[1], "SHARDS")
took, cpu = time.monotonic() - began, time.process_time() - cpu
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(f"opening: {took:.2f} s ({cpu:.2f} s of CPU), {(after - before) / 1024:.0f} MiB more, {after / 1024:.0f} in all; "
      f"{len(shards)} samples in {len(shards.names)} shards")
"""
RESUMING = """
import resource, sys, time
from cssr.config.schema import DataConfig
from cssr.data.checks import open_train_sets
from cssr.data.loader import train_stream
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
data = DataConfig(train=sys.argv[1], crop=16, workers=0, shuffle_window=int(sys.argv[3]))
began, cpu = time.monotonic(), time.process_time()
stream = train_stream(open_train_sets(data), data, 0, int(sys.argv[2]), 8)
next(stream)
took, cpu, marks = time.monotonic() - began, time.process_time() - cpu, [time.process_time()]
for _ in range(100):
    next(stream)
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(f"first batch at sample {sys.argv[2]}, window {sys.argv[3]}: {took:.2f} s ({cpu:.2f} s of CPU), "
      f"{(after - before) / 1024:.0f} MiB more; then {800 / (time.process_time() - marks[0]):.0f} samples/s of CPU")
"""


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shards", type=int, default=10_000, help="how many (10000)")
    parser.add_argument("--samples", type=int, default=500, help="in each (500)")
    parser.add_argument("--place", type=int, default=5_000_000, help="sample to go on from (5000000)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        make(Path(root), options.shards, options.samples)
        run(OPENING, root)
        for window in (16_384, 2 * options.shards * options.samples):
            run(RESUMING, root, options.place, window)


def make(root: Path, shards: int, samples: int) -> None:
    """A set of tiny pictures; every shard is a link to the first one."""
    first = root / "shard-000000.tar"
    with tarfile.open(first, "w") as tar:
        for n in range(samples):
            add(tar, f"{n:06d}.png", Image.new("RGB", (16, 16), (n % 256, 0, 0)))
            add(tar, f"{n:06d}.mask.png", Image.fromarray(np.eye(16) > 0))
    names = [f"shard-{n:06d}.tar" for n in range(shards)]
    for name in names[1:]:
        os.link(first, root / name)
    facts = {"samples": samples, "bytes": first.stat().st_size, "sha256": "0" * 64}
    index = {"format": "cssr-shards-1", "masks": True, "image_sizes": {"16x16": shards * samples}}
    (root / "index.json").write_text(json.dumps({**index, "shards": [{"name": name, **facts} for name in names]}))


def add(tar: tarfile.TarFile, name: str, picture: Image.Image) -> None:
    """One PNG file."""
    buffer, member = io.BytesIO(), tarfile.TarInfo(name)
    picture.save(buffer, "PNG")
    member.size = buffer.tell()
    buffer.seek(0)
    tar.addfile(member, buffer)


def run(code: str, *arguments: object) -> None:
    """In a process of its own."""
    subprocess.run([sys.executable, "-c", code, *map(str, arguments)], check=True)


if __name__ == "__main__":
    main()
