"""Processes are held against the cores and the memory of the machine, before any is started."""

import argparse
import subprocess
import sys

import numpy as np
import pytest
from running import environment

from cssr.evaluation.run import check_options
from cssr.utils import machine
from cssr.utils.machine import check_processes


@pytest.fixture(autouse=True)
def two_cores(monkeypatch):
    """Two cores and 24 GiB."""
    monkeypatch.setattr(machine, "cores", lambda: 2)
    monkeypatch.setattr(machine, "memory", lambda: 24 << 30)


@pytest.mark.parametrize("count, gib", [(17, 0.3), (500, 0.1), (13, 2)])
def test_more_processes_than_the_machine_can_bear(count, gib):
    with pytest.raises(ValueError, match=f"--workers: {count} processes are more .*2 cores, 24 GiB.*give at most"):
        check_processes(count, "--workers", gib)


def test_what_may_be_meant_is_allowed():
    check_processes(16, "--workers", 0.3)
    check_processes(2, "--workers", 100)  # as many as there are cores, always
    with pytest.raises(ValueError, match="--workers is 0; give at least 1"):
        check_processes(0, "--workers", 0.3, least=1)


def test_containers_have_their_own_memory(monkeypatch, tmp_path):
    monkeypatch.undo()
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(machine, "_MEMORY_LIMIT", limit)
    whole = machine.memory()
    for text, expected in (("max", whole), ("1048576", 1 << 20)):
        limit.write_text(f"{text}\n")
        assert machine.memory() == expected


def test_evaluation_checks_its_workers(monkeypatch):
    options = argparse.Namespace(batch_size=1, limit=None, workers=500, seed=0, tile=0)
    with pytest.raises(ValueError, match="--workers 500: 500 processes"):
        check_options(options)


def test_launchers_check_processes_times_jobs(monkeypatch):
    devices = pytest.importorskip("devices")
    monkeypatch.setattr(devices, "devices", lambda: [])
    for processes, jobs in ((100, None), (1, 100), (10, 10)):
        with pytest.raises(ValueError, match="--processes .* x --jobs .*: 100 processes are more"):
            devices.make_launcher(processes, jobs, None)


def test_the_peak_of_a_process_is_not_that_of_the_one_that_started_it():
    held = np.ones(2**26)  # 512 MiB
    code = "from cssr.utils.machine import peak_memory; x = bytearray(2**26); print(peak_memory())"
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True)
    assert 2**26 < int(done.stdout) < 2**29 and held.all()


FAULTS = """
import resource, sys
import numpy as np
from cssr.utils.machine import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
np.ones(10_000_000)
before = faults()
for _ in range(5):
    np.ones(10_000_000)
print(faults() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="of glibc")
def test_large_arrays_take_memory_that_was_freed_before():
    """Without it the kernel makes pages for each array of 76 MiB anew: 20,000 of 4 KiB, or some of 2 MiB."""
    output = [
        subprocess.run(
            [sys.executable, "-c", FAULTS, how], env=environment(), capture_output=True, text=True, check=True
        )
        for how in ("give back", "keep")
    ]
    anew, kept = (int(done.stdout) for done in output)
    assert anew > 5 * 30 and kept < anew / 10
