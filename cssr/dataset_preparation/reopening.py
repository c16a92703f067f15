"""Samples out of shards as they lie there: the bytes of the image file, and what the json says."""

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from cssr.data.dataset import Sample, read_sample
from cssr.data.shards import DataError, ShardSet
from cssr.data.tar_reader import Files, contents
from cssr.dataset_preparation.images import open_picture


class Stored(NamedTuple):
    """Where a sample lies, and what its json says, {} where there is none."""

    shard: int
    index: int
    key: str
    facts: dict[str, Any]


def list_samples(shards: ShardSet) -> Iterator[Stored]:
    """All samples of a set, in its order; shards elsewhere are fetched. DataError names one that is damaged."""
    for shard, count in enumerate(shards.counts):
        with _opened(shards, shard) as files:
            for index in range(count):
                with _naming(shards, shard, f"sample {index}"):
                    key, found = files(index)
                    stored = Stored(shard, index, key, _facts(found))
                yield stored


def image_file(shards: ShardSet, stored: Stored) -> bytes | None:
    """The bytes of a sample's image file; None if it is not as ours are, an upright 8-bit RGB JPEG or PNG.

    Raises: DataError if it is damaged, even where evaluation would warn and go on.
    """
    with _opened(shards, stored.shard) as files, _naming(shards, stored.shard, f"key {stored.key}"):
        data = files(stored.index)[1].read("jpg", "png")
        return data if open_picture(data).reason is None else None


def decoded(shards: ShardSet, stored: Stored) -> Sample:
    """A sample as training and evaluation see it, without what it stores beside. DataError if it is damaged."""
    try:
        return read_sample(shards, stored.shard, stored.index, _say, with_lq=False)
    except DataError as problem:
        raise DataError(f"{problem}; {_remedy(shards)}") from problem


@contextmanager
def _opened(shards: ShardSet, shard: int) -> Iterator[Callable[[int], tuple[str, Files]]]:
    """Gives key and files of the samples of a tar by their places in it."""
    limit = shards.index["shards"][shard]["bytes"]
    with shards.file(shard, _say) as file:
        version = shards.entry(shard).sha256 if shards.cache else os.fstat(file.fileno()).st_mtime_ns
        held = contents((shards.address(shard), version), file, shards.counts[shard], shards.naming)
        yield lambda index: (shards.key(shard, held.key(index)), Files(file, held.places[index], limit))


@contextmanager
def _naming(shards: ShardSet, shard: int, what: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, RecursionError) as problem:
        raise DataError(f"damaged sample: {shards.address(shard)} {what}: {problem}; {_remedy(shards)}") from problem


def _remedy(shards: ShardSet) -> str:
    return f"see `make_shards.py --check {shards.root}`, and write that set again"


def _facts(files: Files) -> dict[str, Any]:
    try:
        found = json.loads(files.read("json"))
    except ValueError:  # a set from elsewhere, without any
        return {}
    return found if isinstance(found, dict) else {}


def _say(notice: str) -> None:
    print(notice, file=sys.stderr)
