"""Parts of the user's own, as README.md and docs/extending.md show them: files outside the repository, and a recipe."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import draw_shards
from paths import ROOT
from shard_helpers import draw, draw_mask, read

from cssr import JointModel
from cssr.dataset_preparation.audit.run import main as doctor
from cssr.dataset_preparation.make import main as make_shards
from cssr.models.sr import SR
from cssr.train import main

SMALL = ["data.crop=32", "data.workers=0", "train.batch_size=4", "train.steps=2", "train.tensorboard=false"]


def blocks(page: str, language: str = "python") -> list[str]:
    """The code of a page."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


@pytest.fixture
def lab(tmp_path, monkeypatch, own_parts):
    """A working directory with a folder `my_lab`, the repository's recipes, and shards."""
    (tmp_path / "my_lab").mkdir()
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    draw_shards(tmp_path / "set", 40, 64)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*sys.path])
    return tmp_path


def trained(recipe: str) -> dict:
    """The settings of the export that a short run of a recipe leaves."""
    main([recipe, "data.train=set", "train.run_dir=run", *SMALL])
    return json.loads(Path("run/export/config.json").read_text())


def test_the_readmes_own_network_trains_and_comes_back(lab):
    """From the export alone, which names the module: it is imported and registered anew."""
    module = next(block for block in blocks("README.md") if "@SR.register" in block)
    assert len([line for line in module.splitlines() if line]) <= 10
    (lab / "my_lab/nets.py").write_text(module)
    (lab / "my.yaml").write_text(next(block for block in blocks("README.md", "yaml") if "my_lab.nets" in block))
    exported = trained("my.yaml")
    assert exported["model"]["sr"]["name"] == "shuffle" and exported["imports"] == ["my_lab.nets"]
    del sys.modules["my_lab.nets"], SR._factories["shuffle"]
    assert type(JointModel.from_pretrained("run/export").sr).__name__ == "Shuffle"


def test_a_network_a_loss_and_a_degradation_of_ones_own_train_together(lab):
    parts = [block for block in blocks("docs/extending.md") if "SOURCES" not in block and "clahe" not in block]
    assert len(parts) == 3
    (lab / "my_lab/parts.py").write_text("\n".join(parts))
    (lab / "mine.yaml").write_text(*blocks("docs/extending.md", "yaml"))
    exported = trained("mine.yaml")
    assert exported["model"]["seg"] == {"name": "plain", "width": 8}
    assert exported["degradation"]["name"] == "box" and exported["degradation"]["side"] == [1, 5]
    assert "21x21 box, zero padding" in json.dumps(exported)


def test_a_stage_of_ones_own_trains(lab):
    (stage,) = [block for block in blocks("docs/extending.md") if "def clahe" in block]
    (lab / "my_lab/stages.py").write_text(stage)
    (lab / "mine.yaml").write_text("base: configs/tiny.yaml\ndata: {stages: [my_lab.stages.clahe]}\n")
    trained("mine.yaml")
    assert sys.modules["my_lab.stages"].clahe


def test_a_layout_of_ones_own_is_sharded(tmp_path, own_parts, capsys, monkeypatch):
    (source,) = [block for block in blocks("docs/extending.md") if "SOURCES" in block]
    (tmp_path / "my_lab").mkdir()
    (tmp_path / "my_lab/layouts.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*sys.path])
    for number in range(3):
        draw(tmp_path / f"root/p{number}.jpg", seed=number)
        draw_mask(tmp_path / f"root/p{number}_crack.png", levels=(100, 140))
    words = ["side_by_side", "--root", tmp_path / "root", "--level", "120", "--out", tmp_path / "out", "--workers", "1"]
    words = [words[0], "--imports", "my_lab.layouts", *words[1:]]
    assert make_shards([str(word) for word in words]) == 0
    assert [sample["__key__"] for sample in read(tmp_path / "out")] == ["p0", "p1", "p2"]
    assert json.loads((tmp_path / "out/index.json").read_text())["crack_share"] == 0.25
    assert doctor([*map(str, words[:5]), "--workers", "1"]) == 0
    assert make_shards([words[0], "--imports", "my_lab.layout", "--out", "x"]) == 2
    assert "--imports: my_lab.layout cannot be imported" in capsys.readouterr().err
    (tmp_path / "root/p1_crack.png").unlink()
    assert make_shards([str(word) for word in [*words[:-3], tmp_path / "other", *words[-2:]]]) == 2
    assert "p1.jpg has no mask p1_crack.png" in capsys.readouterr().err


def test_parts_are_imported_when_one_is_asked_for_and_no_name_is_taken_twice():
    code = """
import sys
from cssr.degradations.blurs import BLURS
from cssr.losses import LOSSES
from cssr.models.forms import FORMS
parts = {
    "cssr.losses.segmentation": (LOSSES, "dice"),
    "cssr.degradations.kernels": (BLURS, "motion"),
    "cssr.models.forms.dsrl": (FORMS, "dsrl"),
}
assert not parts.keys() & sys.modules.keys(), "imported too early"
for module, (registry, name) in parts.items():
    def taken(): ...
    taken.__name__ = name
    try:
        registry.register(taken)
    except AssertionError as error:
        assert "registered twice" in str(error)
    else:
        raise SystemExit("a user's part has taken the name of ours")
    assert module in sys.modules and registry.get(name).__module__.startswith("cssr.")
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
