"""PSPNet and SegNet: the published functions, any size, gradients everywhere, encoder weights from a file."""

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from cssr.config.schema import ModelConfig
from cssr.models.export import assign_state
from cssr.models.joint import JointModel, build_model
from cssr.models.published import convert_state
from cssr.models.seg import SEG
from cssr.models.seg.pspnet import _enlarge

SMALL_PSPNET = {"name": "pspnet", "encoder": "test_resnet", "width": 4}
SMALL_SEGNET = {"name": "segnet", "encoder": "vgg11_bn"}


def joint(seg: dict, **options) -> JointModel:
    return build_model(ModelConfig(scale=2, sr={"name": "bicubic"}, seg=seg), **options)


@pytest.mark.parametrize("name, network", [("pspnet_resnet34", "pspnet"), ("segnet", "segnet")])
def test_equals_the_published_network(name, network, golden, reference_state):
    arrays, net = golden(name), SEG.build(network).eval()
    assign_state(net, convert_state(reference_state(name), network), name)
    with torch.no_grad():
        outputs = net(torch.from_numpy(arrays["x"]))
    expected = [arrays[key] for key in ("prob", "aux_prob") if key in arrays]
    assert len(outputs) == len(expected)
    for logits, prob in zip(outputs, expected):
        torch.testing.assert_close(logits.sigmoid(), torch.from_numpy(prob), rtol=0, atol=1e-6)


def test_segnet_runs_the_published_layers_in_their_order(reference_state):
    """The golden output hardly depends on the deepest layers, so their places are compared by name."""
    net, ran = SEG.build("segnet").eval(), []
    for name, module in net.named_modules():
        if isinstance(module, (nn.Conv2d, nn.BatchNorm2d)):
            module.register_forward_hook(lambda *_, name=name: ran.append(name))
    net(torch.rand(1, 3, 32, 32))
    published = convert_state(reference_state("segnet"), "segnet")  # the reference lists its layers as it runs them
    assert ran == list(dict.fromkeys(key.rpartition(".")[0] for key in published))


@pytest.mark.parametrize(
    "seg, heads",
    [
        ({**SMALL_PSPNET, "encoder": "resnet18"}, 2),
        ({**SMALL_PSPNET, "encoder": "resnet50"}, 2),
        ({**SMALL_PSPNET, "encoder": "resnet10t", "encoder_args": {"channels": [8, 8, 16, 16]}}, 2),
        ({**SMALL_PSPNET, "sizes": [1, 5]}, 2),
        (SMALL_SEGNET, 1),
    ],
)
def test_any_size_through_the_joint_model(seg, heads):
    """37 x 50 pixels are no multiple of any stride: every head's logits have the SR image's size all the same."""
    with torch.no_grad():
        outputs = joint(seg).eval()(torch.rand(2, 3, 37, 50))
    assert len(outputs.aux) == heads - 1
    for logits in (outputs.logits, *outputs.aux):
        assert logits.shape == (2, 1, 74, 100) and logits.isfinite().all()


@pytest.mark.parametrize("seg", [SMALL_PSPNET, {**SMALL_PSPNET, "encoder": "resnet34"}, SMALL_SEGNET])
def test_gradients_reach_every_parameter(seg):
    torch.manual_seed(0)
    net = SEG.build(seg)
    sum((logits * torch.randn_like(logits)).mean() for logits in net(torch.rand(2, 3, 64, 64))).backward()
    still = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert still == []


@pytest.mark.parametrize("encoder, kernels", [("resnet34", 2), ("resnet50", 1)])
def test_the_first_block_of_a_dilated_stage_is_not_dilated(encoder, kernels):
    net = SEG.build({"name": "pspnet", "encoder": encoder})
    for stage, dilation in ((net.encoder.layer3, 2), (net.encoder.layer4, 4)):
        found = [
            [c.dilation[0] for c in block.modules() if isinstance(c, nn.Conv2d) and c.kernel_size == (3, 3)]
            for block in stage
        ]
        assert found == [[1] * kernels] + [[dilation] * kernels] * (len(stage) - 1)


def test_the_auxiliary_head_enlarges_probabilities():
    coarse = torch.randn(2, 1, 4, 4) * 3
    expected = nn.functional.interpolate(coarse.sigmoid(), (16, 16), mode="bilinear", align_corners=True)
    torch.testing.assert_close(_enlarge(coarse, (16, 16)).sigmoid(), expected)


def test_extreme_auxiliary_logits_stay_finite():
    coarse = torch.tensor([[-1e4, 25.0], [-25.0, 1e4]]).view(1, 1, 2, 2).requires_grad_()
    fine = _enlarge(coarse, (2, 2))
    fine.sum().backward()
    torch.testing.assert_close(fine.detach().flatten(), torch.tensor([-30.0, 25.0, -25.0, 30.0]), rtol=1e-4, atol=0)
    assert coarse.grad.isfinite().all()


def test_auxiliary_logits_carry_gradients_to_the_encoder():
    net = SEG.build(SMALL_PSPNET)
    net(torch.rand(2, 3, 32, 32))[1].mean().backward()
    reached = {name.split(".")[0] for name, p in net.named_parameters() if p.grad is not None}
    assert reached == {"encoder", "aux"}


def test_pspnet_starts_as_published():
    """Residual blocks start with all of their weights at work, normalisation with momentum 0.1, dropout as given."""
    net = SEG.build("pspnet")
    assert all(block.bn2.weight.min() == 1 for block in net.encoder.layer3)
    assert {m.momentum for m in net.modules() if isinstance(m, nn.BatchNorm2d)} == {0.1}
    assert [m.p for m in net.modules() if isinstance(m, nn.Dropout2d)] == [0.3, 0.15, 0.15, 0.15, 0.1]


def test_unpooling_puts_values_where_the_maxima_were():
    """Without learned layers, SegNet keeps the largest value of each 32 x 32 field in its place and drops the rest."""
    net, x = SEG.build(SMALL_SEGNET), torch.rand(2, 1, 64, 96)
    for stages in (net.encoder, net.decoder):
        for i in range(len(stages)):
            stages[i] = nn.Identity()
    (y,) = net(x)
    fields = x.unfold(2, 32, 32).unfold(3, 32, 32)
    assert torch.equal(y[y > 0].sort().values, fields.amax((-2, -1)).flatten().sort().values)
    assert torch.equal(y[y > 0], x[y > 0])


@pytest.mark.parametrize(
    "seg, ours, timms",
    [
        (SMALL_PSPNET, "layer4.0.conv1.weight", "layer4.0.conv1.weight"),
        (SMALL_SEGNET, "1.0.weight", "features.4.weight"),
    ],
)
def test_local_encoder_weights_load(seg, ours, timms, tmp_path):
    donor, file = timm.create_model(seg["encoder"]), tmp_path / "encoder.safetensors"
    save_file(donor.state_dict(), file)
    model = joint({**seg, "pretrained": str(file)}, fresh=True)
    torch.testing.assert_close(model.seg.encoder.get_parameter(ours), donor.get_parameter(timms), rtol=0, atol=0)


@pytest.mark.parametrize(
    "seg, message",
    [
        ({"name": "pspnet", "encoder": "resnet35"}, "did you mean.*resnet34"),
        ({"name": "pspnet", "encoder": "vgg16"}, "vgg16.*choose from resnet18"),
        ({"name": "pspnet", "dropout": [0.3, 0.1]}, "three numbers in"),
        ({"name": "pspnet", "dropout": 0.1}, "dropout must be a list"),
        ({"name": "pspnet", "sizes": [0, 2]}, "sizes must be a list, each a whole number of 1"),
        ({"name": "pspnet", "encoder_args": {"norm": "x"}}, "encoder resnet34 cannot be used"),
        ({"name": "segnet", "encoder": "vgg16"}, "did you mean vgg16_bn"),
        ({"name": "segnet", "encoder": "resnet34"}, "VGG with BatchNorm"),
        ({**SMALL_PSPNET, "pretrained": "nowhere.safetensors"}, "no weight file at nowhere"),
    ],
)
def test_mistakes_are_answered_in_one_line(seg, message):
    with pytest.raises(ValueError, match=message) as caught:
        joint(seg, fresh=True)
    assert "\n" not in str(caught.value)
