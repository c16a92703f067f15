"""A segmentation loss that meets with an accident: `imports=[faulty_loss]`, `loss.seg={name: faulty, kind: nan, ...}`.

The accident happens on one rank, at one place of the run, and only while the file `once` is not there: a run that is
taken up again comes past the place as if nothing had happened.
"""

import os
import signal
import time
from pathlib import Path

from cssr import snapshot
from cssr.losses import LOSSES


@LOSSES.register
def faulty(kind: str, samples: list[int], rank: int = 0, once: str | None = None):
    """`kind`: nan, hang, memory, kill, stop or kill_in_write, at each of `samples` seen, on `rank`; combo elsewhere."""
    combo = LOSSES.build({"name": "combo"})

    def loss(outputs, batch, progress):
        value = combo(outputs, batch, progress)
        here = progress.samples in samples and int(os.environ.get("RANK", "0")) == rank
        if here and not (once and Path(once).exists()):
            if once:
                Path(once).touch()
            value = value + accident(kind)
        return value

    return loss


def accident(kind: str) -> float:
    if kind == "hang":
        time.sleep(3600)
    if kind == "none":
        return 0.0
    if kind == "kill_in_write":
        snapshot.save_file = write_half
        return 0.0
    if kind == "memory":
        raise MemoryError("played")
    if kind == "kill":
        time.sleep(3)  # for checkpoints to be written
    if kind in ("kill", "stop"):
        os.kill(os.getpid(), signal.SIGKILL if kind == "kill" else signal.SIGSTOP)
    return float("nan")


def write_half(tensors, path) -> None:
    Path(path).write_bytes(bytes(1000))
    os.kill(os.getpid(), signal.SIGKILL)
