"""Training augmentation of one sample: crops and flips of image and mask alike, CSSR's photometric distortion."""

from collections import defaultdict
from collections.abc import Sequence

import cv2
import numpy as np

from cssr.config.schema import DataConfig

_CHANNEL_ORDERS = ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0))


def augment(
    image: np.ndarray, mask: np.ndarray, data: DataConfig, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """A training crop of a photograph and its mask.

    Args:
        image: H W 3 uint8, or H W 4 with a last channel that stays unchanged (255 where a pixel holds data).
        mask: H W uint8, 0 or 1.
        data: the settings `crop`, `resized_crop`, `crack_share`, `hflip`, `vflip`, `photometric`.
        rng: source of every draw.
    Returns:
        the image (crop crop 3 or 4 uint8) and the mask (crop crop uint8) cut, resized and mirrored alike.
    """
    image, mask = _crop(image, mask, data, rng)
    flips = _draw_flips(data, rng)
    image, mask = _flip(image, flips), _flip(mask, flips)
    if data.photometric:
        image = np.dstack([photometric_distortion(image[..., :3], rng), image[..., 3:]])
    return image, mask


def augment_stored(
    image: np.ndarray,
    mask: np.ndarray,
    lq: np.ndarray,
    kernel: np.ndarray | None,
    scale: int,
    data: DataConfig,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]:
    """A training crop of a photograph, its mask and its stored LQ image, which show the same.

    Args:
        image, mask: as for `augment`. lq: h w 3 uint8, h = H // scale, w = W // scale. kernel: k k float32.
        data: the settings `crop`, `crack_share`, `hflip`, `vflip`; crops begin at multiples of `scale`.
    Returns:
        image, mask, lq (crop/scale crop/scale 3 uint8) and kernel, cut and mirrored alike: the mirrored image is the
        mirrored LQ image's, blurred with the mirrored kernel (if what reduced it is symmetric, as bicubic is).
    """
    height, width = (side * scale for side in lq.shape[:2])
    side, image, mask = data.crop, image[:height, :width], mask[:height, :width]
    y, x = _position(mask, side, side, data, rng, scale)
    cut, cut_lq = _window(y, x, side, side), _window(y // scale, x // scale, side // scale, side // scale)
    flips = _draw_flips(data, rng)
    kernel = None if kernel is None else _flip(kernel, flips)
    return _flip(image[cut], flips), _flip(mask[cut], flips), _flip(lq[cut_lq], flips), kernel


def _window(y: int, x: int, height: int, width: int) -> tuple[slice, slice]:
    return np.s_[y : y + height, x : x + width]


def _draw_flips(data: DataConfig, rng: np.random.Generator) -> tuple[bool, bool]:
    """Draw whether to flip horizontally, and vertically."""
    horizontal = rng.random() < data.hflip
    return horizontal, rng.random() < data.vflip


def _flip(image: np.ndarray, flips: tuple[bool, bool]) -> np.ndarray:
    """A flipped copy; cv2 is many times faster than numpy."""
    horizontal, vertical = flips
    return (
        cv2.flip(image, 1 - 2 * vertical if horizontal else 0)
        if horizontal or vertical
        else np.ascontiguousarray(image)
    )


def _crop(
    image: np.ndarray, mask: np.ndarray, data: DataConfig, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    height, width = mask.shape
    h, w = _crop_size(height, width, data.resized_crop, rng) if data.resized_crop else (data.crop, data.crop)
    window = _window(*_position(mask, h, w, data, rng), h, w)
    image, mask = image[window], mask[window]
    if (h, w) == (data.crop, data.crop):
        return image, mask
    size = (data.crop, data.crop)
    enlarged = cv2.resize(mask.astype(np.float32), size, interpolation=cv2.INTER_LINEAR)
    return cv2.resize(image, size, interpolation=cv2.INTER_LINEAR), (enlarged > 0.5).astype(np.uint8)


def _position(
    mask: np.ndarray, h: int, w: int, data: DataConfig, rng: np.random.Generator, step: int = 1
) -> tuple[int, int]:
    """Corner of a crop of h x w: at multiples of `step`; for a share of the crops, so that a crack is in it."""
    height, width = mask.shape
    if h > height or w > width:
        raise ValueError(f"image of {width}x{height} pixels is smaller than data.crop={data.crop}")
    if data.crack_share and rng.random() < data.crack_share:
        cracks = np.flatnonzero(mask.view(bool))
        if len(cracks):
            row, column = divmod(int(cracks[rng.integers(len(cracks))]), width)
            return _start_around(row, h, height, step, rng), _start_around(column, w, width, step, rng)
    y, x = rng.integers((height - h) // step + 1), rng.integers((width - w) // step + 1)
    return int(y) * step, int(x) * step


def _start_around(pixel: int, length: int, size: int, step: int, rng: np.random.Generator) -> int:
    """Draw a start, a multiple of `step`, from which `length` pixels hold the given one; `size` is a multiple too."""
    first = -(-max(0, pixel - length + 1) // step)
    last = min(pixel, size - length) // step
    return int(rng.integers(first, last + 1)) * step


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


_REACH = 6  # pixels; cracks are thin: nearly all of their pixels have a background pixel as near as that
_SPARSE = 0.03  # share of crack pixels in the box around them, up to which they are looked at one by one


def _rings() -> list[tuple[float, np.ndarray]]:
    """Distances up to `_REACH`, and the steps (n 2; rows, columns) that are so long, shortest first."""
    steps = defaultdict(list)
    for row in range(-_REACH, _REACH + 1):
        for column in range(-_REACH, _REACH + 1):
            steps[row * row + column * column].append((row, column))
    return [(square**0.5, np.array(steps[square])) for square in sorted(steps) if 0 < square <= _REACH**2]


_RINGS = _rings()


def signed_distance(mask: np.ndarray) -> np.ndarray:
    """Signed Euclidean distance map of a mask, pixels.

    Args: mask: H W uint8, 1 on crack pixels.
    Returns: H W float32: outside, the distance to the nearest crack pixel; inside, minus the distance to the nearest
        background pixel (-1 along the inner boundary); zero all over where the mask is empty. Exact (cv2's precise
        transform), image borders not counted as background.
    """
    cracks = cv2.countNonZero(mask)
    if not cracks:
        return np.zeros(mask.shape, np.float32)
    distance = _distance(1 - mask)
    if cracks == mask.size:
        return distance - 1
    x, y, width, height = cv2.boundingRect(mask)
    if cracks > _SPARSE * width * height or not _subtract_thin(distance, mask):
        near = np.s_[max(y - 1, 0) : y + height + 1, max(x - 1, 0) : x + width + 1]  # holds the nearest background
        distance[near] -= _distance(mask[near])
    return distance


def _subtract_thin(distance: np.ndarray, mask: np.ndarray) -> bool:
    """Subtract, on crack pixels, the distance to the background: several times faster than a transform of all pixels.

    Returns: whether all of them have it within reach; if not, `distance` is unchanged.
    """
    framed = cv2.copyMakeBorder(mask, _REACH, _REACH, _REACH, _REACH, cv2.BORDER_CONSTANT, value=1)
    background, width = framed.reshape(-1) == 0, framed.shape[1]
    cracks = np.flatnonzero(mask.view(bool))
    rows = cracks // mask.shape[1]
    offsets = (rows + _REACH) * width + cracks - rows * mask.shape[1] + _REACH
    values = np.zeros(len(cracks), np.float32)
    remaining = np.arange(len(cracks))
    for length, steps in _RINGS:
        reached = background[offsets[:, None] + steps @ (width, 1)].any(1)
        values[remaining[reached]] = length
        offsets, remaining = offsets[~reached], remaining[~reached]
        if not len(remaining):
            distance.reshape(-1)[cracks] -= values
            return True
    return False


def _distance(mask: np.ndarray) -> np.ndarray:
    """The distance of each pixel to the nearest 0.

    Without IPP, which is slower here, and in which the last bit depends on the arrays' alignment in memory.
    """
    used = cv2.ipp.useIPP()
    cv2.ipp.setUseIPP(False)  # of this thread
    try:
        return cv2.distanceTransform(mask, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    finally:
        cv2.ipp.setUseIPP(used)
