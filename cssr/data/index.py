"""`index.json`: what a set of shards holds. Whatever it says is checked before anything is made of it."""

import json
import re
from typing import Any

FORMAT = "cssr-shards-1"
LARGEST = 1 << 26  # bytes; some 400,000 shards
_LARGEST_KERNEL = 511  # pixels a side
_LEAST_SAMPLE = 1024  # bytes in a tar: a header and a block
_MOST_SAMPLES = 1_000_000  # a shard
_SIZE = re.compile(r"[1-9]\d{0,5}x[1-9]\d{0,5}")
_NAME = re.compile(r"[^/\\\x00-\x1f\x7f]+\.tar")


def parse_index(text: bytes) -> dict[str, Any] | None:
    """The index that `text` holds; None if it holds none, or one that cannot be true."""
    try:
        index = json.loads(text)
        whole = index["format"] == FORMAT and bool(index["shards"]) and bool(index["image_sizes"])
        whole = whole and all(map(_is_shard, index["shards"])) and all(map(_SIZE.fullmatch, index["image_sizes"]))
        whole = whole and isinstance(index.get("masks", True), bool) and _has_sound_lq(index)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return index if whole else None


def _is_shard(shard: dict[str, Any]) -> bool:
    """Whether it has a plain name and so many bytes that its samples fit in."""
    samples, size = shard["samples"], shard["bytes"]
    numbers = type(samples) is int and type(size) is int and 0 < samples * _LEAST_SAMPLE <= size < 2**62
    return numbers and samples <= _MOST_SAMPLES and bool(_NAME.fullmatch(shard["name"])) and shard["name"].isprintable()


def _has_sound_lq(index: dict[str, Any]) -> bool:
    """Whether it says all about stored LQ images and kernels, or that there are none."""
    if index.get("lq") in (None, False):
        return True
    scale, kernel = index["scale"], index.get("kernel")
    sound = index["lq"] is True and type(scale) is int and 0 < scale <= 64
    return sound and (kernel is None or (type(kernel) is int and 0 < kernel <= _LARGEST_KERNEL))


def sizes(index: dict[str, Any]) -> list[tuple[int, int]]:
    """(width, height) of every size of image in the set, pixels."""
    return [tuple(map(int, size.split("x"))) for size in index["image_sizes"]]
