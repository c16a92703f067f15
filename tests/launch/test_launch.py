"""Launch files and scripts: what they hold is what accelerate understands."""

import subprocess

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from paths import ROOT

FILES = sorted((ROOT / "launch").glob("*.yaml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_accelerate_reads_the_launch_file(path):
    """An unknown key is an error in accelerate's own reader."""
    config = load_config_from_file(str(path))
    assert config.num_processes >= 1 and len(path.read_text().splitlines()) <= 20
    assert path.read_text().startswith("# ")


def test_experiment_facts_stay_out_of_launch_files():
    assert not [p.name for p in FILES if {"batch_size", "learning_rate", "steps"} & set(p.read_text().split())]


@pytest.mark.parametrize("path", sorted((ROOT / "launch").glob("*.sh")), ids=lambda path: path.name)
def test_scripts_parse(path):
    subprocess.run(["bash", "-n", path], check=True)
