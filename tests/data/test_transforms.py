"""Training augmentation: picture and mask are cut, resized and mirrored alike, from the given draws alone."""

import cv2
import numpy as np
import pytest
from helpers import coordinates, mask_of

from cssr.config.schema import DataConfig
from cssr.data.sampler import rng
from cssr.data.transforms import augment, augment_stored, photometric_distortion


def augmented(seed: int = 0, height: int = 40, width: int = 50, **settings) -> tuple[np.ndarray, np.ndarray]:
    image = coordinates(7, height, width)
    return augment(image, mask_of(image), DataConfig(**{"crop": 24, **settings}), rng(seed))


def mirrored(image: np.ndarray) -> tuple[bool, bool]:
    """Whether a crop of coordinates is mirrored (left-right, up-down)."""
    return bool(image[0, 0, 1] > image[0, -1, 1]), bool(image[0, 0, 0] > image[-1, 0, 0])


@pytest.mark.parametrize("hflip", [0.0, 1.0])
@pytest.mark.parametrize("vflip", [0.0, 1.0])
def test_mirrors_at_probabilities_0_and_1(hflip, vflip):
    found = {mirrored(augmented(seed, hflip=hflip, vflip=vflip)[0]) for seed in range(8)}
    assert found == {(bool(hflip), bool(vflip))}


def test_mirrors_are_drawn_apart():
    found = [mirrored(augmented(seed, hflip=0.5, vflip=0.5)[0]) for seed in range(40)]
    assert len(set(found)) == 4


@pytest.mark.parametrize("seed", range(12))
def test_the_mask_is_that_of_the_crop(seed):
    image, mask = augmented(seed, hflip=0.5, vflip=0.5)
    assert image.shape == (24, 24, 3) and mask.shape == (24, 24) and image.dtype == mask.dtype == np.uint8
    np.testing.assert_array_equal(mask, mask_of(image))


def test_a_crop_is_one_piece_of_the_picture():
    image, _ = augmented(hflip=0)
    steps = np.diff(image.astype(int), axis=0)[..., 0], np.diff(image.astype(int), axis=1)[..., 1]
    assert all((step == 1).all() for step in steps)


def test_crops_reach_every_corner():
    corners = np.array([augmented(seed, height=26, width=26, hflip=0)[0][0, 0, :2] for seed in range(100)])
    assert sorted(set(map(tuple, corners.tolist()))) == [(y, x) for y in range(3) for x in range(3)]


def test_a_picture_of_just_the_size():
    image, _ = augmented(height=24, width=24, hflip=0)
    np.testing.assert_array_equal(image, coordinates(7, 24, 24))


@pytest.mark.parametrize("height, width", [(23, 50), (40, 23)])
def test_a_picture_that_is_too_small_is_named(height, width):
    with pytest.raises(ValueError, match=f"image of {width}x{height} pixels is smaller than data.crop=24"):
        augmented(height=height, width=width)


@pytest.mark.parametrize("size", [(100, 120), (10, 12), (24, 24), (200, 9)])
@pytest.mark.parametrize("share", [[0.3, 0.6], [1.0, 1.0], [0.01, 0.02]])
def test_resized_crops_have_the_size_whatever_the_picture(size, share):
    for seed in range(5):
        image, mask = augmented(seed, *size, resized_crop=share, hflip=0)
        assert image.shape == (24, 24, 3) and mask.shape == (24, 24) and image.dtype == np.uint8
        assert mask.dtype == np.uint8 and set(np.unique(mask)) <= {0, 1}


def test_resized_crops_take_the_share_and_ratio_they_should():
    """From the coordinates at the corners: how much of the picture (200 x 200) a crop of 24 x 24 shows."""
    shares, ratios = [], []
    for seed in range(60):
        image, _ = augmented(seed, 200, 200, resized_crop=[0.2, 0.4], hflip=0)
        height, width = (float(image[-1, -1, k]) - float(image[0, 0, k]) for k in (0, 1))
        shares.append(height * width * (24 / 23) ** 2 / 200**2)
        ratios.append(width / height)
    assert 0.18 < min(shares) < 0.23 and 0.37 < max(shares) < 0.42
    assert 0.72 < min(ratios) < 0.85 and 1.18 < max(ratios) < 1.38


def test_a_resized_mask_follows_the_resized_picture():
    rows, columns = np.mgrid[:90, :90]
    mask = ((rows - 40) ** 2 + (columns - 50) ** 2 < 900).astype(np.uint8)
    data = DataConfig(crop=64, resized_crop=[0.4, 0.9], hflip=0.5, vflip=0.5)
    for seed in range(6):
        image, found = augment(np.repeat(255 * mask[..., None], 3, 2), mask, data, rng(seed))
        sure = np.abs(image[..., 0].astype(int) - 127) > 2
        np.testing.assert_array_equal(found[sure], (image[..., 0] > 127)[sure])
        assert sure.mean() > 0.98


def noise(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (16, 18, 3), dtype=np.uint8)


@pytest.mark.parametrize("seed", range(8))
def test_photometric_distortion_repeats_and_keeps_its_input(seed):
    image = noise(seed)
    before = image.copy()
    once, twice = (photometric_distortion(image, rng(seed)) for _ in range(2))
    assert once.dtype == np.uint8 and once.shape == image.shape
    np.testing.assert_array_equal(once, twice)
    np.testing.assert_array_equal(image, before)


def test_photometric_distortion_varies_and_sometimes_does_nothing():
    """Every part has probability 1/2: of 300 pictures about 1 in 32 (order: 1 in 6 of the half) stays as it is."""
    results = [photometric_distortion(noise(), rng(1, seed)) for seed in range(300)]
    same = sum(np.array_equal(result, noise()) for result in results)
    assert 2 <= same <= 40
    assert len({result.tobytes() for result in results}) > 250


@pytest.mark.parametrize("level", [0, 255])
def test_photometric_distortion_clips_instead_of_wrapping(level):
    """Black never turns white: brightness moves by 32 at most, contrast by half."""
    flat = np.full((8, 8, 3), level, np.uint8)
    values = np.concatenate([photometric_distortion(flat, rng(seed)).ravel() for seed in range(60)])
    assert values.max() <= 48 if level == 0 else values.min() >= 111
    assert len(np.unique(values)) > 5


def test_photometric_distortion_leaves_the_mask_and_the_geometry_alone():
    (plain, mask), (distorted, again) = (augmented(3, photometric=on, hflip=0.5) for on in (False, True))
    np.testing.assert_array_equal(mask, again)
    assert not np.array_equal(plain, distorted)


def test_a_sample_is_contiguous():
    assert all(array.flags.c_contiguous for array in augmented(hflip=1, vflip=1))


# ---- crops that prefer cracks ----


def one_crack(height: int, width: int, *at: tuple[int, int]) -> np.ndarray:
    mask = np.zeros((height, width), np.uint8)
    for row, column in at:
        mask[row, column] = 1
    return mask


@pytest.mark.parametrize("at", [(0, 0), (39, 49), (20, 3), (5, 49), (17, 26)])
def test_every_crop_has_a_crack_pixel_where_it_must(at):
    """However near the border it lies; and the crops are all those that have it, not some."""
    mask, beginnings = one_crack(40, 50, at), set()
    for seed in range(150):
        image, cut = augment(coordinates(0, 40, 50), mask, DataConfig(crop=24, crack_share=1.0, hflip=0), rng(seed))
        assert cut.sum() == 1
        beginnings.add(tuple(image[0, 0, :2].tolist()))
    rows, columns = ({b[k] for b in beginnings} for k in (0, 1))
    assert min(rows) == max(0, at[0] - 23) and max(rows) == min(at[0], 16)
    assert min(columns) == max(0, at[1] - 23) and max(columns) == min(at[1], 26)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_the_share_of_crops_with_a_crack(share):
    mask = one_crack(200, 200, (100, 100))
    settings = DataConfig(crop=20, crack_share=share)
    found = np.mean([augment(coordinates(0, 200, 200), mask, settings, rng(n))[1].any() for n in range(300)])
    assert abs(found - (share + (1 - share) * 0.012)) < 0.09


def test_each_crack_pixel_is_chosen_as_often():
    mask = one_crack(60, 60, (5, 5), (5, 6), (50, 50))
    settings = DataConfig(crop=10, crack_share=1.0)
    alone = np.mean([augment(coordinates(0, 60, 60), mask, settings, rng(n))[0][0, 0, 0] > 30 for n in range(300)])
    assert abs(alone - 1 / 3) < 0.1


def test_an_image_without_cracks_is_cut_anywhere():
    image, empty = coordinates(0, 40, 50), np.zeros((40, 50), np.uint8)
    corners = {tuple(augment(image, empty, DataConfig(crop=24, crack_share=1.0), rng(n))[0][0, 0]) for n in range(20)}
    assert len(corners) > 10


def test_without_the_share_the_draws_are_as_ever():
    """Runs that go on from before there was one depend on it."""
    image = coordinates(0, 40, 50)
    for seed in range(5):
        draws = rng(seed)
        y, x, mirrored = int(draws.integers(17)), int(draws.integers(27)), draws.random() < 0.5
        expected = image[y : y + 24, x : x + 24]
        found, _ = augment(image, mask_of(image), DataConfig(crop=24), rng(seed))
        np.testing.assert_array_equal(found, expected[:, ::-1] if mirrored else expected)


def test_resized_crops_prefer_cracks_too():
    mask = np.zeros((100, 100), np.uint8)
    mask[40:44, 70:74] = 1
    settings = DataConfig(crop=32, crack_share=1.0, resized_crop=[0.1, 0.2])
    found = [augment(coordinates(0, 100, 100), mask, settings, rng(n))[1].any() for n in range(50)]
    assert np.mean(found) > 0.9  # all hold one of its pixels, of which a corner may vanish as it is resized


# ---- stored LQ images ----


@pytest.mark.parametrize("scale", [1, 2, 3, 4])
@pytest.mark.parametrize("share", [0.0, 1.0])
def test_hr_and_lq_are_cut_and_mirrored_alike(scale, share):
    """The LQ image holds the coordinates of the upper left of each block; mirrored, it is the last of the block."""
    image = coordinates(3, 48, 60)
    lq, kernel = image[::scale, ::scale].copy(), np.arange(25, dtype=np.float32).reshape(5, 5)
    settings, seen = DataConfig(crop=24, hflip=0.5, vflip=0.5, crack_share=share), set()
    for seed in range(24):
        hr, mask, small, turned = augment_stored(image, mask_of(image), lq, kernel, scale, settings, rng(seed))
        across, upright = mirrored(hr)
        seen.add((across, upright))
        assert small.shape == (24 // scale, 24 // scale, 3)
        rows, columns = slice(scale - 1 if upright else 0, None, scale), slice(scale - 1 if across else 0, None, scale)
        np.testing.assert_array_equal(small, hr[rows, columns])
        np.testing.assert_array_equal(mask, mask_of(hr))
        np.testing.assert_array_equal(turned, kernel[:: -1 if upright else 1, :: -1 if across else 1])
        beginning = hr[-1 if upright else 0, -1 if across else 0]
        assert beginning[0] % scale == beginning[1] % scale == 0
    assert len(seen) == 4


def test_rows_beyond_a_multiple_of_the_scale_are_cut_off():
    image = coordinates(3, 27, 26)
    for seed in range(20):
        settings = DataConfig(crop=24, crack_share=1.0, hflip=0)
        hr, _, lq, _ = augment_stored(image, mask_of(image), image[:24:4, :24:4], None, 4, settings, rng(seed))
        assert hr[0, 0, 0] == hr[0, 0, 1] == 0 and lq.shape == (6, 6, 3)


def test_mirrored_images_belong_to_the_mirrored_kernel():
    """Blur with a kernel that is not symmetric, reduce by averages: the same before and after mirroring."""
    draws = np.random.default_rng(0)
    hr, kernel = draws.random((40, 40, 3)).astype(np.float32), draws.random((5, 5)).astype(np.float32)

    def degrade(image, kernel):
        blurred = cv2.filter2D(image, -1, kernel, borderType=cv2.BORDER_REFLECT)  # correlation, as ours is
        return blurred.reshape(20, 2, 20, 2, 3).mean((1, 3))

    lq = degrade(hr, kernel)
    for seed in range(8):
        settings = DataConfig(crop=40, hflip=0.5, vflip=0.5)
        found = augment_stored(hr, np.zeros((40, 40), np.uint8), lq, kernel, 2, settings, rng(seed))
        np.testing.assert_allclose(found[2], degrade(found[0], found[3]), atol=1e-5)
