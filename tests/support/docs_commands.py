"""The commands of README.md and docs/: found, expanded by bash itself, and run in a directory that has what they name.

A command is known by what it starts: `python -m cssr.predict`, `python shards/show.py`, `accelerate launch
cssr/train.py`, `make`. RUNNERS says how each is run; a command that it does not know fails the test.
"""

import argparse
import configparser
import os
import re
import runpy
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from accelerate.commands.launch import launch_command_parser
from foreign_tars import by_tarfile, coded
from helpers import draw_shards
from paths import ROOT
from PIL import Image

from cssr import evaluate, train
from cssr.config.loading import load_config
from cssr.config.schema import ModelConfig
from cssr.dataset_preparation.sources.synthetic import synthetic
from cssr.models.joint import build_model

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
LINKED = ("cssr", "shards", "launch", "configs", "benchmarks", "tests", "docs", "Makefile")
MODEL = {"scale": 4, "sr": {"name": "bicubic"}, "seg": {"name": "unet", "encoder": "vgg11", "depth": 2, "width": 4}}
NETS = {  # small ones in place of a recipe's own, in dry runs
    "dbpn": "model.sr={name: dbpn, stages: 2, width: 2, features: 4}",
    "kbpn": "model.sr={name: kbpn, stages: 1, width: 4, features: 4, hidden: 4, predicted_size: 3}",
}
UNET = "model.seg={name: unet, encoder: resnet10t, pretrained: false, width: 4, encoder_args: {channels: [8, 8, 8, 8]}}"
TINY = ["train.dry_run=true", "train.batch_size=2", "train.micro_batch=null", "data.crop=32", "data.workers=0"]
# What stands for something of the reader's in a command: itself, and what the test takes for it (None: nothing).
PLACEHOLDERS = {"a.b=c": None, "...": None, "R": "0", "ADDRESS_OF_MACHINE_0": "127.0.0.1"}
STANDS_FOR = {  # names that the test's directory has, and what they are there
    "RUN": "runs/cssr",
    "EXPORT": "runs/cssr/export",
    "RUN_OR_EXPORT": "runs/cssr",
    "RECIPE": "configs/tiny.yaml",
    "SHARDS": "data/photos/val",
    "DIR": "data/photos/train",
    "PHOTOGRAPHS": "three",
    "data/uav315": "data/photos",
    "data/benchmarks/sigma_0.2_4.0": "data/photos/val",
    "UAV315/train": "PHOTOS",
    "UAV315/val": "PHOTOS",
    "folder": "PHOTOS",
    "masks": "PHOTOS/masks",
}
OTHER_RUNS = ("csbsr", "runs/other", *(f"runs/uav315/{name}" for name in ("cssr", "bicubic", "independent", "hr")))

Command = tuple[str, ...]

# ---- finding them ----


def blocks(page: Path, language: str) -> list[tuple[int, str]]:
    """The fenced blocks of a language, and of bash the indented ones too: line number and text."""
    text = page.read_text(encoding="utf-8")
    found = [(m.start(), m[2]) for m in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.M | re.S) if m[1] == language]
    if language == "bash":
        bare = re.sub(r"^```.*?^```$", lambda m: re.sub(r"[^\n]", "`", m[0]), text, flags=re.M | re.S)
        found += [(m.start(), m[0]) for m in re.finditer(r"(?<=\n\n)(    .*\n)+", bare)]
    return sorted((text.count("\n", 0, start) + 1, block) for start, block in found)


def spans(page: Path) -> list[str]:
    """What stands in backticks within the text."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", text)]


def inline_commands(page: Path) -> list[str]:
    """Commands within the text, `[...]` taken as given and the script's folder filled in."""
    found = []
    for span in spans(page):
        script = re.match(r"(\w+)\.py (?=-|[A-Z])", span)
        places = [p for p in ROOT.glob(f"*/{script[1]}.py") if p.parent.name in ("shards", "launch")] if script else []
        if places:
            span = f"python {places[0].relative_to(ROOT)} {span[script.end() :]}"
        if re.match(r"(python|accelerate|sbatch|make|launch/\w+\.sh) \S", span):
            found.append(re.sub(r"[\[\]]", "", span))
    return list(dict.fromkeys(found))


def expanded(script: str, place: Path) -> list[Command]:
    """The commands that bash would start for a script, words as they would get them; nothing is started.

    Functions, loops, braces and quotes are bash's own business. A program that RUNNERS does not know is an error.
    """
    log = place / "commands.log"
    log.unlink(missing_ok=True)
    record = f'record() {{ printf "%s\\0" "$#" "$@" >>{log}; }}\n'
    programs = {key.split()[0] for key in RUNNERS}
    stubs = "".join(f'{program}() {{ record {program} "$@"; }}\n' for program in sorted(programs))
    run = subprocess.run(
        [shutil.which("bash"), "-e", "-c", record + stubs + script],
        cwd=place,
        env={"PATH": ""},
        capture_output=True,
        text=True,
    )
    if run.returncode:
        unknown = re.search(r"(\S+): (command not found|No such file)", run.stderr)
        pytest.fail(HOW_TO_ADD.format(unknown[1]) if unknown else f"bash refuses the block: {run.stderr}", False)
    words = log.read_text().split("\0")[:-1] if log.exists() else []
    return [*_parted(words)]


def _parted(words: Sequence[str]) -> Iterator[Command]:
    while words:
        count = int(words[0])
        yield tuple(words[1 : count + 1])
        words = words[count + 1 :]


# ---- running them ----

HOW_TO_ADD = (
    "the docs use `{0}`, which the test does not know how to run: add a line to RUNNERS in "
    "tests/support/docs_commands.py, `real` if it takes a second on tiny data, `options` if only its words are to be "
    "checked, and what it reads to STANDS_FOR"
)


class Place:
    """A directory with what commands of the docs name: the repository's folders, shards, photographs, a run."""

    def __init__(self, root: Path):
        self.root, self.number, self.done = root, 0, set()
        self.written: dict[str, str] = {}  # where a command's --out really went, by its name in the text
        for name in LINKED:
            (root / name).symlink_to(ROOT / name)
        draw_shards(root / "data/photos", 14, 64, "--ratio", "train=0.6", "val=0.4")
        self._photographs()
        with inside(root):
            self._run()
        for name, real in STANDS_FOR.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).symlink_to(root / real)

    def _photographs(self) -> None:
        """PHOTOS/images and PHOTOS/masks, three of them, photograph.jpg, and tars as others write them: data/theirs."""
        for kind in ("images", "masks"):
            (self.root / "PHOTOS" / kind).mkdir(parents=True)
        items = synthetic(count=12, size=64).items
        by_tarfile(
            self.root / "data/theirs", lambda n: [("jpg", items[n].image()), ("seg.png", coded(items[n].mask()))]
        )
        for item in synthetic(count=12, size=64).items:
            (self.root / "PHOTOS/images" / f"{item.key}.jpg").write_bytes(item.image())
            Image.fromarray(item.mask()).save(self.root / "PHOTOS/masks" / f"{item.key}.png")
        shutil.copy(self.root / "PHOTOS/images/synthetic_000000.jpg", self.root / "photograph.jpg")
        (self.root / "three").mkdir()  # of which all is predicted, measured and reported, several times
        for path in sorted((self.root / "PHOTOS/images").iterdir())[:3]:
            shutil.copy(path, self.root / "three")

    def _run(self) -> None:
        """runs/cssr and others: an export and its evaluation."""
        build_model(ModelConfig(**MODEL)).save_pretrained("runs/cssr/export", degradation={"name": "downsample"})
        evaluate.main(["runs/cssr", "--data", "data/photos/val", "--distances", "--limit", "4"])
        for other in OTHER_RUNS:
            shutil.copytree("runs/cssr", other)

    def fresh(self) -> str:
        """A path at which nothing is."""
        self.number += 1
        return str(self.root / "out" / str(self.number))

    def run(self, command: Command, only_words: bool = False) -> bool:
        """Run a command once, as RUNNERS says, or check its words only. Returns True, or raises what is wrong."""
        words = [PLACEHOLDERS.get(word, word) for word in command]
        words = [re.sub(r"(?<=\w)\.\.\.$", "", word) for word in words if word and not word.endswith("=...")]
        if tuple(words) in self.done:
            return True
        self.done.add(tuple(words))
        runner, start, arguments = runner_of(words)
        with inside(self.root):
            (options if only_words and runner is real else runner)(self, start, arguments)
        return True


def runner_of(words: Sequence[str]) -> tuple[Callable, list[str], list[str]]:
    """How a command is run, what it starts (`python`, `-m`, `cssr.predict`), and what it gives that."""
    if words[:2] == ["accelerate", "launch"]:
        parsed = launch_command_parser().parse_args(words[2:])
        assert parsed.config_file is None or (ROOT / parsed.config_file).is_file(), f"no {parsed.config_file}"
        start, arguments = [*words[:2], parsed.training_script], parsed.training_script_args
    else:
        length = 1 if words[0] == "make" or words[0].endswith(".sh") else 3 if "-m" in words[1:2] else 2
        start, arguments = [*words[:length]], [*words[length:]]
    path = ROOT / start[-1] if start[-1].endswith((".py", ".sh")) else None
    assert path is None or path.is_file(), f"the docs start {start[-1]}, which is not there"
    name = " ".join(start)
    runner = RUNNERS.get(name) or RUNNERS.get(name.rpartition("/")[0])
    if not runner:
        pytest.fail(HOW_TO_ADD.format(name), False)
    return runner, start, arguments


@contextmanager
def inside(root: Path) -> Iterator[None]:
    """In a directory; arguments, and modules that scripts have imported from their own folders, are forgotten after."""
    before, known, where, paths = sys.argv, {*sys.modules}, os.getcwd(), [*sys.path]
    os.chdir(root)
    try:
        yield
    finally:
        os.chdir(where)
        sys.argv, sys.path[:] = before, paths
        for name in {*sys.modules} - known:
            file = getattr(sys.modules[name], "__file__", None) or ""
            if Path(file).parent in (ROOT / "launch", ROOT / "benchmarks"):
                del sys.modules[name]


def real(place: Place, start: Sequence[str], arguments: Sequence[str]) -> None:
    """For real, in this process; what is written goes to a place of its own."""
    words = [word if Path(word).exists() else place.written.get(word, word) for word in arguments]
    for k, word in enumerate(words[:-1]):
        if word == "--out":
            words[k + 1] = place.written[arguments[k + 1]] = place.fresh() + Path(words[k + 1]).suffix
    _in_process(start, words)


def predicting(place: Place, start: Sequence[str], arguments: Sequence[str]) -> None:
    """For real, with one drawn crack of each width."""
    real(place, start, [*arguments, *(["--detectable", "1"] if "--measure" in arguments else [])])


def comparing(place: Place, start: Sequence[str], arguments: Sequence[str]) -> None:
    """For real, of the new survey with itself."""
    real(place, start, [arguments[1], *arguments[1:]])


def _in_process(start: Sequence[str], words: Sequence[str]) -> None:
    """As if started, where exit status 0, or none, is success."""
    sys.argv = [start[-1], *words]
    try:
        if "-m" in start:
            _run_module(start[-1])
        else:
            sys.path.insert(0, str((ROOT / start[-1]).parent))
            runpy.run_path(str(ROOT / start[-1]), run_name="__main__")
    except SystemExit as end:
        if end.code:
            pytest.fail(f"{' '.join([*start, *words])} ends with {end.code}", False)


def _run_module(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # that it has been imported before
        runpy.run_module(name, run_name="__main__", alter_sys=True)


class _Parsed(Exception):
    """The words of a command fit."""


def options(place: Place, start: Sequence[str], arguments: Sequence[str]) -> None:
    """Its words are parsed by its own parser, nothing else is done."""

    def parse_only(parse: Callable) -> Callable:
        def parsed(self, *args, **kwargs):
            parse(self, *args, **kwargs)
            raise _Parsed

        return parsed

    with pytest.MonkeyPatch.context() as patch, pytest.raises(_Parsed):
        for name in ("parse_args", "parse_intermixed_args"):
            patch.setattr(argparse.ArgumentParser, name, parse_only(getattr(argparse.ArgumentParser, name)))
        _in_process(start, arguments)


def dry(place: Place, start: Sequence[str], arguments: Sequence[str]) -> None:
    """With its own --dry-run."""
    real(place, start, ["--dry-run", *arguments])


def training(place: Place, start: Sequence[str], arguments: Sequence[str]) -> None:
    """A dry run of one batch, on tiny data and networks, once the recipe and all settings have been read as given."""
    if "--help" in arguments:
        train.main([*arguments])
        return
    recipe, settings = ([arguments[0]], [*arguments[1:]]) if "=" not in arguments[0] else ([], [*arguments])
    config = load_config(*recipe, overrides=settings)
    theirs = next((s for s in settings if s.startswith("data.train=data/theirs")), "data.train=data/photos/train")
    data = [s for s in settings if not s.startswith(("data.train=", "data.val=", "train.init_from="))]
    small = [NETS[config.model.sr["name"]]] if config.model.sr["name"] in NETS else []
    if config.model.form["name"] == "sr_then_seg" and config.model.seg["name"] != "none":
        small.append(UNET)
    train.main([*recipe, *data, theirs, "data.val=data/photos/val", *small, *TINY])


def evaluating(place: Place, start: Sequence[str], arguments: Sequence[str]) -> None:
    """For real, of two images."""
    evaluate.main([*arguments, "--limit", "2", "--out", place.fresh()])


def installing(place: Place, start: Sequence[str], arguments: Sequence[str]) -> None:
    """The extras that are asked for are ones of setup.cfg."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    asked = {extra for word in arguments for extra in re.findall(r"[\w-]+", "".join(re.findall(r"\[(.*?)\]", word)))}
    unknown = asked - {*setup["options.extras_require"]}
    assert not unknown, f"setup.cfg has no extra {', '.join(sorted(unknown))}"


def making(place: Place, start: Sequence[str], arguments: Sequence[str]) -> None:
    """make says what it would do."""
    subprocess.run(["make", "-n", *arguments], cwd=ROOT, check=True, capture_output=True)


RUNNERS: dict[str, Callable] = {
    "make": making,
    "pip install": installing,
    "python -m pip": installing,
    "accelerate launch cssr/train.py": training,
    "accelerate launch cssr/evaluate.py": evaluating,
    "sbatch launch/slurm.sh": training,
    "launch/torchrun.sh": training,
    "python -m cssr.predict": predicting,
    "python -m cssr.report": real,
    "python -m cssr.annotate": real,
    "python -m cssr.compare": comparing,
    "python -m cssr.convert": options,
    "python -m cssr.measure": real,
    "python -m cssr.demo": options,
    "python -m cssr.deploy": options,
    "python -m cssr.hub": options,
    "python shards/make_shards.py": real,
    "python shards/make_benchmark.py": real,
    "python shards/doctor.py": real,
    "python shards/show.py": real,
    "python shards/extract.py": real,
    "python launch/evaluate.py": dry,
    "python launch/sweep.py": dry,
    "python launch/doctor.py": real,
    "python docs/overview.py": real,
    "python benchmarks": options,  # each of them
}
