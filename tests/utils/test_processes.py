"""Processes that tests start: none is left behind, and each answers SIGINT whatever started the tests."""

import os
import signal
import subprocess
import sys
import time

import psutil
from paths import SUPPORT

SLEEPS = "import time; time.sleep(600)"
DETACHED = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {SLEEPS!r}], start_new_session=True)"
# What a nested run of pytest does: a test that fails while its child, and an orphan in a session of its own, still run.
FAILS = f"""
import os, subprocess, sys, time
from pathlib import Path

def test_fails():
    child = subprocess.Popen([sys.executable, "-c", {SLEEPS!r}])
    subprocess.run([sys.executable, "-c", {DETACHED!r}], check=True)
    Path({{pids!r}}).write_text(str(child.pid))
    assert False
"""


def test_a_failed_test_leaves_no_process(tmp_path):
    pids = tmp_path / "pids"
    (tmp_path / "test_inner.py").write_text(FAILS.format(pids=str(pids)))
    support = str(SUPPORT)
    imports = f"import sys; sys.path.insert(0, {support!r})\nfrom ending import no_process_left_behind\n"
    (tmp_path / "conftest.py").write_text(imports)
    marker = f"left-behind-{os.getpid()}-{time.time_ns()}"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", os.devnull, str(tmp_path)]
    environment = {**os.environ, "CSSR_TEST_MARKER": marker}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert "1 failed" in done.stdout and pids.read_text().isdigit(), done.stdout
    assert not [process for process in psutil.process_iter() if _carries(process, marker)]


def _carries(process: psutil.Process, marker: str) -> bool:
    try:
        return process.environ().get("CSSR_TEST_MARKER") == marker and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def test_a_child_answers_sigint_by_default():
    """Also where the tests themselves were started with SIGINT ignored, as by `nohup make test &`."""
    child = subprocess.Popen([sys.executable, "-c", SLEEPS])
    time.sleep(0.5)
    child.send_signal(signal.SIGINT)
    assert child.wait(30) != 0
