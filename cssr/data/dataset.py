"""Samples of shards: read, decoded, checked, and made ready for a batch of training or evaluation.

A sample is `key.jpg|png`, `key.mask.png`, `key.json`, where some pixels hold no data `key.valid.png` and, in a set of
degraded images, `key.lq.png|jpg` and perhaps `key.kernel.npy`. A set with `"masks": false` in its index has no
`key.mask.png`; its samples come with masks of 0.
"""

import zlib
from dataclasses import dataclass

import numpy as np

from cssr.data.decode import decode_image, decode_kernel, decode_mask, image_size
from cssr.data.remote import DataError, Notify
from cssr.data.shards import ShardSet
from cssr.data.tar_reader import Files
from cssr.utils.text import message_of
from cssr.utils.valid_pixels import fill_missing

_BESIDE = 1 << 25  # bytes that an image file may have beside 8 a pixel: thumbnails, colour profiles


@dataclass
class Sample:
    """One sample as stored: what a shard holds under a key."""

    key: str
    image: np.ndarray  # H W 3 uint8 RGB; the nearest valid pixels continued into those without data
    mask: np.ndarray  # H W uint8, 0 or 1; 0 in a set without masks
    lq: np.ndarray | None = None  # h w 3 uint8 RGB, h = H // scale, w = W // scale
    kernel: np.ndarray | None = None  # k k float32
    valid: np.ndarray | None = None  # H W uint8, 1 where a pixel holds data; None: all do


def read_sample(
    shards: ShardSet, shard: int, index: int, notify: Notify = lambda _: None, with_lq: bool = True
) -> Sample:
    """Read and decode one sample by its number in a shard.

    Args:
        notify: called with what went wrong, but could be worked around.
        with_lq: whether a stored LQ image and kernel are wanted.
    Raises: DataError if the sample is damaged; Unreachable, a DataError too, if its shard cannot be fetched.
    """
    address = shards.address(shard)
    name = f"{address} sample {index}"
    try:
        with shards.file(shard, notify) as file:
            table = shards.contents(shard, file)
            key = shards.key(shard, table.key(index))
            name = f"{address} key {key}"
            table.check(index)
            files = Files(file, table.places[index], _BESIDE + 8 * shards.pixels)
            return _decode(shards, key, files, with_lq, lambda warning: notify(f"{name}: {warning}; used as it is"))
    except DataError:
        raise
    except (OSError, ValueError, RecursionError, MemoryError) as error:
        reason = message_of(error) if type(error) is ValueError else type(error).__name__
        raise DataError(f"damaged sample: {name}: {reason}") from error


def _decode(shards: ShardSet, key: str, files: Files, with_lq: bool, notify: Notify) -> Sample:
    data = files.read("jpg", "png")
    width, height = image_size(data)
    if width * height > shards.pixels:
        raise ValueError(f"its image has {width} x {height} pixels by its header, more than any of the set")
    mask = (
        decode_mask(files.sized(width, height, "mask.png"), shards.mask_above)
        if shards.masks
        else np.zeros((height, width), np.uint8)
    )
    sample = Sample(key, decode_image(data, notify), mask)
    if sample.image.shape[:2] != sample.mask.shape:
        raise ValueError(f"its image has {sample.image.shape[:2]} pixels, its mask {sample.mask.shape}")
    if shards.valid and files.has("valid.png"):
        sample.valid = decode_mask(files.sized(width, height, "valid.png"))
        sample.image, sample.mask = fill_missing(sample.image, sample.valid), sample.mask * sample.valid
    if with_lq and shards.scale:
        lq = files.sized(width // shards.scale, height // shards.scale, "lq.png", "lq.jpg")
        sample.lq = decode_image(lq, notify)
    if with_lq and shards.kernel:
        sample.kernel = decode_kernel(files.read("kernel.npy"), shards.kernel)
    return sample


def eval_seed(seed: int, key: str) -> int:
    """The degradation seed of an evaluated sample: of the evaluation's seed and the key, not of the order."""
    return (seed << 32) + zlib.crc32(key.encode())
