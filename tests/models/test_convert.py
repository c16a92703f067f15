"""The authors' weight files: every model of the manifest becomes an export that gives the golden outputs."""

import json

import numpy as np
import pytest
import torch
from paths import ROOT, SHARED, need

from cssr.config.schema import ModelConfig
from cssr.convert import main
from cssr.models.export import assign_state
from cssr.models.joint import JointModel, build_model
from cssr.models.published import convert_joint, convert_state

SR_ALONE = ["model.seg=none"]
SEG_ALONE = ["model.scale=1", "model.sr=none", "model.normalize=none"]
KBPN = "model.sr=kbpn"
# model of the manifest: the settings that it belongs to
SR_NETWORKS = {
    "dbpn_x2_stages2": ["model.scale=2", "model.sr.stages=2"],
    "dbpn_x4_stages4": ["model.sr.stages=4"],
    "dbpn_x4_stages6": [],
    "dbpn_x4_stages7": ["model.sr.stages=7"],
    "kbpn_x4_k7to21": [KBPN],
    "kbpn_x4_k21": ["model.sr={name: kbpn, predicted_size: 21}"],
    "srcnet_sr_x4": ["model.sr=srcnet"],
}
SEG_NETWORKS = {
    "unet16_pixel_shuffle": [],
    "unet16_deconv": ["model.seg.upsample=deconv"],
    "pspnet_resnet34": ["model.seg=pspnet"],
    "hrnet_w48_ocr": ["model.seg=hrnet_ocr"],
    "crackformer": ["model.seg=crackformer"],
    "segnet": ["model.seg=segnet"],
}
BLUR_SKIP = {
    "pspnet_blurskip": ["model.seg=blur_skip"],
    "pspnet_blurskip_origin": ["model.seg={name: blur_skip, modulate_by: kernel}"],
}
# The large ones are slow: that their converted weights give the golden outputs, their networks' own tests show too.
FAST = {"dbpn_x2_stages2", "dbpn_x4_stages4", "unet16_pixel_shuffle", "pspnet_resnet34", "crackformer"}


def each(names) -> list:
    """Names as test parameters."""
    return [pytest.param(name, marks=[pytest.mark.slow] * (name not in FAST)) for name in names]


@pytest.fixture
def convert(tmp_path):
    """The command: a state_dict, saved as the authors do, to an export, which is loaded."""

    def run(state: dict[str, torch.Tensor], *overrides: str) -> JointModel:
        torch.save(state, tmp_path / "iteration_1.pth")
        (tmp_path / "recipe.yaml").write_text("{}")
        recipe, out = str(tmp_path / "recipe.yaml"), str(tmp_path / "out")
        main([str(tmp_path / "iteration_1.pth"), "--recipe", recipe, "--out", out, *overrides])
        (tmp_path / "iteration_1.pth").unlink()
        return JointModel.from_pretrained(out)

    return run


def prefixed(prefix: str, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"{prefix}{key}": value for key, value in state.items()}


def assert_golden(found: torch.Tensor, expected: np.ndarray, largest: float = 1e-4) -> None:
    difference, span = np.abs(found.numpy() - expected), np.ptp(expected)
    assert difference.max() <= largest * span and difference.mean() <= 1e-5 * span


@torch.no_grad()
@pytest.mark.parametrize("name, prefix", [
    *[pytest.param(*case.values, "", marks=case.marks, id=case.values[0]) for case in each(SR_NETWORKS)],
    pytest.param("dbpn_x4_stages4", "module.sr_model.", id="of several GPUs"),
])  # fmt: skip
def test_sr_networks(name, prefix, golden, reference_state, convert):
    """Bare, and as an SR-only file of several GPUs has it; SR is compared before it is clipped."""
    arrays = golden(name)
    model = convert(prefixed(prefix, reference_state(name)), *SR_NETWORKS[name], *SR_ALONE, "model.clip=never")
    assert_golden(model(torch.from_numpy(arrays["lr"])).sr, arrays["sr"])


@torch.no_grad()
@pytest.mark.parametrize("name", each(SEG_NETWORKS))
def test_segmentation_networks(name, golden, reference_state, convert):
    arrays = golden(name)
    model = convert(reference_state(name), *SEG_NETWORKS[name], *SEG_ALONE, "model.clip=never")
    # CrackFormer amplifies rounding: in float64 it is 1.8e-4 of the range from its own golden vector.
    largest = 1e-3 if name == "crackformer" else 1e-4
    assert_golden(model(torch.from_numpy(arrays["x"])).logits.sigmoid(), arrays["prob"], largest)


@torch.no_grad()
@pytest.mark.parametrize("name", each(BLUR_SKIP))
def test_blur_skip_behind_kbpn(name, golden, reference_state, convert):
    arrays, state = golden(name), prefixed("sr_model.", reference_state("kbpn_x4_k7to21"))
    model = convert(state | prefixed("segmentation_model.", reference_state(name)), KBPN, *BLUR_SKIP[name])
    kernel = torch.from_numpy(arrays["kernel"]).view(-1, 1, 21, 21)
    assert_golden(model.segment(torch.from_numpy(arrays["x"]), kernel)[0].sigmoid(), arrays["prob"])
    outputs = model(torch.rand(1, 3, 16, 16))
    assert outputs.logits.shape == (1, 1, 64, 64) and outputs.kernel.shape == (1, 1, 21, 21)


@pytest.mark.slow
@torch.no_grad()
def test_csbsr(golden, reference_state, convert):
    arrays = golden("csbsr_pspnet_joint")
    state = prefixed("module.", reference_state("csbsr_pspnet_joint"))
    outputs = convert(state, KBPN, "model.seg=pspnet", "model.clip=never")(torch.from_numpy(arrays["lr"]))
    for name, found in (("sr", outputs.sr), ("prob", outputs.logits.sigmoid()), ("kernel", outputs.kernel)):
        assert_golden(found, arrays[name])


@pytest.mark.slow
@torch.no_grad()
def test_dsrl(golden, reference_state, convert):
    arrays = golden("dsrl_x4")
    state = prefixed("parallel_model.", reference_state("dsrl_x4"))
    outputs = convert(state, "model.form=dsrl", "model.clip=never")(torch.from_numpy(arrays["lr"]))
    assert_golden(outputs.logits.sigmoid(), arrays["seg"])
    assert_golden(outputs.sr, arrays["sr"])


def test_every_model_of_the_manifest_is_tried():
    models = json.loads(need(SHARED / "golden" / "manifest.json").read_text())["models"]
    assert set(models) == {*SR_NETWORKS, *SEG_NETWORKS, *BLUR_SKIP, "csbsr_pspnet_joint", "dsrl_x4"}


@pytest.fixture
def joint_state():
    """A published joint file of DBPN and U-Net: its keys and shapes, with zeros but for the last bias."""
    models = json.loads(need(SHARED / "golden" / "manifest.json").read_text())["models"]
    parts = {"sr_model.": "dbpn_x4_stages4", "segmentation_model.": "unet16_pixel_shuffle"}
    state = {
        prefix + key: torch.zeros(shape, dtype=getattr(torch, dtype))
        for prefix, name in parts.items()
        for key, (shape, dtype) in models[name]["state_dict"].items()
    }
    return state | {"sr_model.output_conv.conv.bias": torch.tensor([1.0, 2.0, 3.0])}


def test_joint_reference_checkpoint_converts(joint_state):
    """Both networks' keys, with prefixes, and `module.` in front from several GPUs."""
    state = prefixed("module.", joint_state)
    model = build_model(ModelConfig(sr={"name": "dbpn", "stages": 4}))
    assign_state(model, convert_joint(state, model.config), "file")
    torch.testing.assert_close(model.sr.tail.bias, state["module.sr_model.output_conv.conv.bias"])


@pytest.mark.parametrize(
    "content, message",
    [(b"no weights", "cannot be read"), (b"hello", "cannot be read"), (None, "no file at"), ([1], "holds no")],
)
def test_files_that_are_no_checkpoint(content, message, tmp_path):
    path = tmp_path / "a.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content:
        torch.save(content, path)
    recipe = str(ROOT / "configs" / "tiny.yaml")
    with pytest.raises(SystemExit, match=message) as caught:
        main([str(path), "--recipe", recipe, "--out", str(tmp_path / "out")])
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


def test_command_line_writes_an_export(joint_state, tmp_path):
    state = prefixed("module.", joint_state)
    torch.save(state, tmp_path / "iteration_1.pth")
    (tmp_path / "r.yaml").write_text("model: {sr: {name: dbpn, stages: 4}}")
    main([str(tmp_path / "iteration_1.pth"), "--recipe", str(tmp_path / "r.yaml"), "--out", str(tmp_path / "out")])
    model = JointModel.from_pretrained(tmp_path / "out")
    assert torch.equal(model.sr.tail.bias, state["module.sr_model.output_conv.conv.bias"])


def test_foreign_keys_are_named():
    with pytest.raises(ValueError, match="1 keys do not belong to dbpn: backbone.weight"):
        convert_state({"feat0.conv.bias": torch.zeros(3), "backbone.weight": torch.zeros(1)}, "dbpn")


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda s: s.pop("sr_model.output_conv.conv.bias"), r"1 missing \(sr.tail.bias\)"),
        (lambda s: s.update({"sr_model.feat9.conv.bias": torch.zeros(1)}), "1 keys do not belong to dbpn: feat9"),
        (lambda s: s.update({"optimizer.step": torch.zeros(1)}), "the key optimizer.step belongs to none"),
        (
            lambda s: s.update({"sr_model.output_conv.conv.bias": torch.zeros(5)}),
            r"sr.tail.bias \[5\] instead of \[3\]",
        ),
        (lambda s: [s.pop(k) for k in list(s) if k.startswith("seg")], "no segmentation network: add model.seg=none"),
        (lambda s: [s.pop(k) for k in list(s) if k.startswith("sr")], "no SR network: add model.sr=bicubic"),
    ],
)
def test_files_that_do_not_fit_the_recipe(spoil, message, joint_state, tmp_path):
    spoil(joint_state)
    torch.save(joint_state, tmp_path / "a.pth")
    (tmp_path / "r.yaml").write_text("model: {sr: {stages: 4}}")
    with pytest.raises(SystemExit, match=message) as caught:
        main([str(tmp_path / "a.pth"), "--recipe", str(tmp_path / "r.yaml"), "--out", str(tmp_path / "out")])
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


def test_a_file_that_would_run_code_is_refused(tmp_path):
    class Harmful:
        def __reduce__(self):
            return (print, ("harm",))

    torch.save({"sr_model.a": Harmful()}, tmp_path / "a.pth")
    (tmp_path / "r.yaml").write_text("{}")
    with pytest.raises(SystemExit, match="cannot be read as a state_dict"):
        main([str(tmp_path / "a.pth"), "--recipe", str(tmp_path / "r.yaml"), "--out", str(tmp_path / "out")])
