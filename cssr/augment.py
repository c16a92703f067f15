"""Training augmentation of one sample: paired geometry, CSSR's photometric distortion; all from a given generator."""

from collections.abc import Sequence

import cv2
import numpy as np

from cssr.config import DataConfig

_CHANNEL_ORDERS = ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0))


def augment(
    image: np.ndarray, mask: np.ndarray, data: DataConfig, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """A training crop of a photograph and its mask.

    Args:
        image: H W 3 uint8. mask: H W uint8, 0 or 1.
        data: the settings `crop`, `resized_crop`, `hflip`, `vflip`, `photometric`.
        rng: source of every draw.
    Returns:
        the image (crop crop 3 uint8) and the mask (crop crop uint8) cut, resized and mirrored alike.
    """
    image, mask = _crop(image, mask, data, rng)
    if rng.random() < data.hflip:
        image, mask = image[:, ::-1], mask[:, ::-1]
    if rng.random() < data.vflip:
        image, mask = image[::-1], mask[::-1]
    if data.photometric:
        image = photometric_distortion(image, rng)
    return np.ascontiguousarray(image), np.ascontiguousarray(mask)


def _crop(
    image: np.ndarray, mask: np.ndarray, data: DataConfig, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    height, width = mask.shape
    h, w = _crop_size(height, width, data.resized_crop, rng) if data.resized_crop else (data.crop, data.crop)
    if h > height or w > width:
        raise ValueError(f"image of {width}x{height} pixels is smaller than data.crop={data.crop}")
    y, x = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
    image, mask = image[y : y + h, x : x + w], mask[y : y + h, x : x + w]
    if (h, w) == (data.crop, data.crop):
        return image, mask
    size = (data.crop, data.crop)
    enlarged = cv2.resize(mask.astype(np.float32), size, interpolation=cv2.INTER_LINEAR)
    return cv2.resize(image, size, interpolation=cv2.INTER_LINEAR), (enlarged > 0.5).astype(np.uint8)


def _crop_size(height: int, width: int, share: Sequence[float], rng: np.random.Generator) -> tuple[int, int]:
    """A crop of a random share of the area and aspect ratio 3/4..4/3, as torchvision's random resized crop."""
    for _ in range(10):
        area = height * width * rng.uniform(*share)
        ratio = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
        h, w = round((area / ratio) ** 0.5), round((area * ratio) ** 0.5)
        if 0 < h <= height and 0 < w <= width:
            return h, w
    side = min(height, width)
    return side, side


def photometric_distortion(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Brightness, contrast, saturation, hue and channel order, each with probability 1/2, as CSSR trains.

    Args: image: H W 3 uint8 RGB. Returns: the same, clipped to 0..255 and rounded.
    """
    image = image.astype(np.float32)
    if rng.integers(2):
        image = np.clip(image + np.float32(rng.uniform(-32, 32)), 0, 255)
    contrast_first = rng.integers(2)
    if contrast_first:
        image = _contrast(image, rng)
    image = _saturation_and_hue(image, rng)
    if not contrast_first:
        image = _contrast(image, rng)
    if rng.integers(2):
        image = image[..., _CHANNEL_ORDERS[rng.integers(6)]]
    return np.rint(np.clip(image, 0, 255)).astype(np.uint8)


def _contrast(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.clip(image * np.float32(rng.uniform(0.5, 1.5)), 0, 255) if rng.integers(2) else image


def _saturation_and_hue(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
    if rng.integers(2):
        hsv[..., 1] *= np.float32(rng.uniform(0.5, 1.5))
    if rng.integers(2):
        hsv[..., 0] = (hsv[..., 0] + np.float32(rng.uniform(-18, 18))) % 360
    hsv[..., 1] = np.clip(hsv[..., 1], 0, 1)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
