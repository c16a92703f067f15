"""What all blur degradations share: strided blur, noise and JPEG, the contract, and what is refused."""

import io
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from PIL import Image

from cssr.degradations import DEGRADATIONS, blurs, canvas
from cssr.degradations.blurs import BLURS
from cssr.degradations.draws import JPEG, NOISE, generators, normal, uniform
from cssr.degradations.ops import blur, blur_strided, jpeg, resampler


def build(name: str, scale: int = 4, **settings):
    return DEGRADATIONS.build({"name": name, **settings}, scale=scale)


def images(count: int = 2, height: int = 48, width: int = 56) -> torch.Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(0))


# ---- reduction ----


@pytest.mark.parametrize("padding", ["zero", "reflect", "replicate"])
@pytest.mark.parametrize("scale", [1, 2, 4])
def test_a_strided_blur_is_the_blur_at_every_so_many_pixels(padding, scale):
    hr, kernel = images(3), BLURS.build("gaussian").kernels(generators(torch.arange(3)))[:, None].float()
    expected = blur(hr, kernel, padding)[..., ::scale, ::scale]
    torch.testing.assert_close(blur_strided(hr, kernel, padding, scale), expected, rtol=0, atol=1e-6)


# ---- noise and JPEG ----


def test_noise_has_the_deviation_that_was_drawn():
    seeds = torch.tensor([3, 4, 5])
    flat = torch.full((3, 3, 96, 96), 0.5)
    clean, noisy = (
        build("gaussian", 1, padding="reflect", noise=level)(flat, seeds)[0] for level in ([0, 0], [0.01, 0.1])
    )
    noise = noisy - clean
    torch.testing.assert_close(
        noise.std((1, 2, 3)), uniform(generators(seeds, NOISE), (0.01, 0.1))[:, 0].float(), rtol=0.02, atol=0
    )
    assert noise.mean((1, 2, 3)).abs().max() < 2e-3
    white = noise[:, :, :, 1:] * noise[:, :, :, :-1]
    assert (white.mean((1, 2, 3)) / noise.var((1, 2, 3))).abs().max() < 0.03
    assert (noise[:, 0] * noise[:, 1]).mean().abs() < 0.03 * noise.var()


def test_each_stage_draws_for_itself():
    """Noise and JPEG leave the kernels as they were, and JPEG the noise."""
    hr, seeds = images(), torch.tensor([1, 2])
    lq, kernel = build("motion")(hr, seeds)
    noisy, same = build("motion", noise=[0.05, 0.05])(hr, seeds)
    both, still = build("motion", noise=[0.05, 0.05], jpeg=[60, 60])(hr, seeds)
    assert torch.equal(kernel, same) and torch.equal(kernel, still)
    assert 0.01 < (noisy - lq).abs().mean() < 0.1
    assert torch.equal(both, jpeg(noisy, torch.tensor([60.0, 60.0])))


def test_a_share_of_the_samples_keeps_neither_noise_nor_jpeg():
    """The others are as they are without that share, to the bit, and each sample by its own seed."""
    seeds, spoilt = torch.arange(400), {"noise": [0.05, 0.05], "jpeg": [60, 60]}
    hr = images(1, 16, 16).expand(400, -1, -1, -1)
    lq, blurs = build("gaussian", **spoilt, clean=0.3)(hr, seeds)
    plain, same = build("gaussian")(hr, seeds)
    kept = (lq == plain).flatten(1).all(1)
    assert torch.equal(blurs, same) and 90 <= kept.sum() <= 150
    assert torch.equal(lq[~kept], build("gaussian", **spoilt)(hr, seeds)[0][~kept])
    alone, _ = build("gaussian", **spoilt, clean=0.3)(hr[:8], seeds[100:108])
    torch.testing.assert_close(alone, lq[100:108])
    name = build("disk", **spoilt, clean=0.3).resampler
    assert name.endswith(", then noise, then JPEG (70% of the samples)")


def test_gray_noise_is_the_same_in_all_channels_and_is_in_its_corner():
    noise = normal(generators(torch.arange(2)), [(3, 4), (5, 2)], (6, 6), [True, False])
    assert noise.dtype == torch.float32 and torch.equal(noise[0, 0], noise[0, 2])
    assert not torch.equal(noise[1, 0], noise[1, 2])
    assert noise[0, :, 3:].abs().max() == 0 and noise[1, :, :, 2:].abs().max() == 0 and noise[0, 0, :3, :4].all()


def test_what_was_spoilt_stays_between_0_and_1():
    lq, _ = build("gaussian", noise=[0.5, 0.5], jpeg=[5, 50])(images(), torch.tensor([1, 2]))
    assert lq.min() == 0 and lq.max() == 1


def photograph(height: int, width: int) -> Image.Image:
    """Smooth colours, an edge and some grain."""
    y, x = np.mgrid[:height, :width] / 40
    picture = np.stack([np.sin(x + y), np.cos(1.3 * x), np.sin(0.7 * y - x)], 2) * 50 + 128
    picture[(x - y) ** 2 < 0.01] = 30
    picture += np.random.default_rng(0).normal(0, 6, (height, width, 1))
    return Image.fromarray(picture.clip(0, 255).astype(np.uint8))


def libjpeg(picture: Image.Image, quality: int) -> np.ndarray:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer)).astype(float)


@pytest.mark.parametrize("size", [(96, 128), (75, 51)])
@pytest.mark.parametrize("quality", [10, 30, 60, 95])
@pytest.mark.parametrize("colour, share, mean", [(True, 0.6, 2.0), (False, 0.45, 1.2)])
def test_jpeg_is_close_to_libjpegs(size, quality, colour, share, mean):
    """In mean grey levels, and as a share of JPEG's own change; colour is reduced by another filter than libjpeg's."""
    picture = photograph(*size) if colour else photograph(*size).convert("L").convert("RGB")
    original, expected = np.asarray(picture).astype(float), libjpeg(picture, quality)
    hr = torch.from_numpy(original).permute(2, 0, 1)[None].float() / 255
    found = jpeg(hr, torch.tensor([quality]))[0].permute(1, 2, 0).numpy() * 255
    distance, loss = np.abs(found - expected).mean(), np.abs(original - expected).mean()
    assert distance < mean and distance < share * loss


def test_each_image_has_its_own_quality():
    seeds, hr, same = torch.tensor([1, 2, 3]), images(1).expand(3, -1, -1, -1), {"sigma": [1, 1], "isotropic": True}
    lq, kernel = build("gaussian", jpeg=[10, 90], **same)(hr, seeds)
    quality = uniform(generators(seeds, JPEG), (10, 90))[:, 0]
    plain = resampler(4, "bicubic", True)[0](blur(hr, kernel))
    for n in range(3):
        torch.testing.assert_close(lq[n], jpeg(plain[n : n + 1], quality[n : n + 1])[0], rtol=0, atol=1e-5)
    loss = (lq - plain).abs().mean((1, 2, 3))
    assert loss.argsort(descending=True).tolist() == quality.argsort().tolist()


# ---- the contract, with everything on ----

SPOILT = {"noise": [0.0, 0.05], "jpeg": [30, 95]}
EVERY_BLUR = pytest.mark.parametrize("name", BLURS.names())


def test_every_blur_is_a_degradation():
    assert set(BLURS.names()) == set(DEGRADATIONS.names()) - {"downsample", "second_order", "stored"}


@EVERY_BLUR
def test_a_sample_alone_is_as_in_a_batch(name):
    hr, seeds, degrade = images(8), torch.arange(8), build(name, **SPOILT)
    together, kernels = degrade(hr, seeds)
    for n in range(8):
        lq, kernel = degrade(hr[n : n + 1], seeds[n : n + 1])
        torch.testing.assert_close(lq[0], together[n], rtol=0, atol=1e-5)
        assert torch.equal(kernel[0], kernels[n])


@EVERY_BLUR
def test_gradients_pass_noise_and_jpeg(name):
    hr = images(1).requires_grad_()
    build(name, **SPOILT)(hr, torch.tensor([1]))[0].sum().backward()
    assert hr.grad.isfinite().all() and hr.grad.abs().sum() > 0


@EVERY_BLUR
def test_degradations_are_float32_under_autocast(name):
    hr, seeds, degrade = images(), torch.tensor([1, 2]), build(name, method="strided", **SPOILT)
    expected, _ = degrade(hr, seeds)
    with torch.autocast("cpu", torch.bfloat16):
        lq, kernel = degrade(hr, seeds)
    assert torch.equal(lq, expected) and kernel.dtype == torch.float32


@pytest.mark.parametrize("name", sorted({*DEGRADATIONS.names()} - {"stored"}))
@pytest.mark.parametrize("method", ["bicubic", "strided"])
def test_no_tensor_stays_behind_on_the_cpu(monkeypatch, name, method):
    """On the device without memory, where tensors of two devices do not mix; JPEG, kornia's, looks at values."""
    for module in (canvas, blurs):
        monkeypatch.setattr(module, "jpeg", lambda x, quality: x.clamp(0, 1))
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: nullcontext())
    settings = {} if name in ("downsample", "second_order") else {"method": method, **SPOILT}
    lq, kernel = build(name, **settings)(torch.zeros(2, 3, 48, 56, device="meta"), torch.arange(2))
    assert lq.is_meta and lq.shape == (2, 3, 12, 14) and (kernel is None or kernel.is_meta)


def test_results_say_what_was_done():
    name = build("disk", method="area", padding="reflect", **SPOILT).resampler
    assert name == "21x21 disk, reflect padding, then area x1/4 (mean of blocks), then noise, then JPEG"
    assert "isotropic Gaussian" in build("gaussian", isotropic=True).resampler


def test_a_blur_may_be_a_mixture_of_mixtures():
    mixed = {"name": "random_blur", "blurs": ["gaussian", {"name": "disk", "radius": [1, 2]}]}
    degrade = build("compound", first="motion", second=mixed, size=23)
    lq, kernel = degrade(images(), torch.tensor([1, 2]))
    assert kernel.shape == (2, 1, 23, 23) and lq.shape == (2, 3, 12, 14)
    assert degrade.resampler.startswith("23x23 (motion convolved with (Gaussian or disk)), zero padding, then bicubic")


# ---- mistakes ----


@pytest.mark.parametrize("name, settings, message", [
    ("motion", {"size": 4}, "'motion': size must be odd, got 4"),
    ("motion", {"length": [2, 30]}, "length=30 does not fit size=21; set size=31 or lower it"),
    ("motion", {"length": [2, 21]}, "length=21 does not fit size=21; set size=23"),
    ("motion", {"length": [5, 2]}, "length needs 0 <= low <= high, got [5, 2]"),
    ("motion", {"length": [-1, 2]}, "length needs 0 <= low"),
    ("motion", {"theta": 30}, "theta must be a list, each a number, got 30"),
    ("disk", {"radius": [1, 11]}, "radius=11 does not fit size=21; set size=23 or lower it"),
    ("disk", {"radius": [0, 2]}, "radius needs 0 < low <= high"),
    ("disk", {"size": "21"}, "size must be a whole number"),
    ("sinc", {"cutoff": [0.5, 1.5]}, "cutoff needs 0 < low <= high <= 1"),
    ("plateau", {"shape": [1.5, 2]}, "shape needs low <= 1 <= high"),
    ("generalized_gaussian", {"sigma": [1, 6]}, "sigma=6 does not fit size=21; set size=25"),
    ("gaussian", {"noise": [-0.1, 0.1]}, "noise needs 0 <= low <= high"),
    ("gaussian", {"noise": [0.2, 0.1]}, "noise needs"),
    ("gaussian", {"noise": 0.1}, "noise must be a list"),
    ("gaussian", {"jpeg": [0, 50]}, "jpeg needs 1 <= low <= high <= 100, got [0, 50]"),
    ("gaussian", {"jpeg": [30, 95], "clean": 1.5}, "clean"),
    ("disk", {"clean": 0.5}, "clean=0.5 leaves out noise and JPEG, and there are none"),
    ("gaussian", {"jpeg": [50, 101]}, "jpeg needs 1 <= low <= high <= 100"),
    ("disk", {"method": "lanczos"}, "method must be bicubic, bilinear, area or strided, got 'lanczos'"),
    ("disk", {"padding": "circular"}, "padding must be zero, reflect or replicate"),
    ("disk", {"sigma": [1, 2]}, "degradation 'disk' does not take 'sigma'"),
    ("compound", {"first": "gausian"}, "unknown blur 'gausian' (did you mean gaussian"),
    ("compound", {"first": {"name": "disk", "size": 9}}, "blur 'disk' does not take 'size'"),
    ("compound", {"second": {"name": "disk", "jpeg": [1, 2]}}, "blur 'disk' does not take 'jpeg'"),
    ("compound", {"size": 9}, "length=20 does not fit size=9"),
    ("random_blur", {"blurs": []}, "blurs needs a list of blurs, got []"),
    ("random_blur", {"blurs": "disk"}, "blurs must be a list, each a word or a mapping, got 'disk'"),
    ("random_blur", {"weights": [1, 2]}, "weights needs 3 numbers"),
    ("random_blur", {"weights": [0, 0, 0]}, "weights needs 3 numbers, none negative, not all 0"),
    ("random_blur", {"weights": [1, 1, -1]}, "weights needs 3 numbers, none negative"),
])  # fmt: skip
def test_mistakes_are_named_when_it_is_built(name, settings, message):
    with pytest.raises(ValueError) as caught:
        build(name, **settings)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_the_size_that_an_error_names_works():
    for name, settings, size in (
        ("motion", {"length": [2, 30]}, 31),
        ("disk", {"radius": [1, 11]}, 23),
        ("generalized_gaussian", {"sigma": [1, 6]}, 25),
        ("gaussian", {}, 21),  # the published one: 4 pixels
    ):
        _, kernel = build(name, size=size, **settings)(images(), torch.tensor([1, 2]))
        assert kernel.shape[-2:] == (size, size), name
