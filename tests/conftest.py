"""What the tests share: where golden vectors and real photographs are, and the rule that fills reference weights."""

import json
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from ending import no_process_left_behind as no_process_left_behind

from cssr.dataset_preparation.sources import SOURCES
from cssr.degradations import DEGRADATIONS
from cssr.degradations.blurs import BLURS
from cssr.losses import LOSSES
from cssr.models.seg import SEG
from cssr.models.sr import SR

SHARED = Path(__file__).parents[2] / "shared"

torch.set_num_threads(1)


def need(path: Path) -> Path:
    """`path`, or the test is skipped with the reason."""
    if not path.exists():
        pytest.skip(f"needs {path.relative_to(SHARED.parent)}, which is not here")
    return path


@pytest.fixture
def golden():
    """The arrays of one golden file, by name."""
    return lambda name: dict(np.load(need(SHARED / "golden" / f"{name}.npz")))


@pytest.fixture
def reference_state():
    """A published model's state_dict, filled by the rule of the golden vectors' README."""
    return lambda name: filled_state(json.loads(need(SHARED / "golden" / "manifest.json").read_text()), name)


@pytest.fixture
def own_parts():
    """Whatever a test registers, and the modules of `my_lab` that do, are forgotten after it."""
    zoos = (SR, SEG, LOSSES, DEGRADATIONS, BLURS, SOURCES)
    before = [dict(zoo._factories) for zoo in zoos]
    yield
    for zoo, factories in zip(zoos, before):
        zoo._factories = factories
    for name in [name for name in sys.modules if name.split(".")[0] == "my_lab"]:
        del sys.modules[name]


def shipped(zoo) -> set[str]:
    """The names in a zoo that the package itself registers, whatever other tests have registered beside them."""
    return {name for name in zoo.names() if zoo.get(name).__module__.startswith("cssr.")}


def draw_shards(out: Path, count: int, size: int, *more: str) -> Path:
    """Shards of drawn photographs, written by the command."""
    script = Path(__file__).parents[1] / "shards" / "make_shards.py"
    command = [sys.executable, script, "synthetic", "--out", out, "--count", count, "--size", size, *more]
    subprocess.run([str(part) for part in command], check=True, capture_output=True)
    return out


def filled_state(manifest: dict, name: str) -> dict[str, torch.Tensor]:
    return {
        key: torch.from_numpy(_fill(key, shape, dtype, manifest["fill_seed"]))
        for key, (shape, dtype) in manifest["models"][name]["state_dict"].items()
    }


def _fill(key: str, shape: list[int], dtype: str, seed: int) -> np.ndarray:
    if not dtype.startswith("float"):
        return np.zeros(shape, dtype)
    draws = (
        np.random.RandomState((zlib.crc32(key.encode()) + seed) % 2**32)
        .standard_normal(int(np.prod(shape)))
        .reshape(shape)
    )
    if key.endswith("running_var"):
        value = 1 + 0.2 * np.abs(draws)
    elif key.endswith("running_mean"):
        value = 0.1 * draws
    elif len(shape) >= 2:
        value = draws * np.sqrt(2 / np.prod(shape[1:]))
    elif key.endswith("weight"):
        value = np.full(shape, 0.25) if draws.size == 1 else 0.6 + 0.05 * draws
    else:
        value = 0.05 * draws
    return value.astype(np.float32)
