"""KBPN against the golden vectors, its shortcuts against the plain formulations, and every switch."""

import pytest
import torch
import torch.nn.functional as F

from cssr.models.blocks import JoinedConv2d, MeanConv2d, constant_map
from cssr.models.export import assign_state
from cssr.models.published import convert_state
from cssr.models.sr import SR, kernel_predictors
from cssr.models.sr.kbpn import Modulation, blur_and_reduce
from cssr.models.sr.kernel_predictors import ResizeOrPad, StagePredictor

SMALL = {"name": "kbpn", "width": 4, "features": 3, "kernel_size": 7, "predicted_size": 3}


def build(scale=4, **settings):
    torch.manual_seed(0)
    return SR.build({**SMALL, "stages": 2, **settings}, scale=scale)


def kernels(batch, size):
    kernel = torch.rand(batch, 1, size, size)
    return kernel / kernel.sum((2, 3), keepdim=True)


@pytest.mark.parametrize("name, predicted_size", [("kbpn_x4_k7to21", 7), ("kbpn_x4_k21", 21)])
def test_equals_the_published_network(name, predicted_size, golden, reference_state):
    arrays = {key: torch.from_numpy(value) for key, value in golden(name).items()}
    net = SR.build({"name": "kbpn", "predicted_size": predicted_size}, scale=4).eval()
    assign_state(net, convert_state(reference_state(name), "kbpn"), name)
    with torch.no_grad():
        sr, kernel = net(arrays["lr"])
        sr_given, kernel_given = net(arrays["lr"], arrays["kernel_given"])
    torch.testing.assert_close(sr, arrays["sr"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(kernel, arrays["kernel"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(sr_given, arrays["sr_given_kernel"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(kernel_given, arrays["kernel_given"], rtol=1e-4, atol=1e-6)


def test_equals_the_sr_half_of_the_published_joint_model(golden, reference_state):
    name, prefix = "csbsr_pspnet_joint", "sr_model."
    arrays, state = golden(name), reference_state(name)
    state = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    net = SR.build("kbpn", scale=4).eval()
    assign_state(net, convert_state(state, "kbpn"), name)
    with torch.no_grad():
        sr, kernel = net(torch.from_numpy(arrays["lr"]))
    torch.testing.assert_close(sr, torch.from_numpy(arrays["sr"]), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(kernel, torch.from_numpy(arrays["kernel"]), rtol=1e-4, atol=1e-5)


VARIANTS = [
    {"scale": 2},
    {"scale": 4},
    {"scale": 8},
    *({"stages": stages} for stages in (1, 3, 5)),
    {"sft": False},
    {"residual": False},
    {"residual": "stages"},
    {"zero_pad_kernel": True},
    {"upsample": "pixel_shuffle"},
    {"upsample": "pixel_shuffle", "scale": 2, "error_space": "lq"},
    {"error_space": "lq"},
    {"error_space": "lq", "stages": 1},
    {"predicted_size": 7},
    {"predicted_size": 4},
    {"predicted_size": 9, "kernel_size": 5},
    {"predicted_size": 1, "kernel_size": 1},
]


@pytest.mark.parametrize("given", [False, True], ids=["predicted", "given"])
@pytest.mark.parametrize("settings", VARIANTS, ids=str)
def test_every_switch(settings, given):
    """Shapes, a kernel that sums to 1, and gradients of the SR image alone in every parameter."""
    net, lq = build(**settings), torch.rand(2, 3, 6, 5)
    size = settings.get("kernel_size", 7)
    kernel = kernels(2, size) if given else None
    sr, used = net(lq, kernel)
    assert sr.shape == (2, 3, 6 * net.scale, 5 * net.scale) and used.shape == (2, 1, size, size)
    assert sr.isfinite().all()
    torch.testing.assert_close(used.sum((1, 2, 3)), torch.ones(2))
    if given:
        torch.testing.assert_close(used, kernel)
    sr.square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize("error_space", ["hr", "lq"])
def test_a_given_kernel_holds_the_predictors_still(error_space):
    net = build(stages=3, error_space=error_space)
    sr, kernel = net(torch.rand(2, 3, 8, 8), kernels(2, 7))
    (sr.square().mean() + kernel.square().mean()).backward()
    for name, parameter in net.named_parameters():
        still = "predictor." in name or (name == "stages.2.image.weight" and error_space == "lq")
        assert bool((parameter.grad == 0).all()) == still, name


def test_a_predicted_kernel_reaches_every_layer():
    net = build(stages=3, predicted_size=7)
    sr, kernel = net(torch.rand(4, 3, 8, 8))
    (sr.square().mean() + kernel.square().mean()).backward()
    assert [name for name, p in net.named_parameters() if not p.grad.any()] == []


def test_a_given_kernel_gives_the_same_with_and_without_gradients():
    net, lq, kernel = build().eval(), torch.rand(2, 3, 8, 8), kernels(2, 7)
    with torch.no_grad():
        plain = net(lq, kernel)
    for one, other in zip(net(lq, kernel), plain):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    torch.testing.assert_close(net(lq, 3 * kernel)[0], plain[0])


def test_a_sample_does_not_depend_on_its_batch():
    net, lq, kernel = build().eval(), torch.rand(3, 3, 8, 8), kernels(3, 7)
    for whole, alone in ((net(lq), net(lq[1:2])), (net(lq, kernel), net(lq[1:2], kernel[1:2]))):
        for one, other in zip(whole, alone):
            torch.testing.assert_close(one[1:2], other, rtol=1e-4, atol=1e-5)


def test_a_black_image_is_finite_before_training():
    net = build()
    sr, kernel = net(torch.zeros(1, 3, 8, 8))
    sr.sum().backward()
    assert sr.isfinite().all() and kernel.isfinite().all()
    assert all(p.grad.isfinite().all() for p in net.parameters())


def test_reduced_precision_keeps_the_kernel_in_float32():
    with torch.autocast("cpu", torch.bfloat16):
        sr, kernel = build()(torch.rand(2, 3, 8, 8))
    assert sr.isfinite().all() and kernel.dtype == torch.float32
    torch.testing.assert_close(kernel.sum((1, 2, 3)), torch.ones(2))


def test_initial_weights_are_those_of_the_published_network():
    """Kaiming-normal with fan in, also in the first convolutions; zero biases; PReLU starts at 0.01."""
    net = SR.build({"name": "kbpn", "stages": 2}, scale=4)
    for layer in (net.head[3][0], net.stages[1].up.there[0], net.backs[0].sft.scale.first, net.predictor.layers[2][0]):
        expected = (2 / layer.weight[0].numel()) ** 0.5
        torch.testing.assert_close(layer.weight.std().item(), expected, rtol=0.02, atol=0)
    assert not any(p.any() for name, p in net.named_parameters() if name.endswith("bias"))
    assert {m.init for m in net.modules() if isinstance(m, torch.nn.PReLU)} == {0.01}


def test_every_key_of_a_published_variant_has_a_place():
    """Its own keys, which no golden file holds: the choice of zero padding, and the LQ error."""
    stage = "back_projection_stages.1.kb."
    keys = [f"{stage}kernel_predictor.pad_descriminator.{n}.{w}" for n in (0, 3, 6) for w in ("weight", "bias")]
    net = build(stages=3, zero_pad_kernel=True, error_space="lq")
    converted = convert_state({key: torch.zeros(1) for key in [*keys, f"{stage}conv.layer.weight"]}, "kbpn")
    assert len(converted) == 7 and converted.keys() <= net.state_dict().keys()


SIZES = [(1, 1), (2, 3), (3, 3), (4, 5), (5, 6), (9, 2), (12, 11)]


@pytest.mark.parametrize("size", SIZES)
def test_joined_convolution_equals_that_of_the_full_map(size):
    conv = JoinedConv2d(7, 5, 3, padding=1).double()
    x = torch.rand(2, 3, *size, dtype=torch.double)
    vector = torch.rand(2, 4, 1, 1, dtype=torch.double, requires_grad=True)
    ours = conv(x, constant_map(vector, size, border=1))
    plain = F.conv2d(torch.cat((x, vector.expand(-1, -1, *size)), 1), conv.weight, conv.bias, padding=1)
    assert_equal_with_gradients(ours, plain, [vector, *conv.parameters()])


@pytest.mark.parametrize("size", SIZES)
def test_mean_convolution_equals_the_mean_of_the_full_map(size):
    conv = MeanConv2d(3, 5, 3, padding=1).double()
    x = torch.rand(2, 3, *size, dtype=torch.double, requires_grad=True)
    plain = F.conv2d(x, conv.weight, conv.bias, padding=1).mean((2, 3), keepdim=True)
    assert_equal_with_gradients(conv(x), plain, [x, *conv.parameters()])


@pytest.mark.parametrize("size", SIZES)
def test_kernel_correction_equals_the_plain_formulation(size, monkeypatch):
    """The kernel as a map of the image's size, convolved twice, joined, convolved twice more, and averaged."""
    monkeypatch.setattr(kernel_predictors, "normalized", lambda k: k / k.sum((2, 3), keepdim=True))  # stays in double
    net = StagePredictor(hidden=32, predicted_size=3, kernel_size=5, zero_pad=False).double()
    sr, kernel = torch.rand(2, 3, *size, dtype=torch.double), kernels(2, 5).double().requires_grad_()
    of_kernel = net.of_kernel(kernel.flatten(1)[..., None, None].expand(-1, -1, *size))
    joined = F.conv2d(torch.cat((net.of_image(sr), of_kernel), 1), net.join.weight)
    values = F.conv2d(net.mix(F.leaky_relu(joined, 0.01)), net.delta.weight, padding=1).mean((2, 3))
    plain = kernel + F.interpolate(values.view(2, 1, 3, 3), 5, mode="bicubic")
    plain = plain / plain.sum((2, 3), keepdim=True)
    assert_equal_with_gradients(net(sr, kernel), plain, [kernel, *net.parameters()])


@pytest.mark.parametrize("size", SIZES)
def test_modulation_equals_the_plain_formulation(size):
    net = Modulation(channels=4, conditions=9).double()
    features, kernel = torch.rand(2, 4, *size, dtype=torch.double), kernels(2, 3).double().requires_grad_()
    joined = torch.cat((features, kernel.flatten(1)[..., None, None].expand(-1, -1, *size)), 1)
    scale, shift = (
        b.second(F.leaky_relu(F.conv2d(joined, b.first.weight, b.first.bias, padding=1), 0.1))
        for b in (net.scale, net.shift)
    )
    assert_equal_with_gradients(net(features, kernel), features * scale.sigmoid() + shift, [kernel, *net.parameters()])


def assert_equal_with_gradients(one, other, leaves):
    torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
    weight = torch.randn_like(one)
    for a, b in zip(*(torch.autograd.grad((y * weight).sum(), leaves, retain_graph=True) for y in (one, other))):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("scale", [2, 4, 8])
def test_blur_and_reduction_equals_a_loop_over_pixels(scale):
    image, kernel = torch.rand(2, 3, 2 * scale, 3 * scale), kernels(2, 5)
    padded, expected = F.pad(image, [2] * 4), torch.empty(2, 3, 2, 3)
    for y in range(2):
        for x in range(3):
            window = padded[..., y * scale : y * scale + 5, x * scale : x * scale + 5]
            expected[..., y, x] = (window * kernel).sum((2, 3))
    torch.testing.assert_close(blur_and_reduce(image, kernel, scale), expected)


@pytest.mark.parametrize("bias, padded", [(-9.0, True), (9.0, False)])
def test_zero_padding_is_chosen_by_the_gate(bias, padded):
    resize, values = ResizeOrPad(3, 7).eval(), torch.rand(2, 9, 1, 1)
    torch.nn.init.zeros_(resize.gate[6].weight)
    torch.nn.init.constant_(resize.gate[6].bias, bias)
    kernel = values.view(2, 1, 3, 3)
    expected = F.pad(kernel, [2] * 4) if padded else F.interpolate(kernel, 7, mode="bicubic")
    torch.testing.assert_close(resize(values), expected)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"scale": 3}, "model.scale must be one of 2, 4, 8"),
        ({"stages": 0}, "stages must be a whole number of 1 to"),
        ({"width": 0}, "width must be a whole number of 1 to"),
        ({"predicted_size": 0}, "predicted_size must be a whole number of 1 to"),
        ({"kernel_size": 20}, "kernel_size must be odd"),
        ({"zero_pad_kernel": True, "predicted_size": 7}, "predicted_size below kernel_size"),
        ({"zero_pad_kernel": True, "predicted_size": 4}, "odd predicted_size"),
        ({"upsample": "nearest"}, "deconv or pixel_shuffle"),
        ({"error_space": "lr"}, "hr or lq"),
    ],
)
def test_impossible_settings_are_answered_in_one_line(settings, message):
    with pytest.raises(ValueError, match=message) as caught:
        build(**settings)
    assert "\n" not in str(caught.value)


def test_a_kernel_of_another_size_is_refused():
    with pytest.raises(ValueError, match=r"must be \[2, 1, 7, 7\], got \[2, 1, 5, 5\]"):
        build()(torch.rand(2, 3, 8, 8), kernels(2, 5))
