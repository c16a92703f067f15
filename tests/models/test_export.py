"""An export: its marks, and what is said of one that is newer, damaged, changed, or from somebody else."""

import hashlib
import json
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file

from cssr import __version__
from cssr.config.schema import ModelConfig
from cssr.models import export
from cssr.models import hub as from_hub
from cssr.models.joint import JointModel, build_model
from cssr.models.load import load_model
from cssr.utils import files
from cssr.utils.files import sha256_of

MODEL = {"scale": 2, "sr": {"name": "dbpn", "stages": 2, "width": 2, "features": 2}, "seg": {"name": "none"}}


@pytest.fixture
def written(tmp_path):
    """An export, and how to change settings in it."""
    build_model(ModelConfig(**MODEL)).save_pretrained(tmp_path / "export", step=3)

    def change(**settings):
        path = tmp_path / "export" / "config.json"
        kept = {k: v for k, v in (json.loads(path.read_text()) | settings).items() if v is not None}
        path.write_text(json.dumps(kept))
        return tmp_path / "export"

    return change


def refused(source, **options) -> str:
    with pytest.raises(ValueError) as caught:
        JointModel.from_pretrained(source, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def rewrite(directory, change) -> None:
    """Tampered weights, with the sha256 that they have now."""
    save_file(change(load_file(directory / export.WEIGHTS)), directory / export.WEIGHTS)
    path = directory / export.SETTINGS
    path.write_text(json.dumps(json.loads(path.read_text()) | {"sha256": sha256_of(directory / export.WEIGHTS)}))


def test_an_export_carries_its_format_version_and_digest(written):
    settings = json.loads((written() / "config.json").read_text())
    assert settings["format"] == export.FORMAT and settings["cssr_version"] == __version__ and settings["step"] == 3
    assert settings["sha256"] == hashlib.sha256((written() / "model.safetensors").read_bytes()).hexdigest()
    assert {path.name for path in written().iterdir()} == {"config.json", "model.safetensors"}


def test_an_export_from_before_the_marks_loads(written):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = JointModel.from_pretrained(written(format=None, cssr_version=None, sha256=None))
    weights = load_file(written() / "model.safetensors")
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


def test_a_newer_format_is_refused_with_both_versions_and_the_remedy(written):
    text = refused(written(format=export.FORMAT + 1, cssr_version="9.1.0"))
    assert all(part in text for part in ("9.1.0", f"cssr {__version__}", "pip install --upgrade"))


@pytest.mark.parametrize("version, newer", [("9.1.0", True), ("0.0.9", False), (__version__, False), ("soon", False)])
def test_a_newer_version_of_the_same_format_is_loaded_with_a_warning(version, newer, written):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        JointModel.from_pretrained(written(cssr_version=version))
    assert [version in str(w.message) for w in caught] == [True] * newer


def test_changed_weights_are_noticed(written):
    path = written() / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert "sha256 is not the one in config.json" in refused(written())


@pytest.mark.parametrize("size", [0, 4, 60, -1])
def test_truncated_weights_are_one_line(size, written):
    path = written() / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    assert "cannot be read as safetensors" in refused(written())


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda w: {k: v.long() for k, v in w.items()}, "mistyped .* int64 instead of float32"),
        (lambda w: {k: v[..., None] for k, v in w.items()}, "misshapen"),
        (lambda w: {k: v * torch.nan for k, v in w.items()}, "not finite"),
        (lambda w: dict(list(w.items())[1:]), "1 missing"),
    ],
)
def test_weights_that_do_not_belong_there_are_named(change, message, written):
    rewrite(written(), change)
    pytest.raises(ValueError, JointModel.from_pretrained, written()).match(message)


def test_weights_in_half_precision_are_taken(written):
    rewrite(written(), lambda w: {k: v.half() for k, v in w.items()})
    assert next(JointModel.from_pretrained(written()).parameters()).dtype == torch.float32


@pytest.mark.parametrize(
    "text",
    ["", "[1]", '{"model": 3}', "[" * 100_000, '{"model": {}, "format": 1e999}', "x" * (export._LARGEST_SETTINGS + 1)],
)
def test_damaged_settings_are_one_line(text, written):
    directory = written()
    (directory / "config.json").write_text(text)
    assert "holds no model settings" in refused(directory)


def test_a_setting_that_does_not_fit_is_named_with_its_file(written):
    directory = written()
    settings = json.loads((directory / "config.json").read_text())
    settings["model"]["mean"] = "x"
    (directory / "config.json").write_text(json.dumps(settings))
    assert "config.json: config: model.mean must be a list, got x" in refused(directory)


@pytest.mark.parametrize(
    ("name", "value", "found"),
    [
        ("trained_on", "x", "trained_on must be an object, got 'x'"),
        ("trained_on", {"brightness": [None, None]}, "trained_on.brightness must be a list, each a number or null"),
        ("trained_on", {"blur": [1.0]}, "trained_on.blur must be two numbers, got [1.0]"),
        ("imports", "os", "imports must be a list, each a word, got 'os'"),
    ],
)
def test_facts_beside_the_settings_are_named(name, value, found, written):
    """They ended in a traceback at the first photograph, and a word was imported letter by letter."""
    directory = written()
    settings = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**settings, name: value}))
    assert f"config.json is damaged, or was changed: {found}" in refused(directory)


@pytest.mark.parametrize("fits", [0, 1])
def test_a_full_disk_leaves_what_was_there(fits, written, monkeypatch):
    before = {path.name: path.read_bytes() for path in written().iterdir()}
    flushed = []

    def full(descriptor):
        flushed.append(descriptor)
        if len(flushed) > fits:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    said = f"{written() / ('config.json' if fits else 'model.safetensors')} cannot be written: No space left on device"
    with pytest.raises(ValueError, match=f"{said} .*GiB are free there: make room"):
        build_model(ModelConfig(**MODEL)).save_pretrained(written())
    monkeypatch.undo()
    assert {path.name: path.read_bytes() for path in written().iterdir()} == before


@pytest.mark.parametrize(
    "name, could_be", [("a/b", True), ("a/b/c", False), ("../b", False), ("/b", False), ("b", False)]
)
def test_names_of_the_hub(name, could_be):
    assert from_hub.is_hub_name(name) == could_be


def test_a_directory_goes_before_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    build_model(ModelConfig(**MODEL)).save_pretrained("owner/name")
    assert not from_hub.is_hub_name("owner/name") and load_model("owner/name").scale == 2


@pytest.mark.parametrize("text", ["/tmp/theirs.pth", "hf-hub:theirs/encoder", "..\\\\theirs.pt"])
def test_settings_from_the_hub_name_no_files(text):
    model = {**MODEL, "seg": {"name": "smp", "encoder": text, "pretrained": "/ours.pth"}}
    with pytest.raises(ValueError, match="wants to read .*theirs.*trust=True"):
        from_hub.check_untrusted(model, [], "owner/name")
    from_hub.check_untrusted({**MODEL, "seg": {"name": "unet", "pretrained": "/ours.pth"}}, [], "owner/name")
