"""CSBSR's phases under every engine: the same losses, and what a phase holds still does not move by a bit."""

import importlib.util
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from paths import SUPPORT

WORKER = SUPPORT / "phases_worker.py"
MOVED = [["sr"]] * 2 + [["kernel"]] * 2 + [["kernel", "sr"]] * 2 + [["encoder", "kernel", "seg", "sr"]] * 2


def run(out: Path, processes: int, *stage: str) -> dict:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={processes}", f"--master_port={port}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, str(WORKER), str(out), *stage], capture_output=True, text=True, timeout=400, env=environment
    )
    assert out.is_file(), done.stderr[-2000:]  # DeepSpeed may abort on its way out, after all is written
    assert "built successfully" not in done.stdout  # nothing that only DeepSpeed's inference uses is compiled
    return json.loads(out.read_text())


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    return run(tmp_path_factory.mktemp("single") / "single.json", 1)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [None, 3], ids=["ddp", "zero3"])
def test_phases_under_every_engine(stage, single, tmp_path):
    if stage is not None and importlib.util.find_spec("deepspeed") is None:
        pytest.skip("needs deepspeed: pip install 'cssr[deepspeed]'")
    found = run(tmp_path / "found.json", 2, *([] if stage is None else [str(stage)]))
    assert found["moved"] == single["moved"] == MOVED
    assert found["losses"] == pytest.approx(single["losses"], rel=1e-5)
