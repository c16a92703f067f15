"""Files of earlier versions are read as before: a run, its export, its results, shards and a benchmark.

`written_before/` was written by version 0.1.0: two steps on four drawn photographs of 32 pixels.
"""

import json
import shutil
import zlib
from pathlib import Path

import pytest
import torch
from running import losses

from cssr import load_model
from cssr.data.dataset import read_sample
from cssr.data.shards import ShardSet
from cssr.dataset_preparation import make as make_shards
from cssr.evaluate import main as evaluate
from cssr.evaluation.results import load
from cssr.train import main as train

FOLDER = Path(__file__).parent / "written_before"


@pytest.fixture
def there(tmp_path, monkeypatch) -> Path:
    """A copy to write to, as the working directory: settings and results name the shards relative to it."""
    shutil.copytree(FOLDER, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    return tmp_path / "copy"


@pytest.mark.parametrize("which", ["export", "best", "last", "2"])
def test_a_model_gives_the_values_that_it_gave(which):
    with torch.no_grad():
        outputs = load_model(FOLDER / "run", which)(torch.linspace(0, 1, 3 * 16 * 16).view(1, 3, 16, 16))
    means = outputs.sr.double().mean().item(), outputs.logits.double().mean().item()
    assert means == pytest.approx((0.07296338, 0.60107951), abs=1e-6)


def test_a_run_is_resumed(there):
    train(["run/config.yaml", "train.steps=3"])
    assert losses(there / "run") == {3: pytest.approx((0.48645681, 0.41458812, 0.65415037), abs=1e-5)}


def test_results_are_reported_and_found_again(there):
    before = load(["evaluation"])[0].data
    evaluate(["run", "--data", "shards", "--checkpoint", "last", "--out", "again"])
    after = json.loads(Path("again/results.json").read_text())
    assert after["checkpoint_sha256"] == before["checkpoint_sha256"]
    assert after["data_sha256"] == before["data_sha256"]
    assert after["metrics"]["image"]["psnr"] == pytest.approx(before["metrics"]["image"]["psnr"], abs=1e-4)
    assert after["metrics"]["image"]["aiu"] == pytest.approx(before["metrics"]["image"]["aiu"], abs=1e-4)


@pytest.mark.parametrize("name, lq, kernel", [("shards", False, False), ("benchmark", True, True)])
def test_shards_hold_what_they_held(name, lq, kernel):
    assert make_shards.main(["--check", str(FOLDER / name), "--decode"]) == 0
    shards = ShardSet.open(FOLDER / name, "data.train")
    places = [(shard, number) for shard, count in enumerate(shards.counts) for number in range(count)]
    samples = [read_sample(shards, *place) for place in places]
    assert [sample.key for sample in samples] == [f"synthetic_{number:06d}" for number in range(4)]
    found = [zlib.crc32(sample.image.tobytes() + sample.mask.tobytes()) for sample in samples]
    assert found == [117324761, 3672486413, 3422848642, 241165322]
    assert all((sample.lq is not None) is lq and (sample.kernel is not None) is kernel for sample in samples)
