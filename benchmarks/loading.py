"""How fast the loader is, and what waiting for it costs: `python benchmarks/loading.py`.

First a step that takes no time: batches of 8 crops of 224 pixels from drawn photographs of 448 x 448, with distance
maps, by 0, 1 and 2 workers. Then the CPU recipes as they are: the share of a step that is spent waiting for data.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from itertools import islice
from pathlib import Path

import cv2
from decode import ROOT, drawn, sharded

from cssr.config import DataConfig
from cssr.data import train_stream

RECIPES = ("tiny", "uav315_cpu", "uav315_csbsr_cpu")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batches", type=int, default=150, help="of the step that takes no time (150)")
    parser.add_argument("--steps", type=int, default=30, help="of each recipe (30)")
    options = parser.parse_args()
    cv2.setNumThreads(0)
    with tempfile.TemporaryDirectory() as scratch:
        shards = Path(scratch) / "shards"
        sharded(drawn(Path(scratch) / "drawn", 200), shards)
        for workers in (0, 1, 2):
            print(f"no step, {workers} workers  {limit(shards, workers, options.batches):6.0f} images/s")
        for recipe in RECIPES:
            wait, seconds = waiting(recipe, shards, Path(scratch) / recipe, options.steps)
            print(f"{recipe:<18} {100 * wait / seconds:5.2f} % of a step of {seconds:.3f} s is waiting for data")


def limit(shards: Path, workers: int, batches: int) -> float:
    """Images a second that the loader gives to nobody; the first ten batches fill the pipes."""
    data = DataConfig(train=str(shards), workers=workers, crop=224)
    with closing(train_stream(data, 0, 0, 8)) as stream:
        list(islice(stream, 10))
        began = time.monotonic()
        list(islice(stream, batches))
        return 8 * batches / (time.monotonic() - began)


def waiting(recipe: str, shards: Path, run_dir: Path, steps: int) -> tuple[float, float]:
    """Mean seconds of wait and of a step, from what the run itself logs; the first tenth is start-up."""
    settings = [f"data.train={shards}", f"train.run_dir={run_dir}", f"train.steps={steps}", "train.val_every=0"]
    more = ["train.log_every=1", "train.tensorboard=false", "train.save_every=100000"]
    command = [sys.executable, ROOT / "cssr" / "train.py", ROOT / "configs" / f"{recipe}.yaml", *settings, *more]
    subprocess.run([str(word) for word in command], check=True, capture_output=True)
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    steady = lines[max(1, steps // 10) :]
    batch = lines[0]["samples"]
    return (
        sum(line["data_wait"] for line in steady) / len(steady),
        sum(batch / line["images_per_s"] for line in steady) / len(steady),
    )


if __name__ == "__main__":
    main()
