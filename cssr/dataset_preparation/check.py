"""`make_shards.py --check DIR`: is a shard set what its index says? Damage is reported by shard and key.

Every byte is read: sizes, sha256 of each tar, names of the members, checksums that the samples carry, counts. With
--decode every image, mask and kernel is decoded as well, and held against the sample's json. Of a set that another
program has written (its index states no `tool_version`) no more is asked than docs/shards.md does: json files, sha256
and counts may be missing, members that no reader looks at may be there. WebDataset tars of others are read as training
reads them.
"""

import io
import json
import re
import sys
import tarfile
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
from tqdm import tqdm

from cssr.data.dataset import read_sample
from cssr.data.decode import decode_kernel, image_size
from cssr.data.shards import ShardSet
from cssr.data.tar_reader import Files, contents
from cssr.data.tars import find_tars
from cssr.dataset_preparation.images import BROKEN
from cssr.dataset_preparation.parallel import imap_unordered
from cssr.dataset_preparation.split import FILE, read_split
from cssr.dataset_preparation.writer import FORMAT, wids_fields
from cssr.utils.files import PARTIAL, identity
from cssr.utils.images import any_size, open_image
from cssr.utils.json_files import read_json

_DIFFERS = "sha256 differs from its index"
IMAGES = ("jpg", "png")


@dataclass
class ShardReport:
    """Contents of one shard, and its faults."""

    faults: list[str] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    groups: set[str] = field(default_factory=set)
    sizes: Counter = field(default_factory=Counter)


def check(root: Path, decode: bool, workers: int) -> tuple[list[str], str]:
    """Check a shard set, or a folder of the parts of one. Returns the faults, and a line about what was checked.

    Raises: ValueError where there are no shards at all.
    """
    if (root / "index.json").exists() or find_tars(root):
        return _check_set(root, decode, workers)[:2]
    parts = sorted(path.parent for path in root.glob("*/index.json"))
    if not parts and not (root / FILE).exists():
        raise ValueError(f"no shards in {root} (index.json is missing); give the folder that make_shards.py has made")
    checked = {part.name: _check_set(part, decode, workers) for part in parts}
    faults = [f"{name}/{fault}" for name, (faults_of, _, _) in checked.items() for fault in faults_of]
    if not faults:
        blank = {group for part in parts for group in read_index(part).get("blank_groups", ())}
        faults = _check_split(root, {name: groups for name, (_, _, groups) in checked.items()}, blank)
    return faults, "; ".join(f"{name}: {about}" for name, (_, about, _) in checked.items())


def _check_set(root: Path, decode: bool, workers: int) -> tuple[list[str], str, set[str]]:
    tars = find_tars(root)
    try:
        index = ShardSet.open(root, "--check").index if tars else read_index(root)
        foreign = ShardSet.open(root, "--check") if "suffixes" in index else None
    except ValueError as problem:
        return [str(problem)], f"{'these tars' if tars else 'index.json'} cannot be used", set()
    root, entries, results_of = tars.root if tars else root, index["shards"], {}

    def work(task: int, tell: Callable[[], None]) -> ShardReport:
        if foreign:
            return inspect_foreign(foreign, task, decode, tell)
        return inspect_shard(root / entries[task]["name"], entries[task], index, decode, tell)

    bar = tqdm(total=index["samples"], desc="checking", unit=" samples", leave=False, disable=not sys.stderr.isatty())
    with bar, closing(imap_unordered(work, len(entries), workers, bar.update)) as results:
        results_of.update(results)
    ordered = [results_of[number] for number in range(len(entries))]
    faults = [f"{entry['name']}: {fault}" for entry, one in zip(entries, ordered) for fault in one.faults]
    groups = set().union(*(one.groups for one in ordered))
    faults += _check_sum(index, ordered, groups) if not faults else []
    if not tars:
        strangers = {p.name for p in root.iterdir() if p.suffix == ".tar" or PARTIAL in p.name}
        strangers -= {entry["name"] for entry in entries}
        faults += [f"{name} is not in index.json" for name in sorted(strangers)]
    return faults, f"{sum(len(one.keys) for one in ordered)} samples in {len(entries)} shards", groups


def read_index(root: Path) -> dict[str, Any]:
    """The index, its fields checked as far as checking needs them; ValueError otherwise."""
    try:
        index = read_json(root / "index.json")
        for entry in index["shards"] if _is_ours(index) else ():
            entry["sha256"], entry["samples"]  # KeyError
        whole = index["format"] == FORMAT and bool(index["shards"])
        for entry in index["shards"]:
            whole = whole and re.fullmatch(r"[^/\\]+\.tar", entry["name"]) and len(entry.get("sha256", "0" * 64)) == 64
            whole = whole and isinstance(entry["samples"], int) and isinstance(entry["bytes"], int)
        index.setdefault("samples", sum(entry["samples"] for entry in index["shards"]))
        whole = whole and isinstance(index["samples"], int)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as problem:
        raise ValueError(f"index.json: cannot be read ({type(problem).__name__}: {problem})") from None
    if not whole:
        raise ValueError(f"index.json: damaged or of another format than {FORMAT}")
    return index


def _is_ours(index: dict[str, Any]) -> bool:
    return "tool_version" in index


def inspect_shard(
    path: Path, entry: dict[str, Any], index: dict[str, Any], decode: bool, tell: Callable
) -> ShardReport:
    """Check one tar against its entry in the index; `tell` is called after each sample."""
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
        for key, members in _samples(path, _is_ours(index)):
            report.keys.append(key)
            report.faults += [f"{key}: {fault}" for fault in _check_sample(key, members, index, decode, report)]
            tell()
    except (OSError, tarfile.TarError, EOFError, ValueError) as problem:
        after = f" after {report.keys[-1]}" if report.keys else ""
        report.faults.append(f"cannot be read{after}: {problem}")
    if report.faults == [_DIFFERS]:
        report.faults = [f"{_DIFFERS}, but no member that has a checksum is damaged"]
    if len(report.keys) != entry["samples"]:
        report.faults.append(f"has {len(report.keys)} samples that can be read, its index says {entry['samples']}")
    return report


def inspect_foreign(shards: ShardSet, number: int, decode: bool, tell: Callable[[], None]) -> ShardReport:
    """Check a tar of a set that others have written, as training reads it; `tell` is called after each sample."""
    report, entry = ShardReport(), shards.index["shards"][number]
    path = Path(shards.address(number))
    if "sha256" in entry and identity(path)["sha256"] != entry["sha256"]:
        report.faults.append(_DIFFERS)
    with path.open("rb") as file:
        held = contents((str(path), path.stat().st_mtime_ns), file, entry["samples"], shards.naming)
        for row, key in enumerate(held.keys):
            report.keys.append(shards.key(number, key))
            report.groups.add(report.keys[-1])
            try:
                held.check(row)
                files = Files(file, held.places[row], entry["bytes"])
                width, height = image_size(files.read("jpg", "png"))
                report.sizes[f"{width}x{height}"] += 1
                if shards.masks:
                    files.sized(width, height, "mask.png")
                if decode:
                    read_sample(shards, number, row, report.faults.append)
            except (OSError, ValueError, RecursionError) as problem:
                report.faults.append(f"{key}: {problem}")
            tell()
    if len(held.keys) != entry["samples"]:
        report.faults.append(held.trouble)
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
    """The faults of one sample; what it is goes into `report`."""
    try:
        facts = json.loads(members["json"]) if _is_ours(index) else _facts_of(key, members)
        report.sizes[f"{facts['width']}x{facts['height']}"] += 1
        report.groups.add(facts.get("group", key))
        sums = dict(facts.get("crc32", {}))
        contents = _wrong_contents(members, facts, index) if decode else []
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError) as problem:
        return ["json is missing or damaged" if _is_ours(index) else f"image or json: {problem}"]
    faults = [] if facts.get("key") == key else [f"json is of {facts.get('key')!r}"]
    faults += _check_names(set(members), index)
    damaged = [name for name, crc in sums.items() if name in members and zlib.crc32(members[name]) != crc]
    faults += [f"{name}: checksum differs, the bytes are damaged" for name in sorted(damaged)]
    return faults + contents


def _facts_of(key: str, members: dict[str, bytes]) -> dict[str, Any]:
    """The json of a sample of another program, as far as a reader uses it, and the size by the image."""
    name = next((name for name in IMAGES if name in members), None)
    if name is None:
        raise ValueError("there is no jpg or png")
    width, height = image_size(members[name])
    facts = json.loads(members.get("json", b"{}"))
    facts = facts if isinstance(facts, dict) else {}
    sums = facts["crc32"] if isinstance(facts.get("crc32"), dict) else {}
    return {"key": key, "width": width, "height": height, "crc32": sums, "group": str(facts.get("group", key))}


def _check_names(names: set[str], index: dict[str, Any]) -> list[str]:
    wanted = {"image": IMAGES, **({"json": ("json",)} if _is_ours(index) else {})}
    if index.get("masks", True):
        wanted["mask"] = ("mask.png",)
    if index.get("lq"):
        wanted["LQ image"] = ("lq.png", "lq.jpg")
    if index.get("kernel"):
        wanted["kernel"] = ("kernel.npy",)
    optional = {"valid.png"} if index.get("valid") else set()
    faults = [
        f"{what}: {len(names & {*of})} members, not one" for what, of in wanted.items() if len(names & {*of}) != 1
    ]
    known = {name for of in wanted.values() for name in of} | (optional if _is_ours(index) else names)
    return faults + [f"{name}: a member that the index does not speak of" for name in sorted(names - known)]


def _check_sum(index: dict[str, Any], ordered: list[ShardReport], groups: set[str]) -> list[str]:
    """Faults that only all shards together show."""
    keys = Counter(key for one in ordered for key in one.keys)
    faults = [f"{key}: {count} samples have this key" for key, count in keys.items() if count > 1]
    sizes = sum((one.sizes for one in ordered), Counter())
    said = {"samples": keys.total(), "image_sizes": dict(sizes), "groups": len(groups), **wids_fields(index["shards"])}
    faults += [
        f"index.json: its {name} are not those of the shards"
        for name, value in said.items()
        if index.get(name, value) != value
    ]
    return faults


def _check_split(root: Path, groups: dict[str, set[str]], blank: set[str]) -> list[str]:
    """Faults of the cut: a group in two parts, or parts that are not those of split.json but for the `blank` groups."""
    if not (root / FILE).exists():
        return []
    owners = Counter(group for names in groups.values() for group in names)
    faults = [f"{group}: in {count} parts" for group, count in sorted(owners.items()) if count > 1]
    try:
        split = read_split(root / FILE)
    except ValueError as problem:
        return [*faults, str(problem)]
    for name in sorted(split.parts.keys() | groups.keys()):
        differing = (set(split.parts.get(name, ())) ^ groups.get(name, set())) - blank
        if differing:
            faults.append(f"{FILE}: {len(differing)} groups of {name} differ, the first is {min(differing)!r}")
    return faults


def _wrong_contents(members: dict[str, bytes], facts: dict[str, Any], index: dict[str, Any]) -> list[str]:
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
            faults += _shape(name, decoded[name], (*size, 3))
    for name in ("lq.png", "lq.jpg"):
        if name in decoded and index.get("scale"):
            faults += _shape(name, decoded[name], (*(side // index["scale"] for side in size), 3))
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


def _shape(what: str, array: np.ndarray, shape: tuple[int, ...]) -> list[str]:
    if array.shape == shape:
        return []
    return [f"{what} is {'x'.join(map(str, array.shape))} (H W C), its json and index say {'x'.join(map(str, shape))}"]


def _check_mask(mask: np.ndarray, facts: dict[str, Any]) -> list[str]:
    faults = _shape("mask.png", mask, (facts["height"], facts["width"]))
    if "crack_share" in facts and mask.dtype != bool and not np.isin(mask, (0, 255)).all():
        return [*faults, "mask.png has other values than 0 and 255"]
    share = (mask > 0).mean()
    if "crack_share" in facts and abs(share - (facts["crack_share"] or 0)) > 1e-9:
        faults.append(f"mask.png has a crack share of {share:.6f}, its json says {facts['crack_share']}")
    return faults


def _check_valid(valid: np.ndarray, facts: dict[str, Any]) -> list[str]:
    faults, share = _shape("valid.png", valid, (facts["height"], facts["width"])), float((valid > 0).mean())
    if abs(share - facts.get("valid_share", share)) > 1e-9:
        faults.append(f"valid.png has a share of {share:.6f}, its json says {facts['valid_share']}")
    return faults


def report(roots: Sequence[Path], decode: bool, workers: int) -> int:
    """Check shard sets and print their faults. Returns 0, or 1 if there are any."""
    total = 0
    for root in roots:
        faults, about = check(root, decode, workers)
        for fault in faults:
            print(f"{root}: {''.join(letter if letter.isprintable() else '?' for letter in fault)}")
        print(f"{root}: {about}: {f'faults: {len(faults)}' if faults else 'nothing is wrong'}")
        total += len(faults)
    if total:
        print(f"error: faults: {total}; write the damaged set again with shards/make_shards.py", file=sys.stderr)
    return int(total > 0)
