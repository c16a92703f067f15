"""Shards: WebDataset tars (`key.jpg|png`, `key.mask.png`, `key.json`) and the `index.json` beside them.

A set whose index says `"masks": false` has no `key.mask.png`; its samples come with masks of 0.
"""

import json
import re
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np

IMAGE_EXTENSIONS = ("jpg", "png")
INDEX_FORMAT = "cssr-shards-1"


class DataError(ValueError):
    """The data cannot be used as it is; the message is one line with the remedy."""


@dataclass(frozen=True)
class ShardSet:
    """A shard directory whose index has been read and whose files are there, whole by size."""

    root: Path
    names: tuple[str, ...]
    counts: tuple[int, ...]
    index: dict[str, Any]

    @classmethod
    def open(cls, root: str | Path, setting: str) -> "ShardSet":
        """Read `root/index.json`, check the tars; DataError names `setting` (the option that gave `root`)."""
        root = Path(root)
        index = _read_index(root, setting)
        for shard in index["shards"]:
            path = root / shard["name"]
            size = path.stat().st_size if path.is_file() else None
            if size != shard["bytes"]:
                found = "is missing" if size is None else f"has {size} bytes, its index says {shard['bytes']}"
                raise DataError(f"{setting}: {path} {found}; write the shards again with shards/make_shards.py")
        return cls(root, tuple(s["name"] for s in index["shards"]), tuple(s["samples"] for s in index["shards"]), index)

    def __len__(self) -> int:
        return sum(self.counts)

    @property
    def masks(self) -> bool:
        """Whether the samples have masks."""
        return self.index.get("masks", True)

    def smallest_side(self) -> int:
        """The shortest side of any image, pixels."""
        return min(min(map(int, size.split("x"))) for size in self.index["image_sizes"])


def _read_index(root: Path, setting: str) -> dict[str, Any]:
    path = root / "index.json"
    if not path.is_file():
        raise DataError(
            f"{setting}: no shards in {root} (index.json is missing); write them with shards/make_shards.py"
        )
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        whole = index["format"] == INDEX_FORMAT and index["shards"] and index["image_sizes"]
        whole = whole and all(
            s["samples"] > 0 and s["bytes"] > 0 and s["name"].endswith(".tar") for s in index["shards"]
        )
        whole = whole and isinstance(index.get("masks", True), bool)
        whole = whole and all(re.fullmatch(r"\d+x\d+", size) for size in index["image_sizes"])
    except (ValueError, KeyError, TypeError, AttributeError):
        whole = False
    if not whole:
        raise DataError(
            f"{setting}: {path} is damaged or of another format than {INDEX_FORMAT}; "
            "write the shards again with shards/make_shards.py"
        )
    return index


def parse_sets(setting: Any, name: str) -> dict[str, float]:
    """`data.train` or `data.val` as {directory: weight}: a path, a list of paths, or a mapping path -> weight."""
    if setting is None or setting in ([], {}, ""):
        raise DataError(f"{name} is not set: give a shard directory, e.g. {name}=shards_dir")
    if isinstance(setting, (str, Path)):
        return {str(setting): 1.0}
    if isinstance(setting, list) and all(isinstance(path, str) for path in setting):
        return dict.fromkeys(setting, 1.0)
    if isinstance(setting, Mapping) and all(isinstance(weight, (int, float)) for weight in setting.values()):
        return {str(path): float(weight) for path, weight in setting.items()}
    raise DataError(f"{name} must be a shard directory, several, or {{directory: weight}}; found {setting}")


@dataclass
class Sample:
    """One sample as stored: what a shard holds under a key."""

    key: str
    image: np.ndarray  # H W 3 uint8 RGB
    mask: np.ndarray  # H W uint8, 0 or 1; 0 in a set without masks


@lru_cache(maxsize=64)
def _members(path: str) -> tuple[tuple[str, dict[str, tuple[int, int]]], ...]:
    """(key, {extension: (offset, size)}) of each sample of a tar, in order: its headers are read once."""
    samples: dict[str, dict[str, tuple[int, int]]] = {}
    with tarfile.open(path, "r:") as tar:
        for member in tar:
            key, _, extension = member.name.partition(".")
            samples.setdefault(key, {})[extension] = (member.offset_data, member.size)
    return tuple(samples.items())


def read_sample(shards: ShardSet, shard: int, index: int) -> Sample:
    """Read and decode one sample by its place in a shard; DataError if it is damaged."""
    path = shards.root / shards.names[shard]
    where = f"{path} sample {index}"
    try:
        key, parts = _members(str(path))[index]
        where = f"{path} key {key}"
        image_at = next(parts[e] for e in IMAGE_EXTENSIONS if e in parts)
        with open(path, "rb") as file:
            image = _decode(_read_at(file, *image_at), cv2.IMREAD_COLOR)
            mask = _decode(_read_at(file, *parts["mask.png"]), cv2.IMREAD_GRAYSCALE) if shards.masks else None
    except (OSError, tarfile.TarError, IndexError, KeyError, StopIteration, cv2.error) as error:
        raise DataError(f"damaged sample: {where}: {type(error).__name__}") from error
    if not shards.masks and image is not None:
        mask = np.zeros(image.shape[:2], np.uint8)
    if image is None or mask is None or image.shape[:2] != mask.shape:
        raise DataError(f"damaged sample: {where}: its {'image' if image is None else 'mask'} cannot be used")
    return Sample(key, image[..., ::-1], (mask > 0).astype(np.uint8))


def _read_at(file: Any, offset: int, size: int) -> bytes:
    file.seek(offset)
    return file.read(size)


def _decode(data: bytes, mode: int) -> np.ndarray | None:
    return cv2.imdecode(np.frombuffer(data, np.uint8), mode | cv2.IMREAD_IGNORE_ORIENTATION) if data else None


def open_sets(setting: Any, name: str) -> list[ShardSet]:
    """The shard sets of a setting (`data.val`, say, which is its `name`), checked."""
    return [ShardSet.open(path, name) for path in parse_sets(setting, name)]
