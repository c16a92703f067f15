"""A segmentation loss that meets with an accident: `imports=[faulty_loss]`, `loss.seg={name: faulty, kind: nan, ...}`.

The accident happens on one rank, at one place of the run, and only while the file `once` is not there: a run that is
taken up again comes past the place as if nothing had happened.
"""

import os
import signal
import time
from collections import Counter
from pathlib import Path

from cssr.losses import LOSSES
from cssr.training import checkpoint


@LOSSES.register
def faulty(kind: str, samples: list[int], rank: int = 0, once: str | None = None):
    """Combo; at each of `samples` seen, on `rank`, `kind`: nan, hang, nap, memory, kill, stop, kill_in_write, none,
    or nan_second: in the second micro-batch."""
    combo, calls = LOSSES.build({"name": "combo"}), Counter()

    def loss(outputs, batch, progress):
        value = combo(outputs, batch, progress)
        calls[progress.samples] += 1
        here = progress.samples in samples and int(os.environ.get("RANK", "0")) == rank
        here = here and calls[progress.samples] == (2 if kind == "nan_second" else 1)
        if here and not (once and Path(once).exists()):
            if once:
                Path(once).touch()
            value = value + accident(kind)
        return value

    return loss


def accident(kind: str) -> float:
    if kind in ("hang", "nap"):
        time.sleep(3600 if kind == "hang" else 5)
    if kind in ("none", "nap"):
        return 0.0
    if kind == "kill_in_write":
        checkpoint.save_file = write_half
        return 0.0
    if kind == "memory":
        raise MemoryError("played")
    if kind in ("kill", "kill_in_write"):
        time.sleep(3)  # for checkpoints to be written
    if kind in ("kill", "stop"):
        os.kill(os.getpid(), signal.SIGKILL if kind == "kill" else signal.SIGSTOP)
    return float("nan")


def write_half(tensors, path) -> None:
    Path(path).write_bytes(bytes(1000))
    os.kill(os.getpid(), signal.SIGKILL)
