"""Severity of a crack by its width: tables of limits as YAML, and classes with the width's uncertainty."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from cssr.config.yaml_loader import Loader, load_yaml
from cssr.utils.json_files import read_bytes

SHIPPED = Path(__file__).with_name("limits")
DEFAULT = "en1992-1-1"
WIDTHS = ("mean", "p95", "max")
UNKNOWN = "size of a pixel not known"  # in place of a class
_KEYS = ("name", "source", "width", "classes")


@dataclass(frozen=True)
class Limits:
    """Classes of severity, from the mildest: class k has widths above `above[k]` mm, up to `above[k + 1]`."""

    name: str
    source: str
    width: str  # of a crack, that is classed: one of WIDTHS
    classes: tuple[str, ...]
    above: tuple[float, ...]  # mm, rising, the first 0

    def class_of(self, width: float, uncertainty: float = 0.0) -> tuple[int, range]:
        """The class of a width (mm), and all classes within its expanded uncertainty (95 %, mm) of it."""
        return self._at(width), range(self._at(width - uncertainty), self._at(width + uncertainty) + 1)

    def _at(self, width: float) -> int:
        return max(0, sum(width > limit for limit in self.above) - 1)


def load_limits(name: str = DEFAULT) -> Limits:
    """A table that comes with the package, by its name, or a YAML file of the same kind.

    Raises: ValueError, one line, for a table that is not there or cannot be meant.
    """
    path = SHIPPED / f"{name}.yaml"
    if not path.is_file():
        path = Path(name)
    if not path.is_file():
        raise ValueError(f"--limits: no table {name}: it is none of {', '.join(shipped())} and no file")
    try:
        return _parse_limits(load_yaml(read_bytes(path), Loader, "it is not valid YAML"))
    except ValueError as error:
        raise ValueError(f"--limits: {path}: {error}") from None


def shipped() -> list[str]:
    """Names of the tables that come with the package."""
    return sorted(path.stem for path in SHIPPED.glob("*.yaml"))


def _parse_limits(content: object) -> Limits:
    if not isinstance(content, dict) or not content.keys() >= {"name", "classes"}:
        raise ValueError("a table has name, classes, and may have source and width")
    others = [str(key) for key in content if key not in _KEYS]
    if others:  # a unit, say, which would be passed over
        raise ValueError(f"a table has {', '.join(_KEYS)}, widths in mm, got {', '.join(others)}: leave that out")
    width, classes = content.get("width", "p95"), content["classes"]
    if not isinstance(classes, Sequence) or len(classes) < 2 or not all(map(_is_class, classes)):
        raise ValueError("classes must be two or more of {name: text, above: mm}")
    names = tuple(str(entry["name"]).strip() for entry in classes)
    odd = next((name for name in names if not name.isprintable() or name in ("", UNKNOWN)), None)
    if odd is not None:
        raise ValueError(f"{odd!r} cannot be the name of a class: give another")
    above = tuple(float(entry["above"]) for entry in classes)
    return check_limits(Limits(str(content["name"]), str(content.get("source", "")), width, names, above))


def check_limits(limits: Limits) -> Limits:
    """The limits themselves; ValueError, one line, for those that cannot be meant."""
    width, names, above = limits.width, limits.classes, limits.above
    if width not in WIDTHS:
        raise ValueError(f"width must be one of {', '.join(WIDTHS)}, got {width!r}")
    if len(names) != len(above) or not names:
        raise ValueError(f"{len(names)} classes, but {len(above)} widths above which they are")
    if above[0] != 0 or any(not low < high for low, high in pairwise(above)):
        raise ValueError(f"above must begin with 0 and rise from class to class, got {', '.join(map(str, above))}")
    if len(set(names)) < len(names):
        raise ValueError("two classes have the same name")
    return limits


def _is_class(entry: object) -> bool:
    if not isinstance(entry, dict) or entry.keys() != {"name", "above"}:
        return False
    limit, name = entry["above"], entry["name"]
    if not isinstance(name, (str, int, float)) or isinstance(name, bool):
        return False
    return isinstance(limit, (int, float)) and not isinstance(limit, bool) and math.isfinite(limit)
