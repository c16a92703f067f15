"""CrackFormer: the published function, its attention pixel by pixel, any size, gradients everywhere."""

import pytest
import torch
from torch import nn

from cssr.config.schema import ModelConfig
from cssr.models.export import assign_state
from cssr.models.joint import build_model
from cssr.models.published import convert_state
from cssr.models.seg import SEG
from cssr.models.seg.crackformer import Block, CrackFormer, SelfAttention

SMALL = {"name": "crackformer", "width": 16}


def build(**settings) -> CrackFormer:
    torch.manual_seed(0)
    return SEG.build({**SMALL, **settings})


@pytest.fixture(scope="module")
def full_size() -> CrackFormer:
    return build(width=64)


def test_equals_the_published_network(golden, reference_state):
    """Means to 1e-5 of the range, the deeper sides to 1e-4 everywhere.

    With the golden weights the layers of full size amplify rounding: an input that is 1e-7 off moves single pixels of
    the last side by 2e-4 of its range in float64, and in float32 the reference differs from itself by as much.
    """
    name = "crackformer"
    arrays, net = golden(name), SEG.build(name).eval()
    assign_state(net, convert_state(reference_state(name), name), name)
    with torch.no_grad():
        probs = torch.cat(net(torch.from_numpy(arrays["x"])), 1).sigmoid()
    expected = torch.cat([torch.from_numpy(arrays[key]) for key in ("prob", "side_probs")], 1)
    error = (probs - expected).abs() / (expected.amax((0, 2, 3)) - expected.amin((0, 2, 3)))[:, None, None]
    assert error.mean((0, 2, 3)).max() <= 1e-5
    assert error[:, 1:5].max() <= 1e-4
    assert error.max() <= 1e-3 and (error > 1e-4).float().mean() <= 1e-3


def test_only_what_is_never_applied_has_no_place(reference_state):
    published = reference_state("crackformer")
    left_out = [key for key in published if not convert_state({key: published[key]}, "crackformer")]
    never = [key for key in published if ".conv.bn2." in key or key[:9] in ("down3.nn3", "down4.nn3", "down5.nn3")]
    assert left_out == never and len(never) == 25 * 2 + 3 * 28


def test_the_second_block_runs_again_below_half_size():
    ran = []
    net = build().eval()
    for name, module in net.named_modules():
        if isinstance(module, Block):
            module.register_forward_hook(lambda *_, name=name: ran.append(name.replace(".layers.", "")))
    net(torch.rand(1, 3, 32, 32))
    encoder = [[1], [0, 1], [0, 1, 1], [0, 1, 1], [0, 1, 1]]
    decoder = [[0, 1, 2], [0, 1, 2], [0, 1, 2], [0, 1], [0, 1]]
    order = (("encoder", encoder), ("decoder", decoder))
    assert ran == [f"{part}.{stage}{n}" for part, stages in order for stage, own in enumerate(stages) for n in own]


def attention_by_pixel(net: SelfAttention, x: torch.Tensor, window: int) -> torch.Tensor:
    """What every query vector reads of every pixel, one pixel after the other."""
    queries, keys, values = net.queries(x), net.keys(x), net.values(x)
    shares = keys.exp() / keys.exp().sum((2, 3), keepdim=True)
    reach, (batch, _, height, width) = window // 2, x.shape
    out = x.new_zeros(batch, 4, values.shape[1], height, width)
    for b, y0, x0 in ((b, y, x) for b in range(batch) for y in range(height) for x in range(width)):
        query = queries[b, :, y0, x0].view(4, 16)
        for y, x1 in ((y, x) for y in range(height) for x in range(width)):
            weight = shares[b, :, y, x1]
            if max(abs(y - y0), abs(x1 - x0)) <= reach:
                weight = weight + net.positions.weight[:, 0, 0, y - y0 + reach, x1 - x0 + reach]
            out[b, :, :, y0, x0] += (query @ weight)[:, None] * values[b, :, y, x1]
    return out.flatten(1, 2)


@pytest.mark.parametrize("channels, window, size", [(16, 3, (4, 5)), (8, 7, (3, 2)), (4, 1, (2, 3))])
def test_attention_equals_a_loop_over_pixels(channels, window, size):
    torch.manual_seed(0)
    net = SelfAttention(channels, window).double()
    for norm in (net.keys[1], net.values[1]):
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    x = torch.randn(2, channels, *size, dtype=torch.double, requires_grad=True)
    ours, plain = net(x), attention_by_pixel(net, x, window)
    torch.testing.assert_close(ours, plain)
    leaves, weight = [x, *net.parameters()], torch.randn_like(x)
    for a, b in zip(*(torch.autograd.grad((y * weight).sum(), leaves, retain_graph=True) for y in (ours, plain))):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)


def test_gradients_reach_every_parameter(full_size):
    """But for one that can have none: a constant added to a key cancels in its softmax."""
    full_size.train().zero_grad()
    outputs = full_size(torch.rand(2, 3, 32, 32))
    assert len(outputs) == 6
    sum((logits * torch.randn_like(logits)).mean() for logits in outputs).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in full_size.parameters())
    still = [name for name, p in full_size.named_parameters() if not p.grad.any()]
    assert [name for name in still if not name.endswith("attention.keys.1.bias")] == []


def test_each_side_alone_reaches_what_it_is_made_of():
    """The deepest side knows the encoder and the deepest stage of the decoder only; the last one knows all stages."""
    net = build()
    for number, side in enumerate(net(torch.rand(1, 3, 64, 64))[1:]):
        net.zero_grad()
        side.sum().backward(retain_graph=True)
        for part in ("decoder", "sides"):
            reached = [any(p.grad is not None for p in stage.parameters()) for stage in getattr(net, part)]
            assert reached == [n <= number if part == "decoder" else n == number for n in range(5)]


@pytest.mark.parametrize("settings", [{}, {"width": 48}, {"window": 1}, {"window": 9}, {"dropout": 0}], ids=str)
def test_any_size_through_the_joint_model(settings):
    """37 x 50 pixels are no multiple of 32: every head's logits have the SR image's size all the same."""
    config = ModelConfig(scale=2, sr={"name": "bicubic"}, seg={**SMALL, **settings})
    outputs = build_model(config)(torch.rand(2, 3, 37, 50))
    assert len(outputs.aux) == 5
    for logits in (outputs.logits, *outputs.aux):
        assert logits.shape == (2, 1, 74, 100) and logits.isfinite().all()


def test_the_head_makes_the_crack_logits_of_the_features():
    net, x = build().eval(), torch.rand(2, 3, 32, 64)
    with torch.no_grad():
        features, *sides = net.features(x)
        logits, *aux = net(x)
        torch.testing.assert_close(net.head(features), logits)
    assert features.shape == (2, 5, 32, 64) and len(aux) == 5
    torch.testing.assert_close(features, torch.cat(sides, 1))


def test_a_sample_does_not_depend_on_its_batch():
    net, x = build(dropout=0).double(), torch.rand(3, 3, 32, 32, dtype=torch.double)
    for whole, alone in zip(net(x), net(x[1:2])):
        torch.testing.assert_close(whole[1:2], alone, rtol=1e-6, atol=1e-6)


def test_dropout_is_for_training_only():
    net, x = build(), torch.rand(1, 3, 32, 32)
    assert not torch.equal(net(x)[0], net(x)[0])
    assert torch.equal(net.eval()(x)[0], net(x)[0])


def test_reduced_precision_trains():
    net = build()
    with torch.autocast("cpu", torch.bfloat16):
        outputs = net(torch.rand(2, 3, 32, 32))
    sum(logits.float().square().mean() for logits in outputs).backward()
    assert all(logits.isfinite().all() for logits in outputs)
    assert all(p.grad.isfinite().all() for p in net.parameters())


def test_starts_as_published(full_size):
    """Attention and MLP by the outputs of a group, windows with deviation 1, the rest as PyTorch starts it."""
    block = full_size.encoder[4].layers[0]  # 512 channels, 128 inside, 32 in the MLP
    for layer, fan_out in (
        (block.attention.queries[0], 64),
        (block.attention.keys[0], 16),
        (block.mlp[0][0], 32),
        (block.mlp[1][0], 36),
        (block.mlp[3][0], 128),
    ):
        torch.testing.assert_close(layer.weight.std().item(), (2 / fan_out) ** 0.5, rtol=0.1, atol=0)
        assert layer.bias is None or not layer.bias.any()
    torch.testing.assert_close(block.attention.positions.weight.std().item(), 1.0, rtol=0.1, atol=0)
    for layer in (block.squeeze[0], full_size.encoder[1].layers[0].shortcut[0], full_size.sides[0].gate[1][0]):
        torch.testing.assert_close(
            layer.weight.std().item(), (1 / 3 / layer.weight[0].numel()) ** 0.5, rtol=0.1, atol=0
        )


def test_dropout_and_normalisation_are_those_published(full_size):
    norms = [m for m in full_size.modules() if isinstance(m, nn.GroupNorm)]
    assert {(m.num_channels / m.num_groups, m.eps) for m in norms} == {(4, 1e-5)}
    assert [m.p for m in full_size.modules() if isinstance(m, nn.Dropout)] == [0.3, 0.3] * 22
    assert full_size.stride == 32


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"width": 24}, "width must be a multiple of 16, got 24"),
        ({"width": 0}, "width must be a whole number of 1 to 4096, got 0"),
        ({"window": 4}, "window must be odd and at least 1, got 4"),
        ({"window": -1}, "window must be a whole number of 1 to 101, got -1"),
        ({"dropout": 1}, r"dropout must be in \[0, 1\), got 1"),
        ({"dropout": -0.1}, r"dropout must be a number of 0 to 1, got -0.1"),
        ({"pretrained": True}, "no pretrained weights, got pretrained=True"),
    ],
)
def test_impossible_settings_are_answered_in_one_line(settings, message):
    with pytest.raises(ValueError, match=message) as caught:
        build(**settings)
    assert "\n" not in str(caught.value)
