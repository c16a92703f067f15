"""YAML of settings: version 1.2's core schema, bounded in size and depth, without duplicate keys."""

import re
from typing import Any

import yaml

from cssr.utils.text import message_of

_MAX_DEPTH, _MAX_VALUES = 40, 100_000  # levels of YAML; values, those behind aliases included
_MAX_DIGITS = 300  # of a whole number: it must have a float


def load_yaml(text: str | bytes, loader: type, complaint: str) -> Any:
    """The values of YAML text by one of the loaders; ValueError, one line, that begins with the complaint."""
    try:
        return yaml.load(text, Loader=loader)
    except (yaml.YAMLError, UnicodeDecodeError, ValueError) as error:
        raise ValueError(f"{complaint}: {message_of(error)}") from None


class Loader(yaml.SafeLoader):
    """YAML 1.2's core schema, numbers decimal: no octal numbers, no dates, and `on` and `yes` are words.

    Duplicate keys, aliases that expand to very many values, and very deep nesting are errors.
    """

    yaml_implicit_resolvers: dict = {}
    yaml_constructors = {
        tag: construct
        for tag, construct in yaml.SafeLoader.yaml_constructors.items()
        if tag is None or tag.rpartition(":")[2] in ("null", "bool", "str", "seq", "map")
    }

    def compose_node(self, parent: Any, index: Any) -> yaml.Node:
        """Bound the number of nodes (an alias counts as all that it names) and their depth."""
        self._depth = getattr(self, "_depth", 0) + 1
        if self._depth > _MAX_DEPTH:
            raise yaml.YAMLError(f"nested more than {_MAX_DEPTH} deep")
        alias = self.check_event(yaml.AliasEvent)
        node = super().compose_node(parent, index)
        self._depth -= 1
        if alias and not hasattr(node, "count"):
            raise yaml.YAMLError("an alias is within what it names")
        if not alias:
            parts = [n for pair in node.value for n in pair] if isinstance(node, yaml.MappingNode) else node.value
            node.count = 1 if isinstance(node, yaml.ScalarNode) else 1 + sum(part.count for part in parts)
        if node.count > _MAX_VALUES:
            raise yaml.YAMLError(f"its aliases come to more than {_MAX_VALUES} values")
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        """Refuse duplicate keys; a merge (`<<`) gives defaults, as in any YAML."""
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        duplicate = next((key for n, key in enumerate(keys) if key in keys[:n]), None)
        if duplicate is not None:
            raise yaml.constructor.ConstructorError(None, None, f"{duplicate!r} is there twice", node.start_mark)
        return super().construct_mapping(node, deep)


class Texts(Loader):
    """Loads every scalar as its text."""

    yaml_implicit_resolvers: dict = {}


class Dumper(yaml.SafeDumper):
    """Writes words that look like numbers in quotes, so that they stay words."""


def _whole_number(text: str) -> int:
    if len(text) > _MAX_DIGITS:
        raise ValueError(f"a number of {len(text)} digits is too large to be meant")
    return int(text)


TAG = "tag:yaml.org,2002:"
_RESOLVERS = {
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (r"[-+]?[0-9]+", list("-+0123456789")),
    "float": (r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?", list("-+.0123456789")),
    "float ": (r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", list("-+.")),
}
for _kind in (Loader, Dumper):
    for _name, (_pattern, _first) in _RESOLVERS.items():
        _kind.add_implicit_resolver(TAG + _name.strip(), re.compile(f"^(?:{_pattern})$"), _first)
for _kind in (Loader, Texts):
    _kind.add_implicit_resolver(f"{TAG}merge", re.compile("^<<$"), ["<"])
Loader.add_constructor(f"{TAG}int", lambda loader, node: _whole_number(node.value))
Loader.add_constructor(f"{TAG}float", lambda loader, node: float(re.sub(r"\.(?=[in])", "", node.value.lower())))


def to_yaml(values: Any) -> str:
    """Settings as YAML, a line each."""
    return yaml.dump(values, Dumper=Dumper, sort_keys=False)


def to_inline_yaml(value: Any) -> str:
    """One setting as YAML in a line."""
    return yaml.safe_dump(value, default_flow_style=True, width=1000, sort_keys=False).replace("\n...", "").strip()
