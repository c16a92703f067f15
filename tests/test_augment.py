"""Training augmentation: picture and mask are cut, resized and mirrored alike, from the given draws alone."""

import numpy as np
import pytest
from helpers import coordinates, mask_of

from cssr.augment import augment, photometric_distortion
from cssr.config import DataConfig
from cssr.lanes import rng


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
