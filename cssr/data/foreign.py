"""Other people's WebDataset tars: their index is made once (`make_index.py`) and kept.

It is kept beside the tars or, where nothing can be written there, in the cache. It is made again when the name, size or
time of a tar changes, or `data.suffixes` asks for another one. One process makes it, the others wait.
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cssr.data.cache import Cache
from cssr.data.make_index import NotInPlace, make_index
from cssr.data.remote import DataError, Notify, is_remote
from cssr.data.suffixes import SLOTS, Suffixes
from cssr.data.tars import Tars
from cssr.utils.files import write_atomic

_VERSION = 1  # of what is kept; another one is made again
_ASKED_AT_ONCE = 16  # tars elsewhere, for their size and time


def foreign_index(
    tars: Tars, setting: str, suffixes: Mapping[str, Any], cache: Cache | None, directory: Path, say: Notify
) -> bytes:
    """The index of other people's tars, as JSON; made, if it is not there yet or they have changed.

    Args:
        setting: that named the tars, for errors. suffixes: `data.suffixes`.
        cache: of tars elsewhere. directory: where the index is kept if that cannot be beside the tars.
    Raises: DataError, one line, where the tars cannot be read in place.
    """
    asked = {
        role: [suffix.lower().lstrip(".") for suffix in ([given] if isinstance(given, str) else given)]
        for role, given in suffixes.items()
    }
    stamps = _stamps(tars, setting, cache, say)
    paths = _places(tars, directory)
    for path in paths:
        if kept := _kept(path, stamps, asked):
            return kept
    with _locked(paths) as path:
        if kept := _kept(path, stamps, asked):  # another process has made it meanwhile
            return kept
        try:
            index = make_index(tars, setting, asked, cache, say)
        except NotInPlace as error:
            raise DataError(
                f"{setting}: {tars}: {error}: they cannot be read in place; {tars.remedy(error.option)}"
            ) from error
        except DataError:
            raise
        except ValueError as error:
            raise DataError(f"{setting}: {tars}: {error}") from error
        write_atomic(path, json.dumps({"version": _VERSION, "tars": stamps, "suffixes": asked, "index": index}))
    roles = {slot: role for role, slot in SLOTS.items()}
    suffixes = ", ".join(f"{suffix} {roles[slot]}" for suffix, slot in index["suffixes"].items())
    about = f"{index['samples']} samples in {len(index['shards'])} tars ({suffixes}); masks: {index['mask_rule']}"
    say(f"{tars}: {about}; this index is kept in {path}")
    return json.dumps(index).encode()


def _stamps(tars: Tars, setting: str, cache: Cache | None, say: Notify) -> list[list[Any]]:
    """Name, size and time of each tar, as far as they are known."""
    if cache:
        with ThreadPoolExecutor(_ASKED_AT_ONCE) as threads:
            return [[*both] for both in zip(tars.names, threads.map(lambda n: cache.remote.stamp(n, say), tars.names))]
    try:
        facts = [(name, (tars.root / name).stat()) for name in tars.names]
    except OSError as error:
        raise DataError(f"{setting}: {error.filename}: {error.strerror}; correct the path or pattern") from None
    return [[name, stat.st_size, stat.st_mtime_ns] for name, stat in facts]


def _places(tars: Tars, directory: Path) -> list[Path]:
    """Paths that the index may have, the best one first."""
    if is_remote(tars.root):
        return [directory / f"index-{_digest(str(tars))}.json"]
    there = directory / f"index-{_digest(os.path.realpath(tars.root) + '/' + tars.label)}.json"
    return [tars.root / f"cssr-index-{_digest(tars.label)}.json", there]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _kept(path: Path, stamps: list[list[Any]], asked: Suffixes) -> bytes | None:
    """The index of a file, if it is of these tars, and of these suffixes where some are asked for."""
    try:
        kept = json.loads(path.read_bytes())
        same = kept["version"] == _VERSION and kept["tars"] == stamps and (not asked or kept["suffixes"] == asked)
        return json.dumps(kept["index"]).encode() if same else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


@contextmanager
def _locked(paths: Sequence[Path]) -> Iterator[Path]:
    """Hold the lock of the first of the files that can be written; gives that file."""
    problem = None
    for path in paths:
        lock = path.with_name(f"{path.name}.lock")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(lock, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            problem = error
            continue
        with open(handle, "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            try:
                yield path
            finally:
                lock.unlink(missing_ok=True)  # who waits for it finds the index made
        return
    raise DataError(f"data.cache: {paths[-1].parent} cannot be written: {problem.strerror}; choose another directory")
