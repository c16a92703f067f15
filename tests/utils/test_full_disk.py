"""A disk that is full: each command says in one line what cannot be written and the remedy, and leaves nothing half."""

import errno
import os
import resource
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers import write_set
from PIL import Image
from running import ROOT, environment

from cssr.__main__ import main
from cssr.survey.write import write_files
from cssr.training.fault_tolerance import RunLock


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    """SET: shards; PHOTOS: a folder of an image."""
    root = tmp_path_factory.mktemp("material")
    (root / "photos").mkdir()
    Image.effect_noise((48, 48), 60).save(root / "photos" / "a.png")
    return {"SET": write_set(root / "set"), "PHOTOS": root / "photos"}


@pytest.mark.parametrize(
    "words, named",
    [
        ("extract SET --out OUT", "set-000.png"),
        ("show SET --out OUT/sheet.png", "sheet.png"),
        ("doctor folder --images-only --root PHOTOS --out OUT", "doctor.json"),
    ],
)
def test_nothing_half_written_is_left(words, named, material, tmp_path, monkeypatch, capsys):
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    for name, place in {**material, "OUT": tmp_path}.items():
        words = words.replace(name, str(place))
    monkeypatch.setattr(sys, "argv", ["cssr", *words.split()])
    monkeypatch.setattr(os, "fsync", full)
    try:
        status = main()
    except SystemExit as end:
        status = end.code
    line = status if isinstance(status, str) else capsys.readouterr().err.strip()
    assert line.startswith(f"error: {tmp_path / named} cannot be written: No space left on device") and "\n" not in line
    assert "make room" in line and not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_the_lock_of_a_run_is_named(tmp_path, monkeypatch):
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    alone = SimpleNamespace(is_main_process=True, num_processes=1)
    with pytest.raises(ValueError, match="run/lock cannot be written: No space left on device .*make room"):
        RunLock(tmp_path / "run", alone, bool)


def test_recipes_are_copied_as_a_whole_or_not_at_all(tmp_path):
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (900, 900))  # noqa: E731, bytes of a file
    words = [sys.executable, "-m", "cssr", "recipes", "--out", str(tmp_path / "new")]
    without = environment() | {
        "PYTHONDONTWRITEBYTECODE": "1"
    }  # Python would keep what it compiles, cut off by the limit
    done = subprocess.run(words, env=without, cwd=ROOT, capture_output=True, text=True, preexec_fn=limit)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2 and line.startswith(f"error: {tmp_path / 'new' / 'configs'} cannot be written: ")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_what_a_library_says_of_a_full_disk_is_not_lost(tmp_path):
    """XlsxWriter raises an error of its own around the system's."""

    def write(_: Path) -> None:
        raise RuntimeError(OSError(errno.ENOSPC, "No space left on device", "/tmp/temporary"))

    with pytest.raises(ValueError, match=r"a\.xlsx cannot be written: No space left on device \(.* make room"):
        write_files(tmp_path, {"a.xlsx": write})
