"""Read tars by their headers: members (name, offset, size), the samples that they make, and the files of a sample.

Nothing is extracted, nothing written. Only regular files with printable names count: no links, no devices, no sparse
files, nothing under `../` or `/`. Whatever a header claims, no more is read than it may have.
"""

import json
import os
import tarfile
import zlib
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import BinaryIO, NamedTuple

import numpy as np

from cssr.data.decode import image_size
from cssr.utils.text import message_of

FORMAT = "cssr-shards-1"
# the files of a sample
SLOTS = ("jpg", "png", "mask.png", "valid.png", "lq.png", "lq.jpg", "kernel.npy", "json")
_SMALL = 1 << 21  # bytes that a json may have
_REMEMBERED = 200_000  # samples with remembered places, some 200 bytes each
_BLOCK = 512
_EXTENSION = 1 << 16  # bytes that an extended header may have


class Member(NamedTuple):
    """A file in a tar: its name, and where its bytes are."""

    name: str
    offset: int
    size: int


def read_members(file: int, length: int) -> Iterator[Member]:
    """The plain files of the tar behind a file descriptor, in order: by tarfile, with checks of what headers claim.

    Args: length: of the tar, bytes.
    Raises: ValueError, after the samples before it, at a header that is damaged or claims too much.
    """
    try:
        with tarfile.open(fileobj=_Headers(file), mode="r:") as tar:
            for info in tar:
                tar.members = []  # else tarfile remembers them all
                if info.size < 0:  # tarfile would go back, and read it for ever
                    raise ValueError("a member of no size")
                if info.isreg() and info.offset_data + info.size > length:
                    raise ValueError(f"its member at byte {info.offset} claims {info.size} bytes, more than there are")
                sparse = info.issparse() or any(name.startswith("GNU.sparse.") for name in info.pax_headers)
                if info.isreg() and not sparse and _is_safe(info.name):
                    yield Member(info.name, info.offset_data, info.size)
            if any(os.pread(file, _BLOCK, tar.offset)):  # tarfile takes a damaged header for the end
                raise ValueError(f"no header at byte {tar.offset}")
    except (tarfile.TarError, OverflowError) as error:
        raise ValueError(message_of(error)) from error


class _Headers:
    """A file object through which tarfile reads headers; larger reads are refused."""

    def __init__(self, file: int):
        self._file, self._position = file, 0

    def tell(self) -> int:
        return self._position

    def seek(self, position: int) -> None:
        self._position = position

    def read(self, size: int) -> bytes:
        if not 0 <= size <= _EXTENSION:
            raise ValueError(f"a header of {size} bytes")
        data = os.pread(self._file, size, self._position)
        self._position += len(data)
        return data


def _is_safe(name: str) -> bool:
    """Return whether a name is printable, relative, and without `..`."""
    return name.isprintable() and "\\" not in name and name[0] != "/" and ".." not in name.split("/")


@dataclass(frozen=True)
class Naming:
    """Rule by which the names of a tar's members make samples.

    Attributes:
        slots: suffix, in lower case -> which file of a sample it is, of `SLOTS`.
        folders: whether members in folders count; the folder is part of the key.
        dots: whether keys may have dots; otherwise all that follows the first one of a name is the suffix.
    """

    slots: Mapping[str, str] = field(default_factory=lambda: {slot: slot for slot in SLOTS})
    folders: bool = False
    dots: bool = False

    def split(self, name: str) -> tuple[str, str] | None:
        """Key and suffix, in lower case, of a member; None if it is not used."""
        from webdataset.tariterators import base_plus_ext  # here, as it imports torch, which takes seconds

        key, suffix = base_plus_ext(name)
        if key is None or ("/" in name and not self.folders):
            return None
        suffixes = suffix.lower().split(".")
        for count in range(len(suffixes) if self.dots else 1):
            if (tail := ".".join(suffixes[count:])) in self.slots:
                return name[: len(name) - len(tail) - 1].removeprefix("./"), tail
        return None


class Contents(NamedTuple):
    """Table of contents of a tar: offsets and sizes of its samples' files."""

    keys: list[str]
    places: np.ndarray  # samples x slots x 2 int64: offset and size, bytes; 0 where there is none
    trouble: str  # why there are not the samples that the index states; "" if there are
    twice: dict[int, str]  # samples that have a file twice, and which

    def check(self, index: int) -> None:
        """ValueError if a file of a sample is there twice: one of them is not what was meant."""
        if index in self.twice:
            raise ValueError(f"its {self.twice[index]} is there twice")

    def key(self, index: int) -> str:
        """The key of a sample; ValueError if it is not there."""
        if index >= len(self.keys):
            raise ValueError(self.trouble)
        return self.keys[index]


_cache: OrderedDict[tuple, Contents] = OrderedDict()  # the last used at the end


def read_contents(name: tuple, file: BinaryIO, count: int, naming: Naming) -> Contents:
    """The samples of a tar, by its headers. They are read once, and remembered for the tars that were used last.

    Args:
        name: of the tar; another one when it changes.
        count: samples that its index states. A tar of fewer gives those that it has, one of more gives none.
        naming: of its members.
    """
    size = os.fstat(file.fileno()).st_size
    key = (*name, size, count, tuple(naming.slots.items()), naming.folders, naming.dots)
    if key not in _cache:
        _cache[key] = _parse_contents(file, size, count, naming)
        while len(_cache) > 1 and sum(len(table.keys) for table in _cache.values()) > _REMEMBERED:
            _cache.popitem(last=False)
    _cache.move_to_end(key)
    return _cache[key]


def _parse_contents(file: BinaryIO, size: int, count: int, naming: Naming) -> Contents:
    numbers: dict[str, int] = {}
    rows: list[list[tuple[int, int]]] = []
    twice: dict[int, str] = {}
    damage = ""
    try:
        for name, offset, length in read_members(file.fileno(), size):
            split = naming.split(name)
            if split is None:
                continue
            key, suffix = split
            if key not in numbers:
                if len(rows) == count:
                    return Contents([], np.zeros(0), f"its shard has more than the {count} samples of its index", {})
                numbers[key] = len(rows)
                rows.append([(0, 0)] * len(SLOTS))
            number, slot = numbers[key], SLOTS.index(naming.slots[suffix])
            if rows[number][slot][0]:
                twice[number] = suffix
            rows[number][slot] = offset, length
    except ValueError as error:
        damage = f": {error}"
    fault = f"its shard has {len(numbers)} samples, its index says {count}{damage}"
    return Contents([*numbers], np.array(rows, np.int64), fault, twice)


class Files:
    """The files of one sample. Those of which the sample's json holds the checksum are compared with it.

    Args:
        places: of the sample, as in `Contents`.
        limit: bytes; larger files are refused unread.
    """

    def __init__(self, file: BinaryIO, places: np.ndarray, limit: int):
        self._file, self._limit = file, limit
        self._places = dict(zip(SLOTS, places.tolist()))
        facts = json.loads(self._bytes("json", _SMALL)) if self._places["json"][1] else None
        checksums = facts.get("crc32") if isinstance(facts, dict) else None
        self._checksums: dict[str, int] = checksums if isinstance(checksums, dict) else {}

    def read(self, *extensions: str) -> bytes:
        """The first of these files that there is. ValueError if there is none, or it is not what was written."""
        extension = next((e for e in extensions if self._places[e][1]), None)
        if extension is None:
            raise ValueError(f"it has no {' or '.join(extensions)}")
        data = self._bytes(extension, self._limit)
        if extension in self._checksums and zlib.crc32(data) != self._checksums[extension]:
            raise ValueError(f"its {extension} is not what was written, by its checksum")
        return data

    def has(self, extension: str) -> bool:
        """Return whether the sample has this file."""
        return self._places[extension][1] > 0

    def sized(self, width: int, height: int, *extensions: str) -> bytes:
        """The same of an image file, which must have this size by its header."""
        data = self.read(*extensions)
        if image_size(data) != (width, height):
            size = "{} x {}".format(*image_size(data))
            raise ValueError(f"its {extensions[0]} has {size} pixels, not {width} x {height}")
        return data

    def _bytes(self, extension: str, limit: int) -> bytes:
        offset, size = self._places[extension]
        if size > limit:
            raise ValueError(f"its {extension} has {size} bytes")
        data = os.pread(self._file.fileno(), size, offset)
        if len(data) < size:
            raise ValueError(f"its {extension} is cut off")
        return data
