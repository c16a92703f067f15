"""Training batches equal, to the bit, those of the first version that is compared here: `golden_batches.json`.

`PYTHONPATH=.:tests/support python tests/data/test_golden_batches.py` prints the file anew, where a change is meant.
"""

import hashlib
import itertools
import json
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hand_made import write_stored
from helpers import spoil, write_set

from cssr.config.schema import DataConfig
from cssr.data.batch import Batch
from cssr.data.checks import open_train_sets
from cssr.data.loader import Damage, train_stream

GOLDEN = Path(__file__).with_name("golden_batches.json")
GLOBAL, COUNT = 8, 12  # samples a global batch, batches
CASES: dict[str, dict[str, Any]] = {  # a set's name, or weights of several; what differs from DataConfig; seed
    "whole": {"train": "plain"},
    "whole, another seed": {"train": "plain", "seed": 11},
    "windows": {"train": "plain", "shuffle_window": 16},
    "windows, cracks": {"train": "plain", "shuffle_window": 8, "crack_share": 0.5, "seed": 4},
    "mixed": {"train": {"plain": 3, "small": 1}},
    "repeated": {"train": "small", "lanes": 16},
    "damaged": {"train": "damaged"},
    "stored": {"train": "stored", "scale": 2},
}

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than cores


def make_sets(root: Path) -> Path:
    write_set(root / "plain", 21)
    write_set(root / "small", 6, 3)
    write_set(root / "damaged", 24)
    for number in (1, 4, 8, 9):
        spoil(root / "damaged", f"damaged-{number:03d}")
    write_stored(root / "stored", 9)
    return root


@pytest.fixture(scope="module")
def sets(tmp_path_factory) -> Path:
    return make_sets(tmp_path_factory.mktemp("golden"))


def stream(root: Path, case: dict[str, Any], start: int, rank: int, world: int, workers: int) -> Iterator[Batch]:
    options = {"crop": 12, "lanes": 8, "vflip": 0.5, "max_damaged": 1.0, "workers": workers, **case}
    seed, scale, train = options.pop("seed", 3), options.pop("scale", None), options.pop("train")
    train = {str(root / n): w for n, w in train.items()} if isinstance(train, dict) else str(root / train)
    data = DataConfig(train=train, **options)
    how = {"damage": Damage(), "report": lambda _: None, "scale": scale}
    return train_stream(open_train_sets(data, scale), data, seed, start, GLOBAL // world, rank, world, **how)


def digests(root: Path, case: dict[str, Any], first: int = 0, count: int = COUNT, world: int = 1, workers: int = 0):
    """A digest of all that is in each global batch, from number `first` on."""
    ranks = []
    for rank in range(world):
        with closing(stream(root, case, first * GLOBAL, rank, world, workers)) as batches:
            ranks.append([part for batch in itertools.islice(batches, count) for part in map(digest, *fields(batch))])
    woven = [part for row in zip(*ranks, strict=True) for part in row]
    return [hashlib.sha256(b"".join(part)).hexdigest()[:16] for part in zip(*[iter(woven)] * GLOBAL)]


def fields(batch: Batch) -> list:
    tensors = [batch.hr, batch.mask, batch.distance, batch.seed, batch.lq, batch.kernel]
    return [batch.key, *([None] * len(batch) if tensor is None else tensor.numpy() for tensor in tensors)]


def digest(key: str, *arrays: Any) -> bytes:
    parts = [b"-" if array is None else f"{array.dtype}{array.shape}".encode() + array.tobytes() for array in arrays]
    return hashlib.sha256(b"".join([key.encode(), *parts])).digest()


def golden(case: str) -> list[str]:
    return json.loads(GOLDEN.read_text())[case].split()


@pytest.mark.parametrize("case", CASES)
def test_batches_are_those_of_before(sets, case):
    assert digests(sets, CASES[case]) == golden(case)


@pytest.mark.parametrize("world, workers, first", [(1, 1, 5), (1, 2, 0), (2, 0, 3), (2, 2, 1), (4, 0, 0), (4, 1, 7)])
@pytest.mark.parametrize("case", ["windows", "mixed", "damaged"])
def test_they_are_the_same_on_any_ranks_and_workers_from_any_place(sets, case, world, workers, first):
    assert digests(sets, CASES[case], first, 3, world, workers) == golden(case)[first : first + 3]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as directory:
        made = make_sets(Path(directory))
        print(json.dumps({name: " ".join(digests(made, case)) for name, case in CASES.items()}, indent=1))
