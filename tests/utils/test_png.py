"""PNGs that are written by rows, as two other libraries read them."""

import io

import cv2
import numpy as np
import pytest
from PIL import Image

from cssr.utils.images import encode_image
from cssr.utils.png import PngRows

MODES = {"1": None, "L": 1, "LA": 2, "RGB": 3, "RGBA": 4}


def drawn(mode: str, height: int, width: int) -> np.ndarray:
    """Smooth in one part, noise in another."""
    generator = np.random.default_rng(0)
    channels = MODES[mode] or 1
    values = np.add.outer(np.arange(height), np.arange(width))[..., None] * np.arange(1, channels + 1) % 256
    values[:, width // 2 :] = generator.integers(0, 256, (height, width - width // 2, channels))
    values = values.astype(np.uint8)
    return values[..., 0] > 127 if mode == "1" else values[..., 0] if mode == "L" else values


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("height, width", [(1, 1), (70, 33), (200, 64)])
@pytest.mark.parametrize("count", [1, 64, 1000])
def test_every_reader_finds_the_pixels(mode, height, width, count, tmp_path):
    pixels = drawn(mode, height, width)
    with open(tmp_path / "a.png", "wb") as file:
        rows = PngRows(file, height)
        for top in range(0, height, count):
            rows.write(pixels[top : top + count])
        rows.finish()
    with Image.open(tmp_path / "a.png") as image:
        assert image.mode == mode and np.array_equal(np.asarray(image), pixels)
    found = cv2.imread(str(tmp_path / "a.png"), cv2.IMREAD_UNCHANGED)
    if mode in ("RGB", "RGBA"):
        assert np.array_equal(cv2.cvtColor(found, cv2.COLOR_BGR2RGB if mode == "RGB" else cv2.COLOR_BGRA2RGBA), pixels)


def test_pixels_without_data_are_transparent():
    pixels, valid = drawn("RGB", 40, 30), np.arange(40)[:, None] >= np.arange(30)
    rows = PngRows(buffer := io.BytesIO(), 40)
    rows.write(pixels[:25], valid[:25])
    rows.write(pixels[25:], valid[25:])
    rows.finish()
    found = np.asarray(Image.open(buffer))
    assert np.array_equal(found[..., :3], pixels) and np.array_equal(found[..., 3] == 255, valid)


@pytest.mark.parametrize("mode", MODES)
def test_encoded_pictures_are_hardly_larger_than_those_of_zlib(mode):
    pixels = drawn(mode, 400, 400)
    pixels = pixels if mode == "1" else cv2.GaussianBlur(pixels, (0, 0), 3)
    ours, image = encode_image(pixels), Image.fromarray(pixels)
    assert encode_image(image) == ours and len(ours) < 1.25 * len(encode_image(image, compress_level=1))
    with Image.open(io.BytesIO(ours)) as found:
        assert found.mode == mode and np.array_equal(np.asarray(found), pixels)


def test_what_has_more_than_8_bits_keeps_them():
    deep = np.arange(6000, dtype=np.uint16).reshape(60, 100) * 10
    with Image.open(io.BytesIO(encode_image(deep))) as found:
        assert np.array_equal(np.asarray(found), deep)
