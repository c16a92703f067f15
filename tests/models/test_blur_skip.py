"""BlurSkip against the golden vectors and the plain formulation, on every network, trained with all else held still."""

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from cssr.config.loading import load_config
from cssr.config.schedules import Progress
from cssr.config.schema import ModelConfig
from cssr.data.batch import Batch
from cssr.models.blocks import Modulation, VectorBranch
from cssr.models.export import assign_state
from cssr.models.joint import JointModel, build_model, group_of
from cssr.models.published import convert_state
from cssr.models.seg import SEG
from cssr.models.seg.blur_skip import BlurSkip
from cssr.training.optim import Hold, LearningRate, build_optimizer, held_groups
from cssr.training.task import Task

TINY = {"encoder": "resnet10t", "encoder_args": {"channels": [8, 8, 16, 16]}}
PSPNET = {"name": "pspnet", "encoder": "test_resnet", "width": 4}
NETS = [
    PSPNET,
    {"name": "unet", **TINY, "width": 4},
    {"name": "segnet", "encoder": "vgg11_bn"},
    {"name": "crackformer", "width": 16, "window": 3},
    {"name": "hrnet_ocr", "encoder": "hrnet_w18_small", "width": 8, "hidden": 4},
    {"name": "smp", "architecture": "fpn", "encoder": "tu-resnet10t", "decoder_segmentation_channels": 32},
    {"name": "smp", "architecture": "unet", "encoder": "tu-resnet10t", "decoder_channels": [16, 8, 8, 8, 4]},
]
KBPN = {"name": "kbpn", "stages": 2, "width": 4, "features": 3, "hidden": 4, "kernel_size": 5, "predicted_size": 3}
BY = ["features_and_kernel", "kernel"]


def name_of(net: dict) -> str:
    return f"{net['name']}-{net.get('architecture', '')}".strip("-")


def build(net: dict | str = PSPNET, **settings) -> BlurSkip:
    torch.manual_seed(0)
    return SEG.build({"name": "blur_skip", "net": net, "kernel_size": 5, **settings})


def joint(**seg) -> ModelConfig:
    settings = {"name": "blur_skip", "net": PSPNET, "kernel_size": 5, **seg}
    return ModelConfig(scale=2, sr=KBPN, seg=settings)


def kernels(batch: int, size: int = 5) -> torch.Tensor:
    kernel = torch.rand(batch, 1, size, size)
    return kernel / kernel.sum((2, 3), keepdim=True)


@pytest.mark.parametrize("name, by", [("pspnet_blurskip", BY[0]), ("pspnet_blurskip_origin", BY[1])])
def test_equals_the_published_network(name, by, golden, reference_state):
    arrays, net = golden(name), SEG.build({"name": "blur_skip", "modulate_by": by}).eval()
    arrays = {key: torch.from_numpy(value) for key, value in arrays.items()}
    assign_state(net, convert_state(reference_state(name), "blur_skip"), name)
    with torch.no_grad():
        outputs = net(arrays["x"], arrays["kernel"].view(-1, 1, 21, 21))
    for logits, prob in zip(outputs, (arrays["prob"], arrays["aux_prob"]), strict=True):
        error, width = (logits.sigmoid() - prob).abs(), prob.max() - prob.min()
        assert error.max() <= 1e-4 * width and error.mean() <= 1e-5 * width


def test_starts_as_published():
    """Kaiming-normal before an activation, Xavier-normal before scale and shift, zero biases, PReLU at 0.01."""
    layer = build(kernel_size=9, net={**PSPNET, "width": 16}).blur_skip[1]
    for branch in (layer.modulation.scale, layer.modulation.shift):
        of = [conv.weight[0].numel() for conv in (branch.first, branch.second)]  # inputs of a value
        expected = ((2 / (1 + 0.01**2) / of[0]) ** 0.5, (2 / (of[1] + 9 * branch.second.out_channels)) ** 0.5)
        for conv, std in zip((branch.first, branch.second), expected):
            torch.testing.assert_close(conv.weight.std().item(), std, rtol=0.02, atol=0)
            assert not conv.bias.any()
        assert branch.act.weight.item() == pytest.approx(0.01) and branch.act.weight.numel() == 1
    conv, norm, _ = layer.conv
    torch.testing.assert_close(conv.weight.std().item(), (2 / conv.weight[0].numel()) ** 0.5, rtol=0.05, atol=0)
    assert conv.bias is None and (norm.eps, norm.momentum) == (1e-5, 0.1)


def plain(layer: Modulation, features: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
    """The kernel as a map of the features' size, convolved all over."""
    condition = kernel.flatten(1)[..., None, None].expand(-1, -1, *features.shape[-2:])
    alone = isinstance(layer.scale, VectorBranch)
    x = condition if alone else torch.cat((features, condition), 1)
    scale, shift = (
        b.second(b.act(F.conv2d(x, b.first.weight, b.first.bias, padding=1))) for b in (layer.scale, layer.shift)
    )
    return features * scale.sigmoid() + shift


@pytest.mark.parametrize("by", BY)
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (3, 6), (4, 5), (5, 4), (6, 9), (11, 12)])
def test_modulation_equals_the_plain_formulation(by, size):
    """Also at the borders, and in every gradient."""
    layer = build(modulate_by=by, kernel_size=3).blur_skip[0].modulation.double()
    features = torch.rand(2, 4, *size, dtype=torch.double, requires_grad=True)
    kernel = kernels(2, 3).double().requires_grad_()
    one, other = layer(features, kernel), plain(layer, features, kernel)
    torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
    weight, leaves = torch.randn_like(one), [features, kernel, *layer.parameters()]
    for a, b in zip(*(torch.autograd.grad((y * weight).sum(), leaves) for y in (one, other))):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("by, share", [(BY[0], 0.3), (BY[1], 0.03)])
def test_the_kernel_is_never_convolved_as_a_full_size_map(by, share):
    layer = build(modulate_by=by, kernel_size=7).blur_skip[0].modulation
    features, kernel, work = torch.rand(1, 4, 48, 48), kernels(1, 7), []
    for function in (layer, lambda *inputs: plain(layer, *inputs)):
        with FlopCounterMode(display=False) as counter:
            function(features, kernel)
        work.append(counter.get_total_flops())
    assert 0 < work[0] < share * work[1]


def test_what_is_modulated_is_added_to_the_features():
    """Without it, or with a last convolution that gives 0, the logits are the inner network's."""
    net, x, kernel = build().eval(), torch.rand(2, 3, 32, 32), kernels(2)
    assert not torch.allclose(net(x, kernel)[0], net.net(x)[0])
    torch.testing.assert_close(net(x, kernel)[1], net.net(x)[1])
    nn.init.zeros_(net.blur_skip[1].conv[1].weight)
    torch.testing.assert_close(net(x, kernel)[0], net.net(x)[0])


def test_layers_follow_each_other():
    net, x, kernel = build(layers=3).eval(), torch.rand(2, 3, 32, 32), kernels(2)
    features, _ = net.net.features(x)
    modulated = features
    for layer in net.blur_skip:
        modulated = F.relu(layer.conv[1](layer.conv[0](layer.modulation(modulated, kernel))))
    torch.testing.assert_close(net.features(x, kernel)[0], features + modulated)


@pytest.mark.parametrize("by", BY)
def test_a_reduced_kernel(by):
    """The network of reduced kernels is that of small ones, which are given bicubic with aligned corners."""
    net, small = build(kernel_size=9, reduce=5, modulate_by=by).eval(), build(modulate_by=by).eval()
    small.load_state_dict(net.state_dict())
    x, kernel = torch.rand(2, 3, 16, 16), kernels(2, 9)
    reduced = F.interpolate(kernel, (5, 5), mode="bicubic", align_corners=True)
    torch.testing.assert_close(net(x, kernel), small(x, reduced))
    torch.testing.assert_close(reduced[..., ::4, ::4], kernel[..., ::8, ::8])


def test_each_image_is_modulated_by_its_own_kernel():
    net, x, kernel = build().eval(), torch.rand(3, 3, 16, 16), kernels(3)
    logits, alone = net(x, kernel)[0], net(x[1:2], kernel[1:2])[0]
    torch.testing.assert_close(logits[1:2], alone, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(net(x, kernel.flip(0))[0][0], logits[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("net", [*NETS, {"name": "none"}], ids=name_of)
def test_every_network_parts_features_and_head(net):
    torch.manual_seed(0)
    inner, x = SEG.build(net).eval(), torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        features, *aux = inner.features(x)
        logits = inner(x)
        again = (inner.head(features), *aux)
    assert logits[0].shape == (1, 1, 64, 96)
    torch.testing.assert_close(again, logits, rtol=0, atol=0)


def test_smp_keeps_its_function():
    """An SMP network gives what the library's own model gives, whose head has another place here."""
    library = pytest.importorskip("segmentation_models_pytorch")
    theirs = library.create_model("fpn", "tu-resnet10t", encoder_weights=None, classes=1).eval()
    ours, x = (
        SEG.build({"name": "smp", "architecture": "fpn", "encoder": "tu-resnet10t"}).eval(),
        torch.rand(1, 3, 32, 64),
    )
    state = {f"model.{k}".replace("model.segmentation_head", "head"): v for k, v in theirs.state_dict().items()}
    ours.load_state_dict(state)
    torch.testing.assert_close(ours(x)[0], theirs(x), rtol=0, atol=0)


@pytest.mark.parametrize("by", BY)
@pytest.mark.parametrize("net", NETS, ids=name_of)
def test_gradients_reach_every_parameter_of_blur_skip_alone(net, by):
    """With all else held: fixed weights, BatchNorm in evaluation mode."""
    wrapped = build(net, modulate_by=by)
    wrapped.net.eval().requires_grad_(False)
    logits, *_ = wrapped(torch.rand(2, 3, 64, 64), kernels(2))
    assert logits.shape == (2, 1, 64, 64)
    (logits * torch.randn_like(logits)).mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in wrapped.blur_skip.parameters())
    assert [name for name, p in wrapped.blur_skip.named_parameters() if not p.grad.abs().sum() > 0] == []


@pytest.mark.parametrize("by", BY)
def test_gradients_reach_every_parameter(by):
    net, kernel = build(modulate_by=by), kernels(2).requires_grad_()
    outputs = net(torch.rand(2, 3, 64, 64), kernel)
    sum((logits * torch.randn_like(logits)).mean() for logits in outputs).backward()
    leaves = {"kernel": kernel, **dict(net.named_parameters())}
    assert [name for name, p in leaves.items() if p.grad is None or not p.grad.abs().sum() > 0] == []
    assert all(p.grad.isfinite().all() for p in leaves.values())


def test_a_phase_trains_blur_skip_alone():
    """As published: learning rate 0 for sr, kernel and seg. Nothing of these moves, BatchNorm statistics included."""
    config = load_config(None, ["optim.lr=1e-2", "loss.seg=bce", "phases=[{lr: {sr: 0, kernel: 0, seg: 0}}]"])
    config.model = joint()
    torch.manual_seed(0)
    task = Task(build_model(config.model), config).train()
    optimizer, progress = build_optimizer(task.model, config), Progress(0, 100)
    hold = Hold(task.model, optimizer)
    hold.groups = held_groups(task.model.groups(), task.phase(progress), 0)
    LearningRate(config).apply(optimizer, progress, task.phase(progress))
    task.hold_still(hold.groups)
    before = {name: value.clone() for name, value in task.model.state_dict().items()}
    hr = torch.rand(2, 3, 32, 32)
    task(Batch(hr=hr, mask=(hr[:, :1] > 0.7).float(), lq=F.avg_pool2d(hr, 2)), progress)["loss"].backward()
    optimizer.step()
    moved = {name for name, value in task.model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {name for name in before if group_of(name) == "blur_skip"}


def test_its_parameters_are_a_group():
    groups = build_model(joint()).groups()
    assert set(groups) == {"sr", "kernel", "seg", "encoder", "blur_skip"}
    assert all(name.startswith("seg.blur_skip.") for name in groups["blur_skip"])
    assert all(name.startswith("seg.net.encoder.") for name in groups["encoder"])
    assert all(name.startswith("seg.net.") for name in groups["seg"])


@pytest.mark.parametrize("net", NETS, ids=name_of)
def test_any_size_through_the_joint_model(net):
    """34 x 50 SR pixels are no multiple of any stride: the logits have the SR image's size all the same."""
    with torch.no_grad():
        outputs = build_model(joint(net=net)).eval()(torch.rand(2, 3, 17, 25))
    for logits in (outputs.logits, *outputs.aux):
        assert logits.shape == (2, 1, 34, 50) and logits.isfinite().all()


def test_tiles_share_one_kernel():
    with torch.no_grad():
        outputs = build_model(joint()).eval().infer(torch.rand(1, 3, 24, 24), tile=16, overlap=6)
    assert outputs.logits.shape == (1, 1, 48, 48) and outputs.kernel.shape == (1, 1, 5, 5)


def test_export_round_trip(tmp_path):
    model, lq = build_model(joint(net=NETS[1], reduce=3)).eval(), torch.rand(1, 3, 16, 16)
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(JointModel.from_pretrained(tmp_path)(lq).logits, model(lq).logits, rtol=0, atol=0)


@pytest.mark.parametrize("by", BY)
def test_reduced_precision(by):
    with torch.autocast("cpu", torch.bfloat16):
        logits, aux = build(modulate_by=by)(torch.rand(2, 3, 32, 32), kernels(2))
    (logits.float().mean() + aux.mean()).backward()
    assert logits.shape == (2, 1, 32, 32) and logits.isfinite().all()


def test_local_encoder_weights_reach_the_inner_network(tmp_path):
    donor, file = timm.create_model("test_resnet"), tmp_path / "encoder.safetensors"
    save_file(donor.state_dict(), file)
    fresh = build_model(joint(pretrained=str(file)), fresh=True).seg.net.encoder
    torch.testing.assert_close(fresh.layer4[0].conv1.weight, donor.layer4[0].conv1.weight, rtol=0, atol=0)


def test_building_never_downloads(monkeypatch):
    """`pretrained: true` counts for a fresh training run only."""
    asked, create = [], timm.create_model
    without = lambda *a, **k: asked.append(k["pretrained"]) or create(*a, **{**k, "pretrained": False})  # noqa: E731
    monkeypatch.setattr(timm, "create_model", without)
    for fresh in (False, True):
        build_model(joint(pretrained=True), fresh=fresh)
    assert asked == [False, True]


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"kernel_size": 4}, "kernel_size must be odd, got 4"),
        ({"kernel_size": -1}, "kernel_size must be a whole number of 1 to 101, got -1"),
        ({"reduce": 4}, "reduce must be odd and below kernel_size .5., or null, got 4"),
        ({"reduce": 5}, "reduce must be odd and below"),
        ({"reduce": 0}, "reduce must be a whole number of 1 to 101 or null, got 0"),
        ({"layers": 0}, "layers must be a whole number of 1 to 4096"),
        ({"modulate_by": "kernels"}, "modulate_by must be features_and_kernel or kernel, got 'kernels'"),
        ({"modulate_by": "origin"}, "modulate_by must be features_and_kernel or kernel"),
        ({"net": {**PSPNET, "pretrained": True}}, "set model.seg.pretrained=True instead"),
        ({"net": "pspnett"}, "did you mean pspnet"),
        ({"net": ["pspnet"]}, "a word or a mapping"),
        ({"net": ["pspnet"], "pretrained": True}, "a word or a mapping"),
        ({"net": {"name": "pspnet", "widths": 3}}, "does not take 'widths'"),
        ({"net": "none"}, "`head` that begins with a convolution .* which 'none' has not"),
        ({"net": {"name": "none"}, "pretrained": True}, "'none' does not take 'pretrained'"),
        ({"net": {"name": "blur_skip", "net": PSPNET}}, "net must have `features"),
        ({"net": {"name": "crackformer", "width": 16}, "pretrained": True}, "no pretrained weights"),
        ({"pretrained": "nowhere.safetensors"}, "no weight file at nowhere"),
    ],
)
def test_mistakes_are_answered_in_one_line(settings, message):
    with pytest.raises(ValueError, match=message) as caught:
        build(**settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "kernel, message",
    [
        (kernels(2, 7), r"must be \[2, 1, 5, 5\], got \[2, 1, 7, 7\]"),
        (kernels(1), r"must be \[2, 1, 5, 5\], got \[1, 1, 5, 5\]"),
        (kernels(2).flatten(1), r"got \[2, 25\]"),
        (None, "a kernel is needed, got none"),
    ],
)
def test_kernels_of_another_shape_are_refused(kernel, message):
    with pytest.raises(ValueError, match=message) as caught:
        build()(torch.rand(2, 3, 16, 16), kernel)
    assert "\n" not in str(caught.value)


def test_an_sr_network_without_a_kernel_is_refused():
    with pytest.raises(ValueError, match="needs the blur kernel, which model.sr=bicubic does not predict"):
        build_model(ModelConfig(scale=2, sr={"name": "bicubic"}, seg=joint().seg))
