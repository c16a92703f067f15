"""Models that come with the package: found by name, in half precision, with their cards; prediction without a model."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import SMALL_MODEL
from PIL import Image
from safetensors.torch import load_file

from cssr import hub, predict
from cssr.config.schema import ModelConfig
from cssr.inference.predictor import predict as predict_photograph
from cssr.models import shipped
from cssr.models.joint import JointModel, build_model
from cssr.models.load import load_model
from cssr.models.training_range import outside, training_range


@pytest.fixture(scope="module")
def export(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    directory = tmp_path_factory.mktemp("model") / "export"
    trained_on = {"brightness": [0.4, 0.6], "contrast": [0.0, 0.5], "blur": None, "smallest": 16}
    build_model(ModelConfig(**SMALL_MODEL)).save_pretrained(directory, trained_on=trained_on)
    return directory


@pytest.fixture
def packed(export, tmp_path, monkeypatch) -> Path:
    """The package's folder of models, with one that was packed as `small-x4`."""
    monkeypatch.setattr(shipped, "DIRECTORY", tmp_path / "pretrained")
    (tmp_path / "notes.md").write_text("## Data\n\nDrawn.\n")
    arguments = ["--license", "apache-2.0", "--out", str(tmp_path / "pretrained" / "small-x4")]
    hub.main(["pack", str(export), "small-x4", *arguments, "--notes", str(tmp_path / "notes.md")])
    monkeypatch.chdir(tmp_path)
    return tmp_path / "pretrained" / "small-x4"


def photograph(path: Path, level: int = 128, side: int = 32) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(0).integers(max(level - 20, 0), min(level + 20, 256), (side, side, 3))
    Image.fromarray(values.astype(np.uint8)).save(path)
    return path


# ---- the files ----


def test_a_packed_model_takes_half_the_bytes_and_gives_nearly_the_same(export, packed):
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (packed, export)]
    assert sizes[0] < 0.75 * sizes[1]
    tensors = load_file(packed / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values() if tensor.dim() > 1} == {torch.float16}
    assert {t.dtype for t in tensors.values() if t.dim() == 1 and t.is_floating_point()} == {torch.float32}
    ours, whole = JointModel.from_pretrained(packed), JointModel.from_pretrained(export)
    assert {p.dtype for p in ours.parameters()} == {torch.float32}
    lq = torch.rand(1, 3, 24, 24)
    with torch.no_grad():
        assert (ours(lq).sr - whole(lq).sr).abs().max() < 5e-3


def test_the_card_says_how_it_is_loaded_and_what_it_was_trained_on(packed):
    card = (packed / "README.md").read_text()
    assert 'from_pretrained("small-x4")' in card and "download" not in card and card.endswith("Drawn.\n")


def test_notes_that_are_not_there_are_named(export, tmp_path):
    with pytest.raises(SystemExit, match="--notes: .*missing.md cannot be read"):
        arguments = ["--license", "apache-2.0", "--out", str(tmp_path), "--notes", str(tmp_path / "missing.md")]
        hub.main(["pack", str(export), "small-x4", *arguments])


@pytest.mark.parametrize("load", [JointModel.from_pretrained, load_model])
def test_it_is_found_by_its_name_offline(packed, load):
    assert isinstance(load("small-x4"), JointModel)
    assert shipped.shipped_models() == ["small-x4"]


def test_a_folder_of_that_name_goes_first(export, packed, tmp_path):
    build_model(ModelConfig(**{**SMALL_MODEL, "sr": {"name": "bicubic"}})).save_pretrained(tmp_path / "small-x4")
    assert JointModel.from_pretrained("small-x4").config.sr["name"] == "bicubic"


def test_an_unknown_name_is_answered_with_those_there_are(packed):
    with pytest.raises(ValueError, match="no run or export at small-x5; models of the package: small-x4"):
        load_model("small-x5")


@pytest.mark.parametrize("name", shipped.shipped_models())
def test_models_of_the_package_are_small_and_licensed(name):
    directory = shipped.shipped_directory(name)
    card = (directory / "README.md").read_text()
    assert (directory / "model.safetensors").stat().st_size <= 12e6
    assert "license: apache-2.0" in card and "MIT" in card and "CC0" in card
    assert JointModel.from_pretrained(name).scale == int(name[-1])


def test_its_encoder_can_be_started_from(export, packed):
    seg = {**SMALL_MODEL["seg"], "pretrained": "small-x4"}
    fresh = build_model(ModelConfig(**{**SMALL_MODEL, "seg": seg}), fresh=True)
    whole = JointModel.from_pretrained("small-x4")
    for (name, ours), theirs in zip(fresh.seg.encoder.state_dict().items(), whole.seg.encoder.state_dict().values()):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0, msg=name)
    seg["encoder_args"] = {"channels": [8, 8, 16, 24]}
    with pytest.raises(ValueError, match="pretrained=small-x4 does not fit the encoder resnet10t"):
        build_model(ModelConfig(**{**SMALL_MODEL, "seg": seg}), fresh=True)


# ---- prediction ----


def test_photographs_alone_are_predicted_by_the_packages_model(packed, tmp_path):
    photograph(tmp_path / "photographs" / "wall.png")
    predict.main([str(tmp_path / "photographs"), "--out", str(tmp_path / "out"), "--write", "mask"])
    assert Image.open(tmp_path / "out" / "wall_mask.png").size == (64, 64)


@pytest.mark.parametrize("way", ["first", "option"])
def test_a_model_is_named_first_or_by_its_option(export, packed, tmp_path, way):
    source = str(photograph(tmp_path / "wall.png"))
    model = [str(export), source] if way == "first" else [source, "--model", str(export)]
    predict.main([*model, "--out", str(tmp_path / "out"), "--write", "mask"])
    assert (tmp_path / "out" / "wall_mask.png").is_file()


def test_a_model_without_photographs_is_reported(export, tmp_path):
    with pytest.raises(SystemExit, match="is a model, and no photographs are given"):
        predict.main([str(export), "--out", str(tmp_path / "out")])


def test_an_installation_without_models_asks_for_one(monkeypatch, tmp_path):
    monkeypatch.setattr(shipped, "DIRECTORY", tmp_path / "nothing")
    with pytest.raises(SystemExit, match="no run or export at small-x4"):
        predict.main([str(photograph(tmp_path / "wall.png")), "--out", str(tmp_path / "out")])


def test_a_photograph_unlike_the_training_data_gets_a_word(packed, tmp_path, capsys):
    usual, dark = photograph(tmp_path / "usual.png"), photograph(tmp_path / "dark.png", level=10)
    small = photograph(tmp_path / "small.png", side=12)
    predict.main([*map(str, (usual, dark, small)), "--out", str(tmp_path / "out"), "--write", "mask"])
    output = [line for line in "".join(capsys.readouterr()).splitlines() if "unlike what" in line]
    assert len(output) == 2 and "brightness 0.0" in output[0] and "12 x 12 pixels" in output[1]
    record = json.loads((tmp_path / "out" / "dark_prediction.json").read_text())
    assert record["found"]["warnings"][0].startswith("brightness")
    assert predict_photograph(JointModel.from_pretrained("small-x4"), dark).warnings


# ---- the range ----


def test_the_range_holds_the_training_images():
    draws = np.random.default_rng(0)
    images = [np.full((8, 8, 3), level, np.uint8) for level in draws.integers(50, 200, 300)]
    found = training_range(images, {"name": "gaussian", "sigma": [0.2, 4]}, 32)
    assert found["brightness"] == pytest.approx([50 / 255, 200 / 255], abs=0.02) and found["contrast"] == [0, 0]
    assert found["blur"] == [0.2, 4.0] and found["smallest"] == 32


@pytest.mark.parametrize(
    "values, words",
    [
        ((0.5, 0.2, (64, 64), 2.0), []),
        ((0.1, 0.2, (64, 64), 2.0), ["brightness 0.10"]),
        ((0.5, 0.5, (64, 64), None), ["contrast 0.50"]),
        ((0.5, 0.2, (64, 64), 3.9), ["blur 3.90"]),
        ((0.9, 0.2, (64, 16), 2.0), ["brightness 0.90", "only 16 x 64 pixels"]),
    ],
)
def test_what_is_outside_is_named(values, words):
    trained_on = {"brightness": [0.3, 0.7], "contrast": [0.1, 0.3], "blur": [0.2, 4.0], "smallest": 32}
    found = outside(trained_on, *values)
    assert [note.startswith(word) for note, word in zip(found, words, strict=True)] == [True] * len(words)
    assert outside({}, *values) == []
