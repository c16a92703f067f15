"""Networks of the library spandrel: the same function as the library's own, training, odd sizes, rebuilding, errors."""

import json
import pickle
import sys

import pytest
import torch
from safetensors.torch import save_file

from cssr.config.schema import ModelConfig
from cssr.models.joint import JointModel, build_model
from cssr.models.sr import SR

library = pytest.importorskip("spandrel", reason="needs the library spandrel: pip install 'cssr[spandrel]'")

COMPACT = (4, "Compact", {"num_feat": 6, "num_conv": 2})
GREY = (2, "Compact", {"num_in_ch": 1, "num_out_ch": 1, "num_feat": 6, "num_conv": 1})
SPAN = (2, "SPAN", {"num_in_ch": 3, "num_out_ch": 3, "feature_channels": 4})
ESRGAN = (4, "ESRGAN", {"num_filters": 4, "num_blocks": 2})
UNSHUFFLED = (2, "ESRGAN", {"in_nc": 12, "num_filters": 4, "num_blocks": 2, "scale": 4, "shuffle_factor": 2})
SWINIR = (
    2,
    "SwinIR",
    {"upsampler": "pixelshuffledirect", "embed_dim": 8, "depths": [2], "num_heads": [2], "window_size": 4},
)
RCAN = (4, "RCAN", {"n_resgroups": 1, "n_resblocks": 1, "n_feats": 4, "reduction": 2})
SWIFT = (4, "SwiftSRGAN", {"num_channels": 4, "num_blocks": 1})
CUGAN = (2, "UpCunet2x", {})
DEHAZE = (1, "MixDehazeNet", {"embed_dims": [8, 16, 32, 16, 8], "depths": [1, 1, 1, 1, 1]})
NETWORKS = [COMPACT, GREY, SPAN, ESRGAN, UNSHUFFLED, SWINIR, RCAN, SWIFT, CUGAN, DEHAZE]
by_architecture = pytest.mark.parametrize("scale, architecture, arguments", NETWORKS, ids=lambda v: str(v)[:24])


def build(scale, architecture, arguments, **settings):
    torch.manual_seed(0)
    return SR.build({"name": "spandrel", "architecture": architecture, "arguments": arguments, **settings}, scale=scale)


@pytest.fixture
def community_file(tmp_path):
    """A weight file as people share them, and the state_dict in it."""

    def write(scale, architecture, arguments, ending=".safetensors"):
        state, path = build(scale, architecture, arguments).model.state_dict(), tmp_path / f"community{ending}"
        if ending == ".safetensors":
            save_file({key: value.contiguous() for key, value in state.items()}, path)
        else:
            torch.save({"params_ema": state}, path)
        return str(path), state

    return write


@pytest.mark.parametrize("size", [(17, 23), (3, 2)], ids=str)
@by_architecture
def test_a_file_gives_what_the_library_gives(scale, architecture, arguments, size, community_file):
    """On sizes that need padding, in a batch, and without clipping; the input stays as it is."""
    path, _ = community_file(scale, architecture, arguments)
    net, lq = SR.build({"name": "spandrel", "weights": path}, scale=scale).eval(), torch.rand(2, 3, *size)
    before, own = lq.clone(), library.ModelLoader().load_from_file(path)
    with torch.no_grad():
        sr, kernel = net(lq)
    torch.testing.assert_close(lq, before, rtol=0, atol=0)
    colours = [(i, slice(c, c + 1)) for i in range(2) for c in range(3)] if own.input_channels == 1 else [(0,), (1,)]
    for place in colours:
        expected = own(lq[place].clone().view(1, own.input_channels, *size))[0]
        torch.testing.assert_close(sr[place].clamp(0, 1), expected, rtol=1e-4, atol=1e-5)
    assert kernel is None and sr.shape == (2, 3, size[0] * scale, size[1] * scale)


def test_the_image_is_not_clipped():
    sr, _ = build(*COMPACT)(torch.randn(1, 3, 8, 8) * 9)
    assert sr.min() < 0 and sr.max() > 1


@by_architecture
def test_training_reaches_every_parameter(scale, architecture, arguments):
    """With a zero gradient at least: no parameter may drop out of the graph, whatever an architecture skips."""
    net = build(scale, architecture, arguments)
    assert all(module.training for module in net.modules())
    net(torch.rand(2, 3, 16, 16))[0].square().mean().backward()
    gradients = [p.grad for p in net.parameters()]
    assert all(g is not None and g.isfinite().all() for g in gradients) and any(g.any() for g in gradients)


def test_training_makes_progress_and_evaluation_follows():
    """SPAN evaluates with merged convolutions, which training does not touch."""
    net, lq = build(*SPAN), torch.rand(2, 3, 12, 12)
    optimizer = torch.optim.SGD(net.parameters(), 1e-6)
    for _ in range(3):
        optimizer.zero_grad()
        net(lq)[0].square().mean().backward()
        optimizer.step()
    with torch.no_grad():
        trained, evaluated, fresh = net(lq)[0], net.eval()(lq)[0], build(*SPAN).eval()(lq)[0]
    inside = (..., slice(8, -8), slice(8, -8))
    torch.testing.assert_close(evaluated[inside], trained[inside], rtol=1e-3, atol=1e-3)
    assert (evaluated - fresh).abs().max() > 1e-2


def test_holding_the_graph_together_changes_no_value():
    net, lq = build(*ESRGAN), torch.rand(1, 3, 8, 8)
    with torch.no_grad():
        plain = net(lq)[0]
    torch.testing.assert_close(net(lq)[0], plain, rtol=0, atol=0)


@by_architecture
def test_settings_rebuild_the_network_without_its_file(scale, architecture, arguments, community_file):
    path, _ = community_file(scale, architecture, arguments)
    net = SR.build({"name": "spandrel", "weights": path}, scale=scale).eval()
    assert net.settings.keys() == {"name", "architecture", "arguments"}
    again = SR.build(json.loads(json.dumps(net.settings)), scale=scale).eval()
    assert again.settings == net.settings
    again.load_state_dict(net.state_dict())
    lq = torch.rand(1, 3, 9, 10)
    with torch.no_grad():
        torch.testing.assert_close(again(lq)[0], net(lq)[0], rtol=0, atol=0)


def test_an_export_needs_no_file(community_file, tmp_path):
    path, _ = community_file(*SWINIR)
    seg = {"name": "unet", "encoder": "resnet10t", "width": 4, "encoder_args": {"channels": [8, 8, 16, 16]}}
    model = build_model(ModelConfig(scale=2, sr={"name": "spandrel", "weights": path}, seg=seg), fresh=True).eval()
    model.save_pretrained(tmp_path / "export")
    (tmp_path / "community.safetensors").unlink()
    again, lq = JointModel.from_pretrained(tmp_path / "export"), torch.rand(1, 3, 17, 16)
    with torch.no_grad():
        torch.testing.assert_close(again(lq).logits, model(lq).logits, rtol=0, atol=0)


@pytest.mark.parametrize("ending", [".pth", ".pt", ".ckpt"])
def test_other_kinds_of_file(ending, community_file):
    path, state = community_file(*COMPACT, ending)
    net = SR.build({"name": "spandrel", "weights": path}, scale=4)
    for key, value in net.model.state_dict().items():
        torch.testing.assert_close(value, state[key], rtol=0, atol=0)


def test_arguments_go_over_those_of_the_file(community_file):
    path, _ = community_file(*SWINIR)
    net = SR.build({"name": "spandrel", "weights": path, "arguments": {"drop_path_rate": 0.3}}, scale=2)
    assert net.settings["arguments"]["drop_path_rate"] == 0.3 and net.settings["arguments"]["window_size"] == 4
    assert any(getattr(module, "drop_prob", None) == pytest.approx(0.3) for module in net.modules())


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_an_architecture_takes_the_scale_of_the_model(scale):
    assert build(scale, *COMPACT[1:])(torch.rand(1, 3, 4, 5))[0].shape == (1, 3, 4 * scale, 5 * scale)


def test_under_autocast():
    with torch.autocast("cpu", torch.bfloat16):
        sr, _ = build(*ESRGAN)(torch.rand(1, 3, 8, 8))
    assert sr.isfinite().all()


@pytest.mark.parametrize(
    "scale, settings, message",
    [
        (4, {}, "needs weights=FILE, or an architecture"),
        (4, {"architecture": "Compactt"}, "did you mean Compact"),
        (4, {"architecture": "Compact", "arguments": {"num_fea": 4}}, "'num_fea'; it takes num_in_ch"),
        (4, {"architecture": "Compact", "arguments": [4]}, "arguments must be a mapping or null, got .4."),
        (4, {"architecture": "Compact", "arguments": {"upscale": 2}}, "for scale 2, but model.scale is 4"),
        (4, {"architecture": "Compact", "arguments": {"num_in_ch": 1}}, "takes and gives .1, 3. channels"),
        (4, {"architecture": "Compact", "arguments": {"num_in_ch": 4, "num_out_ch": 4}}, "takes and gives .4, 4."),
        (2, {"architecture": "SwinIR", "arguments": {**SWINIR[2], "num_heads": [3]}}, "cannot enlarge a batch"),
        (1, {"architecture": "DRUNet", "arguments": {"in_nc": 4, "nc": [4] * 4, "out_nc": 3}}, "enlarge a batch"),
        (1, {"architecture": "LaMa"}, "for Inpainting; it must be for SR or Restoration"),
        (4, {"weights": "nowhere.pth"}, "no weight file at nowhere.pth"),
        (4, {"weights": True}, "weights must be a word or null, got True"),
    ],
    ids=str,
)
def test_mistakes_are_answered_in_one_line(scale, settings, message):
    with pytest.raises(ValueError, match=message) as caught:
        SR.build({"name": "spandrel", **settings}, scale=scale)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "scale, settings, message",
    [
        (2, {}, "community.safetensors is a network for scale 4, but model.scale is 2"),
        (4, {"architecture": "SPAN"}, "holds a Compact, not a SPAN"),
        (4, {"arguments": {"num_feat": 7}}, "community.safetensors is of another architecture than the settings"),
    ],
)
def test_a_file_that_does_not_fit(scale, settings, message, community_file):
    path, _ = community_file(*COMPACT)
    with pytest.raises(ValueError, match=message) as caught:
        SR.build({"name": "spandrel", "weights": path, **settings}, scale=scale)
    assert "\n" not in str(caught.value)


class Harmful:
    """Whoever loads it with plain pickle prints a line."""

    def __reduce__(self):
        return print, ("harm",)


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.pth", b"no weights", "cannot be loaded"),
        ("a.pth", pickle.dumps({"params": Harmful()}), "cannot be loaded"),
        ("a.safetensors", b"\x00" * 9, "cannot be loaded"),
        ("a.pt", b"", "cannot be loaded"),
        ("a.onnx", b"", "cannot be loaded.*extension .onnx"),
        ("a.pth", {"layer.weight": torch.zeros(1)}, "no architecture that the library knows; spandrel .* Compact"),
    ],
    ids=lambda value: str(value)[:12],
)
def test_files_that_are_no_network(name, content, message, tmp_path, capsys):
    path = tmp_path / name
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(ValueError, match=message) as caught:
        SR.build({"name": "spandrel", "weights": str(path)}, scale=4)
    assert "\n" not in str(caught.value) and "harm" not in capsys.readouterr().out


def test_without_the_library_the_remedy_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "spandrel", None)
    with pytest.raises(ValueError, match=r"pip install 'cssr\[spandrel\]'"):
        build(*COMPACT)
