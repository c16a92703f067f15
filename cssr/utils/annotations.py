"""Annotations as what values of YAML and JSON are checked against: types, unions, literals, lists, mappings, bounds."""

import collections.abc
import sys
import types
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin


@dataclass(frozen=True)
class Within:
    """Bounds in an annotation: the numbers that can be meant, `low` and `high` among them."""

    low: float
    high: float


def fits(value: Any, kind: Any) -> bool:
    """Return whether a value of YAML or JSON is one that an annotation describes; numbers must be finite."""
    origin, inner = _origin(kind), get_args(kind)
    if origin is Annotated:
        bounds = [extra for extra in inner[1:] if isinstance(extra, Within)]
        return fits(value, inner[0]) and (value is None or all(b.low <= value <= b.high for b in bounds))
    if origin in (types.UnionType, Union):
        return any(fits(value, part) for part in inner)
    if origin is Literal:
        return isinstance(value, (str, int, float)) and value in inner
    if origin in (list, tuple, collections.abc.Sequence):
        items = inner[0] if inner else Any
        return isinstance(value, (list, tuple)) and all(fits(part, items) for part in value)
    if origin in (dict, collections.abc.Mapping):
        key, part = inner or (Any, Any)
        return isinstance(value, Mapping) and all(fits(k, key) and fits(v, part) for k, v in value.items())
    return kind is Any or (_fits_plain(value, kind) if isinstance(kind, type) else True)


def _origin(kind: Any) -> Any:
    """Origin of an annotation: list of `list[int]`, and of a bare `list`, the items of which may be anything."""
    return kind if kind in (list, tuple, dict) else get_origin(kind)


def _fits_plain(value: Any, kind: type) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if kind is float:
        return number and abs(value) <= sys.float_info.max  # whole numbers may be greater
    if kind is int:
        return number and isinstance(value, int)
    return isinstance(value, (str, Path) if kind is Path else kind)


def described(kind: Any) -> str:
    """An annotation in words, for error messages."""
    origin, inner = _origin(kind), get_args(kind)
    if origin is Annotated:
        bounds = next((extra for extra in inner[1:] if isinstance(extra, Within)), None)
        return described(inner[0]) + (f" of {bounds.low:g} to {bounds.high:g}" if bounds else "")
    if origin in (types.UnionType, Union):
        return " or ".join(described(part) for part in inner)
    if origin is Literal:
        return " or ".join(part for part in (", ".join(map(str, inner[:-1])), str(inner[-1])) if part)
    if origin in (list, tuple, collections.abc.Sequence):
        return f"a list, each {described(inner[0])}" if inner else "a list"
    if origin in (dict, collections.abc.Mapping):
        return f"a mapping, each {described(inner[1])}" if inner and inner[1] is not Any else "a mapping"
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "a word", type(None): "null"}
    return words.get(kind, getattr(kind, "__name__", str(kind)))


def shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 80 else f"{text[:80]}..."
