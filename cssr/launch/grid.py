"""Grid of a sweep: parse `beta=0.1,0.3 seed=0,1,2` into points, each with its settings, name and folder."""

import dataclasses
import hashlib
import itertools
import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cssr.config.loading import parse_value
from cssr.config.registry import did_you_mean
from cssr.config.schema import Config
from cssr.config.yaml_loader import to_inline_yaml
from cssr.utils.files import safe_name

SEED = "train.seed"
_RESERVED = ("train.run_dir", "train.dry_run")  # set by the sweep itself
_MAX_LENGTH = 120  # characters of a folder's name
_MAX_POINTS = 1000  # of a grid, each a training


@dataclass(frozen=True)
class Value:
    """A value of a setting: as it was written, and in its shortest form, by which equal values are known."""

    text: str
    label: str


@dataclass(frozen=True)
class Axis:
    """A setting, what the sweep calls it, and its values."""

    key: str
    label: str
    values: tuple[Value, ...]


@dataclass(frozen=True)
class Point:
    """One value for each setting."""

    axes: tuple[Axis, ...]
    values: tuple[Value, ...]

    @property
    def name(self) -> str:
        """`beta=0.1,seed=0`, as a file name; with a checksum where that loses something."""
        exact = ",".join(f"{axis.label}={value.label}" for axis, value in zip(self.axes, self.values))
        texts = [v.label if re.fullmatch(r"[\w.+-]*", v.label) else safe_name(v.label, "+", "") for v in self.values]
        plain = ",".join(f"{axis.label}={text}" for axis, text in zip(self.axes, texts))
        if plain == exact and len(plain) <= _MAX_LENGTH:
            return plain
        return f"{plain[:_MAX_LENGTH]}-{hashlib.sha256(exact.encode()).hexdigest()[:6]}"

    @property
    def overrides(self) -> list[str]:
        """Settings as train.py takes them."""
        return [f"{axis.key}={value.text}" for axis, value in zip(self.axes, self.values)]

    @property
    def setting(self) -> dict[str, str]:
        """The point of the grid without its seed."""
        return {axis.label: value.label for axis, value in zip(self.axes, self.values) if axis.key != SEED}

    @property
    def seed(self) -> str | None:
        """The seed, where the sweep has several or names one."""
        return next((value.label for axis, value in zip(self.axes, self.values) if axis.key == SEED), None)


def points(axes: Sequence[Axis]) -> list[Point]:
    """Every combination, the last setting changing fastest."""
    return [Point(tuple(axes), values) for values in itertools.product(*(axis.values for axis in axes))]


def read_grid(texts: Sequence[str]) -> list[Axis]:
    """`KEY=V1,V2,...` as axes. A key may be the last part of a setting's name where no other setting is called so.

    Raises: ValueError, one line, for an unknown or ambiguous key, a key given twice, no values and equal values, and
        for more trainings than can be meant.
    """
    pairs = [_read(text) for text in texts]
    keys = [key for key, _ in pairs]
    for key in keys:
        if keys.count(key) > 1:
            raise ValueError(f"{key} is swept twice: give all of its values at once")
        if key in _RESERVED:
            raise ValueError(f"{key} cannot be swept: --out and --dry-run are for that")
    count = math.prod(len(values) for _, values in pairs)
    if count > _MAX_POINTS:
        raise ValueError(f"the grid has {count:,} points, each a training: sweep at most {_MAX_POINTS:,} at once")
    short_names = [key.split(".")[-1] for key in keys]
    labels = [last if short_names.count(last) == 1 else key for key, last in zip(keys, short_names)]
    return [Axis(key, label, values) for (key, values), label in zip(pairs, labels)]


def _read(text: str) -> tuple[str, tuple[Value, ...]]:
    name, separator, values_text = text.partition("=")
    if not separator or not name:
        raise ValueError(f"{text!r}: write what is swept as KEY=V1,V2,...")
    if not values_text.strip():
        raise ValueError(f"{text!r} has no values: write {name}=V1,V2,...")
    values = tuple(_value(part, text) for part in split_values(values_text))
    labels = [value.label for value in values]
    for label in labels:
        if labels.count(label) > 1:
            raise ValueError(f"{text!r}: {label} is there twice")
    return resolve(name), values


def _value(text: str, axis: str) -> Value:
    if not text:
        raise ValueError(f"{axis!r} has an empty value: write null for none")
    value = parse_value(text, repr(axis))
    if isinstance(value, str):
        return Value(text, value)
    scalar = value is None or isinstance(value, (bool, int, float))  # 1e-4 and 0.0001 are the same
    return Value(text, json.dumps(value) if scalar else to_inline_yaml(value))


def split_values(text: str) -> list[str]:
    """Split at commas, but not within brackets, braces and quotes."""
    parts, depth, quote = [""], 0, ""
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        else:
            depth += (letter in "[{") - (letter in "]}")
        if letter == "," and not quote and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts]


def resolve(name: str) -> str:
    """The setting of that name, or the one that ends in it; others are preferred to `eval.*`, which does not train.

    A name with a dot is taken as it is: it may continue into a component (`model.sr.stages`), which the settings check.
    Raises: ValueError, one line, with the candidates.
    """
    names = list(_settings(Config))
    if name in names or "." in name:
        return name
    keys = [key for key in names if key.split(".")[-1] == name]
    keys = [key for key in keys if not key.startswith("eval.")] or keys
    if len(keys) > 1:
        raise ValueError(f"{name!r} may be {' or '.join(keys)}: write one of them out")
    if not keys:
        short_names = dict.fromkeys(key.split(".")[-1] for key in names)
        raise ValueError(f"no setting is called {name!r}{did_you_mean(name, short_names)}")
    return keys[0]


def _settings(cls: type, prefix: str = "") -> Iterator[str]:
    """The dotted names of all settings of a settings class."""
    for field in dataclasses.fields(cls):
        if dataclasses.is_dataclass(field.type):
            yield from _settings(field.type, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}"
