"""Check one tar of a shard set: its bytes against the index, its samples' members, and what they decode to."""

import io
import json
import tarfile
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg

from cssr.data.dataset import read_sample
from cssr.data.decode import decode_kernel, image_size
from cssr.data.shards import ShardSet
from cssr.data.tar_reader import Files
from cssr.dataset_preparation.images import BROKEN
from cssr.utils.files import identity
from cssr.utils.images import any_size, open_image

_DIFFERS = "sha256 differs from its index"
_IMAGES = ("jpg", "png")


@dataclass
class ShardReport:
    """Contents of one shard, and its faults."""

    faults: list[str] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    groups: set[str] = field(default_factory=set)
    sizes: Counter = field(default_factory=Counter)


def is_ours(index: dict[str, Any]) -> bool:
    """Return whether make_shards.py has written an index."""
    return "tool_version" in index


def inspect_shard(
    path: Path, entry: dict[str, Any], index: dict[str, Any], decode: bool, step: Callable
) -> ShardReport:
    """Check one tar against its entry in the index; `step` is called after each sample."""
    report = ShardReport()
    if not path.is_file():
        report.faults.append("is missing")
        return report
    size = path.stat().st_size
    if size != entry["bytes"]:
        report.faults.append(f"has {size} bytes, its index says {entry['bytes']}")
    elif "sha256" in entry and identity(path)["sha256"] != entry["sha256"]:
        report.faults.append(_DIFFERS)
    try:
        for key, members in _samples(path, is_ours(index)):
            report.keys.append(key)
            report.faults += [f"{key}: {fault}" for fault in _check_sample(key, members, index, decode, report)]
            step()
    except (OSError, tarfile.TarError, EOFError, ValueError) as problem:
        after = f" after {report.keys[-1]}" if report.keys else ""
        report.faults.append(f"cannot be read{after}: {problem}")
    if report.faults == [_DIFFERS]:
        report.faults = [f"{_DIFFERS}, but no member that has a checksum is damaged"]
    if len(report.keys) != entry["samples"]:
        report.faults.append(f"has {len(report.keys)} samples that can be read, its index says {entry['samples']}")
    return report


def inspect_foreign(shards: ShardSet, number: int, decode: bool, step: Callable[[], None]) -> ShardReport:
    """Check a tar of other people's WebDataset, as training reads it; `step` is called after each sample."""
    report, entry = ShardReport(), shards.index["shards"][number]
    path = Path(shards.address(number))
    if "sha256" in entry and identity(path)["sha256"] != entry["sha256"]:
        report.faults.append(_DIFFERS)
    with path.open("rb") as file:
        table = shards.contents(number, file)
        for index, key in enumerate(table.keys):
            report.keys.append(shards.key(number, key))
            report.groups.add(report.keys[-1])
            try:
                table.check(index)
                files = Files(file, table.places[index], entry["bytes"])
                width, height = image_size(files.read("jpg", "png"))
                report.sizes[f"{width}x{height}"] += 1
                if shards.masks:
                    files.sized(width, height, "mask.png")
                if decode:
                    read_sample(shards, number, index, report.faults.append)
            except (OSError, ValueError, RecursionError) as problem:
                report.faults.append(f"{key}: {problem}")
            step()
    if len(table.keys) != entry["samples"]:
        report.faults.append(table.trouble)
    return report


def _samples(path: Path, ours: bool) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Key and members of each sample; one is in memory at a time. ValueError for what our tars do not hold."""
    key, members = None, {}
    with tarfile.open(path, "r:") as tar:
        for member in tar:
            tar.members = []  # else tarfile remembers them all
            name, _, extension = member.name.partition(".")
            plain = member.isreg() and not member.issparse()  # a sparse one may claim any size
            if not plain and ours:
                raise ValueError(f"{member.name} is no plain file")
            if not plain or "/" in member.name:
                continue
            if name != key or extension in members:
                if key is not None:
                    yield key, members
                key, members = name, {}
            members[extension] = tar.extractfile(member).read()
    if key is not None:
        yield key, members


def _check_sample(
    key: str, members: dict[str, bytes], index: dict[str, Any], decode: bool, report: ShardReport
) -> list[str]:
    """The faults of one sample; its group and size are added to `report`."""
    try:
        facts = json.loads(members["json"]) if is_ours(index) else _facts_of(key, members)
        report.sizes[f"{facts['width']}x{facts['height']}"] += 1
        report.groups.add(facts.get("group", key))
        sums = dict(facts.get("crc32", {}))
        wrong = _check_decoded(members, facts, index) if decode else []
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError) as problem:
        return ["json is missing or damaged" if is_ours(index) else f"image or json: {problem}"]
    faults = [] if facts.get("key") == key else [f"json is of {facts.get('key')!r}"]
    faults += _check_names(set(members), index)
    damaged = [name for name, crc in sums.items() if name in members and zlib.crc32(members[name]) != crc]
    faults += [f"{name}: checksum differs, the bytes are damaged" for name in sorted(damaged)]
    return faults + wrong


def _facts_of(key: str, members: dict[str, bytes]) -> dict[str, Any]:
    """Facts that a reader uses from the json of another program's sample, with the size of its image."""
    name = next((name for name in _IMAGES if name in members), None)
    if name is None:
        raise ValueError("there is no jpg or png")
    width, height = image_size(members[name])
    facts = json.loads(members.get("json", b"{}"))
    facts = facts if isinstance(facts, dict) else {}
    sums = facts["crc32"] if isinstance(facts.get("crc32"), dict) else {}
    return {"key": key, "width": width, "height": height, "crc32": sums, "group": str(facts.get("group", key))}


def _check_names(names: set[str], index: dict[str, Any]) -> list[str]:
    wanted = {"image": _IMAGES, **({"json": ("json",)} if is_ours(index) else {})}
    if index.get("masks", True):
        wanted["mask"] = ("mask.png",)
    if index.get("lq"):
        wanted["LQ image"] = ("lq.png", "lq.jpg")
    if index.get("kernel"):
        wanted["kernel"] = ("kernel.npy",)
    optional = {"valid.png"} if index.get("valid") else set()
    counts = {role: len(names.intersection(choices)) for role, choices in wanted.items()}
    faults = [f"{role}: {count} members, not one" for role, count in counts.items() if count != 1]
    known = {name for choices in wanted.values() for name in choices} | (optional if is_ours(index) else names)
    return faults + [f"{name}: a member that the index does not mention" for name in sorted(names - known)]


def _check_decoded(members: dict[str, bytes], facts: dict[str, Any], index: dict[str, Any]) -> list[str]:
    """Faults of the decoded members, one line each."""
    decoded, faults = {}, []
    for name, data in members.items():
        if not name.endswith(("jpg", "png")):
            continue
        try:
            decoded[name] = _decode(name, data)
        except (*BROKEN, EOFError) as problem:
            faults.append(f"{name}: {problem or type(problem).__name__}")
    size = facts["height"], facts["width"]
    for name in ("jpg", "png"):
        if name in decoded:
            faults += _check_shape(name, decoded[name], (*size, 3))
    for name in ("lq.png", "lq.jpg"):
        if name in decoded and index.get("scale"):
            faults += _check_shape(name, decoded[name], (*(side // index["scale"] for side in size), 3))
    if "mask.png" in decoded:
        faults += _check_mask(decoded["mask.png"], facts)
    if "valid.png" in decoded:
        faults += _check_valid(decoded["valid.png"], facts)
    if "kernel.npy" in members and index.get("kernel"):
        try:
            decode_kernel(members["kernel.npy"], index["kernel"])
        except ValueError as problem:
            faults.append(f"kernel.npy: {problem}")
    return faults


def _decode(name: str, data: bytes) -> np.ndarray:
    if name.endswith("png"):
        with open_image(io.BytesIO(data)) as image:
            image.verify()  # checksums of the chunks
    else:
        try:  # Pillow and OpenCV pass over damage within a scan
            simplejpeg.decode_jpeg(data)
        except ValueError as problem:
            if "subsampling" not in str(problem):  # a kind that it does not know, nothing wrong
                raise
    with warnings.catch_warnings(), any_size(), open_image(io.BytesIO(data)) as image:
        warnings.simplefilter("ignore")
        return np.asarray(image)


def _check_shape(what: str, array: np.ndarray, shape: tuple[int, ...]) -> list[str]:
    if array.shape == shape:
        return []
    return [f"{what} is {'x'.join(map(str, array.shape))} (H W C), its json and index say {'x'.join(map(str, shape))}"]


def _check_mask(mask: np.ndarray, facts: dict[str, Any]) -> list[str]:
    faults = _check_shape("mask.png", mask, (facts["height"], facts["width"]))
    if "crack_share" in facts and mask.dtype != bool and not np.isin(mask, (0, 255)).all():
        return [*faults, "mask.png has other values than 0 and 255"]
    share = (mask > 0).mean()
    if "crack_share" in facts and abs(share - (facts["crack_share"] or 0)) > 1e-9:
        faults.append(f"mask.png has a crack share of {share:.6f}, its json says {facts['crack_share']}")
    return faults


def _check_valid(valid: np.ndarray, facts: dict[str, Any]) -> list[str]:
    faults, share = _check_shape("valid.png", valid, (facts["height"], facts["width"])), float((valid > 0).mean())
    if abs(share - facts.get("valid_share", share)) > 1e-9:
        faults.append(f"valid.png has a share of {share:.6f}, its json says {facts['valid_share']}")
    return faults
