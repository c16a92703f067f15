"""The members of a tar by their headers alone: names, places, sizes. Nothing is extracted, nothing written.

Read are ustar, pax and GNU headers, as any tar writer makes them. Only regular files in no folder, with printable
names, count: no links, no devices, no sparse files, nothing under `../` or `/`. Whatever a header claims, no more is
read than it may have.
"""

import os
import re
from collections.abc import Iterator
from typing import NamedTuple

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
