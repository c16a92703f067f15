"""Sample images for a page: each file once, as a data URI, within a budget of bytes."""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

from cssr.evaluation.results import Result
from cssr.evaluation.visualization import FILES, Sample, read_samples

BUDGET = 24_000_000  # bytes of all data URIs; samples beyond it are left out, and counted
_TYPES = {".png": "image/png", ".webp": "image/webp"}
_KINDS = ("worst", "best", "median")  # which come first where not all have room
Kinds = Mapping[str, Sequence[str]]


class Gallery(NamedTuple):
    """`uris` by identity of the content; `samples` of each result, as the page reads them; how many had no room."""

    uris: dict[str, str]
    samples: list[list[dict[str, Any]]]
    left_out: int


def gallery(results: Sequence[Result], budget: int = BUDGET) -> Gallery:
    """The samples that lie beside the results; ValueError, one line, where some are damaged."""
    found = [read_samples(result.path.parent / "pictures" / "samples") for result in results]
    uris: dict[str, str] = {}
    kept: list[set[str]] = [set() for _ in results]
    places = _in_turn([kinds for kinds, _ in found])
    for number, key in places:
        new = {name: uri for name, uri in _uris(found[number][1][key]).items() if name not in uris}
        if sum(map(len, [*uris.values(), *new.values()])) <= budget:
            uris |= new
            kept[number].add(key)
    samples = [
        [_described(result, kinds, own[key]) for key in _listed(kinds) if key in keys]
        for result, (kinds, own), keys in zip(results, found, kept)
    ]
    return Gallery(uris, samples, len(places) - sum(map(len, kept)))


def _in_turn(kinds: Sequence[Kinds]) -> list[tuple[int, str]]:
    """(result, key) of all samples: the first of each kind of every result, then the second of each, and so on."""
    groups = [[(number, key) for key in of.get(kind, [])] for kind in _KINDS for number, of in enumerate(kinds)]
    return list(dict.fromkeys(place for rank in zip_longest(*groups) for place in rank if place))


def _listed(kinds: Kinds) -> list[str]:
    return list(dict.fromkeys(key for keys in kinds.values() for key in keys))


def _uris(sample: Sample) -> dict[str, str]:
    """The data URIs of a sample's files by the sha256 of their content."""
    return {
        _name(content): f"data:{_TYPES[Path(FILES[name]).suffix]};base64,{base64.b64encode(content).decode()}"
        for name, content in sample.files.items()
    }


def _name(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _described(result: Result, kinds: Kinds, sample: Sample) -> dict[str, Any]:
    """What the page says of a sample, and where it finds its files."""
    about, (_, _, height, width) = sample.about, sample.about["window"]
    names = [f"{kind} {list(keys).index(about['key']) + 1}" for kind, keys in kinds.items() if about["key"] in keys]
    return {
        **{"key": about["key"], "kinds": names, "quality": _quality(result, about["key"])},
        **{"height": height, "width": width, "whole": about["size"], "scale": about["scale"]},
        **{"kernel": about["kernel"], "predicted": about["predicted_kernel"]},
        "files": {name: _name(content) for name, content in sample.files.items()},
    }


def _quality(result: Result, key: str) -> str:
    row = next((row for row in result.data.get("per_image") or [] if row["key"] == key), {})
    if row.get("iou") is not None:
        return f"IoU {row['iou']:.3f}"
    return f"PSNR {row['psnr']:.2f} dB" if row.get("psnr") is not None else ""
