"""Shards: WebDataset tars and the `index.json` beside them, on this machine or elsewhere.

An index is checked before any of it is used.
"""

import json
import os
import re
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, BinaryIO

from cssr.config.schema import DataConfig
from cssr.data.cache import Cache, Entry, cache_directory
from cssr.data.foreign import foreign_index
from cssr.data.remote import DataError, Notify, Remote, Unreachable, is_remote
from cssr.data.tar_reader import FORMAT as FORMAT
from cssr.data.tar_reader import SLOTS, Contents, Naming, read_contents
from cssr.data.tars import find_tars
from cssr.utils.files import digest
from cssr.utils.json_files import no_key_twice

_REMEDY = "write the shards again with shards/make_shards.py"
MAX_INDEX = 1 << 26  # bytes; some 200,000 shards
_MAX_KERNEL = 511  # pixels a side
_MIN_SAMPLE = 1024  # bytes in a tar: a header and a block
_MAX_SAMPLES = 1_000_000  # a shard
_SIZE = re.compile(r"[1-9]\d{0,5}x[1-9]\d{0,5}")
_NAME = re.compile(r"[^/\\\x00-\x1f\x7f]+\.(?i:tar)")


def parse_index(text: bytes) -> dict[str, Any] | None:
    """Parse an index; None if it is none, or not a valid one."""
    try:
        index = json.loads(text, object_pairs_hook=no_key_twice)
        valid = index["format"] == FORMAT and bool(index["shards"]) and bool(index["image_sizes"])
        valid = valid and all(map(_is_valid_shard, index["shards"])) and all(map(_SIZE.fullmatch, index["image_sizes"]))
        valid = valid and all(isinstance(index.get(name, True), bool) for name in ("masks", "valid"))
        names = [shard["name"] for shard in index["shards"]]
        valid = valid and len({*names}) == len(names)  # a shard that is listed twice would count twice
        valid = valid and _has_valid_lq(index) and _has_valid_naming(index)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return index if valid else None


def _is_valid_shard(shard: dict[str, Any]) -> bool:
    """Return whether an entry of the index has a plain name, and numbers of samples and bytes that fit together."""
    samples, size = shard["samples"], shard["bytes"]
    numbers = type(samples) is int and type(size) is int and 0 < samples * _MIN_SAMPLE <= size < 2**62
    return numbers and samples <= _MAX_SAMPLES and bool(_NAME.fullmatch(shard["name"])) and shard["name"].isprintable()


def _has_valid_lq(index: dict[str, Any]) -> bool:
    """Return whether an index describes stored LQ images and kernels fully, or states that there are none."""
    if index.get("lq") in (None, False):
        return True
    scale, kernel = index["scale"], index.get("kernel")
    valid = index["lq"] is True and type(scale) is int and 0 < scale <= 64
    return valid and (kernel is None or (type(kernel) is int and 0 < kernel <= _MAX_KERNEL))


def _has_valid_naming(index: dict[str, Any]) -> bool:
    """Return whether the fields about members of other people's tars, if there are any, are valid."""
    suffixes, above = index.get("suffixes", {}), index.get("mask_above", 0)
    slots = all(suffix == suffix.lower() and slot in SLOTS for suffix, slot in suffixes.items())
    flags = all(type(index.get(name, False)) is bool for name in ("dotted_keys", "shard_in_key"))
    return slots and flags and type(above) is int and 0 <= above <= 254


def sizes(index: dict[str, Any]) -> list[tuple[int, int]]:
    """(width, height) of every size of image in the set, pixels."""
    return [tuple(map(int, size.split("x"))) for size in index["image_sizes"]]


def _print_notice(message: str) -> None:
    print(message, file=sys.stderr)


@dataclass(frozen=True)
class ShardSet:
    """A set of shards with its index; local shards have been checked to exist, with the size that the index states."""

    root: Path | str  # directory; address where it is elsewhere
    names: tuple[str, ...]
    counts: tuple[int, ...]
    index: dict[str, Any]
    cache: Cache | None = None  # through which shards elsewhere are read

    @classmethod
    def open(cls, root: str | Path, setting: str, data: DataConfig | None = None) -> "ShardSet":
        """Read `root/index.json`, or make an index of other people's tars, and check the tars.

        Raises: DataError, which names `setting` (the option that gave `root`).
        """
        data = data or DataConfig()
        tars = find_tars(root)
        root = tars.root if tars else root
        cache = Cache.of(str(root), data) if is_remote(root) else None
        root = root if cache else Path(str(root).removeprefix("file://"))
        if tars:
            source = tars
            text = foreign_index(tars, setting, data.suffixes, cache, cache_directory(data), _print_notice)
        elif cache:
            source, text = cache.remote.address("index.json"), _fetch_index(cache.remote)
        else:
            source = root / "index.json"
            text = _read_index(source, setting)
        index = parse_index(text)
        if index is None:
            raise DataError(f"{setting}: {source} is damaged or of another format than {FORMAT}; {_REMEDY}")
        names, counts = (tuple(shard[field] for shard in index["shards"]) for field in ("name", "samples"))
        shards = cls(root, names, counts, index, cache)
        if shards.pixels > data.max_pixels:
            raise DataError(
                f"{setting}: {shards.root} has images of {shards.pixels} pixels, more than "
                f"data.max_pixels={data.max_pixels}: raise that if the set is to be trusted"
            )
        shards._check_files(setting)
        return shards

    def __len__(self) -> int:
        return sum(self.counts)

    @property
    def masks(self) -> bool:
        """Return whether the samples have masks."""
        return self.index.get("masks", True)

    @property
    def valid(self) -> bool:
        """Return whether some of the samples have pixels without data."""
        return self.index.get("valid", False)

    @property
    def lq(self) -> bool:
        """Return whether the samples have LQ images."""
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
    def sha256(self) -> str:
        """Digest of the index, as JSON with sorted keys; the index has the sha256 of every shard."""
        return digest(self.index)

    @cached_property
    def pixels(self) -> int:
        """Pixels of the largest image."""
        return max(width * height for width, height in sizes(self.index))

    @cached_property
    def naming(self) -> Naming:
        """Rule by which names of members make samples; of foreign tars it is in the index."""
        if "suffixes" not in self.index:
            return Naming()
        return Naming(self.index["suffixes"], folders=True, dots=self.index.get("dotted_keys", False))

    @property
    def mask_above(self) -> int:
        """The mask value that those of crack exceed."""
        return self.index.get("mask_above", 0)

    def key(self, shard: int, key: str) -> str:
        """The key of a sample in the whole set, by that in its shard: foreign shards may have some alike."""
        return f"{self.names[shard][: -len('.tar')]}/{key}" if self.index.get("shard_in_key") else key

    def smallest_side(self) -> int:
        """The shortest side of any image, pixels."""
        return min(map(min, sizes(self.index)))

    def address(self, shard: int) -> str:
        """Address of a shard, for people."""
        name = self.names[shard]
        return self.cache.remote.address(name) if self.cache else os.path.join(self._directory, name)

    @cached_property
    def _directory(self) -> str:
        return str(self.root)

    def entry(self, shard: int) -> Entry:
        """A shard as the cache knows it."""
        return Entry(*(self.index["shards"][shard][field] for field in ("name", "bytes", "sha256")))

    def file(self, shard: int, notify: Notify) -> AbstractContextManager[BinaryIO]:
        """A shard, open for reading."""
        if self.cache:
            return self.cache.use(self.entry(shard), notify)
        return open(self.address(shard), "rb")

    def contents(self, shard: int, file: BinaryIO) -> Contents:
        """The samples of a shard that is open as `file`."""
        version = self.entry(shard).sha256 if self.cache else os.fstat(file.fileno()).st_mtime_ns
        return read_contents((self.address(shard), version), file, self.counts[shard], self.naming)

    def _check_files(self, setting: str) -> None:
        for shard in self.index["shards"]:
            if self.cache:
                if not re.fullmatch("[0-9a-f]{64}", str(shard.get("sha256"))):
                    raise DataError(f"{setting}: the index of {self.root} has no sha256 of {shard['name']}; {_REMEDY}")
                continue
            path = self.root / shard["name"]
            size = path.stat().st_size if path.is_file() else None
            if size != shard["bytes"]:
                fault = "is missing" if size is None else f"has {size} bytes, its index says {shard['bytes']}"
                raise DataError(f"{setting}: {path} {fault}; {_REMEDY}")


@lru_cache(maxsize=64)
def _fetch_index(remote: Remote) -> bytes:
    """Fetch an index once a process, so that all of a run sees the same."""
    try:
        return remote.fetch("index.json", MAX_INDEX, _print_notice)
    except Unreachable as error:
        if "404" not in str(error):
            raise
        raise Unreachable(f"{error}; tars of others are named, as {remote.address('x-{000000..000099}.tar')}") from None


def _read_index(path: Path, setting: str) -> bytes:
    if not path.is_file():
        raise DataError(
            f"{setting}: no shards in {path.parent} (index.json is missing); write them with shards/make_shards.py"
        )
    if path.stat().st_size > MAX_INDEX:
        raise DataError(f"{setting}: {path} is larger than {MAX_INDEX >> 20} MiB; {_REMEDY}")
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
    raise DataError(f"{name} must be a shard directory, several, or {{directory: weight}}; got {setting}")


def open_sets(setting: Any, name: str, data: DataConfig | None = None) -> list[ShardSet]:
    """The shard sets of a setting (`data.val`, say, which is its `name`), checked; `data` says how they are read."""
    return [ShardSet.open(path, name, data) for path in parse_sets(setting, name)]
