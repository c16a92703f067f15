"""DSRL: the published function, what its variants share, gradients everywhere, sizes and mistakes."""

import json

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from paths import SHARED, need
from safetensors.torch import save_file
from torch import nn

from cssr.models.dsrl import DSRL, dsrl
from cssr.models.export import assign_state
from cssr.models.published import convert_state

SMALL = {"encoder": "test_resnet", "width": 2}


def build(scale=4, **settings) -> DSRL:
    torch.manual_seed(0)
    return dsrl(scale, **{**SMALL, **settings})


def weighted(outputs) -> torch.Tensor:
    """A number that every value of every output moves."""
    sr, logits, features = outputs
    return sum((x * torch.randn_like(x)).mean() for x in (sr, logits, *features))


def test_equals_the_published_network(golden, reference_state):
    arrays, net = golden("dsrl_x4"), dsrl(4).eval()
    assign_state(net, convert_state(reference_state("dsrl_x4"), "dsrl"), "dsrl_x4")
    with torch.no_grad():
        sr, logits, (of_seg, of_sr) = net(torch.from_numpy(arrays["lr"]))
    for name, ours in {"sr": sr, "seg": logits.sigmoid(), "seg_feature": of_seg, "sr_feature": of_sr}.items():
        error, spread = np.abs(ours.numpy() - arrays[name]), np.ptp(arrays[name])
        assert error.max() <= 1e-4 * spread and error.mean() <= 1e-5 * spread, name


@pytest.mark.parametrize("scale, upsample", [(2, "deconv"), (4, "bilinear")])
def test_every_key_of_the_published_x2_network_has_a_place(scale, upsample):
    """It is the x4 network without its first doubling, which is called 0."""
    keys = json.loads(need(SHARED / "golden" / "manifest.json").read_text())["models"]["dsrl_x4"]["state_dict"]
    keys = [key for key in keys if not key.startswith(("up_sr_0.", "up_edsr_0."))]
    assert convert_state(dict.fromkeys(keys), "dsrl").keys() == dsrl(scale, upsample).state_dict().keys()


VARIANTS = [
    *({"scale": scale} for scale in (2, 4, 8)),
    *({"scale": scale, "upsample": "bilinear"} for scale in (2, 3, 4)),
    {"encoder": "resnet18"},
    {"encoder": "resnet34", "scale": 2},
    {"encoder": "resnet50", "scale": 2},
    {"encoder": "resnet10t", "encoder_args": {"channels": [8, 8, 16, 16]}},
    {"width": 1, "rates": [2]},
    {"rates": []},
]


@pytest.mark.parametrize("settings", VARIANTS, ids=str)
def test_every_switch(settings):
    """Shapes in training, at a size that is no multiple of 16, and finite gradients in every parameter."""
    net = build(**settings)
    sr, logits, features = net(torch.rand(2, 3, 20, 28))
    native = 2 if settings.get("upsample") == "bilinear" else net.scale
    assert sr.shape == (2, 3, 20 * net.scale, 28 * net.scale) and logits.shape == (2, 1, *sr.shape[-2:])
    assert [x.shape for x in features] == [(2, 3, 20 * native, 28 * native)] * 2
    weighted((sr, logits, features)).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize("upsample", ["deconv", "bilinear"])
def test_gradients_reach_every_parameter(upsample):
    net = build(upsample=upsample, width=8)
    weighted(net(torch.rand(2, 3, 64, 64))).backward()
    still = [name for name, p in net.named_parameters() if not p.grad.any()]
    assert still in ([], ["pointwise.0.bias"])  # the normalisation behind it takes this bias away again


def test_each_output_trains_its_own_branch_and_the_encoder():
    net, names = build(), ("sr", "logits", "of_seg", "of_sr")
    sr, logits, features = net(torch.rand(2, 3, 32, 32))
    reached = {}
    for name, output in zip(names, (sr, logits, *features)):
        net.zero_grad()
        output.square().mean().backward(retain_graph=True)
        reached[name] = {n.split(".")[0] for n, p in net.named_parameters() if p.grad is not None}
    shared, of_sr = {"encoder", "aspp"}, {"sr_decoder", "doublings", "tail"}
    assert reached["sr"] == reached["of_sr"] == shared | of_sr
    assert reached["logits"] == shared | {"seg_decoder"}
    assert reached["of_seg"] == shared | {"seg_decoder", "pointwise"}


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_bilinear_enlarges_what_the_x2_network_makes(scale):
    plain, enlarged, lq = build(2).eval(), build(scale, upsample="bilinear").eval(), torch.rand(2, 3, 20, 28)
    assign_state(enlarged, plain.state_dict(), "the x2 network")
    (sr, logits, features), ours = plain(lq), enlarged(lq)
    size = (20 * scale, 28 * scale)
    for one, other in zip((ours[0], ours[1].sigmoid()), (sr, logits.sigmoid())):
        torch.testing.assert_close(one, F.interpolate(other, size, mode="bilinear", align_corners=True))
    for one, other in zip(ours[2], features):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_extreme_logits_stay_finite():
    net = build()
    nn.init.constant_(net.seg_decoder.layers[-1].bias, 1e4)
    sr, logits, features = net(torch.rand(2, 3, 16, 16))
    torch.testing.assert_close(logits, torch.full_like(logits, 30), rtol=1e-4, atol=0)
    weighted((sr, logits, features)).backward()
    assert all(p.grad.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize("encoder, kernels", [("resnet34", 2), ("resnet50", 1)])
def test_the_last_stage_is_dilated_block_by_block(encoder, kernels):
    net = build(encoder=encoder)
    found = {
        stage: [
            {(c.dilation, c.padding) for c in block.modules() if isinstance(c, nn.Conv2d) and c.kernel_size == (3, 3)}
            for block in getattr(net.encoder, stage)
        ]
        for stage in ("layer3", "layer4")
    }
    assert found["layer3"] == [{((1, 1), (1, 1))}] * 6
    assert found["layer4"] == [{((2, 2), (2, 2))}, {((4, 4), (4, 4))}, {((8, 8), (8, 8))}]
    shallow, deep = net.encoder(torch.rand(1, 3, 64, 64))
    assert shallow.shape[-1] == 16 and deep.shape[-1] == 4


def test_the_pyramid_has_the_published_dilations():
    assert [layer.dilation[0] for layer in (branch[0] for branch in build().aspp.convs[1:4])] == [6, 12, 18]


def test_starts_as_published():
    """Kaiming-normal weights (fan in) behind the encoder, fan out in it; PyTorch's biases; no block an identity."""
    net = build(encoder="resnet50", width=16)
    for layer in (net.aspp.convs[1][0], net.aspp.project[0], net.seg_decoder.layers[0][0], net.sr_decoder.layers[4]):
        expected = (2 / layer.weight[0].numel()) ** 0.5
        torch.testing.assert_close(layer.weight.std().item(), expected, rtol=0.02, atol=0)
    inner = net.encoder.layer3[1].conv2
    torch.testing.assert_close(inner.weight.std().item(), (2 / (9 * inner.out_channels)) ** 0.5, rtol=0.02, atol=0)
    assert net.sr_decoder.layers[4].bias.any() and net.doublings[0].up.bias.any()
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    assert {(m.momentum, m.eps, m.weight.min().item(), m.bias.any().item()) for m in norms} == {(0.1, 1e-5, 1, False)}
    assert shares_of_dropout(net) == [0.5, 0.5, 0.1, 0.5, 0.1]


def test_dropout_is_as_it_was_asked_for():
    assert shares_of_dropout(build(dropout=[0.1, 0.2, 0.3])) == [0.1, 0.2, 0.3, 0.2, 0.3]


def shares_of_dropout(net) -> list[float]:
    return [module.p for module in net.modules() if isinstance(module, nn.Dropout)]


def test_local_encoder_weights_load(tmp_path):
    donor, file = timm.create_model(SMALL["encoder"]), tmp_path / "encoder.safetensors"
    save_file(donor.state_dict(), file)
    net = build(pretrained=str(file))
    for name in ("conv1.0.weight", "layer4.0.conv1.weight"):
        torch.testing.assert_close(net.encoder.get_parameter(name), donor.get_parameter(name), rtol=0, atol=0)


def test_reduced_precision_keeps_the_probabilities_in_float32():
    with torch.autocast("cpu", torch.bfloat16):
        sr, logits, features = build()(torch.rand(2, 3, 16, 16))
    assert logits.dtype == torch.float32 and all(x.isfinite().all() for x in (sr, logits, *features))


def test_a_single_sample_needs_held_normalisation():
    net, lq = build(), torch.rand(1, 3, 16, 16)
    with pytest.raises(ValueError, match="at least 2 samples per process.*raise the batch size") as caught:
        net(lq)
    assert "\n" not in str(caught.value)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    weighted(net(lq)).backward()
    assert all(x.isfinite().all() for x in net.eval()(lq)[:2])


@pytest.mark.parametrize("size", [(18, 20), (20, 21)])
def test_sides_must_be_multiples_of_the_stride(size):
    net = build()
    with pytest.raises(ValueError, match=f"multiples of 4, got {size[0]} x {size[1]}; pad it"):
        net(torch.rand(2, 3, *size))


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"scale": 3}, "must be 2, 4, 8, ..., got 3; upsample=bilinear takes any scale"),
        ({"scale": 1}, "whole number from 2, got 1"),
        ({"scale": 1, "upsample": "bilinear"}, "whole number from 2, got 1"),
        ({"scale": 2.5, "upsample": "bilinear"}, "whole number from 2, got 2.5"),
        ({"upsample": "bicubic"}, "deconv, bilinear, got 'bicubic'"),
        ({"encoder": "resnet35"}, "did you mean.*resnet34"),
        ({"encoder": "vgg16"}, "must be a ResNet.*choose from resnet18"),
        ({"width": 0}, "width must be at least 1, got 0"),
        ({"rates": [6, 0]}, "numbers from 1, got .6, 0"),
        ({"rates": 6}, "numbers from 1, got 6"),
        ({"dropout": 0.5}, "three numbers in"),
        ({"dropout": [0.5, 0.1]}, "three numbers in"),
        ({"dropout": [0.5, 0.5, 1.0]}, "three numbers in"),
        ({"encoder_args": {"norm": "x"}}, "encoder test_resnet cannot be used"),
        ({"pretrained": "nowhere.safetensors"}, "no weight file at nowhere"),
    ],
)
def test_mistakes_are_answered_in_one_line(settings, message):
    with pytest.raises(ValueError, match=message) as caught:
        build(**settings)
    assert "\n" not in str(caught.value)
