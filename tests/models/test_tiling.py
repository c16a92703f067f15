"""Tiles: what is blended equals the untiled result where the overlap reaches as far as the function sees."""

import dataclasses
import functools
import threading

import pytest
import torch
import torch.nn.functional as F
from helpers import SMALL_MODEL
from torch import nn

from cssr.config.schema import ModelConfig
from cssr.models.forms.sr_then_seg import SRThenSeg
from cssr.models.joint import build_model
from cssr.models.tiling import Kept, Moments, Tiles, Whole, fitting_side, starts, tiled

SIZES = [(64, 64), (65, 64), (64, 129), (100, 77), (17, 90), (90, 5), (1, 1), (200, 66)]


def image(height: int, width: int, channels: int = 2) -> torch.Tensor:
    return torch.rand(2, channels, height, width, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("tile, overlap", [(64, 16), (64, 31), (33, 7), (64, 0), (10, 1)])
def test_the_identity_gives_the_image_back(size, tile, overlap):
    x = image(*size)
    torch.testing.assert_close(tiled(lambda part: part, x, tile, overlap), x, rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scale", [2, 4])
def test_enlarging_in_tiles(size, scale):
    x = image(*size)
    found = tiled(lambda part: F.interpolate(part, scale_factor=scale), x, 48, 12, scale)
    torch.testing.assert_close(found, F.interpolate(x, scale_factor=scale), rtol=0, atol=1e-6)


@pytest.mark.parametrize("radius", [1, 2, 4])
@pytest.mark.parametrize("size", [(64, 64), (100, 77), (130, 49)])
def test_a_convolution_sees_no_border_of_a_tile(radius, size):
    """In the interior and at the image's own borders, zero padding and all."""
    conv = nn.Conv2d(2, 3, 2 * radius + 1, padding=radius).requires_grad_(False)
    x = image(*size)
    torch.testing.assert_close(tiled(conv, x, 48, 4 * radius), conv(x), rtol=0, atol=1e-5)


def test_less_overlap_than_the_function_sees_shows():
    """The other side of the promise: the test above can fail."""
    conv = nn.Conv2d(2, 3, 9, padding=4).requires_grad_(False)
    x = image(100, 77)
    assert (tiled(conv, x, 48, 8) - conv(x)).abs().max() > 1e-3


@pytest.mark.parametrize("scale", [2, 4])
def test_an_enlarging_convolution_sees_no_border_of_a_tile(scale):
    net = nn.Sequential(nn.Conv2d(2, 3 * scale**2, 5, padding=2), nn.PixelShuffle(scale)).requires_grad_(False)
    x = image(70, 61)
    torch.testing.assert_close(tiled(net, x, 32, 8, scale), net(x), rtol=0, atol=1e-5)


def test_seams_are_blended_and_not_cut():
    """Two tiles that disagree by 1 meet in a ramp of half the overlap."""
    values = iter([0.0, 1.0])
    found = tiled(lambda part: torch.full_like(part, next(values)), torch.zeros(1, 1, 1, 96), 56, 16)[0, 0, 0]
    assert (found.diff() >= 0).all() and found.diff().max() < 0.13 and (found.diff() > 0).sum() == 9
    assert found[0] == 0 and found[-1] == 1


@pytest.mark.parametrize("length", [1, 63, 64, 65, 100, 112, 113, 500])
@pytest.mark.parametrize("tile, overlap", [(64, 16), (64, 0), (9, 4)])
def test_tiles_cover_the_length_and_overlap_enough(length, tile, overlap):
    found = starts(length, tile, overlap)
    assert found[0] == 0 and found[-1] + min(tile, length) == length
    assert found == sorted(set(found))
    assert all(after - before <= tile - overlap for before, after in zip(found, found[1:]))


@pytest.mark.parametrize("tile, overlap, below", [(64, 32, 32), (64, 40, 32), (65, 33, 33), (8, -1, 4), (0, 0, 0)])
def test_an_overlap_that_is_too_large(tile, overlap, below):
    with pytest.raises(ValueError, match=f"tiles of {tile} pixels need an overlap below {below}, got {overlap}"):
        tiled(lambda part: part, image(100, 100), tile, overlap)


def test_progress_sees_every_tile():
    seen = []
    tiled(lambda part: part, image(100, 60), 40, 10, progress=lambda tiles: [seen.append(t) or t for t in tiles])
    assert len(seen) == len(starts(100, 40, 10)) * len(starts(60, 40, 10))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_lose_no_more_than_their_rounding(dtype):
    x = image(70, 130, 1).to(dtype)
    found = tiled(lambda part: part, x, 64, 16)
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), x.double(), rtol=0, atol=4 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("batch", [2, 5, 100])
@pytest.mark.parametrize(("ahead", "threads"), [(0, 1), (2, 1), (2, 2), (0, 3)])
def test_tiles_worked_at_once_give_what_they_give_one_by_one(batch, ahead, threads):
    """Also where a batch of tiles goes on in the next row of them, for two images each."""
    conv = nn.Conv2d(2, 3, 5, padding=2).requires_grad_(False)
    x = image(100, 130)
    rows = Tiles(40, 8, batch, ahead=ahead, threads=threads).rows(conv, Whole(x))
    torch.testing.assert_close(torch.cat(list(rows), -2), tiled(conv, x, 40, 8), rtol=0, atol=1e-6)


def test_threads_compute_as_the_one_that_asks_does():
    """Without gradients, and in its precision."""
    conv, seen = nn.Conv2d(2, 3, 5, padding=2), []

    def watched(part):
        seen.append(threading.current_thread())
        return conv(part)

    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = torch.cat(list(Tiles(40, 8, threads=2).rows(watched, Whole(image(100, 130)))), -2)
    assert found.dtype == torch.bfloat16 and not found.requires_grad
    assert seen and threading.main_thread() not in seen


def test_rows_come_as_soon_as_no_tile_changes_them():
    sizes = [rows.shape[-2] for rows in Tiles(40, 8).rows(lambda part: part, Whole(image(100, 50)))]
    assert sizes == [32, 28, 40]  # tiles begin at rows 0, 32 and 60


@pytest.mark.parametrize("window", [(0, 0, 5, 7), (3, 2, 30, 1), (31, 0, 2, 50), (59, 10, 41, 40), (0, 0, 100, 50)])
def test_kept_rows_are_read_by_windows(window):
    x, kept = image(100, 50), Kept()
    for rows in x.split([32, 28, 40], -2):
        kept.append(rows)
    top, left, height, width = window
    assert kept.shape == (100, 50)
    assert torch.equal(kept.read(*window), x[..., top : top + height, left : left + width])


def test_moments_of_parts_are_those_of_the_whole():
    """Also of values far from 0, where a sum of squares in float32 would have lost the variance."""
    x = 1000 + 0.1 * image(100, 50)
    moments = Moments()
    for rows in x.split([1, 39, 60], -2):
        moments.add(rows)
    mean, variance = moments.result()
    expected = torch.var_mean(x.double(), (-2, -1), correction=0, keepdim=True)
    torch.testing.assert_close(mean.double(), expected[1], rtol=1e-6, atol=0)
    torch.testing.assert_close(variance.double(), expected[0], rtol=1e-3, atol=0)


# ---- the joint model ----


@functools.cache
def networks() -> SRThenSeg:
    torch.manual_seed(0)
    seg = {"name": "unet", "encoder": "vgg11", "depth": 2, "width": 4}
    return build_model(ModelConfig(**{**SMALL_MODEL, "seg": seg}))


def model(sr: nn.Module | None = None, **changes) -> SRThenSeg:
    """The same networks (and `sr` in place of the first), with other settings between them."""
    built = networks()
    return SRThenSeg(dataclasses.replace(built.config, **changes), sr or built.sr, built.seg).eval()


@pytest.mark.parametrize("normalize", ["none", "dataset", "instance"])
def test_the_joint_model_in_tiles_equals_the_whole(normalize):
    """Tiles of 96 overlapping by 44: 11 LQ pixels (22 HR) beyond each seam, as far as DBPN of two stages sees (11), and
    farther than the segmentation network does (7 HR pixels). Instance statistics are those of the whole image.
    Tolerance: float32 sums in another order.
    """
    net = model(normalize=normalize)
    lq = torch.rand(1, 3, 140, 98, generator=torch.Generator().manual_seed(2))
    whole, parts = net.infer(lq), net.infer(lq, tile=96, overlap=44)
    torch.testing.assert_close(parts.sr, whole.sr, rtol=0, atol=1e-5)
    torch.testing.assert_close(parts.logits, whole.logits, rtol=1e-4, atol=1e-4)
    assert whole.logits.std() > 1e-3  # something is there to differ


@pytest.mark.parametrize("normalize", ["none", "dataset", "instance"])
def test_an_image_read_by_windows_gives_what_the_tensor_gives(normalize):
    """In batches, from 8 bit, ahead of use."""
    net = model(normalize=normalize)
    lq = torch.randint(0, 256, (1, 3, 140, 98), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    expected = net.infer(lq / 255, tile=70, overlap=30)
    found: dict[str, list[torch.Tensor]] = {"sr": [], "logits": []}
    for name, rows in net.infer_rows(Whole(lq), Tiles(70, 30, batch=4, ahead=2), Kept()):
        found[name].append(rows)
    torch.testing.assert_close(torch.cat(found["sr"], -2), expected.sr, rtol=0, atol=1e-5)
    torch.testing.assert_close(torch.cat(found["logits"], -2), expected.logits, rtol=1e-4, atol=1e-4)


def test_a_small_image_is_not_cut():
    net, lq = model(), torch.rand(1, 3, 30, 40)
    torch.testing.assert_close(net.infer(lq, tile=40).logits, net(lq).logits, rtol=0, atol=0)
    torch.testing.assert_close(net.infer(lq).logits, net(lq).logits, rtol=0, atol=0)


def test_inference_keeps_no_graph():
    assert not model().infer(torch.rand(1, 3, 100, 80), tile=70).logits.requires_grad


class OneKernelATile(nn.Module):
    """An SR network that 'predicts' the mean of what it sees as its kernel, and enlarges by a given kernel's sum."""

    predicts_kernel = True

    def forward(self, lq, kernel=None):
        predicted = lq.mean((1, 2, 3), keepdim=True) if kernel is None else kernel
        return F.interpolate(lq, scale_factor=2) * predicted.sum((1, 2, 3), keepdim=True), predicted


def test_a_predicted_kernel_is_one_for_the_whole_image():
    """The mean over the tiles' kernels, given to every tile: no seam where tiles would predict different ones."""
    net = model(OneKernelATile(), normalize="none", clip="never")
    lq = torch.cat([torch.full((2, 3, 80, 60), 0.2), torch.full((2, 3, 80, 60), 0.6)], 3)
    outputs = net.infer(lq, tile=80, overlap=20)
    assert outputs.kernel.shape == (2, 1, 1, 1)
    bright = (outputs.sr / F.interpolate(lq, scale_factor=2)).flatten()
    torch.testing.assert_close(bright, torch.full_like(bright, float(outputs.kernel[0])))
    assert 0.3 < float(outputs.kernel[0]) < 0.5


def test_the_side_of_tiles_fits_the_image():
    assert fitting_side((3000, 4000), 512, 32, 32) == 480  # 63 tiles, as of 512
    assert fitting_side((3000, 4000), 1024, 32, 32) == 1024  # 3 x 4 of them end with the image
    assert fitting_side((100, 120), 256, 32, 8) == 256  # within one tile
