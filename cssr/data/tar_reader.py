"""Read tars by their headers: members (name, offset, size), the samples that they make, and the files of a sample.

Nothing is extracted, nothing written. Read are ustar, pax and GNU headers, as any tar writer makes them. Only regular
files in no folder, with printable names, count: no links, no devices, no sparse files, nothing under `../` or `/`.
Whatever a header claims, no more is read than it may have.
"""

import json
import os
import re
import zlib
from collections import OrderedDict
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

import numpy as np

from cssr.data.decode import image_size

_SLOTS = (
    "jpg",
    "png",
    "mask.png",
    "valid.png",
    "lq.png",
    "lq.jpg",
    "kernel.npy",
    "json",
)  # what of a sample is looked at
_SMALL = 1 << 21  # bytes that a json may have
_REMEMBERED = 200_000  # samples whose places are remembered, some 200 bytes each
_BLOCK = 512
_EXTENSION = 1 << 16  # bytes that an extended header may have
_REGULAR, _LONG_NAME, _PAX = (b"0", b"\0", b"7"), b"L", b"x"  # type flags; 7: contiguous, as good as regular
_RECORD = re.compile(rb"(\d{1,6}) ([^=]+)=")


class Member(NamedTuple):
    """A file in a tar: its name, and where its bytes are."""

    name: str
    offset: int
    size: int


def read_members(file: int, length: int) -> Iterator[Member]:
    """The plain files of the tar behind a file descriptor, in order.

    Args: length: of the tar, bytes.
    Raises: ValueError, once what lies before it has been given, at a header that is damaged or claims too much.
    """
    place, extended = 0, {}
    while place + _BLOCK <= length:
        header = os.pread(file, _BLOCK, place)
        if not any(header):
            return
        if not _is_header(header):
            raise ValueError(f"no header at byte {place}")
        kind, offset = header[156:157], place + _BLOCK
        size = _size(header, {} if kind in (_LONG_NAME, _PAX) else extended)
        if offset + size > length:
            raise ValueError(f"its member at byte {place} claims {size} bytes, more than there are")
        place = offset + -(-size // _BLOCK) * _BLOCK
        if kind in (_LONG_NAME, _PAX):
            extended |= _extension(file, kind, offset, size)
            continue
        name = extended.get("path") or _name(header)
        if kind in _REGULAR and not extended.get("sparse") and _is_plain(name):
            yield Member(name, offset, size)
        extended = {}


def _is_header(header: bytes) -> bool:
    """Whether the checksum fits."""
    try:
        return int(header[148:156].strip(b"\0 "), 8) == sum(header) - sum(header[148:156]) + 8 * ord(" ")
    except ValueError:
        return False


def _size(header: bytes, extended: dict[str, str]) -> int:
    """In the pax header, in octal digits or, beyond 8 GB, in binary."""
    if "size" in extended:
        return int(extended["size"])
    field = header[124:136]
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    digits = field.strip(b"\0 ") or b"0"
    if not re.fullmatch(b"[0-7]+", digits):
        raise ValueError("a member of no size")
    return int(digits, 8)


def _name(header: bytes) -> str:
    """As in the header itself: ustar has the folders of a long name in a field of their own."""
    name = header[:100].split(b"\0")[0]
    folder = header[345:500].split(b"\0")[0] if header[257:263] == b"ustar\0" else b""
    return (folder + b"/" + name if folder else name).decode("utf-8", "surrogateescape")


def _extension(file: int, kind: bytes, offset: int, size: int) -> dict[str, str]:
    """What an extended header says of the next member: `path`, `size`, `sparse`."""
    if size > _EXTENSION:
        raise ValueError(f"a header of {size} bytes")
    data = os.pread(file, size, offset)
    if kind == _LONG_NAME:
        return {"path": data.split(b"\0")[0].decode("utf-8", "surrogateescape")}
    found, place = {}, 0
    while record := _RECORD.match(data, place):
        value = data[record.end() : place + int(record[1]) - 1].decode("utf-8", "surrogateescape")
        place = max(place + int(record[1]), record.end())
        keyword = "sparse" if record[2].startswith(b"GNU.sparse.") else record[2].decode("latin-1")
        found |= {keyword: value or "0"} if keyword in ("path", "size", "sparse") else {}
    if not re.fullmatch(r"\d{1,18}", found.get("size", "0")):
        raise ValueError("a member of no size")
    return found


def _is_plain(name: str) -> bool:
    """Whether a name is that of a file in no folder, fit for a line of text."""
    return name.isprintable() and "/" not in name and "\\" not in name


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

    def has(self, extension: str) -> bool:
        """Whether the sample has this file."""
        return self._places[extension][1] > 0

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
