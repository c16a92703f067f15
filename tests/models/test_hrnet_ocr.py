"""HRNet with OCR: the published function, its attention in full, gradients everywhere, encoder weights from a file."""

import copy

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from cssr.config.schema import ModelConfig
from cssr.models.export import assign_state
from cssr.models.joint import JointModel, build_model
from cssr.models.published import convert_state
from cssr.models.seg import SEG
from cssr.models.seg.hrnet_ocr import ObjectContext

SMALL = {"name": "hrnet_ocr", "encoder": "hrnet_w18_small", "width": 8, "hidden": 4}


def build(**settings) -> nn.Module:
    torch.manual_seed(0)
    return SEG.build({**SMALL, **settings})


def joint(**settings) -> JointModel:
    config = ModelConfig(scale=2, sr={"name": "bicubic"}, seg={**SMALL, **settings})
    return build_model(config, fresh=True)


@pytest.fixture(scope="module")
def published() -> nn.Module:
    return SEG.build("hrnet_ocr").eval()


def test_equals_the_published_network(published, golden, reference_state):
    """Without the layers of attention, the only ones that have no place here."""
    name = "hrnet_w48_ocr"
    arrays, state = {key: torch.from_numpy(value) for key, value in golden(name).items()}, reference_state(name)
    left_out = [key for key in state if not convert_state({key: state[key]}, "hrnet_ocr")]
    assert {key.split(".")[2] for key in left_out} == {"f_pixel", "f_object"}
    assign_state(published, convert_state(state, "hrnet_ocr"), name)
    with torch.no_grad():
        outputs = published(arrays["x"])
    for logits, prob in zip(outputs, (arrays["prob"], arrays["aux_prob"]), strict=True):
        error, width = (logits.sigmoid() - prob).abs(), prob.max() - prob.min()
        assert error.max() <= 1e-4 * width and error.mean() <= 1e-5 * width


def test_starts_as_published(published):
    """Normalisation with momentum 0.1, one dropout of whole channels, and the heads as PyTorch starts convolutions."""
    norms = [m for m in published.modules() if isinstance(m, nn.BatchNorm2d)]
    assert {(m.momentum, m.eps) for m in norms} == {(0.1, 1e-5)}
    assert [m.p for m in published.modules() if isinstance(m, (nn.Dropout, nn.Dropout2d))] == [0.05]
    net = SEG.build({"name": "hrnet_ocr", "encoder": "hrnet_w18_small"})
    for layer in (net.aux[0], net.squeeze[0], net.context.merge[0]):
        bound = layer.weight[0].numel() ** -0.5  # of PyTorch's uniform draw
        torch.testing.assert_close(layer.weight.abs().max().item(), bound, rtol=0.01, atol=0)
        torch.testing.assert_close(layer.weight.std().item(), bound / 3**0.5, rtol=0.02, atol=0)
    assert all(m.weight.min() == m.weight.max() == 1 for m in net.modules() if isinstance(m, nn.BatchNorm2d))


def test_smaller_branches_are_enlarged_with_aligned_corners():
    """A fusion layer whose convolution does nothing gives its input, enlarged so that the corner pixels stay."""
    fusion = build().eval().encoder.stage4[-1].fuse_layers[0][3]
    fusion[0], fusion[1] = nn.Identity(), nn.Identity()
    x = torch.rand(1, 2, 3, 4)
    corners = (slice(None), slice(None), slice(None, None, 23), slice(None, None, 31))
    torch.testing.assert_close(fusion(x)[corners], x[..., ::2, ::3])
    torch.testing.assert_close(fusion(x), F.interpolate(x, (24, 32), mode="bilinear", align_corners=True))


def in_full(net: ObjectContext, x: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """The published formulation: attention over objects, its queries and keys from layers that have no influence."""
    share = logits.flatten(2).softmax(2)  # B 1 n
    objects = (share @ x.flatten(2).transpose(1, 2)).transpose(1, 2).unsqueeze(3)  # B C 1 1
    queries, keys = (nn.Conv2d(x.shape[1], 5, 1)(each).flatten(2) for each in (x, objects))  # B 5 n, B 5 1
    attention = (queries.transpose(1, 2) @ keys / 5**0.5).softmax(2)  # B n 1
    context = net.down(objects).flatten(2) @ attention.transpose(1, 2)  # B hidden n
    return net.merge(torch.cat((net.up(context.unflatten(2, x.shape[-2:])), x), 1))


@pytest.mark.parametrize("training", [True, False])
def test_attention_over_one_class_is_left_out_without_a_trace(training):
    """Outputs, gradients and BatchNorm statistics are those of the full formulation."""
    torch.manual_seed(0)
    net = ObjectContext(6, 4, 0.0).train(training)
    other = copy.deepcopy(net)
    x, logits = torch.randn(3, 6, 4, 5, requires_grad=True), (3 * torch.randn(3, 1, 4, 5)).requires_grad_()
    weight = torch.randn(3, 6, 4, 5)
    results = []
    for module, y in ((net, net(x, logits)), (other, in_full(other, x, logits))):
        gradients = torch.autograd.grad((y * weight).sum(), [x, logits, *module.parameters()])
        results.append([y, *gradients, *module.buffers()])
    for one, full in zip(*results, strict=True):
        torch.testing.assert_close(one, full, rtol=1e-4, atol=1e-5)


def test_the_context_is_taken_where_the_coarse_logits_are_large():
    """With one pixel far above the others, the context is that pixel's, and other pixels' features do not matter."""
    net, logits = ObjectContext(6, 4, 0.0).eval(), torch.full((1, 1, 3, 3), -50.0)
    logits[..., 1, 1] = 50.0
    x = torch.randn(1, 6, 3, 3)
    moved, elsewhere = x.clone(), x.clone()
    moved[..., 1, 1] += 1
    elsewhere[..., 0, 0] += 1
    before = net(x, logits)[..., 2, 2]
    assert not torch.allclose(net(moved, logits)[..., 2, 2], before)
    torch.testing.assert_close(net(elsewhere, logits)[..., 2, 2], before)


@pytest.mark.parametrize("encoder", ["hrnet_w18_small", "hrnet_w18_ssld"])
def test_gradients_reach_every_parameter(encoder):
    net = build(encoder=encoder)
    logits, aux = net(torch.rand(4, 3, 64, 96))
    assert logits.shape == aux.shape == (4, 1, 64, 96)
    (logits * torch.randn_like(logits)).mean().backward()  # the auxiliary logits work on the others through the context
    still = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert still == []
    assert all(p.grad.isfinite().all() for p in net.parameters())


def test_it_learns():
    """A few steps on four drawn images, a dark stripe each, bring down the loss of both heads."""
    net, mask = build(width=32, dropout=0.0), torch.zeros(4, 1, 32, 32)
    for number, sample in enumerate(mask):
        sample[..., 8 * number : 8 * number + 4] = 1
    x, losses = torch.rand(4, 3, 32, 32) - mask, []
    optimizer = torch.optim.AdamW(net.parameters(), 1e-2)
    for _ in range(12):
        each = [F.binary_cross_entropy_with_logits(logits, mask) for logits in net(x)]
        optimizer.zero_grad()
        sum(each).backward()
        optimizer.step()
        losses.append([loss.item() for loss in each])
    assert all(last < 0.7 * first for first, last in zip(losses[0], losses[-1]))


def test_the_head_makes_the_logits_of_the_features():
    net, x = build().eval(), torch.rand(1, 3, 32, 64)
    features, aux = net.features(x)
    assert features.shape == (1, 8, 8, 16) and list(net.children())[-1] is net.head
    for one, other in zip((net.head(features), aux), net(x), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_any_size_through_the_joint_model():
    """37 x 50 pixels are no multiple of the stride: both heads' logits have the SR image's size all the same."""
    with torch.no_grad():
        outputs = joint().eval()(torch.rand(2, 3, 37, 50))
    for logits in (outputs.logits, *outputs.aux):
        assert logits.shape == (2, 1, 74, 100) and logits.isfinite().all()
    assert len(outputs.aux) == 1


def test_reduced_precision():
    net = build()
    with torch.autocast("cpu", torch.bfloat16):
        outputs = net(torch.rand(2, 3, 32, 32))
    sum(logits.float().mean() for logits in outputs).backward()
    assert all(logits.isfinite().all() for logits in outputs)
    assert all(p.grad.isfinite().all() for p in net.parameters())
    assert all(logits.isfinite().all() for logits in net.bfloat16()(torch.rand(2, 3, 32, 32).bfloat16()))


def test_one_image_is_refused_in_training_only():
    net, x = build(), torch.rand(1, 3, 32, 32)
    with pytest.raises(ValueError, match="2 images or more in a forward pass.*got 1; set train.micro_batch") as caught:
        net(torch.rand(1, 3, 64, 64))
    assert "\n" not in str(caught.value)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()  # as a group that is held still has it
    assert net(x)[0].isfinite().all() and net.eval()(x)[0].isfinite().all()


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_local_encoder_weights_load(suffix, tmp_path):
    donor, file = timm.create_model("hrnet_w18_small"), tmp_path / f"encoder.{suffix}"
    (save_file if suffix == "safetensors" else torch.save)(donor.state_dict(), file)
    encoder = joint(pretrained=str(file)).seg.encoder
    for name, parameter in encoder.named_parameters():
        torch.testing.assert_close(parameter, donor.get_parameter(name), rtol=0, atol=0)


def test_a_file_without_all_the_weights_is_refused(tmp_path):
    """timm by itself would leave what is missing as it was drawn."""
    state = timm.create_model("hrnet_w18_small").state_dict()
    file = tmp_path / "encoder.safetensors"
    save_file({key: value for key, value in state.items() if not key.startswith("stage4.")}, file)
    with pytest.raises(ValueError, match=r"lacks \d+ weights of hrnet_w18_small, stage4\.\S+ the first") as caught:
        joint(pretrained=str(file))
    assert "\n" not in str(caught.value)


def test_weights_of_another_width_are_refused(tmp_path):
    file = tmp_path / "encoder.safetensors"
    save_file(timm.create_model("hrnet_w18_small").state_dict(), file)
    with pytest.raises(ValueError, match="encoder hrnet_w18_small_v2 cannot be used") as caught:
        joint(encoder="hrnet_w18_small_v2", pretrained=str(file))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"encoder": "hrnet_w47"}, "did you mean.*hrnet_w48"),
        ({"encoder": "resnet34"}, "must be an HRNet of timm, got 'resnet34' .choose from.*hrnet_w48"),
        ({"encoder": "hrnet_w18_small.nowhere", "pretrained": True}, "hrnet_w18_small.nowhere"),
        ({"width": 0}, "width must be a whole number of 1 to 4096, got 0"),
        ({"hidden": 0}, "hidden must be a whole number of 1 to 4096, got 0"),
        ({"dropout": 1.0}, r"a number in \[0, 1\), got 1.0"),
        ({"dropout": [0.1]}, r"dropout must be a number of 0 to 1, got \[0.1\]"),
        ({"classes": 2}, "does not take 'classes'"),
        ({"pretrained": "nowhere.safetensors"}, "no weight file at nowhere"),
    ],
)
def test_mistakes_are_answered_in_one_line(settings, message):
    with pytest.raises(ValueError, match=message) as caught:
        joint(**settings)
    assert "\n" not in str(caught.value)
