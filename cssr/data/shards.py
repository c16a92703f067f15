"""Shards: WebDataset tars and the `index.json` beside them, on this machine or elsewhere.

A sample is `key.jpg|png`, `key.mask.png`, `key.json` and, in a set of degraded images, `key.lq.png|jpg` and perhaps
`key.kernel.npy`. A set whose index says `"masks": false` has no `key.mask.png`; its samples come with masks of 0.
"""

import os
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from cssr.config.schema import DataConfig
from cssr.data import index as indexes
from cssr.data.cache import Cache, Entry
from cssr.data.decode import decode_image, decode_kernel, decode_mask, image_size
from cssr.data.remote import DataError, Notify, Remote, is_remote
from cssr.data.tar_reader import Files, contents

_BESIDE = 1 << 25  # bytes that an image file may have beside 8 a pixel: thumbnails, colour profiles
_REMEDY = "write the shards again with shards/make_shards.py"


def _ignore(_: str) -> None: ...


def _say(message: str) -> None:
    print(message, file=sys.stderr)


@dataclass(frozen=True)
class ShardSet:
    """A set of shards whose index has been read; those on this machine are there, whole by size."""

    root: Path | str  # directory; address where it is elsewhere
    names: tuple[str, ...]
    counts: tuple[int, ...]
    index: dict[str, Any]
    cache: Cache | None = None  # through which shards elsewhere are read

    @classmethod
    def open(cls, root: str | Path, setting: str, data: DataConfig | None = None) -> "ShardSet":
        """Read `root/index.json`, check the tars; DataError names `setting` (the option that gave `root`)."""
        data = data or DataConfig()
        if is_remote(root):
            cache = _cache(str(root), data)
            text = _fetch_index(cache.remote)
            where = cache.remote.address("index.json")
        else:
            cache, root = None, Path(str(root).removeprefix("file://"))
            where = root / "index.json"
            text = _read_index(where, setting)
        index = indexes.parse_index(text)
        if index is None:
            raise DataError(f"{setting}: {where} is damaged or of another format than {indexes.FORMAT}; {_REMEDY}")
        names, counts = (tuple(shard[what] for shard in index["shards"]) for what in ("name", "samples"))
        found = cls(root, names, counts, index, cache)
        found._check_pixels(setting, data.max_pixels)
        found._check_files(setting)
        return found

    def __len__(self) -> int:
        return sum(self.counts)

    @property
    def masks(self) -> bool:
        """Whether the samples have masks."""
        return self.index.get("masks", True)

    @property
    def lq(self) -> bool:
        """Whether the samples have LQ images."""
        return self.index.get("lq") or False

    @property
    def scale(self) -> int | None:
        """HR pixels per pixel of the stored LQ images; None where there are none."""
        return self.index["scale"] if self.lq else None

    @property
    def kernel(self) -> int | None:
        """Side of the stored blur kernels, pixels; None where there are none."""
        return self.index.get("kernel") if self.lq else None

    @cached_property
    def pixels(self) -> int:
        """How many the largest image has."""
        return max(width * height for width, height in indexes.sizes(self.index))

    def smallest_side(self) -> int:
        """The shortest side of any image, pixels."""
        return min(map(min, indexes.sizes(self.index)))

    def address(self, shard: int) -> str:
        """Where a shard is, for people."""
        name = self.names[shard]
        return self.cache.remote.address(name) if self.cache else os.path.join(self._directory, name)

    @cached_property
    def _directory(self) -> str:
        return str(self.root)

    def entry(self, shard: int) -> Entry:
        """A shard as the cache knows it."""
        return Entry(*(self.index["shards"][shard][what] for what in ("name", "bytes", "sha256")))

    def file(self, shard: int, notify: Notify) -> AbstractContextManager[BinaryIO]:
        """A shard, open for reading."""
        if self.cache:
            return self.cache.use(self.entry(shard), notify)
        return open(self.address(shard), "rb")

    def _check_pixels(self, setting: str, most: int) -> None:
        if self.pixels > most:
            raise DataError(
                f"{setting}: {self.root} has images of {self.pixels} pixels, more than data.max_pixels={most}: "
                "raise that if the set is to be trusted"
            )

    def _check_files(self, setting: str) -> None:
        for shard in self.index["shards"]:
            if self.cache:
                if not _is_sha256(shard.get("sha256")):
                    raise DataError(f"{setting}: the index of {self.root} has no sha256 of {shard['name']}; {_REMEDY}")
                continue
            path = self.root / shard["name"]
            size = path.stat().st_size if path.is_file() else None
            if size != shard["bytes"]:
                found = "is missing" if size is None else f"has {size} bytes, its index says {shard['bytes']}"
                raise DataError(f"{setting}: {path} {found}; {_REMEDY}")


def _is_sha256(text: Any) -> bool:
    return isinstance(text, str) and len(text) == 64 and set(text) <= set("0123456789abcdef")


def _cache(root: str, data: DataConfig) -> Cache:
    directory = data.cache or os.environ.get("CSSR_CACHE") or Path.home() / ".cache" / "cssr"
    return Cache(Remote(root, data.retries, data.timeout), Path(directory), int(data.cache_gib * 2**30))


@lru_cache(maxsize=64)
def _fetch_index(remote: Remote) -> bytes:
    """Once a process: what has begun with an index goes on with it."""
    return remote.fetch("index.json", indexes.LARGEST, _say)


def _read_index(path: Path, setting: str) -> bytes:
    if not path.is_file():
        raise DataError(
            f"{setting}: no shards in {path.parent} (index.json is missing); write them with shards/make_shards.py"
        )
    if path.stat().st_size > indexes.LARGEST:
        raise DataError(f"{setting}: {path} is larger than {indexes.LARGEST >> 20} MiB; {_REMEDY}")
    return path.read_bytes()


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


def open_sets(setting: Any, name: str, data: DataConfig | None = None) -> list[ShardSet]:
    """The shard sets of a setting (`data.val`, say, which is its `name`), checked; `data` says how they are read."""
    return [ShardSet.open(path, name, data) for path in parse_sets(setting, name)]


# ---- samples ----


@dataclass
class Sample:
    """One sample as stored: what a shard holds under a key."""

    key: str
    image: np.ndarray  # H W 3 uint8 RGB
    mask: np.ndarray  # H W uint8, 0 or 1; 0 in a set without masks
    lq: np.ndarray | None = None  # h w 3 uint8 RGB, h = H // scale, w = W // scale
    kernel: np.ndarray | None = None  # k k float32


def read_sample(shards: ShardSet, shard: int, index: int, notify: Notify = _ignore, with_lq: bool = True) -> Sample:
    """Read and decode one sample by its place in a shard.

    Args:
        notify: called with what went wrong on the way, but could be helped.
        with_lq: whether a stored LQ image and kernel are wanted.
    Raises: DataError if the sample is damaged; Unreachable, a DataError too, if its shard is not to be had.
    """
    address = shards.address(shard)
    where = f"{address} sample {index}"
    try:
        with shards.file(shard, notify) as file:
            version = shards.entry(shard).sha256 if shards.cache else os.fstat(file.fileno()).st_mtime_ns
            held = contents((address, version), file, shards.counts[shard])
            key = held.key(index)
            where = f"{address} key {key}"
            files = Files(file, held.places[index], _BESIDE + 8 * shards.pixels)
            return _decode(shards, key, files, with_lq, lambda doubt: notify(f"{where}: {doubt}; used as it is"))
    except DataError:
        raise
    except (OSError, ValueError, RecursionError, MemoryError) as error:
        reason = " ".join(str(error).split()) if type(error) is ValueError else type(error).__name__
        raise DataError(f"damaged sample: {where}: {reason}") from error


def _decode(shards: ShardSet, key: str, files: Files, with_lq: bool, doubt: Notify) -> Sample:
    data = files.read("jpg", "png")
    width, height = image_size(data)
    if width * height > shards.pixels:
        raise ValueError(f"its image has {width} x {height} pixels by its header, more than any of the set")
    mask = decode_mask(files.sized(width, height, "mask.png")) if shards.masks else np.zeros((height, width), np.uint8)
    sample = Sample(key, decode_image(data, doubt), mask)
    if sample.image.shape[:2] != sample.mask.shape:
        raise ValueError(f"its image has {sample.image.shape[:2]} pixels, its mask {sample.mask.shape}")
    if with_lq and shards.scale:
        lq = files.sized(width // shards.scale, height // shards.scale, "lq.png", "lq.jpg")
        sample.lq = decode_image(lq, doubt)
    if with_lq and shards.kernel:
        sample.kernel = decode_kernel(files.read("kernel.npy"), shards.kernel)
    return sample
