"""Networks against the golden vectors; every entry of the registries keeps its contract."""

import pytest
import torch

from cssr.config.loading import load_config
from cssr.config.schema import ModelConfig
from cssr.models.export import assign_state
from cssr.models.joint import JointModel, build_model
from cssr.models.published import convert_state
from cssr.models.seg import SEG
from cssr.models.sr import SR

SMALL_SEG = {"name": "unet", "encoder": "resnet10t", "width": 4, "encoder_args": {"channels": [8, 8, 16, 16]}}
SMALL = {"scale": 4, "sr": {"name": "dbpn", "stages": 2, "width": 4, "features": 8}, "seg": SMALL_SEG}


@pytest.mark.parametrize(
    "name, scale, stages",
    [("dbpn_x2_stages2", 2, 2), ("dbpn_x4_stages4", 4, 4), ("dbpn_x4_stages6", 4, 6), ("dbpn_x4_stages7", 4, 7)],
)
def test_dbpn_equals_the_published_network(name, scale, stages, golden, reference_state):
    arrays, net = golden(name), SR.build({"name": "dbpn", "stages": stages}, scale=scale).eval()
    assign_state(net, convert_state(reference_state(name), "dbpn"), name)
    with torch.no_grad():
        sr, kernel = net(torch.from_numpy(arrays["lr"]))
    assert kernel is None
    torch.testing.assert_close(sr, torch.from_numpy(arrays["sr"]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("upsample", ["pixel_shuffle", "deconv"])
def test_unet_equals_the_published_network(upsample, golden, reference_state):
    name = f"unet16_{upsample}"
    arrays, net = golden(name), SEG.build({"name": "unet", "upsample": upsample}).eval()
    assign_state(net, convert_state(reference_state(name), "unet"), name)
    with torch.no_grad():
        (logits,) = net(torch.from_numpy(arrays["x"]))
    torch.testing.assert_close(logits.sigmoid(), torch.from_numpy(arrays["prob"]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scale", [2, 4, 8])
@pytest.mark.parametrize("stages", [2, 3, 4, 6, 7, 8, 10])
def test_dbpn_at_every_scale_and_depth(scale, stages):
    sr, _ = SR.build({"name": "dbpn", "stages": stages, "width": 3, "features": 5}, scale=scale)(torch.rand(1, 3, 6, 5))
    assert sr.shape == (1, 3, 6 * scale, 5 * scale)


@pytest.mark.parametrize(
    "seg",
    [
        {"name": "unet", "encoder": "resnet10t", "width": 4, "upsample": "deconv"},
        {"name": "unet", "encoder": "vgg11", "depth": 3, "width": 4, "upsample": "bilinear"},
        {"name": "unet", "encoder": "convnext_atto", "width": 4},
        {"name": "smp", "architecture": "fpn", "encoder": "tu-resnet10t"},
        {"name": "smp", "architecture": "unet", "encoder": "resnet18"},
    ],
)
def test_segmentation_of_any_size_through_the_joint_model(seg):
    """37 x 50 pixels are no multiple of any stride: the logits have the SR image's size all the same."""
    model = build_model(ModelConfig(scale=2, sr={"name": "bicubic"}, seg=seg)).eval()
    outputs = model(torch.rand(2, 3, 37, 50))
    assert outputs.sr.shape == (2, 3, 74, 100) and outputs.logits.shape == (2, 1, 74, 100)


@pytest.mark.parametrize(
    "clip, training, clipped",
    [("eval", True, False), ("eval", False, True), ("always", True, True), ("never", False, False)],
)
def test_clipping_follows_the_setting(clip, training, clipped):
    model = build_model(ModelConfig(**{**SMALL, "sr": {"name": "bicubic"}, "clip": clip})).train(training)
    sr = model(torch.randn(2, 3, 16, 16) * 3).sr
    assert bool((sr.min() >= 0) & (sr.max() <= 1)) == clipped


def test_normalisation():
    x = torch.rand(2, 3, 8, 8)
    by = {
        name: build_model(ModelConfig(**SMALL, normalize=name, mean=[0.1, 0.2, 0.3], std=[1.0, 2.0, 4.0])).normalize(x)
        for name in ("instance", "dataset", "none")
    }
    torch.testing.assert_close(by["instance"].mean((2, 3)), torch.zeros(2, 3), atol=1e-5, rtol=0)
    torch.testing.assert_close(by["instance"].var((2, 3), unbiased=False), torch.ones(2, 3), atol=1e-3, rtol=0)
    torch.testing.assert_close(by["dataset"][:, 2], (x[:, 2] - 0.3) / 4)
    assert by["none"] is x


def test_gradient_of_segmentation_reaches_the_sr_network():
    model = build_model(ModelConfig(**SMALL))
    model(torch.rand(2, 3, 16, 16)).logits.mean().backward()
    assert all(
        p.grad is not None and p.grad.abs().sum() > 0 for n, p in model.sr.named_parameters() if n.endswith("weight")
    )


def test_export_round_trip(tmp_path):
    model = build_model(ModelConfig(**SMALL)).eval()
    model.save_pretrained(tmp_path, step=3)
    again, lq = JointModel.from_pretrained(tmp_path), torch.rand(1, 3, 16, 16)
    torch.testing.assert_close(again(lq).logits, model(lq).logits, rtol=0, atol=0)


def test_export_of_another_architecture_is_refused(tmp_path):
    build_model(ModelConfig(**SMALL)).save_pretrained(tmp_path / "a")
    other = {**SMALL, "sr": {"name": "dbpn", "stages": 3, "width": 4, "features": 8}}
    build_model(ModelConfig(**other)).save_pretrained(tmp_path / "b")
    (tmp_path / "a" / "model.safetensors").replace(tmp_path / "b" / "model.safetensors")
    with pytest.raises(ValueError, match="another architecture.*missing.*misshapen"):
        JointModel.from_pretrained(tmp_path / "b")


@pytest.mark.parametrize(
    "override, message",
    [
        ("model.sr.name=dbpm", "did you mean dbpn"),
        ("model.sr.stage=3", "did you mean stages"),
        ("model.seg.encoder=resnet10tt", "resnet10t"),
        ("model.seg.upsample=nearest", "pixel_shuffle"),
        (
            "model.seg.encoder=vit_tiny_patch16_224",
            r"features at strides \[16, 16.*encoder: tu-vit_tiny.*, dynamic_img_size",
        ),
        ("model.seg.encoder=swin_tiny_patch4_window7_224", "does not take images of any size"),
        ("model.seg={name: smp, architecture: unett}", "unknown 'unett' .did you mean unet"),
        ("model.seg={name: smp, encoder: resnet19}", "unknown 'resnet19' .did you mean resnet1"),
        (
            "model.seg={name: smp, decoder_channel: [8, 8]}",
            "unet does not take 'decoder_channel' .did you mean decoder_c",
        ),
        ("model.seg={name: smp, encoder: tu-resnet10t, classes: 3}", "unet does not take 'classes'"),
        ("model.seg={name: smp, encoder: tu-vit_tiny_patch16_224}", "dpt vision transformers, with dynamic_img_size"),
        ("model.seg.encoder=mit_b0", "mit_b0, tu-resnet34. go with model.seg=smp"),
    ],
)
def test_mistakes_are_answered_in_one_line(override, message):
    with pytest.raises(ValueError, match=message) as caught:
        build_model(load_config(None, [override]).model)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "override, message",
    [
        ("model.sr={name: dbpn, stages: 4096, width: 1, features: 1}", "more than 20000 tensors of weights"),
        ("model.sr={name: dbpn, width: 4096, features: 4096}", "the weights take more than the 0 GiB of memory"),
        ("model.seg={name: unet, width: 4096}", "the weights take more than the 0 GiB of memory"),
    ],
)
def test_networks_larger_than_the_machine_are_refused_while_they_are_built(override, message, monkeypatch):
    monkeypatch.setattr("cssr.models.build_limit.memory", lambda: 4 * 10**8)
    with pytest.raises(ValueError, match=message) as caught:
        build_model(load_config(None, [override]).model, fresh=True)
    assert "\n" not in str(caught.value)
    assert build_model(load_config(None, ["model.sr=bicubic", "model.seg=none"]).model)  # the limit has gone


def test_weights_that_are_too_many_are_counted_before_they_are_filled(monkeypatch):
    config, filled = load_config(None, ["model.sr.width=1024"]).model, []
    fill = torch.Tensor.uniform_
    monkeypatch.setattr(
        torch.Tensor, "uniform_", lambda x, *a, **k: filled.append(0 if x.is_meta else x.nbytes) or fill(x, *a, **k)
    )
    monkeypatch.setattr("cssr.models.build_limit.memory", lambda: 4 << 30)
    monkeypatch.setattr("cssr.models.build_limit._LARGE", 1 << 20)
    with pytest.raises(ValueError, match="the weights take more than the 4 GiB of memory"):
        build_model(config)
    assert sum(filled) < 1 << 20
    monkeypatch.setattr("cssr.models.build_limit._LARGE", 1 << 10)
    torch.manual_seed(0)
    ahead = build_model(load_config(None, ["model.sr.width=8", "model.seg=none"]).model)
    monkeypatch.undo()
    torch.manual_seed(0)
    plain = build_model(load_config(None, ["model.sr.width=8", "model.seg=none"]).model)
    assert all(torch.equal(a, b) for a, b in zip(ahead.parameters(), plain.parameters()))  # the same weights


def test_a_vision_transformer_goes_with_the_decoder_that_the_error_names():
    with pytest.raises(ValueError, match="this one goes with model.seg=") as caught:
        build_model(load_config(None, ["model.seg.encoder=vit_tiny_patch16_224"]).model)
    named = str(caught.value).rpartition("goes with ")[2]
    model = build_model(load_config(None, ["model.sr=bicubic", named]).model).eval()
    assert model.infer(torch.rand(1, 3, 20, 24)).logits.shape == (1, 1, 80, 96)


def test_dbpn_refuses_scale_3():
    with pytest.raises(ValueError, match="2, 4, 8"):
        build_model(ModelConfig(scale=3))


def test_building_never_downloads(monkeypatch):
    """`pretrained: true` counts for a fresh training run only."""
    import timm

    asked = []
    create = timm.create_model
    monkeypatch.setattr(
        timm, "create_model", lambda *a, **k: asked.append(k["pretrained"]) or create(*a, **{**k, "pretrained": False})
    )
    config = ModelConfig(**{**SMALL, "seg": {**SMALL_SEG, "pretrained": True}})
    build_model(config)
    build_model(config, fresh=True)
    assert asked == [False, True]


def test_pretrained_without_network_says_what_to_do(monkeypatch):
    import timm

    def offline(*args, **kwargs):
        raise OSError("cannot reach the hub")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(ValueError, match="local weight file"):
        build_model(ModelConfig(**{**SMALL, "seg": {**SMALL_SEG, "pretrained": True}}), fresh=True)


def test_local_encoder_weights_load(tmp_path):
    import timm
    from safetensors.torch import save_file

    donor = timm.create_model("resnet10t", channels=(8, 8, 16, 16))
    save_file(donor.state_dict(), tmp_path / "encoder.safetensors")
    seg = {**SMALL_SEG, "pretrained": str(tmp_path / "encoder.safetensors")}
    model = build_model(ModelConfig(**{**SMALL, "seg": seg}), fresh=True)
    torch.testing.assert_close(model.seg.encoder.layer1[0].conv1.weight, donor.layer1[0].conv1.weight)
