"""Degradations against the golden vectors and torchvision; every entry of the registry keeps its contract."""

import math

import kornia.filters
import pytest
import torch
import torchvision.transforms.v2.functional as tv

from cssr.degradations import DEGRADATIONS, ops
from cssr.degradations.kernels import gaussian_kernel
from cssr.degradations.ops import blur, blur_strided, blurring, resampler


def build(name: str, scale: int = 4, **arguments):
    return DEGRADATIONS.build({"name": name, **arguments}, scale=scale)


def images(count: int = 2, height: int = 48, width: int = 56, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(seed))


def seeds(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int64)


# ---- golden vectors ----


@pytest.fixture
def vectors(golden):
    return {k: torch.from_numpy(v) for k, v in golden("losses_degradation_metrics").items()}


def test_kernels_equal_the_published_ones(vectors):
    kernels = gaussian_kernel(vectors["kernel_sigma1_sigma2_theta_deg"], 21)
    torch.testing.assert_close(kernels.float(), vectors["kernels"], rtol=1e-4, atol=1e-7)


def test_blur_equals_the_published_one(vectors):
    torch.testing.assert_close(blur(vectors["hr"], vectors["kernels"]), vectors["blurred"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("source, method, result", [
    ("blurred", "bicubic", "lr"),
    ("hr", "bicubic", "bicubic_down_x4"),
    ("hr", "area", "area_down_x4"),
])  # fmt: skip
def test_reduction_equals_the_published_one(vectors, source, method, result):
    lq, kernel = build("downsample", method=method)(vectors[source])
    assert kernel is None
    torch.testing.assert_close(lq, vectors[result], rtol=1e-5, atol=1e-5)


# ---- reduction ----


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("method", ["bicubic", "bilinear"])
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_reduction_equals_torchvisions_resize(method, antialias, scale):
    hr = images()[..., :48, :48]
    expected = tv.resize(hr, [48 // scale] * 2, tv.InterpolationMode[method.upper()], antialias=antialias)
    lq, _ = build("downsample", scale, method=method, antialias=antialias)(hr)
    torch.testing.assert_close(lq, expected, rtol=0, atol=1e-6)


def test_antialiasing_is_a_difference():
    plain, smooth = (build("downsample", antialias=on)(images())[0] for on in (False, True))
    assert (plain - smooth).abs().max() > 0.05


def test_area_is_the_mean_of_blocks_and_strided_the_first_pixel():
    hr = images()
    blocks = hr.unfold(2, 4, 4).unfold(3, 4, 4)
    torch.testing.assert_close(build("downsample", method="area")(hr)[0], blocks.mean((-1, -2)))
    assert torch.equal(build("downsample", method="strided")(hr)[0], blocks[..., 0, 0])


def test_an_unknown_method_is_named():
    for name in ("downsample", "gaussian"):
        with pytest.raises(ValueError, match="bicubic, bilinear, area or strided, got 'lanczos'"):
            build(name, method="lanczos")


@pytest.mark.parametrize("method", ["bicubic", "area", "strided"])
def test_an_image_that_the_scale_does_not_divide_is_a_mistake(method):
    with pytest.raises(AssertionError, match="30x48 is not a multiple of 4"):
        build("downsample", method=method)(images(1, 30, 48))


@pytest.mark.parametrize("method", ["bicubic", "bilinear", "area", "strided"])
@pytest.mark.parametrize("antialias", [True, False])
def test_resamplers_are_named_apart(method, antialias):
    _, name = resampler(4, method, antialias)
    assert method in name and "1/4" in name
    if method in ("bicubic", "bilinear"):
        assert ("not antialiased" in name) != antialias


# ---- kernels ----


@pytest.mark.parametrize("sigma", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("theta", [0.0, 33.0])
def test_an_isotropic_kernel_has_its_closed_form(sigma, theta):
    axis = torch.arange(-7, 8, dtype=torch.float64)
    profile = torch.exp(-(axis**2) / (2 * sigma**2))
    expected = profile[:, None] * profile / profile.sum() ** 2
    kernel = gaussian_kernel(torch.tensor([[sigma, sigma, theta]], dtype=torch.float64), 15)
    torch.testing.assert_close(kernel[0, 0], expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("theta, rows, columns", [(0, 0.8, 2.0), (90, 2.0, 0.8), (180, 0.8, 2.0)])
def test_the_first_width_lies_along_the_direction(theta, rows, columns):
    """At 0 degrees the first standard deviation (2 pixels) is that of the columns, x."""
    kernel = gaussian_kernel(torch.tensor([[2.0, 0.8, theta]], dtype=torch.float64), 41)[0, 0]
    axis = torch.arange(-20, 21, dtype=torch.float64)
    assert math.sqrt((kernel.sum(1) * axis**2).sum()) == pytest.approx(rows, rel=1e-2)
    assert math.sqrt((kernel.sum(0) * axis**2).sum()) == pytest.approx(columns, rel=1e-2)


def test_directions_turn_counter_clockwise_as_seen():
    """The covariance of rows (downwards) and columns at 30 degrees."""
    kernel = gaussian_kernel(torch.tensor([[3.0, 1.0, 30.0]], dtype=torch.float64), 61)[0, 0]
    axis = torch.arange(-30, 31, dtype=torch.float64)
    found = (kernel * axis[:, None] * axis).sum()
    assert found == pytest.approx(-(9 - 1) * math.sin(math.radians(30)) * math.cos(math.radians(30)), rel=1e-3)


def test_drawn_kernels_stay_within_their_settings():
    """Widths from the kernel's second moments: between 1 and 2 pixels in every direction."""
    _, kernel = build("gaussian", sigma=[1.0, 2.0], size=31)(torch.zeros(40, 3, 8, 8), torch.arange(40))
    axis = torch.arange(-15, 16).float()
    widths = torch.cat([(kernel.sum((1, d)) * axis**2).sum(1).sqrt() for d in (2, 3)])
    assert 0.99 < widths.min() < 1.35 and 1.65 < widths.max() < 2.01


def test_what_a_seed_draws_stays():
    """Results are recorded with seeds."""
    parameters = torch.tensor(
        [
            [2.9882346306896177, 2.4439784493762953, 37.405609319172804],
            [3.0921193122273083, 3.7543100434051384, 141.2576930710039],
        ],
        dtype=torch.float64,
    )
    hr, degrade = images(), build("gaussian")
    lq, kernel = degrade(hr, seeds(5, 2**62 - 1))
    assert torch.equal(kernel, gaussian_kernel(parameters, 21).float())
    torch.testing.assert_close(lq, resampler(4, "bicubic", True)[0](blur(hr, kernel)), rtol=0, atol=3e-6)
    assert degrade.resampler == f"21x21 Gaussian, zero padding, then {resampler(4, 'bicubic', True)[1]}"


@pytest.mark.parametrize("size", [7, 21])
def test_kernels_sum_to_one(size):
    _, kernel = build("gaussian", sigma=[0.2, 1.5], size=size)(images(8, 32, 32), torch.arange(8))
    assert kernel.shape == (8, 1, size, size) and (kernel >= 0).all()
    torch.testing.assert_close(kernel.sum((1, 2, 3)), torch.ones(8))


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"size": 20}, "size must be odd, got 20"),
        ({"size": -1}, "size must be a whole number of 1 to 101"),
        ({"sigma": [0, 1]}, "sigma needs 0 < low <= high"),
        ({"sigma": [2, 1]}, "sigma needs 0 < low <= high"),
        ({"sigma": [1]}, "sigma"),
        ({"sigma": 1.0}, "sigma"),
        ({"sigma": ["1", "2"]}, "sigma"),
        ({"sigma": [3, float("inf")]}, "sigma"),
        ({"theta": [3]}, "theta"),
        ({"size": 15}, "sigma=4 does not fit size=15; set size=17 or lower it"),
        ({"padding": "circular"}, "padding must be zero, reflect or replicate"),
    ],
)
def test_settings_of_the_blur_are_checked_when_it_is_built(arguments, message):
    with pytest.raises(ValueError, match=message) as caught:
        build("gaussian", **arguments)
    assert "\n" not in str(caught.value)


# ---- blur ----


@pytest.mark.parametrize("padding", ["reflect", "replicate"])
def test_a_constant_image_stays_constant(padding):
    lq, _ = build("gaussian", padding=padding)(torch.full((2, 3, 48, 48), 0.7), seeds(1, 2))
    torch.testing.assert_close(lq, torch.full((2, 3, 12, 12), 0.7), rtol=0, atol=1e-5)


@pytest.mark.parametrize("way", ["blur", "strided", "in one"])
def test_more_than_an_image_has_cannot_be_reflected(way):
    hr, kernel = torch.rand(1, 3, 8, 8), torch.full((1, 1, 21, 21), 1 / 441)
    degrade = DEGRADATIONS.build({"name": "gaussian", "padding": "reflect"}, scale=2)
    ways = {
        "blur": lambda: blur(hr, kernel, "reflect"),
        "strided": lambda: blur_strided(hr, kernel, "reflect", 2),
        "in one": lambda: degrade(hr, torch.zeros(1, dtype=torch.int64)),
    }
    with pytest.raises(ValueError, match="padding=reflect: an HR image of 8 x 8 pixels is too small"):
        ways[way]()


def test_zero_padding_darkens_the_border_alone():
    lq, _ = build("gaussian", sigma=[2, 3])(torch.full((1, 3, 96, 96), 0.7), seeds(1))
    torch.testing.assert_close(lq[..., 6:-6, 6:-6], torch.full((1, 3, 12, 12), 0.7), rtol=0, atol=1e-5)
    assert all((edge < 0.6).all() for edge in (lq[..., 0, :], lq[..., -1, :], lq[..., 0], lq[..., -1]))


def test_blur_is_a_correlation():
    """A kernel with a single 1 above its centre moves the picture down by a pixel (a convolution would move it up)."""
    hr, kernel = images(1), torch.zeros(1, 1, 5, 5)
    kernel[0, 0, 1, 2] = 1
    torch.testing.assert_close(blur(hr, kernel)[..., 1:, :], hr[..., :-1, :])


def test_each_image_has_its_own_kernel():
    hr, kernel = images(2), torch.zeros(2, 1, 3, 3)
    kernel[0, 0, 1, 1], kernel[1] = 1, 1 / 9
    found = blur(hr, kernel)
    torch.testing.assert_close(found[0], hr[0])
    torch.testing.assert_close(found[1, :, 1:-1, 1:-1], hr[1].unfold(1, 3, 1).unfold(2, 3, 1).mean((-1, -2)))


def test_blur_and_stride_take_the_pixels_of_the_blurred_image():
    hr = images()
    lq, kernel = build("gaussian", method="strided")(hr, seeds(1, 2))
    torch.testing.assert_close(lq, blur(hr, kernel)[..., ::4, ::4])


def test_scale_1_blurs_only():
    hr = images()
    lq, kernel = build("gaussian", 1)(hr, seeds(1, 2))
    torch.testing.assert_close(lq, blur(hr, kernel))
    assert build("downsample", 1)(hr)[0] is hr


# ---- the contract, for every entry ----

EVERY = pytest.mark.parametrize("name", sorted({*DEGRADATIONS.names()} - {"stored"}))  # it degrades nothing


@EVERY
@pytest.mark.parametrize("scale", [1, 2, 4])
def test_the_contract(name, scale):
    hr, degrade = images(3, 48, 56), build(name, scale)
    before = hr.clone()
    lq, kernel = degrade(hr, seeds(1, 2, 3))
    assert lq.shape == (3, 3, 48 // scale, 56 // scale) and lq.dtype == torch.float32 and lq.isfinite().all()
    assert isinstance(degrade.resampler, str) and degrade.resampler and "\n" not in degrade.resampler
    assert torch.equal(hr, before)
    if kernel is not None:
        assert kernel.shape[:2] == (3, 1) and kernel.shape[2] == kernel.shape[3] and kernel.dtype == torch.float32
        torch.testing.assert_close(kernel.sum((1, 2, 3)), torch.ones(3))


@EVERY
def test_a_sample_does_not_depend_on_its_mates(name):
    hr, degrade = images(4), build(name)
    together = degrade(hr, seeds(11, 12, 13, 14))
    for order in ([2], [3, 2, 0]):
        lq, kernel = degrade(hr[order], seeds(11, 12, 13, 14)[order])
        torch.testing.assert_close(lq, together[0][order], rtol=0, atol=1e-6)
        assert kernel is None or torch.equal(kernel, together[1][order])


@EVERY
def test_seeds_alone_decide(name):
    """Neither the state of the global generators nor an earlier call matters."""
    hr = images(2)
    torch.manual_seed(0)
    lq, kernel = build(name)(hr, seeds(5, 2**62 - 1))
    torch.manual_seed(1)
    degrade = build(name)
    degrade(hr, seeds(8, 9))
    again, kernel_again = degrade(hr, seeds(5, 2**62 - 1))
    assert torch.equal(lq, again)
    assert kernel is None or torch.equal(kernel, kernel_again)


def test_other_seeds_give_other_kernels():
    _, kernel = build("gaussian")(images(1).expand(20, -1, -1, -1), torch.arange(20))
    assert len({k.numpy().tobytes() for k in kernel}) == 20


@EVERY
def test_gradients_pass_through(name):
    """Losses that degrade the SR image again need them."""
    hr = images(1).requires_grad_()
    build(name)(hr, seeds(1))[0].sum().backward()
    assert hr.grad.abs().sum() > 0


# ---- weights of next to nothing ----


@pytest.mark.parametrize("sigma", [0.2, 0.5])
def test_tails_of_a_kernel_do_not_reach_the_convolution_but_have_their_gradient(monkeypatch, sigma):
    """Denormal numbers slow a convolution down several times; a gradient belongs to every weight all the same."""
    kernel = gaussian_kernel(torch.tensor([[sigma, sigma, 0.0]]), 21).float().requires_grad_()
    assert ((kernel > 0) & (kernel < 1e-20)).any()
    seen, real = [], kornia.filters.filter2d
    monkeypatch.setattr(kornia.filters, "filter2d", lambda x, k, **rest: seen.append(k) or real(x, k, **rest))
    hr = images(1).double()
    with torch.no_grad():
        result = blur(hr, kernel)
    assert len(seen) == 1 and not ((seen[0] > 0) & (seen[0] < 1e-20)).any() and (seen[0] > 0).any()
    torch.testing.assert_close(result, real(hr, kernel[:, 0].double(), border_type="constant"), rtol=0, atol=1e-15)
    blur(hr, kernel).sum().backward()
    assert (kernel.grad > 100).all()


@pytest.mark.parametrize("padding", ["zero", "reflect", "replicate"])
@pytest.mark.parametrize("size", [3, 21])
def test_blur_with_gradients_equals_the_correlation(padding, size):
    """Where a gradient is asked for, the product of spectra gives the same image and the same gradients."""
    hr, kernel = images(2).double(), torch.rand(2, 1, size, size, dtype=torch.float64)
    inputs = [x.clone().requires_grad_() for x in (hr, kernel)]
    expected = [x.clone().requires_grad_() for x in (hr, kernel)]
    border = {"zero": "constant"}.get(padding, padding)
    plain = kornia.filters.filter2d(expected[0], expected[1][:, 0], border_type=border)
    result = blur(*inputs, padding)
    torch.testing.assert_close(result, plain, rtol=0, atol=1e-10)
    weight = torch.rand_like(plain)
    (result * weight).sum().backward()
    (plain * weight).sum().backward()
    for ours, theirs in zip(inputs, expected):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-9, atol=1e-9)


# ---- blur and reduction in one ----


def in_one_and_one_by_one(method: str, antialias: bool, padding: str, scale: int, hr: torch.Tensor, size: int = 11):
    """LQ by both ways, and the kernels, which ask for gradients."""
    parameters = torch.tensor([[0.7, 2.2, 30.0], [1.5, 0.4, 110.0]], dtype=torch.float64)[: len(hr)]
    kernel = gaussian_kernel(parameters, size).to(hr.dtype).requires_grad_()
    reduce, _ = resampler(scale, method, antialias)
    return blurring(scale, reduce, padding)(hr, kernel), reduce(blur(hr, kernel, padding)), kernel


@pytest.mark.parametrize("padding", ["zero", "reflect", "replicate"])
@pytest.mark.parametrize(
    "method, antialias", [("bicubic", True), ("bicubic", False), ("bilinear", True), ("area", False)]
)
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_in_one_is_one_after_the_other(method, antialias, padding, scale, monkeypatch):
    """Up to the border, and not by way of it: the image is large enough that the inner part exists."""
    seen = []
    monkeypatch.setattr(ops, "_correlate", lambda *a, real=ops._correlate: seen.append(1) or real(*a))
    found, expected, _ = in_one_and_one_by_one(method, antialias, padding, scale, images(2, 72, 96).double())
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert len(seen) == 1


def test_in_one_passes_the_same_gradients():
    hr = images(2, 96, 72).double().requires_grad_()
    found, expected, kernel = in_one_and_one_by_one("bicubic", True, "zero", 4, hr)
    weight = torch.rand(found.shape, dtype=found.dtype, generator=torch.Generator().manual_seed(1))
    for inputs in (hr, kernel):
        ours, plain = (torch.autograd.grad((x * weight).sum(), inputs, retain_graph=True)[0] for x in (found, expected))
        torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-6)


def test_an_image_without_an_inner_part_is_done_the_plain_way():
    found, expected, _ = in_one_and_one_by_one("bicubic", True, "zero", 4, images(1, 32, 96))
    assert torch.equal(found, expected)
