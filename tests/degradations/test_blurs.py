"""Blur kernels against closed forms and independent libraries."""

import math

import kornia.filters
import numpy as np
import pytest
import scipy.ndimage
import scipy.signal
import scipy.special
import torch

from cssr.degradations.blurs import BLURS
from cssr.degradations.draws import choices, generators, uniform
from cssr.degradations.kernels import convolved, disk_kernel, gaussian_kernel, motion_kernel, sinc_kernel


def kernels_of(component, count: int = 1, size: int = 21, seed: int = 0) -> torch.Tensor:
    return BLURS.build(component, size=size).kernels(generators(torch.arange(seed, seed + count)))


def double(*values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


# ---- Gaussian and relatives ----


@pytest.mark.parametrize("sigma", [0.4, 1.7, 4.0])
def test_an_isotropic_gaussian_equals_kornias(sigma):
    expected = kornia.filters.get_gaussian_kernel2d(21, double([sigma, sigma]))
    found = kernels_of({"name": "gaussian", "isotropic": True, "sigma": [sigma, sigma]})
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-15)


def test_isotropic_means_one_draw_for_both_widths():
    kernels = kernels_of({"name": "gaussian", "isotropic": True, "sigma": [1, 3]}, 8)
    torch.testing.assert_close(kernels, kernels.mT)
    assert len({k.numpy().tobytes() for k in kernels}) == 8
    assert (kernels_of({"name": "gaussian", "sigma": [1, 3]}, 8) - kernels).abs().amax((1, 2)).min() > 1e-4


def test_a_generalized_gaussian_of_shape_1_is_the_gaussian():
    found = kernels_of({"name": "generalized_gaussian", "sigma": [0.5, 3], "shape": [1, 1]}, 5)
    torch.testing.assert_close(found, kernels_of({"name": "gaussian", "sigma": [0.5, 3]}, 5), rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("name, profile", [
    ("generalized_gaussian", lambda q, s: np.exp(-0.5 * q**s)),
    ("plateau", lambda q, s: 1 / (1 + q**s)),
])  # fmt: skip
def test_other_tails_have_their_closed_form(name, profile):
    """Isotropic, of width 2; each sample's shape is one of the two drawn halves."""
    found = kernels_of({"name": name, "sigma": [2, 2], "shape": [0.5, 3.0], "isotropic": True}, 20).numpy()
    y, x = np.mgrid[-10:11, -10:11]
    q, below = (x**2 + y**2) / 4, 0
    for rng, kernel in zip(generators(torch.arange(20)), found):
        _, low, high, chance = rng.random(4)
        shape = 0.5 + 0.5 * low if chance < 0.5 else 1 + 2 * high
        below += shape < 1
        np.testing.assert_allclose(kernel, profile(q, shape) / profile(q, shape).sum(), rtol=1e-9)
    assert 4 < below < 16


def test_a_gaussian_that_just_fits_keeps_nine_tenths():
    assert gaussian_kernel(double([5.0, 5.0, 0.0]), 101)[0, 0, 40:61, 40:61].sum() > 0.9


# ---- motion ----


@pytest.mark.parametrize("length, degrees", [(0.0, 10), (1.0, 50), (7.3, 0), (12.0, 33), (20.0, 2), (20.0, 120)])
def test_motions_moments_are_a_lines(length, degrees):
    """Covariance of an even line; linear interpolation adds to the variances alone, 0 to 1/4 pixel^2."""
    kernel = motion_kernel(double([length, degrees]), 21)[0].numpy()
    y, x = np.mgrid[-10:11, -10:11]
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    along = length**2 / 12
    assert kernel.sum() == pytest.approx(1) and kernel.min() >= 0
    assert (kernel * x).sum() == pytest.approx(0, abs=1e-9) and (kernel * y).sum() == pytest.approx(0, abs=1e-9)
    assert (kernel * x * y).sum() == pytest.approx(-along * cos * sin, rel=1e-4, abs=1e-9)
    for places, share in ((x, cos**2), (y, sin**2)):
        assert -1e-3 <= (kernel * places**2).sum() - along * share <= 0.25 + 1e-3


def test_horizontal_motion_has_its_closed_form():
    """5 pixels travelled: the centre pixels evenly, and half a pixel's worth spread over the ends."""
    expected = double(0, 1, 7, 8, 8, 8, 7, 1, 0) / 40
    kernel = motion_kernel(double([5.0, 0.0], [5.0, 90.0]), 9)
    torch.testing.assert_close(kernel[0, 4], expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(kernel[1, :, 4], expected, rtol=0, atol=1e-4)
    assert kernel[0].sum() - kernel[0, 4].sum() < 1e-9


def test_motion_is_the_mean_along_the_path():
    """Of scipy's linear interpolation at 400 places of it."""
    image = np.random.default_rng(0).random((25, 25))
    angle, way = math.radians(25), (np.arange(400) + 0.5) / 400 * 9.4 - 4.7
    places = np.stack([12 - way * math.sin(angle), 12 + way * math.cos(angle)])
    expected = scipy.ndimage.map_coordinates(image, places, order=1).mean()
    kernel = motion_kernel(double([9.4, 25.0]), 13)[0].numpy()
    assert (kernel * image[6:19, 6:19]).sum() == pytest.approx(expected, abs=1e-4)


def test_the_longest_motion_is_not_cut():
    """A larger kernel holds nothing more."""
    for degrees in (0.0, 30.0, 45.0):
        small, large = (motion_kernel(double([20.0, degrees]), size)[0] for size in (21, 31))
        torch.testing.assert_close(large[5:-5, 5:-5], small, rtol=0, atol=5e-5)


# ---- disk ----


@pytest.mark.parametrize("radius", [0.3, 1.0, 2.7, 7.5, 10.5])
def test_a_disk_weighs_pixels_by_the_area_covered(radius):
    """Supersampled 64 times along each side."""
    fine = (np.arange(21 * 64) + 0.5) / 64 - 10.5
    inside = (fine[:, None] ** 2 + fine**2 <= radius**2).reshape(21, 64, 21, 64).mean((1, 3))
    found = disk_kernel(double(radius), 21)[0].numpy() * math.pi * radius**2
    np.testing.assert_allclose(found, inside, atol=2e-2 if radius < 1 else 5e-3)
    assert found[10, 10] == pytest.approx(min(1, math.pi * radius**2))


def test_disks_of_a_batch_are_those_of_each():
    radius = double(0.8, 3.3, 10.5)
    torch.testing.assert_close(disk_kernel(radius, 21), torch.cat([disk_kernel(r[None], 21) for r in radius]))


# ---- sinc ----


def test_a_sinc_has_its_closed_form():
    y, x = np.mgrid[-7:8, -7:8]
    r, w = np.hypot(x, y), 0.6 * math.pi
    r[7, 7] = 1e-6
    expected = w * scipy.special.j1(w * r) / (2 * math.pi * r)
    np.testing.assert_allclose(sinc_kernel(double(0.6), 15)[0], expected / expected.sum(), rtol=1e-6, atol=1e-12)


def test_a_sinc_passes_what_is_below_its_cutoff():
    response = torch.fft.rfft(sinc_kernel(double(0.5), 201)[0].sum(0)).abs()  # along a row of the spectrum
    assert (response[:40] - 1).abs().max() < 0.1 and response[60:].max() < 0.1


# ---- mixtures ----


def test_a_compound_is_the_convolution():
    first, second = kernels_of("motion", 3, seed=5), kernels_of("disk", 3, seed=9)
    second[:, 3, 4] += 0.01  # not symmetric: a correlation would be another
    found = convolved(first, second).numpy()
    for a, b, kernel in zip(first.numpy(), second.numpy(), found):
        expected = scipy.signal.convolve2d(a, b, mode="same")
        np.testing.assert_allclose(kernel, expected / expected.sum(), rtol=1e-9, atol=1e-12)


def test_a_compound_with_no_blur_is_the_other():
    found = kernels_of({"name": "compound", "first": {"name": "motion", "length": [0, 0]}, "second": "disk"}, 4)
    for seed in range(4):
        rng = generators(torch.tensor([seed]))
        uniform(rng, (0, 0), (0, 180))  # what `first` draws
        torch.testing.assert_close(found[seed], BLURS.build("disk").kernels(rng)[0])


def test_random_blurs_are_drawn_by_weight():
    """Three disks that can be told apart; the second never."""
    disks = [{"name": "disk", "radius": [r, r]} for r in (1.0, 3.0, 5.0)]
    found = kernels_of({"name": "random_blur", "blurs": disks, "weights": [3, 0, 1]}, 800)
    each = [BLURS.build(disk).kernels(generators(torch.tensor([0]))) for disk in disks]
    counts = [int((found - kernel).abs().amax((1, 2)).lt(1e-12).sum()) for kernel in each]
    assert sum(counts) == 800 and counts[1] == 0 and 560 < counts[0] < 640


def test_stages_draw_from_streams_of_their_own():
    draws = [uniform(generators(torch.tensor([7]), stream), (0, 1)).item() for stream in range(6)]
    assert len(set(draws)) == 6
    assert draws[0] == np.random.Generator(np.random.Philox(key=7)).random()


def test_every_choice_is_reached():
    assert set(choices(generators(torch.arange(60)), [1, 1, 2])) == {0, 1, 2}
    assert set(choices(generators(torch.arange(60)), [0, 1, 0])) == {1}


# ---- all ----


@pytest.mark.parametrize("name", BLURS.names())
def test_blurs_keep_the_mean_and_the_place(name):
    """Kernels sum to one and have their centre of mass in the middle."""
    kernels, axis = kernels_of(name, 30), torch.arange(-10, 11, dtype=torch.float64)
    torch.testing.assert_close(kernels.sum((1, 2)), torch.ones(30, dtype=torch.float64))
    assert max((kernels.sum(d) * axis).sum(1).abs().max() for d in (1, 2)) < 1e-9
