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

_VERSION = 1  # of the stored index; one of another version is made again
_PARALLEL_REQUESTS = 16  # tars elsewhere, for their size and time


def foreign_index(
    tars: Tars, setting: str, suffixes: Mapping[str, Any], cache: Cache | None, directory: Path, notify: Notify
) -> bytes:
    """The index of other people's tars, as JSON; made, if it is not there yet or they have changed.

    Args:
        setting: that named the tars, for errors. suffixes: `data.suffixes`.
        cache: of tars elsewhere. directory: where the index is kept if that cannot be beside the tars.
    Raises: DataError, one line, where the tars cannot be read in place.
    """
    requested = {
        role: [suffix.lower().lstrip(".") for suffix in ([given] if isinstance(given, str) else given)]
        for role, given in suffixes.items()
    }
    stamps = _stamps(tars, setting, cache, notify)
    paths = _index_paths(tars, directory)
    for path in paths:
        if stored := _read_stored(path, stamps, requested):
            return stored
    with _locked(paths) as path:
        if stored := _read_stored(path, stamps, requested):  # another process has made it meanwhile
            return stored
        try:
            index = make_index(tars, setting, requested, cache, notify)
        except NotInPlace as error:
            raise DataError(
                f"{setting}: {tars}: {error}: they cannot be read in place; {tars.remedy(error.option)}"
            ) from error
        except DataError:
            raise
        except ValueError as error:
            raise DataError(f"{setting}: {tars}: {error}") from error
        write_atomic(path, json.dumps({"version": _VERSION, "tars": stamps, "suffixes": requested, "index": index}))
    roles = {slot: role for role, slot in SLOTS.items()}
    suffixes = ", ".join(f"{suffix} {roles[slot]}" for suffix, slot in index["suffixes"].items())
    summary = f"{index['samples']} samples in {len(index['shards'])} tars ({suffixes}); masks: {index['mask_rule']}"
    notify(f"{tars}: {summary}; this index is kept in {path}")
    return json.dumps(index).encode()


def _stamps(tars: Tars, setting: str, cache: Cache | None, notify: Notify) -> list[list[Any]]:
    """Name, size and time of each tar, as far as they are known."""
    if cache:
        with ThreadPoolExecutor(_PARALLEL_REQUESTS) as threads:
            stamps = threads.map(lambda name: cache.remote.stamp(name, notify), tars.names)
            return [[*pair] for pair in zip(tars.names, stamps)]
    try:
        facts = [(name, (tars.root / name).stat()) for name in tars.names]
    except OSError as error:
        raise DataError(f"{setting}: {error.filename}: {error.strerror}; correct the path or pattern") from None
    return [[name, stat.st_size, stat.st_mtime_ns] for name, stat in facts]


def _index_paths(tars: Tars, directory: Path) -> list[Path]:
    """Paths that the index may have, the best one first."""
    if is_remote(tars.root):
        return [directory / f"index-{_digest(str(tars))}.json"]
    elsewhere = directory / f"index-{_digest(os.path.realpath(tars.root) + '/' + tars.label)}.json"
    return [tars.root / f"cssr-index-{_digest(tars.label)}.json", elsewhere]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _read_stored(path: Path, stamps: list[list[Any]], requested: Suffixes) -> bytes | None:
    """The index of a file, if it is of these tars, and of these suffixes where some are asked for."""
    try:
        stored = json.loads(path.read_bytes())
        same = (
            stored["version"] == _VERSION
            and stored["tars"] == stamps
            and (not requested or stored["suffixes"] == requested)
        )
        return json.dumps(stored["index"]).encode() if same else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


@contextmanager
def _locked(paths: Sequence[Path]) -> Iterator[Path]:
    """Hold the lock of the first of the files that can be written; gives that file."""
    failure = None
    for path in paths:
        lock = path.with_name(f"{path.name}.lock")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(lock, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            failure = error
            continue
        with open(handle, "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            try:
                yield path
            finally:
                lock.unlink(missing_ok=True)  # who waits for it finds the index made
        return
    raise DataError(f"data.cache: {paths[-1].parent} cannot be written: {failure.strerror}; choose another directory")
