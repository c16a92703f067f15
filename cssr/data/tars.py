"""Find WebDataset tars without an index of this toolkit, by folder, path, address or brace pattern."""

import json
import os
import re
import shlex
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from cssr.data.remote import DataError, Remote, is_remote
from cssr.utils.text import message_of

_RANGE = re.compile(r"(-?\d+)\.\.(-?\d+)")  # in a brace pattern
_TAR = re.compile(r"(?P<root>.*/)?(?P<name>[^/]*\.(?:tar|tar\.\w+|tgz|tbz2|txz))(?P<query>\?.*)?", re.IGNORECASE)
_PACKED = re.compile(r".*\.(tar\.\w+|tgz|tbz2|txz)", re.IGNORECASE)
_MAX_TARS = 200_000
_MAX_INDEX = 1 << 28  # bytes of an index.json


@dataclass(frozen=True)
class Tars:
    """Tars without an index of this toolkit.

    Attributes:
        root: their directory, or its address. names: of the tars, in order.
        label: the name or pattern they were given by; "" for all of a directory.
    """

    root: Path | str
    names: tuple[str, ...]
    label: str = ""

    def __str__(self) -> str:
        if is_remote(self.root):
            return Remote(str(self.root)).address(self.label)
        return os.path.join(self.root, self.label) if self.label else str(self.root)

    @property
    def packed(self) -> list[str]:
        """Compressed tars, by their names."""
        return [name for name in self.names if _PACKED.fullmatch(name)]

    def remedy(self, option: str = "") -> str:
        """Command that writes tars anew, with this `option`."""
        first = "download them, and " if is_remote(self.root) else ""
        words = f"python shards/make_shards.py webdataset --root {shlex.quote(str(self))} --out DIR {option}".strip()
        return f"{first}write them anew with `{words}`"


def find_tars(address: str | Path) -> Tars | None:
    """The tars that a path, address or brace pattern names; None for what holds no tars, or has an index of ours.

    Raises: DataError for a pattern that cannot be meant, and for pipes and devices.
    """
    text = str(address).removeprefix("file://")
    if not is_remote(text) and Path(text).is_dir():
        folder, index = Path(text), Path(text, "index.json")
        if index.is_file() and not _is_foreign_index(index):
            return None
        names = sorted(path.name for path in folder.iterdir() if _TAR.fullmatch(path.name) and path.is_file())
        return Tars(folder, tuple(names)) if names else None
    match = _TAR.fullmatch(text)
    if match is None or text.startswith("pipe:"):
        return None
    root = (match["root"] or "./").rstrip("/") or "/"
    if "{" in root:
        raise DataError(f"{text}: braces in a folder's name; write them in that of the tars, and give several patterns")
    label = match["name"] + (match["query"] or "" if not is_remote(text) else "")
    root = root + (match["query"] or "") if is_remote(text) else Path(root)
    names = _expanded(label)
    special = None if is_remote(text) else next((name for name in names if _is_special(root / name)), None)
    if special is not None:
        raise DataError(f"{root / special} is no regular file (a pipe, or a device); give tars")
    return Tars(root, names, label)


def _is_special(path: Path) -> bool:
    """Tell a pipe or device, reading which may take for ever, from files, folders and what is not there."""
    return path.exists() and not path.is_file() and not path.is_dir()


def _is_foreign_index(index: Path) -> bool:
    """Tell an index.json of another program, such as that of wids, from ours."""
    try:
        content = json.loads(index.read_bytes()) if index.stat().st_size <= _MAX_INDEX else None
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and "format" not in content


def _expanded(pattern: str) -> tuple[str, ...]:
    from braceexpand import braceexpand  # of webdataset

    try:
        ranges = [int(last) - int(first) for first, last in _RANGE.findall(pattern)]  # the library lists each whole
        largest = max(map(abs, ranges), default=0)
        names = tuple(islice(braceexpand(pattern), _MAX_TARS + 1)) if largest <= _MAX_TARS else ()
    except ValueError as error:
        raise DataError(f"{pattern}: {message_of(error)}; write it as x-{{000000..000099}}.tar") from None
    if max(len(names), largest) > _MAX_TARS:
        raise DataError(f"{pattern} expands to more than {_MAX_TARS} tars; give fewer")
    return names
