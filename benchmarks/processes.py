"""Two processes against one, as `scaling.py` measures them: `python benchmarks/processes.py`.

Seconds of a small CSBSR's step for each image. On a machine with a GPU, one process alone has nothing to compare with.
"""

import tempfile
from collections.abc import Iterable
from pathlib import Path

import scaling
from pairs import Result, command


def pairs(quick: bool) -> Iterable[Result]:
    """DDP on the CPU."""
    words = ["--rounds", "1", "--steps", "6", "--crop", "32"] if quick else []
    options = scaling.parser().parse_args(words)
    with tempfile.TemporaryDirectory() as scratch:
        workplace = scaling.Workplace(Path(scratch), options)
        if workplace.on_device:
            return
        one, *others = scaling.time_steps(workplace, options)
        for row in others:
            seconds = [1 / found["images_per_s"] for found in (one, row)]
            yield Result(f"step, {row['case']}", "one process", *seconds, rounds=row["ratio_of_rounds"])


if __name__ == "__main__":
    command(__doc__, pairs)
