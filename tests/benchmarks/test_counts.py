"""No more operations than before: counts, which do not vary from run to run, against stored ones.

`python benchmarks/counts.py --write` stores those of today, where a change is meant.
"""

import json
import subprocess
import sys

import pytest
from paths import ROOT

# Other versions of PyTorch make other operations of the same program (a fused one of two, another decomposition).
SAME_VERSION, OTHER_VERSION = 0.0, 0.1
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def stored():
    return json.loads((ROOT / "tests" / "benchmarks" / "counts.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def found():
    """Counted in a process of its own, in which no test has set anything."""
    command = [sys.executable, str(ROOT / "benchmarks" / "counts.py")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_forward_pass_is_as_much_arithmetic_as_before(stored, found):
    assert found["macs"] == stored["macs"]


def test_a_step_keeps_as_many_bytes_for_the_backward_pass_as_before(stored, found):
    assert found["step"]["bytes_kept"] == stored["step"]["bytes_kept"]


def test_a_step_launches_as_many_operations_as_before(stored, found):
    allowed = SAME_VERSION if found["torch"] == stored["torch"] else OTHER_VERSION
    assert found["step"]["launches"] == pytest.approx(stored["step"]["launches"], rel=allowed, abs=0)
