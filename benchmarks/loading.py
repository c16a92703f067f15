"""How fast the loader is, and what waiting for it costs: `python benchmarks/loading.py`.

First a step that takes no time: batches of 8 crops of 224 pixels from drawn photographs of 448 x 448, with distance
maps, by 1 and 2 workers against loading in the training process. Then the CPU recipes as they are: the time of a step
against what of it is spent waiting for data.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from contextlib import closing
from itertools import islice
from pathlib import Path

from decode import drawn, sharded
from machine import ROOT
from pairs import Result, command

from cssr.config.schema import DataConfig
from cssr.data.checks import open_train_sets
from cssr.data.loader import train_stream

RECIPES = ("tiny", "uav315_cpu", "uav315_csbsr_cpu")


def pairs(quick: bool) -> Iterable[Result]:
    """By workers, then by recipes."""
    batches, steps, recipes = (20, 6, RECIPES[:1]) if quick else (150, 30, RECIPES)
    with tempfile.TemporaryDirectory() as scratch:
        shards = Path(scratch) / "shards"
        sharded(drawn(Path(scratch) / "drawn", 40 if quick else 200), shards)
        none, one, two = (1 / limit(shards, workers, batches) for workers in (0, 1, 2))
        for name, seconds in (("one worker", one), ("two workers", two)):
            yield Result(f"loader alone, {name}", "in the training process", none, seconds)
        for recipe in recipes:
            wait, seconds = waiting(recipe, shards, Path(scratch) / recipe, steps)
            yield Result(f"waiting for data, {recipe}", "the whole step", seconds, max(wait, 1e-6), item="step")


def limit(shards: Path, workers: int, batches: int) -> float:
    """Images a second that the loader gives to nobody; the first ten batches fill the pipes."""
    data = DataConfig(train=str(shards), workers=workers, crop=224)
    with closing(train_stream(open_train_sets(data), data, 0, 0, 8)) as stream:
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
    command(__doc__, pairs)
