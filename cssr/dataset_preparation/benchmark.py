"""Benchmarks: the files of configs/benchmarks, and the source of a shard set that is degraded once and stored.

An LQ image is what `cssr/evaluate.py` would make of the same sample without a frozen set (the same cut to multiples of
the scale, the same seed for each key), stored as 8 bits: clamp(lq, 0, 1) * 255, rounded. Samples are
degraded one at a time by one thread on the CPU, so that the bytes depend neither on their neighbours nor on a GPU.
"""

import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from einops import rearrange
from PIL import Image

from cssr import __version__
from cssr.config.loading import read_yaml
from cssr.config.registry import did_you_mean
from cssr.data.dataset import Sample, eval_seed, read_sample
from cssr.data.shards import DataError, ShardSet, sizes
from cssr.data.tar_reader import Files
from cssr.dataset_preparation.encode import MAX_SCALE
from cssr.dataset_preparation.images import open_picture, png
from cssr.dataset_preparation.sources import Item, MaskRule, Source
from cssr.degradations import DEGRADATIONS
from cssr.utils.text import message_of

_MAX_SEED = 2**31 - 1  # with the key's 32 bits below it a signed 64-bit number
_REWRITTEN = ("key", "source", "origin", "width", "height", "crack_share", "converted", "crc32", "group", "valid_share")
_INHERITED = ("options", "licence", "split", "ratio", "split_sha256", "part", "seed")  # of the index
_PLAIN = {bool: "true or false", int: "a whole number"}


class StoredSample(NamedTuple):
    """Position of a sample in a set, and its json ({} where there is none)."""

    shard: int
    index: int
    key: str
    facts: dict[str, Any]


def list_samples(shards: ShardSet) -> Iterator[StoredSample]:
    """All samples of a set, in its order; shards elsewhere are fetched. DataError names one that is damaged."""
    for shard, count in enumerate(shards.counts):
        with _opened(shards, shard) as files:
            for index in range(count):
                with _name_sample_in_errors(shards, shard, f"sample {index}"):
                    key, members = files(index)
                    stored = StoredSample(shard, index, key, _facts(members))
                yield stored


def decoded(shards: ShardSet, stored: StoredSample) -> Sample:
    """A sample as training and evaluation see it, without what it stores beside. DataError if it is damaged."""
    try:
        return read_sample(shards, stored.shard, stored.index, _print_notice, with_lq=False)
    except DataError as problem:
        raise DataError(f"{problem}; {_remedy(shards)}") from problem


@contextmanager
def _opened(shards: ShardSet, shard: int) -> Iterator[Callable[[int], tuple[str, Files]]]:
    """Yield a function that gives key and files of a sample of a tar by its number."""
    limit = shards.index["shards"][shard]["bytes"]
    with shards.file(shard, _print_notice) as file:
        table = shards.contents(shard, file)
        yield lambda index: (shards.key(shard, table.key(index)), Files(file, table.places[index], limit))


@contextmanager
def _name_sample_in_errors(shards: ShardSet, shard: int, sample: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, RecursionError) as problem:
        raise DataError(f"damaged sample: {shards.address(shard)} {sample}: {problem}; {_remedy(shards)}") from problem


def _remedy(shards: ShardSet) -> str:
    return f"see `make_shards.py --check {shards.root}`, and write that set again"


def _facts(files: Files) -> dict[str, Any]:
    try:
        facts = json.loads(files.read("json"))
    except ValueError:  # a set from elsewhere, without any
        return {}
    return facts if isinstance(facts, dict) else {}


def _print_notice(notice: str) -> None:
    print(notice, file=sys.stderr)


@dataclass(frozen=True)
class Benchmark:
    """Contents of a file of configs/benchmarks."""

    name: str  # how results call it
    scale: int  # HR pixels per LQ pixel, 2 or more
    degradation: dict[str, Any]  # component of cssr/degradations
    seed: int = 0  # of the degradation, as `cssr/evaluate.py --seed`

    def build(self) -> Callable:
        """The degradation."""
        return DEGRADATIONS.build(self.degradation, scale=self.scale)


def read_benchmark(path: Path) -> Benchmark:
    """The benchmark of a file; ValueError, one line that names the setting, where it is not valid."""
    try:
        return _checked(read_yaml(path))
    except ValueError as problem:
        raise ValueError(f"--degradation {path}: {str(problem).removeprefix('config: ')}") from None


def _checked(values: dict[str, Any]) -> Benchmark:
    known = [field.name for field in fields(Benchmark)]
    for key in values:
        if key not in known:
            raise ValueError(f"unknown setting {key!r}{did_you_mean(key, known)}; it holds {', '.join(known)}")
    for key in known[:-1]:
        if key not in values:
            raise ValueError(f"{key} is missing; a benchmark file holds {', '.join(known)}")
    if not isinstance(values["name"], str) or not re.fullmatch(r"[\w.+-]+", values["name"]):
        raise ValueError(f"name needs letters, digits and any of . _ + -; got {values['name']!r}")
    _check_number("scale", values["scale"], 2, MAX_SCALE)
    _check_number("seed", values.get("seed", 0), 0, _MAX_SEED)
    degradation = values["degradation"]
    component = {"name": degradation} if isinstance(degradation, str) else degradation
    _check_component(component, values["scale"])
    return Benchmark(**{**values, "degradation": dict(component)})


def _check_number(key: str, value: Any, low: int, high: int) -> None:
    if type(value) is not int or not low <= value <= high:
        raise ValueError(f"{key} needs a whole number, {low} to {high}; got {value!r}")


def _check_component(component: Any, scale: int) -> None:
    if not isinstance(component, Mapping) or not isinstance(component.get("name"), str):
        raise ValueError(f"degradation needs a mapping with a name, as {{name: gaussian}}; got {component!r}")
    if component["name"] == "stored":
        raise ValueError("degradation=stored degrades nothing; name one that makes LQ images")
    parameters = DEGRADATIONS.parameters(component["name"])
    for key, value in component.items():
        kind = parameters[key].annotation if key in parameters else None
        if kind in _PLAIN and type(value) is not kind:
            raise ValueError(f"degradation.{key} needs {_PLAIN[kind]}; got {value!r}")
    try:
        DEGRADATIONS.build(component, scale=scale)
    except TypeError as problem:  # a value of the wrong type was compared before it was checked
        raise ValueError(f"degradation: {component} has a value of a wrong type ({problem})") from None


class Degraded(NamedTuple):
    """A sample of the benchmark: `hr` H W 3 uint8 RGB and `mask` H W bool, cut to multiples of the scale; `whole`: not
    a pixel was cut off; `lq` h w 3 uint8 RGB; `kernel` k k float32, None where the degradation gives none; `valid`: H W
    bool, which pixels hold data, None where all do.
    """

    hr: np.ndarray
    mask: np.ndarray
    whole: bool
    lq: np.ndarray
    kernel: np.ndarray | None
    valid: np.ndarray | None = None


def degrade_image(hr: np.ndarray, seed: int, degrade: Callable) -> tuple[np.ndarray, np.ndarray | None]:
    """The LQ image (h w 3 uint8) of an image (H W 3 uint8, multiples of the scale), and the kernel (k k float32)."""
    planes = rearrange(torch.from_numpy(np.ascontiguousarray(hr)), "h w c -> 1 c h w").contiguous()
    with torch.no_grad():
        lq, kernel = degrade(planes.float() / 255, torch.tensor([seed]))
    levels = rearrange((lq.clamp(0, 1) * 255).round().byte(), "1 c h w -> h w c").contiguous().numpy()
    return levels, None if kernel is None else kernel[0, 0].numpy()


def degraded_source(shards: ShardSet, benchmark: Benchmark, degrade: Callable) -> Source:
    """The samples of a set, each with its LQ image and kernel; `degrade`: of the benchmark.

    Raises: ValueError where the set stores LQ images already, has images that are too small, or is damaged.
    """
    if shards.lq:
        raise ValueError(
            f"--data: {shards.root} stores LQ images already: evaluate on it, or give the set that it was made of"
        )
    kernel = _try_smallest(shards, benchmark.scale, degrade)
    listed = list(list_samples(shards))
    # the parts of a sample are asked for in turn: degrading it once serves them all
    make = lru_cache(maxsize=1)(lambda number: _degraded(shards, listed[number], benchmark, degrade))
    items = [_item(shards, stored, partial(make, number), kernel) for number, stored in enumerate(listed)]
    rule = MaskRule(shards.index.get("mask_rule") or "as stored: 1 is crack", lambda values: values)
    decide = (lambda _: rule) if shards.masks else None
    return Source(
        str(shards.index.get("source", "unknown")),
        shards.index.get("licence"),
        items,
        decide,
        _notes(shards, benchmark.scale),
    )


def header_of(shards: ShardSet, benchmark: Benchmark, resampler: str) -> dict[str, Any]:
    """Fields of the index about the whole set: those of the original, and how it was degraded."""
    inherited = {name: shards.index[name] for name in _INHERITED if name in shards.index}
    origin = {
        "benchmark": benchmark.name,
        "degradation": benchmark.degradation,
        "degradation_seed": benchmark.seed,
    }
    return {
        "tool_version": __version__,
        "source": str(shards.index.get("source", "unknown")),
        **inherited,
        **origin,
        "resampler": resampler,
        "original_sha256": shards.sha256,
    }


def _try_smallest(shards: ShardSet, scale: int, degrade: Callable) -> bool:
    """Degrade an image of the smallest size in the set. Returns whether there is a kernel; ValueError if it fails."""
    width, height = min(sizes(shards.index), key=min)
    where = f"--data: {shards.root} has images of {width}x{height} pixels"
    if min(width, height) < scale:
        raise ValueError(f"{where}, too small for scale {scale}: remove them from the set, or lower the scale")
    image = np.zeros((height // scale * scale, width // scale * scale, 3), np.uint8)
    try:
        return degrade_image(image, 0, degrade)[1] is not None
    except (RuntimeError, ValueError, TypeError) as problem:
        reason = message_of(problem)
        raise ValueError(f"{where}, which the degradation cannot take: {reason}; change it, or the set") from problem


def _degraded(shards: ShardSet, stored: StoredSample, benchmark: Benchmark, degrade: Callable) -> Degraded:
    sample = decoded(shards, stored)
    height, width = (side // benchmark.scale * benchmark.scale for side in sample.mask.shape)
    hr, mask = sample.image[:height, :width], sample.mask[:height, :width] > 0
    lq, kernel = degrade_image(hr, eval_seed(benchmark.seed, stored.key), degrade)
    valid = None if sample.valid is None else sample.valid[:height, :width] > 0
    return Degraded(hr, mask, hr.shape == sample.image.shape, lq, kernel, valid)


def _item(shards: ShardSet, stored: StoredSample, make: Callable[[], Degraded], kernel: bool) -> Item:
    facts, group = stored.facts, stored.facts.get("group")
    return Item(
        stored.key,
        str(facts.get("origin", stored.key)),
        lambda: _image(shards, stored, make()),
        (lambda: make().mask) if shards.masks else None,
        {name: value for name, value in facts.items() if name not in _REWRITTEN},
        lambda: png(Image.fromarray(make().lq)),
        (lambda: make().kernel) if kernel else None,
        group if isinstance(group, str) else None,
        (lambda: make().valid) if shards.valid else None,
        () if shards.cache else (Path(shards.address(stored.shard)),),  # elsewhere, the index's sha256 says it
    )


def _image(shards: ShardSet, stored: StoredSample, degraded: Degraded) -> bytes:
    """The HR image: the very file of the original where nothing is cut off and a set of ours may hold it, or a PNG."""
    if degraded.whole:
        with _opened(shards, stored.shard) as files, _name_sample_in_errors(shards, stored.shard, f"key {stored.key}"):
            data = files(stored.index)[1].read("jpg", "png")
            if open_picture(data).reason is None:
                return data
    return png(Image.fromarray(np.ascontiguousarray(degraded.hr)))


def _notes(shards: ShardSet, scale: int) -> tuple[str, ...]:
    cut = [f"{width}x{height}" for width, height in sizes(shards.index) if width % scale or height % scale]
    if not cut:
        return ()
    sizes_text = f"{', '.join(cut[:3])} pixels{' and others' if cut[3:] else ''}"
    return (f"images of {sizes_text} are cut at the right and bottom to multiples of {scale}, and stored as PNG",)
