"""SrcNet's SR network against the golden vectors, its sizes, and the errors."""

import pytest
import torch
from torch import nn

from cssr.models.export import assign_state
from cssr.models.published import convert_state
from cssr.models.sr import SR

SMALL = {"name": "srcnet", "groups": 2, "blocks": 2, "width": 8, "hidden": 4, "enlarged": 6}


def build(scale=4, **settings):
    torch.manual_seed(0)
    return SR.build({**SMALL, **settings}, scale=scale)


def test_equals_the_published_network(golden, reference_state):
    name = "srcnet_sr_x4"
    arrays, net = golden(name), SR.build("srcnet", scale=4).eval()
    assign_state(net, convert_state(reference_state(name), "srcnet"), name)
    with torch.no_grad():
        sr, kernel = net(torch.from_numpy(arrays["lr"]))
    expected = torch.from_numpy(arrays["sr"])
    error, extent = (sr - expected).abs(), expected.max() - expected.min()
    assert kernel is None and sr.shape == expected.shape
    assert error.max() <= 1e-4 * extent and error.mean() <= 1e-5 * extent


@pytest.mark.parametrize("scale", [2, 4, 8])
@pytest.mark.parametrize("settings", [{}, {"groups": 1, "blocks": 3}, {"hidden": 1, "enlarged": 1}, {"channels": 1}])
def test_every_scale_and_size_in_training(scale, settings):
    net = build(scale, **settings).train()
    sr, kernel = net(torch.rand(2, settings.get("channels", 3), 5, 7))
    assert kernel is None and sr.shape == (2, settings.get("channels", 3), 5 * scale, 7 * scale)
    sr.square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def test_gradients_reach_every_layer_of_the_published_sizes():
    """Also the first block, behind 19 others whose attention sets channels to 0."""
    torch.manual_seed(0)
    net = SR.build({"name": "srcnet", "groups": 1}, scale=2)
    net(torch.rand(2, 3, 8, 8))[0].square().mean().backward()
    assert [name for name, p in net.named_parameters() if not p.grad.any()] == []


def test_a_block_scales_channels_and_a_group_adds():
    net, x = build(), torch.rand(2, 8, 5, 5)
    group = net.body.layers[0]
    block = group.layers[0]
    found = block.layers(x)
    scales = block.attention(found)
    assert scales.shape == (2, 8, 1, 1) and scales.min() == 0 and scales.max() > 0
    torch.testing.assert_close(block(x), found * scales)
    nn.init.zeros_(group.last.weight)
    nn.init.zeros_(group.last.bias)
    torch.testing.assert_close(group(x), x, rtol=0, atol=0)


def test_a_sample_does_not_depend_on_its_batch():
    net, lq = build(), torch.rand(3, 3, 6, 6)
    torch.testing.assert_close(net(lq)[0][1:2], net(lq[1:2])[0], rtol=1e-5, atol=1e-6)


def test_reduced_precision_is_finite():
    with torch.autocast("cpu", torch.bfloat16):
        sr, _ = build()(torch.rand(1, 3, 6, 6))
    assert sr.isfinite().all()


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"scale": 3}, "model.scale must be one of 2, 4, 8, got 3"),
        ({"scale": 1}, "model.scale must be one of 2, 4, 8, got 1"),
        ({"groups": 0}, "groups must be a whole number of 1 to 4096, got 0"),
        ({"blocks": 0}, "blocks must be a whole number of 1 to 4096"),
        ({"hidden": -1}, "hidden must be a whole number of 1 to 4096"),
        ({"width": 0}, "width must be a whole number of 1 to 4096"),
        ({"stages": 3}, "does not take 'stages'"),
    ],
)
def test_mistakes_are_answered_in_one_line(settings, message):
    with pytest.raises(ValueError, match=message) as caught:
        build(**settings)
    assert "\n" not in str(caught.value)
