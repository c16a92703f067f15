"""The Hugging Face Hub: what is pushed, what is fetched and when, and what the model card says."""

import json
import shutil
import socket
from pathlib import Path

import pytest
import torch
import yaml
from hub_server import hub
from huggingface_hub import ModelCard, constants

from cssr.config.loading import save_config
from cssr.config.schema import Config, ModelConfig
from cssr.hub import main
from cssr.models.joint import JointModel, build_model
from cssr.models.load import load_model
from cssr.utils.files import sha256_of

MODEL = {"scale": 2, "sr": {"name": "dbpn", "stages": 2, "width": 2, "features": 2}}
MODEL["seg"] = {"name": "pspnet", "encoder": "test_resnet", "width": 1, "pretrained": "/home/somebody/encoder.pth"}
NAME = "somebody/cracks"


@pytest.fixture
def run(finished, tmp_path):
    """A finished run of one's own."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run: settings, export, an evaluation of it, one of other weights, a sample picture."""
    run = tmp_path_factory.mktemp("finished") / "run"
    build_model(ModelConfig(**MODEL)).save_pretrained(
        run / "export", degradation={"name": "gaussian"}, resampler="bicubic", step=40, samples=320, imports=[]
    )
    config = Config(model=ModelConfig(**MODEL))
    config.data.train = {"/home/somebody/shards/walls": 3, "/home/somebody/shards/roads": 1}
    save_config(config, run / "config.yaml")
    weights = {"model.safetensors": sha256_of(run / "export" / "model.safetensors")}
    for name, sums, iou in (("val", weights, 0.4321), ("old", {"model.safetensors": "0" * 64}, 0.9)):
        result = {
            **{"format": "cssr-results-1", "name": "run", "data": f"/home/somebody/{name}", "images": 7},
            **{"degradation": {"name": "gaussian"}, "checkpoint_sha256": sums},
            "metrics": {"image": {"iou_max": iou, "aiu": 0.3, "psnr": 31.5, "ap": None}, "pooled": {}},
            "intervals": {"image": {"iou_max": [0.41, 0.46]}},
            "definitions": {"image": "each by itself", "iou_max": "the best threshold's IoU", "psnr": "in dB"},
        }
        (run / "evaluations" / name).mkdir(parents=True)
        (run / "evaluations" / name / "results.json").write_text(json.dumps(result))
    (run / "samples").mkdir()
    (run / "samples" / "step_00000040.png").write_bytes(b"picture")
    return run


@pytest.fixture
def there(tmp_path, monkeypatch):
    """A Hub on the loopback, and an empty cache."""
    with hub() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.address)
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace("https://huggingface.co", server.address)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no_token"))
        monkeypatch.setenv("HF_TOKEN", "hf_of_a_test")
        yield server


def staged(run, tmp_path, *more) -> str:
    dry = ["--dry-run", "--out", tmp_path / "out"]
    main([str(part) for part in ("push", run, NAME, "--license", "cc-by-4.0", *dry, *more)])
    return (tmp_path / "out" / "README.md").read_text()


def refused(source, **options) -> str:
    with pytest.raises(ValueError) as caught:
        JointModel.from_pretrained(source, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_dry_run_writes_what_would_be_pushed(run, tmp_path, there):
    staged(run, tmp_path)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *("model.safetensors", "config.json", "README.md", "samples.png")
    }
    assert there.requests == [] and JointModel.from_pretrained(tmp_path / "out").scale == 2


def test_a_full_disk_leaves_nothing_half_written(run, tmp_path, monkeypatch):
    monkeypatch.setattr("cssr.utils.files.os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(SystemExit, match="out/model.safetensors cannot be written: No space left .*make room"):
        staged(run, tmp_path)
    assert list((tmp_path / "out").iterdir()) == []


def test_the_card_has_metadata_that_the_hub_takes(run, tmp_path):
    card = ModelCard(staged(run, tmp_path))
    assert (card.data.license, card.data.library_name) == ("cc-by-4.0", "cssr")
    assert card.data.pipeline_tag == "image-segmentation"
    figures = {result.metric_type: (result.dataset_type, result.metric_value) for result in card.data.eval_results}
    assert figures == {"iou_max": ("val", 0.4321), "aiu": ("val", 0.3), "psnr": ("val", 31.5)}


def test_the_card_tells_of_the_run(run, tmp_path):
    text = staged(run, tmp_path)
    for part in (
        "walls (weight 3), roads (weight 1)",
        "| val | 7 | gaussian | 0.4321 (0.41 to 0.46) | 0.3 | 31.5 |",
        "- **iou_max**: the best threshold's IoU",
        "| samples | 320 |",
        "degraded by `gaussian`",
        f'JointModel.from_pretrained("{NAME}", download=True)',
        "kondo2024csbsr",
        "![samples](samples.png)",
        "their terms may apply",
    ):
        assert part in text
    assert "0.9" not in text.split("## Limits")[0].split("## Figures")[1], "the figures of other weights"
    settings = yaml.safe_load(text.split("```yaml\n")[1].split("```")[0])
    assert settings["model"]["sr"]["stages"] == 2 and settings["loss"]["seg"] == {"name": "boundary_combo"}


def test_nothing_pushed_names_the_folders_of_the_machine(run, tmp_path):
    staged(run, tmp_path)
    for name in ("README.md", "config.json"):
        text = (tmp_path / "out" / name).read_text()
        assert "/home" not in text and str(tmp_path) not in text and "encoder.pth" in text


def test_an_export_without_a_run_or_figures_says_so(run, tmp_path):
    text = staged(run / "export", tmp_path)
    assert "have not been evaluated" in text and "Its quality is unknown" in text and "model-index" not in text


def test_results_of_other_weights_are_refused(run, tmp_path):
    with pytest.raises(SystemExit, match="is of other weights than this export"):
        staged(run, tmp_path, "--results", run / "evaluations" / "old")


def test_push_and_pull(run, there, capsys):
    main(["push", str(run), NAME, "--license", "cc-by-4.0"])
    assert there.models[NAME]["private"] is True
    assert set(there.models[NAME]["files"]) == {"model.safetensors", "config.json", "README.md", "samples.png"}
    there.requests.clear()
    main(["pull", NAME])
    asked = {path.rsplit("/", 1)[1] for method, path in there.requests if "/resolve/" in path}
    assert asked == {"config.json", "model.safetensors"}
    there.requests.clear()
    lq = torch.rand(1, 3, 8, 9)
    for model in (JointModel.from_pretrained(NAME), load_model(NAME)):
        assert torch.equal(model(lq).logits, JointModel.from_pretrained(run / "export")(lq).logits)
    assert there.requests == [], "what is in the cache needs no network"


def test_push_from_python(run, there):
    model = JointModel.from_pretrained(run / "export")
    address = model.push_to_hub(NAME, license="apache-2.0", run=run, private=False)
    assert address.endswith(f"/{NAME}/commit/{'c' * 40}") and there.models[NAME]["private"] is False
    assert "0.4321" in there.models[NAME]["files"]["README.md"].decode()
    assert json.loads(there.models[NAME]["files"]["config.json"])["samples"] == 320
    assert JointModel.from_pretrained(NAME, download=True, revision="main", token="hf_x").scale == 2


def test_a_private_push_does_not_go_to_a_public_model(run, there):
    there.models[NAME] = {"private": False, "files": {}}
    with pytest.raises(SystemExit, match="is there already and public"):
        main(["push", str(run), NAME, "--license", "cc-by-4.0"])
    assert there.models[NAME]["files"] == {}


def test_without_download_the_hub_is_not_asked(there):
    assert "pass download=True or run: python -m cssr.hub pull somebody/cracks" in refused(NAME)
    assert there.requests == []


def test_what_the_hub_does_not_have_is_one_line(run, there):
    assert "is not on http://127.0.0.1" in refused(NAME, download=True)
    there.models[NAME] = {"private": True, "files": {"config.json": b"{}"}}
    assert "is no export of cssr" in refused(NAME, download=True)
    assert "has no revision v9" in refused(NAME, download=True, revision="v9")


def test_a_damaged_download_is_refused(run, there):
    main(["push", str(run), NAME, "--license", "cc-by-4.0"])
    there.spoil.add("model.safetensors")
    assert "sha256 is not the one in config.json" in refused(NAME, download=True)


def test_without_a_network_it_is_one_line_at_once(tmp_path, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{free.getsockname()[1]}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    waits = []
    monkeypatch.setattr("time.sleep", waits.append)
    assert "cannot be fetched from http://127.0.0.1" in refused(NAME, download=True)
    assert waits == []


def test_modules_of_a_model_from_the_hub_are_not_imported_without_trust(run, there, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "theirs.py").write_text("from pathlib import Path\nPath('ran').touch()\n")
    build_model(ModelConfig(**MODEL)).save_pretrained(run / "export", imports=["theirs"])
    with pytest.MonkeyPatch.context() as local:
        local.setattr("cssr.config.loading.import_modules", lambda names: None)
        main(["push", str(run / "export"), NAME, "--license", "other"])
    text = refused(NAME, download=True)
    assert "theirs" in text and "trust=True" in text
    for source in (NAME, next((tmp_path / "cache").rglob("config.json")).parent):
        assert "trust=True" in refused(source)
    assert not (tmp_path / "ran").exists()
    JointModel.from_pretrained(NAME, trust=True)
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["push", "RUN", "cracks", "--license", "other"], "must be owner/name"),
        (["push", "RUN", NAME, "--license", "My Licence"], "the licence must be one"),
        (["push", "RUN", NAME, "--license", "other", "--dry-run"], "--dry-run needs --out"),
        (["push", "nowhere", NAME, "--license", "other"], "no run or export at nowhere"),
        (["push", "RUN", NAME, "--license", "other", "--results", "nowhere"], "no results.json at nowhere"),
        (["pull", "a/b"], "is not on http"),
    ],
)
def test_mistakes_are_one_line(arguments, message, run, there):
    with pytest.raises(SystemExit, match=message) as caught:
        main([str(run) if argument == "RUN" else argument for argument in arguments])
    assert str(caught.value).startswith("error: ") and "\n" not in str(caught.value)
    assert there.models == {}
