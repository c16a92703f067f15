"""Write samples into tars, and the index of a set.

A sample is `key.jpg` or `key.png` (8-bit RGB), `key.mask.png` (8-bit, 255 = crack; absent where the index says
"masks": false), `key.lq.png` or `.jpg` and `key.kernel.npy` in a set that has them, and `key.json`. Beside
the shards is index.json. Neither holds a time or an absolute path, so that the same input gives the same bytes.
"""

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from cssr.dataset_preparation.encode import Facts, Form, encode, to_json
from cssr.dataset_preparation.sources import Item
from cssr.dataset_preparation.split import group_of
from cssr.utils.files import PARTIAL, identity, replace_file

FORMAT = "cssr-shards-1"
MAX_SHARD = 256  # samples, by default
_FACTS = ("samples", "bytes", "sha256")  # of a shard, beside its name
_MIN_SHARDS = 16  # of a part that has as many samples, by default: one or more for each loader worker


@dataclass
class Tally:
    """Statistics of samples, for the index."""

    shares: list[float | None] = field(default_factory=list)  # None: a sample without mask
    converted: Counter = field(default_factory=Counter)
    sizes: Counter = field(default_factory=Counter)
    missing: int = 0  # samples in which some pixels hold no data
    blank: int = 0  # images and tiles left out since none does
    blank_items: list[str] = field(default_factory=list)  # keys of images of which nothing is left

    def add(self, facts: Facts) -> None:
        """Count one sample by its json."""
        self.shares.append(facts["crack_share"])
        self.sizes[f"{facts['width']}x{facts['height']}"] += 1
        if facts["converted"]:
            self.converted[facts["converted"]] += 1
        self.missing += "valid_share" in facts

    def extend(self, other: dict[str, Any]) -> None:
        """Count what another has counted, given as `vars(other)`, perhaps from JSON."""
        self.shares += other["shares"]
        self.converted.update(other["converted"])
        self.sizes.update(other["sizes"])
        self.missing += other["missing"]
        self.blank += other["blank"]
        self.blank_items += other["blank_items"]

    def summary(self) -> dict[str, Any]:
        """The counts under their names in index.json; `crack_share` is the mean over samples, 0..1; None: no masks."""
        masks = None not in self.shares
        return {
            "samples": len(self.shares),
            "crack_share": round(float(np.mean(self.shares)), 6) if masks else None,
            "empty_masks": sum(share == 0 for share in self.shares) if masks else None,
            "converted": dict(sorted(self.converted.items())),
            "image_sizes": dict(sorted(self.sizes.items())),
            **({"valid": True, "samples_with_missing_pixels": self.missing} if self.missing else {}),
            **({"blank_left_out": self.blank} if self.blank else {}),
        }


@dataclass(frozen=True)
class Shard:
    """A shard to write: its part ("" in a set without), its number in it, its items, and how many samples they give."""

    part: str
    number: int
    items: Sequence[Item]
    samples: int

    @property
    def name(self) -> str:
        """Name of the tar, until `write_index` names it after its set."""
        return f"shard-{self.number:06d}.tar"


def pack(part: str, items: Sequence[Item], counts: Sequence[int], size: int | None = None) -> list[Shard]:
    """Items into shards of at most `size` samples, in order; an item that gives more has one for itself.

    Without a `size` it is 256, or less where 16 shards need it: plain webdataset gives a worker no less than a shard.
    """
    size = size or max(1, min(MAX_SHARD, sum(counts) // _MIN_SHARDS))
    shards, start, samples = [], 0, 0
    for end, count in enumerate([*counts, size]):  # the last closes what is open
        if samples and samples + count > size:
            shards.append(Shard(part, len(shards), items[start:end], samples))
            start, samples = end, 0
        samples += count
    return shards


def write_shard(directory: Path, shard: Shard, form: Form, step: Callable[[], None] = lambda: None) -> dict[str, Any]:
    """Write one tar, which gets its name when it is on the disk. Returns its record: what journal and index need.

    `step` is called after each sample.
    """
    path = directory / shard.name
    partial, tally, inputs = path.with_name(f"{path.name}{PARTIAL}"), Tally(), input_states(shard.items)
    with partial.open("wb") as file:
        hashed = _HashingFile(file)
        _write_tar(hashed, _samples(shard, form, tally, step))
        file.flush()
        os.fsync(file.fileno())
    if len(tally.shares) + tally.blank != shard.samples:
        raise ValueError(f"the images of {shard.name} have changed since they were listed; run the command again")
    if tally.shares:
        os.replace(partial, path)
    else:
        partial.unlink()
    facts = {
        "name": shard.name,
        "samples": len(tally.shares),
        "bytes": hashed.size,
        "sha256": hashed.digest.hexdigest(),
    }
    return {
        "part": shard.part,
        "number": shard.number,
        **facts,
        "tally": vars(tally),
        "inputs": None if inputs is None else [*inputs.values()],
    }


def input_states(items: Sequence[Item]) -> dict[Path, str] | None:
    """Each file that items are made of, and a digest of its size and times; None where an item does not say them."""
    if any(item.files is None for item in items):
        return None
    return {path: _state(path) for path in dict.fromkeys(path for item in items for path in item.files)}


def _state(path: Path) -> str:
    try:
        stat = path.stat()
    except OSError:
        return "absent"
    # The time of change as well: archives and copies may give a corrected file the time of the one before.
    return hashlib.sha256(repr((stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)).encode()).hexdigest()[:8]


def remove_shard(directory: Path, record: dict[str, Any]) -> None:
    """Remove the tar of a record, under whichever name."""
    for path in directory.glob(f"*-{record['number']:06d}.tar"):
        path.unlink()


def is_intact(directory: Path, record: dict[str, Any]) -> bool:
    """Return whether the tar of a record is there, byte for byte, or none is to be.

    A tar that its set has named already, before the run was broken off, is renamed back.
    """
    for path in directory.glob(f"*-{record['number']:06d}.tar") if record["samples"] else ():
        if identity(path) == {"bytes": record["bytes"], "sha256": record["sha256"]}:
            os.replace(path, directory / record["name"])
            return True
    return not record["samples"]


def write_index(
    directory: Path, records: list[dict[str, Any]], items: Sequence[Item], form: Form, header: dict[str, Any]
) -> dict[str, Any]:
    """Name the shards of one part after their set, and write index.json, by their records, in order. Returns it."""
    tally = Tally()
    for record in records:
        tally.extend(record["tally"])
    blank = set(tally.blank_items)
    groups = {group_of(item) for item in items if item.key not in blank}
    blank_groups = set(map(group_of, items)) - groups
    properties = {
        "masks": form.rule is not None,
        "mask_rule": form.rule.sentence if form.rule else None,
        "lq": form.scale is not None,
        "scale": form.scale,
        "kernel": form.kernel,
        "tile": {"size": form.tiling.size, "overlap": form.tiling.overlap} if form.tiling else None,
        "groups": len(groups),
        **({"blank_groups": sorted(blank_groups)} if blank_groups else {}),
    }
    if not tally.shares:
        raise ValueError(
            f"none of its {tally.blank} images holds data: all pixels are transparent or marked as missing; see the "
            "images, or keep them with --keep-blank"
        )
    written = [record for record in records if record["samples"]]
    # SOURCE-PART-DIGEST: webdataset and wids cache shards by base name, which no two sets must share
    names = [header.get("benchmark") or header["source"], header.get("part") or header.get("split")]
    digest = hashlib.sha256("".join(record["sha256"] for record in written).encode()).hexdigest()[:8]
    base = "-".join([*(re.sub(r"[^A-Za-z0-9_.]", "_", name) for name in names if name), digest])
    shards = [{"name": f"{base}-{r['number']:06d}.tar", **{key: r[key] for key in _FACTS}} for r in written]
    for record, shard in zip(written, shards):
        os.replace(directory / record["name"], directory / shard["name"])
    index = {"format": FORMAT, **header, **properties, **tally.summary(), "shards": shards, **wids_fields(shards)}
    replace_file(directory / "index.json", json.dumps(index, indent=1, ensure_ascii=False) + "\n")
    return index


def wids_fields(shards: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The fields by which the index is one of wids as well."""
    listed = [{"url": s["name"], "nsamples": s["samples"], "filesize": s["bytes"]} for s in shards]
    return {"wids_version": 1, "shardlist": listed}


class _HashingFile:
    """A file to write to, with the size and digest of what was written."""

    def __init__(self, file: BinaryIO):
        self.file, self.size, self.digest = file, 0, hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        self.size += len(data)
        return self.file.write(data)


def _samples(shard: Shard, form: Form, tally: Tally, step: Callable[[], None]) -> Iterator[dict[str, Any]]:
    """Key and members, the json with them, of each sample of a shard."""
    for item in shard.items:
        before = len(tally.shares)
        for key, members, facts in encode(item, form):
            if members:
                yield {"__key__": key, **members, "json": to_json(facts)}
                tally.add(facts)
            tally.blank += not members
            step()
        tally.blank_items += [item.key] if len(tally.shares) == before else []


def _write_tar(file: Any, samples: Iterable[dict[str, Any]]) -> None:
    import webdataset  # here, as it imports torch, which takes seconds

    # PAX headers hold names longer than 100 bytes; shorter names give the same bytes as plain ustar
    about = {"user": "cssr", "group": "cssr", "mode": 0o644, "mtime": 0, "format": "PAX_FORMAT"}
    with webdataset.TarWriter(file, encoder=False, **about) as tar:
        for sample in samples:
            tar.write(sample)
