"""`make_shards.py --check DIR`: compare a shard set with its index, and report damage by shard and key.

Every byte is read: sizes, sha256 of each tar, names of the members, checksums of the samples, counts. With --decode, or
where the index has no sha256, every image, mask and kernel is decoded as well, and compared with the sample's json. A
set written by another program (its index has no `tool_version`) need only meet docs/shards.md: json files, sha256 and
counts may be missing, and further members are allowed. Other people's WebDataset tars are read as in training.
"""

import re
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from tqdm import tqdm

from cssr.data.shards import ShardSet
from cssr.data.tars import find_tars
from cssr.dataset_preparation.check_shard import ShardReport, inspect_foreign, inspect_shard, is_ours
from cssr.dataset_preparation.parallel import imap_unordered
from cssr.dataset_preparation.split import FILE, read_split
from cssr.dataset_preparation.writer import FORMAT, wids_fields
from cssr.utils.files import PARTIAL
from cssr.utils.json_files import read_json


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
    decode = decode or any("sha256" not in entry for entry in entries)  # without digests nothing else shows damage

    def work(task: int, step: Callable[[], None]) -> ShardReport:
        if foreign:
            return inspect_foreign(foreign, task, decode, step)
        return inspect_shard(root / entries[task]["name"], entries[task], index, decode, step)

    bar = tqdm(total=index["samples"], desc="checking", unit=" samples", leave=False, disable=None)
    with bar, closing(imap_unordered(work, len(entries), workers, bar.update)) as results:
        results_of.update(results)
    reports = [results_of[number] for number in range(len(entries))]
    faults = [f"{entry['name']}: {fault}" for entry, report in zip(entries, reports) for fault in report.faults]
    groups = set().union(*(report.groups for report in reports))
    faults += _check_totals(index, reports, groups) if not faults else []
    if not tars:
        unlisted = {p.name for p in root.iterdir() if p.suffix == ".tar" or PARTIAL in p.name}
        unlisted -= {entry["name"] for entry in entries}
        faults += [f"{name} is not in index.json" for name in sorted(unlisted)]
    return faults, f"{sum(len(report.keys) for report in reports)} samples in {len(entries)} shards", groups


def read_index(root: Path) -> dict[str, Any]:
    """The index, its fields checked as far as checking needs them; ValueError otherwise."""
    try:
        index = read_json(root / "index.json")
        for entry in index["shards"] if is_ours(index) else ():
            entry["sha256"], entry["samples"]  # KeyError
        valid = index["format"] == FORMAT and bool(index["shards"])
        for entry in index["shards"]:
            valid = valid and re.fullmatch(r"[^/\\]+\.tar", entry["name"]) and len(entry.get("sha256", "0" * 64)) == 64
            valid = valid and isinstance(entry["samples"], int) and isinstance(entry["bytes"], int)
        index.setdefault("samples", sum(entry["samples"] for entry in index["shards"]))
        valid = valid and isinstance(index["samples"], int)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as problem:
        raise ValueError(f"index.json: cannot be read ({type(problem).__name__}: {problem})") from None
    if not valid:
        raise ValueError(f"index.json: damaged or of another format than {FORMAT}")
    return index


def _check_totals(index: dict[str, Any], reports: list[ShardReport], groups: set[str]) -> list[str]:
    """Faults of the set as a whole: duplicate keys, and totals that the index has wrong."""
    keys = Counter(key for report in reports for key in report.keys)
    faults = [f"{key}: {count} samples have this key" for key, count in keys.items() if count > 1]
    sizes = sum((report.sizes for report in reports), Counter())
    actual = {"samples": keys.total(), "image_sizes": dict(sizes), "groups": len(groups)}
    actual |= wids_fields(index["shards"])
    faults += [
        f"index.json: its {name} are not those of the shards"
        for name, value in actual.items()
        if index.get(name, value) != value
    ]
    return faults


def _check_split(root: Path, groups: dict[str, set[str]], blank: set[str]) -> list[str]:
    """Faults of the split: a group in two parts, or parts other than those of split.json (`blank` groups aside)."""
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
