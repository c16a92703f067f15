"""A part of the user's own, as the README shows it: one file outside the repository and one line in a recipe."""

import json
import re
import subprocess
import sys
from pathlib import Path

from conftest import draw_shards

from cssr.train import main

ROOT = Path(__file__).parents[1]


def blocks() -> list[str]:
    """The code under the README's heading "Your own parts"."""
    text = (ROOT / "README.md").read_text(encoding="utf-8").split("## Your own parts")[1].split("\n## ")[0]
    return re.findall(r"```\w*\n(.*?)```", text, re.DOTALL)


def test_the_readmes_own_network_trains_and_comes_back(tmp_path, monkeypatch):
    module, recipe = blocks()[:2]
    assert len([line for line in module.splitlines() if line]) <= 10
    (tmp_path / "my_lab").mkdir()
    (tmp_path / "my_lab" / "nets.py").write_text(module)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "my.yaml").write_text(recipe)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*sys.path])
    shards = draw_shards(tmp_path / "set", 40, 64)
    small = ["data.crop=32", "data.workers=0", "train.batch_size=4", "train.steps=2", "train.tensorboard=false"]
    main(["my.yaml", f"data.train={shards}", "train.run_dir=run", *small])
    exported = json.loads((tmp_path / "run/export/config.json").read_text())
    assert exported["model"]["sr"]["name"] == "shuffle" and exported["imports"] == ["my_lab.nets"]
    again = "from cssr import JointModel; print(type(JointModel.from_pretrained('run/export').sr).__name__)"
    found = subprocess.run([sys.executable, "-c", again], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert found.stdout.strip() == "Shuffle"
