"""ONNX and torch.export: the joint model with its sizes open, compared with PyTorch."""

import hashlib
import json
import shutil

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from helpers import shipped
from PIL import Image
from torch import nn

from cssr.config.schema import ModelConfig
from cssr.deploy import main
from cssr.models import deployment
from cssr.models.deployment import Deployed, GridMeans, capture, compare, deploy
from cssr.models.joint import JointModel, build_model
from cssr.models.seg import SEG
from cssr.models.sr import SR
from cssr.models.sr.kbpn import _blur_patches, blur_and_reduce

TINY_DBPN = {"name": "dbpn", "stages": 2, "width": 2, "features": 2, "residual": True}
TINY_KBPN = {"name": "kbpn", "stages": 2, "width": 2, "features": 2, "hidden": 2, "kernel_size": 5, "predicted_size": 3}
TINY_UNET = {"name": "unet", "encoder": "vgg11", "depth": 2, "width": 1}
TINY_PSPNET = {"name": "pspnet", "encoder": "resnet18", "width": 1}
SRS = {
    "dbpn": TINY_DBPN,
    "kbpn": TINY_KBPN,
    "srcnet": {"name": "srcnet", "groups": 1, "blocks": 1, "width": 2, "hidden": 2, "enlarged": 2},
    "spandrel": {"name": "spandrel", "architecture": "Compact", "arguments": {"num_feat": 2, "num_conv": 1}},
    "bicubic": {"name": "bicubic"},
    "none": {"name": "none"},
}
SEGS = {
    "unet": TINY_UNET,
    "pspnet": TINY_PSPNET,
    "segnet": {"name": "segnet", "encoder": "vgg11_bn"},
    "hrnet_ocr": {"name": "hrnet_ocr", "encoder": "hrnet_w18_small", "width": 2, "hidden": 2},
    "crackformer": {"name": "crackformer", "width": 16, "window": 3},
    "blur_skip": {"name": "blur_skip", "net": TINY_PSPNET, "kernel_size": 5},
    "smp": {"name": "smp", "architecture": "fpn", "encoder": "resnet18"},
    "none": {"name": "none"},
}
FORMS = {
    "dsrl": {"form": {"name": "dsrl", "encoder": "resnet18", "width": 1}},
    "seg_then_sr": {"form": {"name": "seg_then_sr"}, "sr": TINY_DBPN, "seg": TINY_UNET},
}
# every SR network with a tiny U-Net, every segmentation network with the SR network that it needs
CASES = {f"sr_{name}": {"sr": sr, "seg": TINY_UNET, "scale": 1 if name == "none" else 2} for name, sr in SRS.items()}
CASES |= {
    f"seg_{name}": {"seg": seg, "sr": TINY_KBPN if name == "blur_skip" else SRS["bicubic"]}
    for name, seg in SEGS.items()
}
CASES |= FORMS
MINUTES = {"sr_kbpn", "dsrl"}  # capturing takes them
MINUTES |= {f"seg_{name}" for name in ("crackformer", "blur_skip", "hrnet_ocr", "pspnet", "smp", "segnet")}


def model_of(**settings) -> JointModel:
    torch.manual_seed(0)
    return build_model(
        ModelConfig(**{"scale": 2, "sr": {"name": "bicubic"}, "seg": {"name": "none"}, **settings})
    ).eval()


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    out = tmp_path_factory.mktemp("model") / "export"
    model_of(seg=TINY_UNET).save_pretrained(out)
    return out


@pytest.fixture(scope="module")
def written(export, tmp_path_factory):
    """The files that the command writes of a small model, in both formats."""
    out = tmp_path_factory.mktemp("deployed")
    main([str(export), "--format", "onnx", "torch_export", "--out", str(out)])
    return out


def test_both_files_compute_what_pytorch_does_at_sizes_that_were_never_tried(export, written):
    model, lq = JointModel.from_pretrained(export), torch.rand(2, 3, 19, 83)
    with torch.no_grad():
        outputs = model(lq)
        by_torch = torch.export.load(written / "model.pt2").module()(lq)
    session = onnxruntime.InferenceSession(str(written / "model.onnx"))
    for sr, prob in (by_torch, [torch.from_numpy(x) for x in session.run(["sr", "prob"], {"lq": lq.numpy()})]):
        torch.testing.assert_close(sr, outputs.sr, rtol=0, atol=1e-5)
        torch.testing.assert_close(prob, outputs.logits.sigmoid(), rtol=0, atol=1e-5)


def test_the_onnx_file_is_valid_and_names_its_open_sizes(written):
    model = onnx.load(written / "model.onnx")
    onnx.checker.check_model(model)
    (lq,) = model.graph.input
    assert lq.name == "lq" and [d.dim_param or d.dim_value for d in lq.type.tensor_type.shape.dim] == [
        *("batch", 3, "height", "width")
    ]
    assert [output.name for output in model.graph.output] == ["sr", "prob"]
    assert [s.version for s in model.opset_import if s.domain == ""] == [deployment.OPSET]


def test_the_description_tells_the_files_by_their_digest(written):
    found = json.loads((written / "model.json").read_text())
    assert found["scale"] == 2 and found["outputs"]["prob"]["shape"] == ["batch", 1, "2 * height", "2 * width"]
    for entry in found["files"]:
        assert max(entry["largest_difference"].values()) <= 1e-5
        for name, identity in entry["written"].items():
            assert identity["sha256"] == hashlib.sha256((written / name).read_bytes()).hexdigest()
    assert {path.name for path in written.iterdir()} == {"model.onnx", "model.pt2", "model.json"}


def test_the_example_in_the_description_runs(export, written, monkeypatch):
    monkeypatch.chdir(written)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (21, 34, 3), np.uint8))
    image.save("photograph.jpg")
    found: dict = {}
    exec("\n".join(json.loads((written / "model.json").read_text())["example"]), found)
    (written / "photograph.jpg").unlink()
    assert found["sr"].shape == (42, 68, 3) and found["mask"].shape == (42, 68) and found["mask"].dtype == bool


@pytest.mark.slow
def test_another_model_takes_the_place_of_all_files(written, tmp_path):
    shutil.copytree(written, tmp_path, dirs_exist_ok=True)
    found = deploy(model_of(), ["onnx"], tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"model.onnx", "model.json"}
    assert "threshold" not in found and not any("prob" in line for line in found["example"])


def test_a_file_that_differs_is_not_left(tmp_path, monkeypatch):
    def spoilt(program, names, folder):
        (folder / "model.pt2").touch()
        return lambda lq: [x + 0.01 for x in program.module()(lq)]

    monkeypatch.setitem(deployment._WRITERS, "torch_export", spoilt)
    with pytest.raises(ValueError, match="model.pt2: sr of 1 images of 8x11 is 0.01 off, more than --tolerance 0.001"):
        deploy(model_of(), ["torch_export"], tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_leaves_what_was_there(export, tmp_path, monkeypatch):
    def interrupt(program, names, folder):
        (folder / "model.onnx").write_bytes(b"part")
        raise KeyboardInterrupt

    (tmp_path / "model.onnx").write_text("of before")
    monkeypatch.setattr(deployment, "capture", lambda _: None)
    monkeypatch.setitem(deployment._WRITERS, "onnx", interrupt)
    with pytest.raises(KeyboardInterrupt):
        main([str(export), "--out", str(tmp_path)])
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    assert (tmp_path / "model.onnx").read_text() == "of before"


def test_a_full_disk_is_one_line_and_nothing_is_left(export, tmp_path, monkeypatch):
    def full(program, names, folder):
        (folder / "model.onnx").write_bytes(b"part")
        raise OSError(28, "No space left on device")

    monkeypatch.setitem(deployment._WRITERS, "onnx", full)
    with pytest.raises(SystemExit, match=f"error: {tmp_path} cannot be written: No space left on device .*make room"):
        main([str(export), "--out", str(tmp_path)])
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_is_a_file_is_refused_before_anything_is_captured(export, tmp_path, monkeypatch):
    monkeypatch.setattr("cssr.models.deployment.capture", lambda _: pytest.fail("it was captured"))
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit, match="error: .*file.* cannot be written: (File exists|Not a directory)"):
        main([str(export), "--out", str(tmp_path / "file")])
    with pytest.raises(pytest.fail.Exception):
        main([str(export), "--out", str(tmp_path / "new")])
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_large_weights_are_in_a_file_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr(deployment, "_ONE_FILE", 0)
    found = deploy(model_of(sr=SRS["srcnet"]), ["onnx"], tmp_path)
    assert set(found["files"][0]["written"]) == {"model.onnx", "model.onnx.data"} and list(found["outputs"]) == ["sr"]
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    assert session.run(None, {"lq": np.zeros((1, 3, 8, 9), np.float32)})[0].shape == (1, 3, 16, 18)


@pytest.mark.parametrize("size", [(1, 1), (6, 6), (7, 12), (13, 5)])
@pytest.mark.parametrize("cells", [(2, 2), (3, 6)])
def test_means_over_a_grid_equal_adaptive_pooling(size, cells):
    x = torch.randn(2, 3, *size)
    torch.testing.assert_close(GridMeans(cells)(x), nn.AdaptiveAvgPool2d(cells)(x), rtol=0, atol=1e-6)


@pytest.mark.parametrize("scale, side", [(2, 5), (4, 21)])
def test_blurring_by_patches_equals_the_grouped_convolution(scale, side):
    image, kernel = torch.randn(3, 3, 4 * scale, 7 * scale), torch.rand(3, 1, side, side)
    torch.testing.assert_close(_blur_patches(image, kernel, scale), blur_and_reduce(image, kernel, scale))


class Stumbling(nn.Module):
    """A network whose course depends on the image's size."""

    def forward(self, lq, kernel=None):
        return lq.repeat_interleave(2, 2).repeat_interleave(2, 3) * (2 if lq.shape[2] == 24 else 1), None


def test_a_course_that_depends_on_the_size_is_one_line():
    model = model_of()
    model.sr = Stumbling()
    with pytest.raises(ValueError, match="torch.export cannot follow this model for any size") as caught:
        capture(Deployed(model))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["nowhere", "--out", "x"], "no run or export at nowhere"),
        (["EXPORT", "--out", "x", "--tolerance", "0"], "--tolerance must be above 0"),
        (["EXPORT", "--out", "x", "--checkpoint", "best"], "no checkpoint 'best'"),
    ],
)
def test_mistakes_are_one_line(arguments, message, export, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=f"error: .*{message}"):
        main([str(export) if argument == "EXPORT" else argument for argument in arguments])
    assert not (tmp_path / "x").exists()


def test_a_missing_library_names_the_extra(export, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    with pytest.raises(SystemExit, match=r"pip install 'cssr\[onnx\]'"):
        main([str(export), "--out", str(tmp_path / "out")])


def test_every_network_is_tried():
    assert set(SRS) == shipped(SR) and set(SEGS) == shipped(SEG)


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [pytest.param(s, id=n, marks=[pytest.mark.thorough] * (n in MINUTES)) for n, s in CASES.items()],
)
def test_every_network_is_deployed(settings, tmp_path):
    found = deploy(model_of(**settings), ["onnx", "torch_export"], tmp_path)
    assert [entry["format"] for entry in found["files"]] == ["onnx", "torch_export"]


def test_a_difference_is_found_wherever_it_is():
    deployed = Deployed(model_of())
    with pytest.raises(ValueError, match="sr of 3 images of 64x24 is nan off"):
        compare(deployed, lambda lq: [x * (float("nan") if len(lq) == 3 else 1) for x in deployed(lq)], 1e-3, "model.x")
