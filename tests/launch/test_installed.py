"""The installed package: what a build holds, and `cssr COMMAND` away from the checkout."""

import configparser
import os
import subprocess
import sys
from pathlib import Path

import pytest
from paths import ROOT

from cssr.__main__ import COMMANDS
from cssr.utils.installed import find_file

SETTINGS = configparser.ConfigParser()
SETTINGS.read(ROOT / "setup.cfg", encoding="utf-8")


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """What a wheel unpacks to, made without the network."""
    pytest.importorskip("setuptools", reason="needs setuptools, which newer Pythons' environments lack")
    out = tmp_path_factory.mktemp("built")
    tree = tmp_path_factory.mktemp("tree")
    for name in ("cssr", "configs", "launch", "setup.cfg", "README.md", "LICENSE", "pyproject.toml"):
        (tree / name).symlink_to(ROOT / name)
    command = [sys.executable, "-c", "from setuptools import setup; setup()", "-q", "build_py", "--build-lib", str(out)]
    subprocess.run(command, cwd=tree, check=True, capture_output=True, env={**os.environ, "PYTHONPATH": ""})
    return out


def cssr(built: Path, cwd: Path, *words: str) -> subprocess.CompletedProcess:
    """The command of the build, as its console script runs it."""
    start = "import sys; from cssr.__main__ import console; sys.exit(console())"
    environment = {**os.environ, "PYTHONPATH": str(built), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", start, *words]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, env=environment)


def test_every_package_is_listed():
    listed = set(SETTINGS["options"]["packages"].split())
    there = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "cssr").rglob("__init__.py")}
    assert listed == there | {"cssr.recipes", "cssr.launch.files"}


def test_the_build_holds_all_that_the_checkout_has(built):
    def names(root: Path) -> set[str]:
        kinds = (".yaml", ".html", ".css", ".js", ".safetensors", ".json", ".md", ".py")
        return {str(path.relative_to(root)) for path in root.rglob("*") if path.suffix in kinds}

    assert names(built / "cssr/recipes") == names(ROOT / "configs")
    assert {name for name in names(built / "cssr/launch/files") if name.endswith("yaml")} == {
        name for name in names(ROOT / "launch") if name.endswith("yaml")
    }
    own = {name for name in names(built / "cssr") if not name.startswith(("recipes/", "launch/files/"))}
    assert own == names(ROOT / "cssr")


@pytest.mark.slow
def test_recipes_and_launch_files_are_found_away_from_the_checkout(built, tmp_path):
    listed = cssr(built, tmp_path, "recipes").stdout
    assert "configs/csbsr_pspnet.yaml  " in listed and "launch/zero2.yaml  " in listed
    run = cssr(built, tmp_path, "launch-doctor", "--config_file", "cpu", "configs/tiny.yaml")
    assert run.returncode == 0 and "it would run" in run.stdout, run.stderr
    assert cssr(built, tmp_path, "recipes", "--out", "mine").returncode == 0
    assert (tmp_path / "mine/configs/tiny.yaml").is_file() and (tmp_path / "mine/launch/slurm.sh").is_file()
    (tmp_path / "other/launch").mkdir(parents=True)
    for place, there in (("mine", "configs"), ("other", "launch")):
        again = cssr(built, tmp_path, "recipes", "--out", place)
        assert again.returncode == 2 and f"{there} is there already" in again.stderr
    assert not (tmp_path / "other/configs").exists()


@pytest.mark.slow
def test_data_is_prepared_away_from_the_checkout(built, tmp_path):
    run = cssr(built, tmp_path, "shard", "synthetic", "--out", "data", "--count", "4", "--size", "32", "--workers", "1")
    assert run.returncode == 0, run.stderr
    shown = cssr(built, tmp_path, "show", "data")
    assert shown.returncode == 0 and "4 samples" in shown.stdout


@pytest.mark.parametrize("given", ["configs/tiny.yaml", "tiny.yaml", "tiny"])
def test_a_recipe_is_known_by_its_name(given, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_file(given, "configs") == ROOT / "configs/tiny.yaml"
    assert find_file("configs/none.yaml", "configs") == Path("configs/none.yaml")
    (tmp_path / "tiny").mkdir()
    assert find_file("tiny", "configs") == ROOT / "configs/tiny.yaml"
    (tmp_path / "tiny").rmdir()
    (tmp_path / "tiny").touch()
    assert find_file("tiny", "configs") == Path("tiny")


def test_commands_call_themselves_by_the_name_they_were_given(built, tmp_path):
    overview = cssr(built, tmp_path, "--help")
    assert overview.returncode == 0 and all(f"  {name} " in overview.stdout for name in COMMANDS)
    assert cssr(built, tmp_path, "predict", "--help").stdout.startswith("usage: cssr predict ")
    wrong = cssr(built, tmp_path, "trian")
    assert wrong.returncode == 2
    assert wrong.stderr == "error: unknown command 'trian' (did you mean train?); see `cssr --help`\n"
