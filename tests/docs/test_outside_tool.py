"""docs/outside_tool.py with a network that takes what is dark for crack."""

import importlib.util
import json

import numpy as np
import pytest
from helpers import draw_shards
from paths import ROOT

from cssr.dataset_preparation.make_benchmark import main as make_benchmark


class Dark:
    """As the Keras network of the tool: B 256 256 3, 0..1, to B 256 256 1."""

    def predict(self, images: np.ndarray, verbose: int) -> np.ndarray:
        assert images.shape == (1, 256, 256, 3)
        return 1 - images.mean(-1, keepdims=True)


@pytest.mark.parametrize("more", [[], ["--full"]], ids=["LQ enlarged", "HR"])
def test_results_are_those_of_our_evaluator(tmp_path, monkeypatch, more):
    shards, frozen = draw_shards(tmp_path / "shards", 3, 64), tmp_path / "frozen"
    recipe = ROOT / "configs/benchmarks/bicubic.yaml"
    words = ["--data", shards, "--degradation", recipe, "--out", frozen, "--workers", "1"]
    assert make_benchmark([str(word) for word in words]) == 0
    spec = importlib.util.spec_from_file_location("outside_tool", ROOT / "docs/outside_tool.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    monkeypatch.setattr(script, "load_network", Dark)
    script.main([str(frozen), "--out", str(tmp_path / "out"), *more])
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert results["images"] == 3 and results["name"] == "crackpot 2.0"
    assert 0 < results["metrics"]["image"]["iou_max"] <= 1
    assert (results["metrics"]["image"]["psnr"] is None) == bool(more)
