"""Split a set into parts (train, val, test) by groups, so that tiles or frames of a photograph stay in one part."""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from cssr.dataset_preparation.sources import Item
from cssr.utils.json_files import read_json

FORMAT = "cssr-split-1"
DOCTOR_FORMAT = "cssr-doctor-1"
FILE = "split.json"


@dataclass(frozen=True)
class Split:
    """The groups of each part, and how they were drawn: `seed`, and `ratio`, the share of each part."""

    seed: int
    ratio: dict[str, float]
    parts: dict[str, list[str]]

    def to_json(self) -> bytes:
        """The bytes of split.json."""
        contents = {"format": FORMAT, "seed": self.seed, "ratio": self.ratio, "parts": self.parts}
        return (json.dumps(contents, indent=1, ensure_ascii=False) + "\n").encode()

    @property
    def sha256(self) -> str:
        """Digest of split.json."""
        return hashlib.sha256(self.to_json()).hexdigest()


def group_of(item: Item) -> str:
    """The photograph that a tile or frame comes from: all of its group go to one part."""
    return item.key if item.group is None else item.group


def read_related(path: Path, source: str, part: str) -> list[list[str]]:
    """The keys of the images that a doctor.json says belong together, group by group.

    Args:
        source: what it must be about.
        part: of the wanted images; others only connect them.
    Raises: ValueError if it is none, or about another source or other parts.
    """
    shape = {"format": str, "source": str, "parts": dict | list, "related": [[{"key": str, "part": str}]]}
    try:
        contents = read_json(path, shape, "give a doctor.json of doctor.py")
    except ValueError as problem:
        raise ValueError(f"--groups: {problem}") from None
    parts = list(contents["parts"])
    about = contents["source"] if contents["format"] == DOCTOR_FORMAT else None
    related = [[image["key"] for image in group if image["part"] == part] for group in contents["related"]]
    if about != source:
        raise ValueError(f"--groups {path} is about {about!r}, not {source!r}; examine this source with doctor.py")
    if part not in parts:
        names = ", ".join(map(repr, parts))
        raise ValueError(f"--groups {path} is about the parts {names}, not {part!r}; examine this one with doctor.py")
    return [keys for keys in related if keys]


def join_related(items: Sequence[Item], related: Sequence[Sequence[str]]) -> list[Item]:
    """The items, those that share a group or have related keys in one group, called like the first of its own.

    Keys that no item has are passed over. Raises: ValueError if there are only such.
    """
    groups = {item.key: group_of(item) for item in items}
    parent: dict[str, str] = {}

    def top(name: str) -> str:
        while name in parent:
            name = parent[name]
        return name

    for keys in related:
        first, *others = sorted({top(groups[key]) for key in keys if key in groups}) or [""]
        parent.update(dict.fromkeys(others, first))
    if related and not any(key in groups for keys in related for key in keys):
        raise ValueError(
            f"--groups: {related[0][0]!r} and all its others are not here; examine this set with doctor.py"
        )
    return [replace(item, group=top(group_of(item))) if group_of(item) in parent else item for item in items]


def parse_ratio(words: list[str]) -> dict[str, float]:
    """["train=0.8", "val=0.2"] -> {"train": 0.8, "val": 0.2}; ValueError unless positive shares add up to 1."""
    ratio: dict[str, float] = {}
    for word in words:
        match = re.fullmatch(r"([A-Za-z0-9_-]+)=([0-9]*\.?[0-9]+)", word)
        if not match or float(match[2]) <= 0 or match[1] in ratio:
            raise ValueError(f"--ratio has {word!r}; write parts with positive shares, each once, as train=0.8 val=0.2")
        ratio[match[1]] = float(match[2])
    if abs(sum(ratio.values()) - 1) > 1e-6:
        raise ValueError(f"--ratio adds up to {sum(ratio.values()):g}; make the shares add up to 1")
    return ratio


def draw_split(items: list[Item], ratio: dict[str, float], seed: int) -> Split:
    """Draw parts: the groups, in a seeded order, fill one part after the other up to its share of the items.

    A group goes to the part that holds its middle, so that a part misses its share by half a group at most.
    Raises: ValueError if a part gets none.
    """
    sizes = Counter(map(group_of, items))
    groups = list(sizes)  # in the order of the items, which is that of their keys
    order = [groups[k] for k in np.random.Generator(np.random.Philox(seed)).permutation(len(groups))]
    counts = np.array([sizes[group] for group in order])
    bounds = np.rint(np.cumsum(list(ratio.values())) * len(items))
    owner = np.searchsorted(bounds, np.cumsum(counts) - counts / 2, side="right").clip(max=len(ratio) - 1)
    parts = {name: sorted(g for g, k in zip(order, owner) if k == number) for number, name in enumerate(ratio)}
    for name, members in parts.items():
        if not members:
            raise ValueError(
                f"of {len(groups)} groups none is left for the part {name!r} of --ratio; enlarge its share"
            )
    return Split(seed, ratio, parts)


def read_split(path: Path) -> Split:
    """A split.json; ValueError if it is none, or has a group twice."""
    shape = {"format": str, "seed": int, "ratio": dict[str, float], "parts": dict[str, list[str]]}
    try:
        contents = read_json(path, shape, "give a split.json of an earlier run")
    except ValueError as problem:
        raise ValueError(f"--split-file: {problem}") from None
    split = Split(contents["seed"], contents["ratio"], contents["parts"])
    valid = contents["format"] == FORMAT and split.parts.keys() == split.ratio.keys() and all(split.parts.values())
    if not valid or not all(re.fullmatch(r"[A-Za-z0-9_-]+", name) for name in split.parts):
        raise ValueError(f"--split-file {path} is damaged or no {FORMAT}; give a split.json of an earlier run")
    duplicates = [g for g, count in Counter(g for groups in split.parts.values() for g in groups).items() if count > 1]
    if duplicates:
        raise ValueError(f"--split-file {path} has {duplicates[0]!r} more than once; leave it in one part")
    return split


def apply_split(split: Split, items: list[Item]) -> dict[str, list[Item]]:
    """The items of each part, in their order. ValueError unless the split is about exactly these groups."""
    owner = {group: name for name, groups in split.parts.items() for group in groups}
    groups_here = set(map(group_of, items))
    for difference, fault in (
        (groups_here - owner.keys(), "in no part of the split"),
        (owner.keys() - groups_here, "in the split, but not in the source"),
    ):
        if difference:
            raise ValueError(
                f"{len(difference)} groups are {fault}, the first is {min(difference)!r}; "
                "take the split of these very images, edit it, or draw another with --ratio"
            )
    return {name: [item for item in items if owner[group_of(item)] == name] for name in split.parts}
