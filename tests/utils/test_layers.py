"""Imports go one way, from floors below; and no module hides one of the standard library."""

import ast
import functools
import re
import sys
from pathlib import Path

import pytest
from paths import ROOT

PACKAGE = ROOT / "cssr"
TABLE = re.findall(r"^\| (\d+) \| (.+) \|$", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.M)
FLOOR = {room: int(number) for number, rooms in TABLE for room in rooms.split(", ")}
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")
ABOVE = {
    path.stem for folder in ("shards", "launch", "benchmarks", "tests/support") for path in (ROOT / folder).glob("*")
}


def room_of(module: str) -> str:
    """`cssr.models.sr.dbpn` lies in the room `models`."""
    return module.split(".")[1]


@functools.cache
def imported(path: Path) -> set[str]:
    """Dotted names of all that a file imports, wherever in the file; relative ones made absolute."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    package, found = parts[:-1], set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            base = [*package[: len(package) - node.level + 1]] if node.level else []
            base += node.module.split(".") if node.module else []
            found |= {".".join([*base, alias.name]) for alias in node.names}
    return found


def rooms_imported(path: Path) -> set[str]:
    """The rooms of this package that a file imports from; `from cssr import __version__` is none."""
    own = {name for name in imported(path) if name.startswith("cssr.") and not name.startswith("cssr.__")}
    return {room_of(name) for name in own}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_from_below_only(path):
    room = path.relative_to(PACKAGE).with_suffix("").parts[0]
    assert room in FLOOR, f"{room} stands on no floor: give it one in CONTRIBUTING.md, as low as it goes"
    others = rooms_imported(path) - {room}
    assert {other for other in others if FLOOR.get(other, 99) >= FLOOR[room]} == set()


def test_few_rooms_know_each_other():
    """Each pair (importing room, imported room) counts once; 72 modules side by side had 257."""
    rooms = {path: path.relative_to(PACKAGE).with_suffix("").parts[0] for path in MODULES}
    pairs = {(room, other) for path, room in rooms.items() for other in rooms_imported(path) - {room}}
    assert len(pairs) <= 90


def test_the_table_names_what_there_is():
    assert FLOOR.keys() == {path.relative_to(PACKAGE).with_suffix("").parts[0] for path in MODULES}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_the_package_does_not_know_what_is_above_it(path):
    assert {name.split(".")[0] for name in imported(path)} & ABOVE == set()


def test_importing_the_package_imports_none_of_its_rooms():
    assert rooms_imported(PACKAGE / "__init__.py") == set()


@pytest.mark.parametrize(
    "line, rooms",
    [
        ("import cssr.data.loader", {"data"}),
        ("from cssr import metrics, __version__", {"metrics"}),
        ("from cssr.models.joint import build_model", {"models"}),
        ("def f():\n    from cssr.train import main", {"train"}),
        ("from . import blocks", {"models"}),
        ("from ..data import x", {"data"}),
        ("import torch, os.path", set()),
    ],
)
def test_imports_of_every_kind_are_found(monkeypatch, line, rooms):
    path = PACKAGE / "models" / "imagined.py"
    monkeypatch.setattr(Path, "read_text", lambda *args, **kwargs: line)
    imported.cache_clear()
    assert rooms_imported(path) == rooms


def test_no_module_is_called_like_one_of_the_standard_library():
    """Their folders are on sys.path when a file in them is run: `logging.py` there would be everybody's logging."""
    names = [path.stem for folder in ("cssr", "shards", "launch") for path in (ROOT / folder).rglob("*.py")]
    packages = [path.name for folder in ("cssr", "shards", "launch") for path in (ROOT / folder).glob("*/")]
    assert set(names) | set(packages) >= {"train", "data", "make_shards", "models"}
    assert (set(names) | set(packages)) & set(sys.stdlib_module_names) == set()
