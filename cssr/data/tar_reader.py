"""The samples of a tar: which there are, where their files lie, and those files, checked before they are used."""

import json
import os
import zlib
from collections import OrderedDict
from typing import BinaryIO, NamedTuple

import numpy as np

from cssr.data.decode import image_size
from cssr.data.members import read_members

_SLOTS = ("jpg", "png", "mask.png", "lq.png", "lq.jpg", "kernel.npy", "json")  # what of a sample is looked at
_SMALL = 1 << 21  # bytes that a json may have
_REMEMBERED = 200_000  # samples whose places are remembered, some 200 bytes each


class Contents(NamedTuple):
    """What lies where in a tar."""

    keys: list[str]
    places: np.ndarray  # samples x slots x 2 int64: offset and size, bytes; 0 where there is none
    trouble: str  # why there are not the samples that the index promises; "" if there are

    def key(self, index: int) -> str:
        """The key of a sample; ValueError if it is not there."""
        if index >= len(self.keys):
            raise ValueError(self.trouble)
        return self.keys[index]


_known: OrderedDict[tuple, Contents] = OrderedDict()  # the last used at the end


def contents(name: tuple, file: BinaryIO, count: int) -> Contents:
    """The samples of a tar, by its headers, which are read once, unless too many other tars are read in between.

    Args:
        name: of the tar; another one when it changes.
        count: samples that its index promises. A tar of fewer gives those that it has, one of more gives none.
    """
    size = os.fstat(file.fileno()).st_size
    key = (*name, size, count)
    if key not in _known:
        _known[key] = _read_contents(file, size, count)
        while len(_known) > 1 and sum(len(known.keys) for known in _known.values()) > _REMEMBERED:
            _known.popitem(last=False)
    _known.move_to_end(key)
    return _known[key]


def _read_contents(file: BinaryIO, size: int, count: int) -> Contents:
    numbers: dict[str, int] = {}
    rows: list[list[tuple[int, int]]] = []
    damage = ""
    try:
        for name, offset, length in read_members(file.fileno(), size):
            key, _, extension = name.partition(".")
            if extension not in _SLOTS or not key:
                continue
            if key not in numbers:
                if len(rows) == count:
                    return Contents([], np.zeros(0), f"its shard has more than the {count} samples of its index")
                numbers[key] = len(rows)
                rows.append([(0, 0)] * len(_SLOTS))
            rows[numbers[key]][_SLOTS.index(extension)] = offset, length
    except ValueError as error:
        damage = f": {error}"
    trouble = f"its shard has {len(numbers)} samples, its index says {count}{damage}"
    return Contents([*numbers], np.array(rows, np.int64), trouble)


class Files:
    """The files of one sample. Those of which the sample's json holds the checksum are compared with it.

    Args:
        places: of the sample, as in `Contents`.
        limit: bytes; larger files are refused unread.
    """

    def __init__(self, file: BinaryIO, places: np.ndarray, limit: int):
        self._file, self._limit = file, limit
        self._places = dict(zip(_SLOTS, places.tolist()))
        self._checksums = self._read_checksums()

    def read(self, *extensions: str) -> bytes:
        """The first of these files that there is. ValueError if there is none, or it is not what was written."""
        extension = next((e for e in extensions if self._places[e][1]), None)
        if extension is None:
            raise ValueError(f"it has no {' or '.join(extensions)}")
        data = self._bytes(extension, self._limit)
        if extension in self._checksums and zlib.crc32(data) != self._checksums[extension]:
            raise ValueError(f"its {extension} is not what was written, by its checksum")
        return data

    def sized(self, width: int, height: int, *extensions: str) -> bytes:
        """The same of an image file, which must have this size by its header."""
        data = self.read(*extensions)
        if image_size(data) != (width, height):
            found = "{} x {}".format(*image_size(data))
            raise ValueError(f"its {extensions[0]} has {found} pixels, not {width} x {height}")
        return data

    def _bytes(self, extension: str, limit: int) -> bytes:
        offset, size = self._places[extension]
        if size > limit:
            raise ValueError(f"its {extension} has {size} bytes")
        data = os.pread(self._file.fileno(), size, offset)
        if len(data) < size:
            raise ValueError(f"its {extension} is cut off")
        return data

    def _read_checksums(self) -> dict[str, int]:
        if not self._places["json"][1]:
            return {}
        found = json.loads(self._bytes("json", _SMALL))
        checksums = found.get("crc32") if isinstance(found, dict) else None
        return checksums if isinstance(checksums, dict) else {}
