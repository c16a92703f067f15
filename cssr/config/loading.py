"""Load settings: defaults, recipes, overrides of the command line; write them as YAML; describe them for --help."""

import ast
import dataclasses
import functools
import importlib
import inspect
import os
import sys
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cssr.config.schema import ADDRESSES, Config, ModelConfig, PhaseConfig, check, check_model
from cssr.config.yaml_loader import TAG, Loader, Texts, load_yaml, to_inline_yaml, to_yaml
from cssr.utils.files import write_atomic
from cssr.utils.installed import find_file
from cssr.utils.text import message_of

_MAX_BYTES = 1 << 20  # bytes of a recipe
_MAX_CHAIN = 32  # recipes, each the base of the one before
_PATHS = (("data", "train"), ("data", "val"), ("data", "cache"), ("train", "run_dir"), ("train", "init_from"))


def load_config(path: str | Path | None = None, overrides: Sequence[str] = ()) -> Config:
    """Defaults, then the recipe at `path`, then `overrides` such as `train.steps=10`.

    Raises:
        ValueError: a missing file, a key that does not exist, a value of the wrong type; one line each.
    """
    merged = dataclasses.asdict(Config())
    if path is not None:
        for layer in recipe_layers(Config, path):
            merged = merge(Config, merged, layer)
    for text in overrides:
        merged = merge(Config, merged, override(Config, merged, text))
    return from_dict(_expand_home(merged))


def _expand_home(values: dict[str, Any]) -> dict[str, Any]:
    """Expand `~` at the beginning of paths in the settings, in place."""
    for group, name in _PATHS:
        value = values[group][name]
        if isinstance(value, dict):
            values[group][name] = {os.path.expanduser(path): weight for path, weight in value.items()}
        elif isinstance(value, list):
            values[group][name] = [os.path.expanduser(path) if isinstance(path, str) else path for path in value]
        elif isinstance(value, str):
            values[group][name] = os.path.expanduser(value)
    return values


def from_dict(values: Mapping[str, Any]) -> Config:
    """A typed Config from plain values; ValueError names the setting that does not fit."""
    values, phases = dict(values), values.get("phases", [{}])
    values.pop("phases", None)
    config = _typed(Config, values)
    if not isinstance(phases, list) or not all(isinstance(phase, dict) for phase in phases):
        raise ValueError(f"config: phases must be a list of phases, got {phases}")
    config.phases = [_typed(PhaseConfig, phase, f"phases[{k}].") for k, phase in enumerate(phases)]
    check(config)
    import_modules(config.imports)
    return config


def model_config(values: Mapping[str, Any], imports: Sequence[str] = ()) -> ModelConfig:
    """Typed settings of a model alone, as an export holds them; ValueError names the one that does not fit."""
    model = _typed(ModelConfig, values, "model.")
    check_model(model)
    import_modules(imports)
    return model


def import_modules(names: Sequence[str], setting: str = "imports") -> None:
    """Import the user's modules, which register what they define; the working directory is on the path.

    Raises: ValueError, one line, for a module that does not exist or fails on import.
    """
    if names and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    for name in names:
        try:
            importlib.import_module(name)
        except Exception as error:
            reason = message_of(error)
            raise ValueError(
                f"{setting}: {name} cannot be imported from {os.getcwd()} or the Python path: "
                f"{type(error).__name__}: {reason}"
            ) from error


def _typed(cls: type, values: Mapping[str, Any], prefix: str = "") -> Any:
    try:
        return OmegaConf.to_object(OmegaConf.merge(_defaults(cls), _escape_references(dict(values))))
    except OmegaConfBaseException as error:
        wrong = ", ".join(_wrong_kinds(cls(), values, prefix))
        if wrong:  # OmegaConf's message speaks of its own classes
            raise ValueError(f"config: {wrong}"[:600]) from None
        key = f"{prefix}{getattr(error, 'full_key', None) or ''}".rstrip(".")
        key = f"{key}: " if key else ""
        raise ValueError(f"config: {key}{str(error).splitlines()[0]}") from None
    except OverflowError:  # from JSON: the YAML loader refuses such a number itself
        raise ValueError(f"config: {prefix.rstrip('.') or 'it'} holds a number that is too large to be meant") from None
    except TypeError:  # a list in place of a mapping, or the reverse; the error names no setting
        raise ValueError(f"config: {', '.join(_wrong_kinds(cls(), values, prefix))}"[:600]) from None


@functools.cache
def _defaults(cls: type) -> DictConfig:
    """The defaults of a dataclass; merging copies them."""
    return OmegaConf.structured(cls)


def _wrong_kinds(defaults: Any, values: Mapping[str, Any], prefix: str) -> Iterator[str]:
    """Say which settings should be lists or mappings but are something else."""
    for name, value in values.items():
        default = getattr(defaults, name, None)
        if dataclasses.is_dataclass(default) and isinstance(value, dict):
            yield from _wrong_kinds(default, value, f"{prefix}{name}.")
        elif isinstance(default, list) and not isinstance(value, list):
            yield f"{prefix}{name} must be a list, got {value}"
        elif (isinstance(default, dict) or dataclasses.is_dataclass(default)) and not isinstance(value, dict):
            yield f"{prefix}{name} must be a mapping, got {value}"


def _escape_references(value: Any) -> Any:
    """Escape `${`, which OmegaConf would take for a reference to another setting: strings are literal."""
    if isinstance(value, dict):
        return {key: _escape_references(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_escape_references(inner) for inner in value]
    return value.replace("${", "\\${") if isinstance(value, str) else value


def to_dict(config: Any) -> dict[str, Any]:
    """Plain values, for YAML and JSON."""
    return dataclasses.asdict(config)


def save_config(config: Config, path: str | Path) -> None:
    """Write the resolved settings as YAML."""
    write_atomic(Path(path), to_yaml(to_dict(config)))


def changed_settings(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """`a.b: old -> new` for every setting that differs."""
    changed: list[str] = []
    for key, after in new.items():
        before = old.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            changed += changed_settings(before, after, f"{prefix}{key}.")
        elif before != after:
            changed.append(f"{prefix}{key}: {before} -> {after}")
    return changed


def described(doc: str) -> str:
    """Text of `--help`: a command's docstring and all settings."""
    return f"{doc}\nSettings, their defaults and meaning:\n\n{describe()}"


def describe(cls: type = Config, indent: int = 0) -> str:
    """The tree of settings as commented YAML: name, default, meaning."""
    comments, lines = _field_comments(cls), []
    for f in dataclasses.fields(cls):
        pad, comment = "  " * indent, comments.get(f.name, "")
        if dataclasses.is_dataclass(f.type):
            lines += [f"{pad}{f.name}:", describe(f.type, indent + 1)]
            continue
        default = f.default_factory() if f.default is dataclasses.MISSING else f.default
        if isinstance(default, list):
            default = [to_dict(v) if dataclasses.is_dataclass(v) else v for v in default]
        setting = f"{pad}{f.name}: {to_inline_yaml(default)}"
        lines.append(f"{setting:<43} # {comment}" if comment else setting)
    return "\n".join(lines)


def _field_comments(cls: type) -> dict[str, str]:
    """The trailing comment of each field, read from the source: it is the field's documentation."""
    lines = inspect.getsource(cls).splitlines()
    nodes = ast.parse("\n".join(lines)).body[0].body
    comments = {}
    for node in (n for n in nodes if isinstance(n, ast.AnnAssign)):
        _, mark, comment = lines[node.end_lineno - 1][node.end_col_offset :].partition("# ")
        comments[node.target.id] = comment if mark else ""
    return comments


def wants_help(arguments: Sequence[str]) -> bool:
    """Return whether a command line that takes settings asks for help, as an empty one does."""
    return not arguments or not {"-h", "--help"}.isdisjoint(arguments)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The settings of a YAML file; ValueError, one line, if it is missing or holds something else."""
    return _read_both(Path(path))[0]


def _read_both(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings of a YAML file, and the same with each scalar as its text."""
    if not path.is_file():
        raise ValueError(f"config: no recipe at {path}")
    if path.stat().st_size > _MAX_BYTES:
        raise ValueError(f"config: {path} is no recipe: it has more than {_MAX_BYTES} bytes")
    data = path.read_bytes()
    values, texts = (load_yaml(data, loader, f"config: {path} is not valid YAML") or {} for loader in (Loader, Texts))
    if not isinstance(values, dict):
        raise ValueError(f"config: {path} must hold settings by name, got {type(values).__name__}")
    return values, texts


def recipe_layers(cls: type, path: str | Path, above: tuple[Path, ...] = ()) -> list[dict[str, Any]]:
    """A recipe's settings, after those of the recipe that its `base` (a path, from its own folder) names, and so on.

    Args:
        cls: the settings class, which says what is text: that is taken literally.
    """
    path = Path(path).expanduser() if above else find_file(path, "configs")
    real = Path(os.path.realpath(path))  # of a link to itself, unlike Path.resolve
    if real in above:
        raise ValueError(f"config: {path} is its own base: {' -> '.join(p.name for p in (*above, path))}")
    if len(above) > _MAX_CHAIN:
        raise ValueError(f"config: {above[0].name} has more than {_MAX_CHAIN} recipes below it: merge some")
    values, texts = _read_both(path)
    base, text = values.pop("base", None), texts.pop("base", None)
    values = with_texts(cls, values, texts)
    if base is None:
        return [values]
    if not isinstance(text, str):
        raise ValueError(f"config: base in {path} must be the path of a recipe, got {base!r}")
    return [*recipe_layers(cls, path.parent / Path(text).expanduser(), (*above, real)), values]


def with_texts(kind: Any, value: Any, text: Any) -> Any:
    """`value` as YAML reads it, but with `text`, as the file has it, for settings that are strings.

    Args:
        kind: a settings class, the annotation of a setting in one, or ADDRESSES.
    """
    if dataclasses.is_dataclass(kind) and isinstance(value, dict):
        kinds = setting_kinds(kind)
        pairs = zip(value.items(), text.values(), strict=True)
        return {key: with_texts(kinds.get(key), inner, word) for (key, inner), word in pairs}
    if typing.get_origin(kind) is list and isinstance(value, list):
        return [with_texts(typing.get_args(kind)[0], inner, word) for inner, word in zip(value, text)]
    if kind == ADDRESSES and isinstance(value, dict):
        return dict(zip(text, value.values()))
    if kind == ADDRESSES and isinstance(value, list):
        return text
    return text if _is_text(kind) and value is not None and isinstance(text, str) else value


def setting_kinds(cls: type) -> dict[str, Any]:
    """The annotation of each setting of a settings class; ADDRESSES for those with such metadata."""
    return {f.name: ADDRESSES if f.metadata.get(ADDRESSES) else f.type for f in dataclasses.fields(cls)}


def _is_text(kind: Any) -> bool:
    return kind in (str, str | None, ADDRESSES)


def parse_override(text: str) -> tuple[str, str]:
    """`a.b=value` as its key and the text of its value; ValueError if it is written otherwise."""
    key, separator, value = text.partition("=")
    if not separator or not key:
        raise ValueError(f"override {text!r}: write it as a.b=value")
    return key, value


def override(cls: type, base: dict[str, Any], text: str) -> dict[str, Any]:
    """`a.b=value` as a layer over the settings `base` of a class; ValueError, one line."""
    key, value = parse_override(text)
    kind: Any = cls
    for part in key.split("."):
        kind = setting_kinds(kind).get(part) if dataclasses.is_dataclass(kind) else None
    return nested(cls, base, key.split("."), parse_value(value, f"override {text!r}", kind))


def parse_value(text: str, setting: str, kind: Any = None) -> Any:
    """A value given on the command line; ValueError names the `setting`.

    Brackets, braces and quotes are YAML. Anything else is one value, `#` and `:` in it included: the literal string
    where `kind`, the annotation of its setting, says so; else null, true, false or a decimal number if it is one.
    """
    quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
    if text[:1] in ("[", "{") and kind not in (str, str | None) or quoted:
        values = (load_yaml(text, loader, f"{setting}: the value is not valid YAML") for loader in (Loader, Texts))
        return with_texts(kind, *values)
    loader = Loader("")
    tag = loader.resolve(yaml.ScalarNode, text, (True, False))
    if kind is str or tag == f"{TAG}merge" or (_is_text(kind) and (text == "~" or tag != f"{TAG}null")):
        return text
    try:
        return loader.construct_object(yaml.ScalarNode(tag, text))
    except ValueError as error:
        raise ValueError(f"{setting}: {error}") from None


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
    """`layer` over `base`: settings classes by name, any other value whole.

    OmegaConf's own merge would keep the arguments of a component that is replaced by another name, and the shard sets
    of a mapping that is given anew.
    """
    if not isinstance(layer, dict):
        raise ValueError(f"config: {path.rstrip('.') or 'a recipe'} must hold settings by name, got {layer!r}")
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
        raise ValueError(f"config: {name} must be a name or a mapping with a name, got {value}")
    if component and isinstance(value, dict) and value.get("name", base["name"]) == base["name"]:
        return {**base, **value}
    return value


def _setting_type(cls: type | None, key: str) -> type | None:
    """The settings class under `key` of a settings class, None for a plain value."""
    types = {f.name: f.type for f in dataclasses.fields(cls)} if cls else {}
    return types.get(key) if dataclasses.is_dataclass(types.get(key)) else None
