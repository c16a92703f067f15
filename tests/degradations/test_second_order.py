"""The two-pass degradation, and the canvas that holds pictures of different sizes."""

import dataclasses

import kornia.filters
import pytest
import torch
import torch.nn.functional as F

from cssr.degradations import DEGRADATIONS, canvas
from cssr.degradations.canvas import Canvas
from cssr.degradations.draws import FIRST, generators
from cssr.degradations.ops import jpeg
from cssr.degradations.second_order import _FIRST, _SECOND, _blur, _plan

HEIGHTS, WIDTHS = torch.tensor([40, 17, 1, 23]), torch.tensor([52, 20, 11, 31])  # of 4 pictures on a 40 x 52 canvas
QUIET = {"blur": 0, "resize_weights": [0, 0, 1], "gaussian": 1, "noise": [0, 0], "jpeg": [100, 100]}


def build(scale: int = 4, **settings):
    return DEGRADATIONS.build({"name": "second_order", **settings}, scale=scale)


def images(count: int = 2, height: int = 48, width: int = 56) -> torch.Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(0))


def pictures() -> Canvas:
    return Canvas(images(4, 40, 52), HEIGHTS, WIDTHS)


def cut(of: Canvas) -> list[torch.Tensor]:
    """Each picture alone, 1 3 h w."""
    return [x[None, :, :h, :w] for x, h, w in zip(of.pixels, of.heights.tolist(), of.widths.tolist())]


# ---- canvas ----


@pytest.mark.parametrize(
    "methods", [["area"] * 4, ["bilinear"] * 4, ["bicubic"] * 4, ["area", "bicubic", "bilinear", "area"]]
)
def test_each_picture_is_resized_as_torch_does(methods):
    heights, widths = torch.tensor([60, 6, 5, 23]), torch.tensor([9, 44, 11, 40])
    resized = canvas.resize(pictures(), heights, widths, methods, (61, 50))
    assert resized.pixels.shape == (4, 3, 61, 50)
    for before, after, h, w, method in zip(cut(pictures()), cut(resized), heights.tolist(), widths.tolist(), methods):
        torch.testing.assert_close(after, F.interpolate(before, size=(h, w), mode=method), rtol=0, atol=1e-5)


def test_each_picture_is_blurred_with_its_own_border_reflected():
    kernel = torch.rand(4, 21, 21, generator=torch.Generator().manual_seed(1)) / 220
    heights, widths = torch.tensor([40, 17, 11, 23]), torch.tensor([52, 20, 11, 31])
    before = pictures()._replace(heights=heights, widths=widths)
    for alone, blurred, k in zip(cut(before), cut(canvas.blur(before, kernel)), kernel):
        expected = kornia.filters.filter2d(alone, k[None], border_type="reflect")
        torch.testing.assert_close(blurred, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_picture_smaller_than_the_kernel_is_reflected_again_and_again(size):
    before = Canvas(images(1, 8, 8), torch.tensor([size]), torch.tensor([size]))
    constant = before._replace(pixels=torch.full((1, 3, 8, 8), 0.3))
    kernel = torch.full((1, 21, 21), 1 / 441)
    torch.testing.assert_close(cut(canvas.blur(constant, kernel))[0], torch.full((1, 3, size, size), 0.3))
    blurred = cut(canvas.blur(before, kernel))[0]
    assert blurred.amax() <= cut(before)[0].amax() and blurred.amin() >= cut(before)[0].amin()


def test_each_picture_is_compressed_as_if_alone():
    quality = torch.tensor([20.0, 40.0, 60.0, 80.0])
    smooth = pictures()._replace(pixels=F.avg_pool2d(images(4, 40, 52), 5, 1, 2))
    for alone, found, q in zip(cut(smooth), cut(canvas.compress(smooth, quality)), quality):
        difference = (found - jpeg(alone, q[None])).abs()  # the colours of the last pixels look across the border
        assert difference.mean() < 2e-3 and difference.amax() < 0.06


def test_what_lies_beyond_a_picture_does_not_matter():
    other = pictures()
    pixels = torch.full_like(other.pixels, 9.0)
    for place, picture, h, w in zip(pixels, cut(other), HEIGHTS.tolist(), WIDTHS.tolist()):
        place[:, :h, :w] = picture[0]
    kernel, sizes = torch.full((4, 7, 7), 1 / 49), (HEIGHTS + 3, WIDTHS)

    def worked_on(start: Canvas) -> list[torch.Tensor]:
        resized = canvas.resize(canvas.blur(start, kernel), *sizes, ["bicubic"] * 4, (43, 52))
        return cut(canvas.compress(resized, torch.full((4,), 50.0)))

    for a, b in zip(worked_on(other), worked_on(other._replace(pixels=pixels))):
        assert torch.equal(a, b)


def test_noise_is_as_drawn():
    """Gaussian of 0.05; Poisson of factor 0.8: variance 0.64 x / 256, gray's of the luminance; each colour or gray."""
    count, colour = 4, torch.tensor([0.3, 0.6, 0.4]).view(3, 1, 1)
    flat = colour.expand(4, 3, 120, 130)
    poisson, gray = torch.tensor([False, False, True, True]), torch.tensor([False, True, False, True])
    level = torch.tensor([0.05, 0.05, 0.8, 0.8])
    noisy = canvas.add_noise(canvas.whole(flat), generators(torch.arange(count)), level, poisson, gray)
    noise = noisy.pixels - flat
    light = torch.tensor([[0.3, 0.6, 0.4], [0.299 * 0.3 + 0.587 * 0.6 + 0.114 * 0.4] * 3])
    expected = torch.cat([torch.full((2, 3), 0.05), 0.8 * (light / 256).sqrt()])
    torch.testing.assert_close(noise.std((2, 3)), expected, rtol=0.02, atol=0)
    alike = (noise[:, 0] - noise[:, 2]).abs().amax((1, 2)) < 1e-6
    assert alike.tolist() == gray.tolist()


# ---- the degradation ----


@pytest.mark.parametrize("scale, height, width", [(4, 44, 60), (2, 38, 50), (3, 33, 48), (1, 20, 24)])
def test_size_and_range(scale, height, width):
    lq, kernel = build(scale)(images(6, height, width), torch.arange(6))
    assert kernel is None and lq.shape == (6, 3, height // scale, width // scale) and lq.dtype == torch.float32
    assert lq.min() >= 0 and lq.max() <= 1


def test_each_seed_has_its_own_damage_and_always_the_same():
    hr, degrade = images(1).expand(8, -1, -1, -1), build()
    lq, _ = degrade(hr, torch.arange(8))
    assert len({x.numpy().tobytes() for x in lq}) == 8
    assert torch.equal(lq, build()(hr, torch.arange(8))[0])


def test_a_sample_alone_is_as_in_a_batch():
    hr, seeds, degrade = F.avg_pool2d(images(8), 3, 1, 1), torch.arange(8), build()
    together, _ = degrade(hr, seeds)
    for n in range(8):
        torch.testing.assert_close(degrade(hr[n : n + 1], seeds[n : n + 1])[0][0], together[n], rtol=0, atol=1e-5)


def test_brightness_is_kept():
    """Whatever the kernel, the sizes and the noise, by and large."""
    hr = F.interpolate(images(1, 6, 7), scale_factor=8, mode="bilinear").expand(40, -1, -1, -1) * 0.6 + 0.2
    lq, _ = build()(hr, torch.arange(40))
    difference = lq.mean((1, 2, 3)) - hr.mean((1, 2, 3))
    assert difference.abs().max() < 0.1 and difference.abs().mean() < 0.02


def test_without_blur_and_noise_it_is_a_resize():
    """By one of the three methods, and two JPEGs of quality 100, which leave gray as it was."""
    hr = images(1)[:, :1].expand(12, 3, -1, -1)
    lq, _ = build(first=QUIET, second=QUIET, final_sinc=0)(hr, torch.arange(12))
    expected = [F.interpolate(hr[:1], size=(12, 14), mode=mode) for mode in ("area", "bilinear", "bicubic")]
    distance = torch.stack([(lq - e).abs().mean((1, 2, 3)) for e in expected])
    assert distance.amin(0).max() < 0.004 and len(set(distance.argmin(0).tolist())) == 3


@pytest.mark.parametrize("change", [
    {"first": {**QUIET, "blur": 1, "sigma": [2, 3]}},
    {"first": {**QUIET, "resize_weights": [0, 1, 0], "resize": [0.15, 1.0]}},
    {"first": {**QUIET, "noise": [0.1, 0.1]}},
    {"first": {**QUIET, "gaussian": 0, "poisson": [3, 3]}},
    {"first": {**QUIET, "jpeg": [10, 10]}},
    {"second": {**QUIET, "blur": 1, "sinc": 1}},
    {"second": {**QUIET, "resize_weights": [0, 1, 0]}},
    {"second": {**QUIET, "noise": [0.1, 0.1]}},
    {"second": {**QUIET, "jpeg": [10, 10]}},
    {"final_sinc": 1},
])  # fmt: skip
def test_each_setting_makes_its_difference(change):
    hr, seeds = images(4), torch.arange(4)
    quiet = {"first": QUIET, "second": QUIET, "final_sinc": 0}
    plain, changed = (build(**settings)(hr, seeds)[0] for settings in (quiet, quiet | change))
    assert (plain - changed).abs().mean() > 0.004


def test_settings_that_are_not_given_stay_published():
    hr, seeds = images(2), torch.arange(2)
    assert torch.equal(build(first={"gray": 0.4}, second={})(hr, seeds)[0], build()(hr, seeds)[0])


def test_draws_follow_the_published_shares():
    seeds = torch.arange(2000)
    for settings, (up, down, _), (low, high) in (
        (_FIRST, (0.2, 0.7, 0.1), (0.15, 1.5)),
        (_SECOND, (0.3, 0.4, 0.3), (0.3, 1.2)),
    ):
        plan = _plan(settings, _blur(settings, 21), generators(seeds, FIRST), (1000, 2000))
        share = plan.heights / 1000
        assert (share > 1).float().mean() == pytest.approx(up, abs=0.03)
        assert (share < 1).float().mean() == pytest.approx(down, abs=0.03)
        assert low <= share.min() < low + 0.01 and high - 0.01 < share.max() <= high
        assert (plan.widths - 2 * plan.heights).abs().max() <= 1
        assert plan.poisson.float().mean() == pytest.approx(0.5, abs=0.03)
        assert plan.gray.float().mean() == pytest.approx(0.4, abs=0.03)
        assert (
            plan.quality.min() >= 30 and plan.quality.max() <= 95 and plan.quality.mean() == pytest.approx(62.5, abs=1)
        )
        none = plan.kernel[:, 10, 10] == 1
        assert none.float().mean() == pytest.approx(1 - settings.blur, abs=0.05)


def test_kernels_have_the_published_sides():
    """Widths of what is not 0, as many of each from 7 to 21."""
    wide = dataclasses.replace(_FIRST, sigma=(5.0, 5.0), sinc=0.0)
    kernels = _plan(wide, _blur(wide, 21), generators(torch.arange(400), FIRST), (64, 64)).kernel
    torch.testing.assert_close(kernels.sum((1, 2)), torch.ones(400, dtype=torch.float64))
    sides = (kernels[:, 10] > 0).sum(1).tolist()
    assert set(sides) == {7, 9, 11, 13, 15, 17, 19, 21} and all(25 < sides.count(side) < 80 for side in sides)


def test_gradients_pass_and_autocast_changes_nothing():
    hr = images(6).requires_grad_()
    lq, _ = build()(hr, torch.arange(6))
    lq.sum().backward()
    assert hr.grad.isfinite().all() and (hr.grad.abs().sum((1, 2, 3)) > 0).all()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(build()(hr, torch.arange(6))[0], lq)


def test_the_root_of_poisson_noise_has_no_steep_gradient_in_black():
    dark = torch.tensor([0.0, 1e-9, 1e-4]).view(1, 3, 1, 1).expand(2, 3, 16, 16).requires_grad_()
    ones, yes = torch.ones(2), torch.tensor([True, True])
    noisy = canvas.add_noise(canvas.whole(dark), generators(torch.arange(2)), 3 * ones, yes, ~yes)
    (gradient,) = torch.autograd.grad(noisy.pixels.sum(), dark)
    assert gradient.isfinite().all() and gradient.abs().max() <= 1


def test_both_passes_draw_for_themselves():
    """At scale 1, noise of the first pass alone and of the second alone: two fields without relation."""
    gray, seeds, loud = torch.full((1, 3, 64, 64), 0.5), torch.tensor([3]), {**QUIET, "noise": [0.05, 0.05]}
    passes = ({"first": loud, "second": QUIET}, {"first": QUIET, "second": loud})
    first, second = (build(1, **settings, final_sinc=0)(gray, seeds)[0][0, 1].flatten() for settings in passes)
    assert abs(torch.corrcoef(torch.stack([first, second]))[0, 1]) < 0.06 and first.std() > 0.02 < second.std()


@pytest.mark.parametrize("which", ["first", "second"])
def test_every_sample_is_compressed_in_both_passes(which):
    """Before the last resize or after it, as the seed says."""
    hr, seeds = images(12), torch.arange(12)
    quiet = {"first": QUIET, "second": QUIET, "final_sinc": 0}
    plain, changed = (build(2, **s)(hr, seeds)[0] for s in (quiet, quiet | {which: {**QUIET, "jpeg": [10, 10]}}))
    assert (plain - changed).abs().mean((1, 2, 3)).min() > 0.02


def test_an_image_that_the_scale_does_not_divide_is_a_mistake():
    with pytest.raises(AssertionError, match="30x48 is not a multiple of 4"):
        build()(images(1, 30, 48), torch.arange(1))


@pytest.mark.parametrize("settings, message", [
    ({"size": 20}, "size must be odd, got 20"),
    ({"final_sinc": 1.5}, "final_sinc must be a number of 0 to 1, got 1.5"),
    ({"first": {"jpg": [30, 95]}}, "first does not take 'jpg' (did you mean jpeg"),
    ({"first": [1]}, "first must be a mapping or null, got [1]"),
    ({"first": {"jpeg": [0, 95]}}, "first.jpeg needs 1 <= low <= high <= 100, got [0, 95]"),
    ({"second": {"noise": [0.2, 0.1]}}, "second.noise needs 0 <= low <= high"),
    ({"second": {"poisson": [-1, 1]}}, "second.poisson needs 0 <= low <= high"),
    ({"second": {"resize": [1.1, 1.2]}}, "second.resize needs low <= 1 <= high"),
    ({"second": {"resize": [0, 1.2]}}, "second.resize needs 0 < low <= high"),
    ({"second": {"resize_weights": [1, 1]}}, "second.resize_weights needs 3 numbers"),
    ({"first": {"sigma": [0, 2]}}, "first.sigma needs 0 < low <= high"),
    ({"first": {"sigma": [1, 6]}}, "first.sigma=6 does not fit size=21; set size=25"),
    ({"first": {"gray": 2}}, "first.gray needs a probability"),
])  # fmt: skip
def test_mistakes_are_named_when_it_is_built(settings, message):
    with pytest.raises(ValueError) as caught:
        build(**settings)
    assert message in str(caught.value) and "\n" not in str(caught.value)
