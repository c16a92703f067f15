"""Plain settings: YAML in and out, values of the command line, and one layer of settings over another."""

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml


def wants_help(arguments: Sequence[str]) -> bool:
    """Whether a command line that takes settings asks what there is."""
    return not arguments or not {"-h", "--help"}.isdisjoint(arguments)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The settings of a YAML file; ValueError, one line, if it is missing or holds something else."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"config: no recipe at {path}")
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"config: {path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values or {}, dict):
        raise ValueError(f"config: {path} must hold settings by name, found {type(values).__name__}")
    return values or {}


def recipe_layers(path: str | Path, above: tuple[Path, ...] = ()) -> list[dict[str, Any]]:
    """A recipe's settings, after those of the recipe that its `base` (a path, from its own folder) names, and so on."""
    path = Path(path)
    if path.resolve() in above:
        raise ValueError(f"config: {path} is its own base: {' -> '.join(p.name for p in (*above, path))}")
    values = read_yaml(path)
    base = values.pop("base", None)
    if base is None:
        return [values]
    if not isinstance(base, str):
        raise ValueError(f"config: base in {path} must be the path of a recipe, found {base!r}")
    return [*recipe_layers(path.parent / base, (*above, path.resolve())), values]


class Loader(yaml.SafeLoader):
    """YAML in which 1e-4 is a number, as everybody means it."""


class Dumper(yaml.SafeDumper):
    """Writes the word 1e-4 in quotes, so that it stays a word."""


for _kind in (Loader, Dumper):
    _kind.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+0123456789.")
    )


def to_yaml(values: Any) -> str:
    """Settings as YAML, a line each."""
    return yaml.dump(values, Dumper=Dumper, sort_keys=False)


def to_inline_yaml(value: Any) -> str:
    """One setting as YAML in a line."""
    return yaml.safe_dump(value, default_flow_style=True, width=1000, sort_keys=False).replace("\n...", "").strip()


def parse_override(text: str) -> tuple[str, Any]:
    """`a.b=value` as its key and its value; ValueError if it is written otherwise."""
    key, separator, value = text.partition("=")
    if not separator or not key:
        raise ValueError(f"override {text!r}: write it as a.b=value")
    return key, parse_value(value, f"override {text!r}")


def parse_value(text: str, setting: str) -> Any:
    """A value given on the command line, as YAML; ValueError names the `setting`."""
    try:
        return yaml.load(text, Loader=Loader)
    except yaml.YAMLError:
        raise ValueError(f"{setting}: the value is not valid YAML") from None


def nested(cls: type | None, base: Any, keys: list[str], value: Any) -> Any:
    """An override as a layer: `value` under `keys`, beside what a mapping that is no settings class holds already."""
    if not keys:
        return value
    key, rest = keys[0], keys[1:]
    inner = _setting_type(cls, key)
    below = base.get(key) if isinstance(base, dict) else None
    layer = {key: nested(inner, below, rest, value)}
    keeps = cls is None and isinstance(base, dict) and not (key == "name" and value != below)
    return {**base, **layer} if keeps else layer


def merge(cls: type, base: dict[str, Any], layer: Any, path: str = "") -> dict[str, Any]:
    """`layer` over `base`: settings classes by name, any other value whole."""
    if not isinstance(layer, dict):
        raise ValueError(f"config: {path.rstrip('.') or 'a recipe'} must hold settings by name, found {layer!r}")
    merged = dict(base)
    for key, value in layer.items():
        inner, name = _setting_type(cls, key), f"{path}{key}"
        merged[key] = merge(inner, base[key], value, f"{name}.") if inner else _replace(base.get(key), value, name)
    return merged


def _replace(base: Any, value: Any, name: str) -> Any:
    """A new value for a setting; of a component, arguments may be given alone, and a name alone as a word."""
    component = isinstance(base, dict) and "name" in base
    if component and isinstance(value, str):
        value = {"name": value}
    if component and isinstance(value, list):
        raise ValueError(f"config: {name} must be a name or a mapping with a name, found {value}")
    if component and isinstance(value, dict) and value.get("name", base["name"]) == base["name"]:
        return {**base, **value}
    return value


def _setting_type(cls: type | None, key: str) -> type | None:
    """The settings class under `key` of a settings class, None for a plain value."""
    types = {f.name: f.type for f in dataclasses.fields(cls)} if cls else {}
    return types.get(key) if dataclasses.is_dataclass(types.get(key)) else None
