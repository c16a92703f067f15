"""Evaluate checkpoints on benchmarks and report them side by side; finished evaluations are not repeated."""

import argparse
import json
import os
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cssr.data.remote import is_remote
from cssr.data.shards import open_sets
from cssr.data.tars import find_tars
from cssr.evaluate import add_options
from cssr.evaluation import run as evaluation_run
from cssr.evaluation.results import load
from cssr.launch.jobs import Job, run_jobs
from cssr.launch.launcher import Launcher, make_launcher
from cssr.launch.options import check_options, distinct_names, evaluation_parser
from cssr.launch.slurm import pick_task, submit
from cssr.models.load import degradation_of
from cssr.report import caveats, find_reference, image_table, report
from cssr.utils.cli import run_command

_RESERVED = ("report", "logs", "slurm")
_NEW = "not there yet"


@dataclass(frozen=True)
class Checkpoint:
    """A model to evaluate: a run or export directory, which of its checkpoints, and what results call it."""

    path: Path
    which: str = "export"
    name: str = ""


@dataclass(frozen=True)
class Benchmark:
    """A shard set, by directory or address, and what results call it."""

    data: str
    name: str = ""


@dataclass(frozen=True)
class Evaluation:
    """One checkpoint on one benchmark, and the folder of its result."""

    checkpoint: Checkpoint
    benchmark: Benchmark
    folder: Path
    options: argparse.Namespace

    @property
    def name(self) -> str:
        return f"{self.checkpoint.name} on {self.benchmark.name}"

    def missing(self) -> str:
        """Reason to run it; "" if there is a result of the same checkpoint, data and options."""
        path = self.folder / "results.json"
        if not path.is_file():
            return _NEW
        try:
            result = load([path])[0].data
            return _difference(result, json.loads(json.dumps(self._origin())))
        except (ValueError, OSError) as problem:
            return str(problem)

    def check(self) -> None:
        """ValueError, one line, where the folder holds the result of another path and other data."""
        if evaluation_run.holds_other_data(self.folder, self.benchmark.data, self._origin()["data_sha256"]):
            raise ValueError(
                f"--out: {self.folder} holds a result of other data than {self.benchmark.data}: choose another folder, "
                "or give both sets in one command"
            )

    def _origin(self) -> dict[str, Any]:
        options = {**vars(self.options), "model": self.checkpoint.path, "checkpoint": self.checkpoint.which}
        return evaluation_run.origin(argparse.Namespace(**options), open_sets(self.benchmark.data, "--benchmarks"))

    def arguments(self) -> list[str]:
        """Arguments of cssr/evaluate.py."""
        model = [str(self.checkpoint.path), "--checkpoint", self.checkpoint.which, "--name", self.checkpoint.name]
        return [*model, "--data", self.benchmark.data, "--out", str(self.folder), *_option_words(self.options)]

    def job(self, launcher: Launcher, logs: Path) -> Job:
        log = logs / f"{self.checkpoint.name}__{self.benchmark.name}.log"
        return Job(self.name, launcher.command("cssr/evaluate.py", *self.arguments()), log, self.missing)


def _difference(origin: dict[str, Any], current: dict[str, Any]) -> str:
    """Describe what has changed since a result was computed; "" if nothing has."""
    if not current.keys() <= origin.keys():
        return "it does not say what it was computed from"
    changed = [kind for kind in ("checkpoint", "data") if origin[f"{kind}_sha256"] != current[f"{kind}_sha256"]]
    before, after = {"tta": False, **origin["options"]}, current["options"]  # older results have no tta
    options = [f"{name} was {before.get(name)}, is {after[name]}" for name in after if before.get(name) != after[name]]
    return "; ".join([*(f"the {kind} has changed since" for kind in changed), *options])


def _option_words(options: argparse.Namespace) -> list[str]:
    """The options of an evaluation, as words of a command line."""
    parser = argparse.ArgumentParser(add_help=False)
    add_options(parser)
    words: list[str] = []
    for action in parser._actions:
        value, flag = getattr(options, action.dest), action.option_strings[0]
        if isinstance(value, bool):
            words += [flag] if value else []
        elif value is not None:
            words += [flag, str(value)]
    return words


# ---- checkpoints and benchmarks ----


def find_checkpoints(texts: Sequence[str]) -> list[Checkpoint]:
    """Checkpoints by `RUN`, `EXPORT`, `RUN@best`, `RUN@last` or `RUN@STEP`, under names that differ.

    Raises: ValueError, one line, for one that is not there or is given twice.
    """
    checkpoints = [_find_checkpoint(text) for text in texts]
    _refuse_duplicates("checkpoint", texts, [(_naming_directory(c.path), c.which) for c in checkpoints])
    homes = [(_naming_directory(c.path), "" if c.which == "export" else f"@{c.which}") for c in checkpoints]
    parts = [(*home.parts[:-1], home.name + suffix) for home, suffix in homes]
    names = [f"{name}-run" if name in _RESERVED else name for name in distinct_names(parts)]
    return [Checkpoint(c.path, c.which, name) for c, name in zip(checkpoints, names)]


def _find_checkpoint(text: str) -> Checkpoint:
    path, _, which = text.rpartition("@")
    if Path(text).exists() or not path or not (which in ("best", "last", "export") or which.isdigit()):
        path, which = text, "export"
    which = str(int(which)) if which.isdigit() else which
    try:
        degradation_of(path, which)  # reads the settings beside the weights
    except ValueError as error:
        reason = str(error).replace("--checkpoint last or best", f"{path}@last or {path}@best")
        raise ValueError(f"checkpoint {text}: {reason}") from None
    return Checkpoint(Path(path), which)


def _naming_directory(path: Path) -> Path:
    """The directory that a checkpoint is called after: a run's for its export."""
    path = Path(os.path.realpath(path))
    return path.parent if path.name == "export" else path


def _refuse_duplicates(kind: str, texts: Sequence[str], items: Sequence[Any]) -> None:
    for text, item in zip(texts, items):
        if items.count(item) > 1:
            same = " and ".join(t for t, other in zip(texts, items) if other == item)
            raise ValueError(f"{kind} {text} is given twice ({same}): leave one out")


def find_benchmarks(texts: Sequence[str], root: Path) -> list[Benchmark]:
    """Shard sets by directory, address or name under `root`, under names that differ; their indexes are read.

    Raises: ValueError, one line, for one that is not there, is damaged or is given twice.
    """
    paths = [_find_benchmark(text, root) for text in texts]
    _refuse_duplicates("benchmark", texts, [path if is_remote(path) else os.path.realpath(path) for path in paths])
    for path in paths:
        open_sets(path, "--benchmarks")
    parts = [
        p.split("://")[-1].rstrip("/").split("/") if is_remote(p) else Path(os.path.realpath(p)).parts for p in paths
    ]
    return [Benchmark(path, name) for path, name in zip(paths, distinct_names(parts))]


def _find_benchmark(text: str, root: Path) -> str:
    if is_remote(text) or (Path(text) / "index.json").is_file() or find_tars(text):
        return text
    if (root / text / "index.json").is_file():
        return str(root / text)
    names = ", ".join(sorted(path.parent.name for path in root.glob("*/index.json"))) or "none"
    raise ValueError(
        f"--benchmarks {text}: no shards in {text} or {root / text}; in {root} there are: {names} "
        "(--benchmark-root or CSSR_BENCHMARKS says where benchmarks are)"
    )


# ---- running and reporting ----


def run_evaluations(evaluations: Sequence[Evaluation], launcher: Launcher, out: Path) -> int:
    """Run the evaluations that are missing. Returns how many failed."""
    jobs = []
    for evaluation in evaluations:
        reason = evaluation.missing()
        if reason and reason != _NEW:
            print(f"{evaluation.name}: computed anew: {reason}")
        if reason:
            jobs.append(evaluation.job(launcher, out / "logs"))
    if len(jobs) < len(evaluations):
        print(f"{len(evaluations) - len(jobs)} of {len(evaluations)} evaluations are done")
    return len(run_jobs(jobs, launcher.places))


def collect(evaluations: Sequence[Evaluation], out: Path) -> int:
    """One report of all results, and where there are several benchmarks one of each; returns how many are missing."""
    reasons = [(evaluation, evaluation.missing()) for evaluation in evaluations]
    done = [evaluation for evaluation, reason in reasons if not reason]
    names = list(dict.fromkeys(evaluation.benchmark.name for evaluation in done))
    for name in names if len(names) > 1 else []:
        on_benchmark = [evaluation for evaluation in done if evaluation.benchmark.name == name]
        _report(on_benchmark, out / "report" / f"on-{name}", name)
    if done:
        _report(done, out / "report", names[0] if len(names) == 1 else "Evaluation", shown=len(names) == 1)
    for evaluation, reason in reasons:
        if reason:
            print(f"missing: {evaluation.name}: {reason}")
    return len(evaluations) - len(done)


def _report(done: Sequence[Evaluation], folder: Path, title: str, shown: bool = True) -> None:
    paths = [evaluation.folder / "results.json" for evaluation in done]
    results = load(paths)
    path = report(paths, folder, title)
    if shown:
        print("", f"{title}:", "", image_table(results, find_reference(results, None)), *caveats(results), sep="\n")
    print(f"\nwritten to {path}")


def print_commands(evaluations: Iterable[Evaluation], launcher: Launcher) -> None:
    """Print the commands that would be run, and what is done."""
    for evaluation in evaluations:
        reason = evaluation.missing()
        print(f"# {evaluation.name}: {reason or 'done'}")
        if reason:
            print(shlex.join(launcher.command("cssr/evaluate.py", *evaluation.arguments())))


# ---- the command line ----


def read_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """Parse and check the command line; ValueError with a remedy for what makes no sense."""
    options = evaluation_parser().parse_args(argv)
    check_options(options)
    evaluation_run.check_options(options)
    return options


def plan(options: argparse.Namespace) -> list[Evaluation]:
    """Every checkpoint on every benchmark, in the order of the command line."""
    benchmarks = find_benchmarks(options.benchmarks, options.benchmark_root)
    checkpoints = find_checkpoints(options.checkpoints)
    pairs = [(checkpoint, benchmark) for benchmark in benchmarks for checkpoint in checkpoints]
    evaluations = [Evaluation(c, b, options.out / c.name / b.name, options) for c, b in pairs]
    for evaluation in evaluations:
        evaluation.check()
    return evaluations


def launch(argv: list[str]) -> int:
    """Run the command. Returns 0 where nothing is missing at the end."""
    options = read_arguments(argv)
    evaluations = plan(options)
    if options.dry_run:
        print_commands(evaluations, _launcher(options))
        return 0
    evaluation_run.check_writable(options.out)
    if options.task is not None:
        task = evaluations[pick_task(options, len(evaluations))]
        return min(1, run_evaluations([task], _launcher(options), options.out))
    tasks = [n for n, evaluation in enumerate(evaluations) if evaluation.missing()]
    if tasks and options.slurm and not options.collect:
        return submit("evaluations", argv, options.out, tasks, options)
    if tasks and not options.collect:
        run_evaluations(evaluations, _launcher(options), options.out)
    return min(1, collect(evaluations, options.out))


def _launcher(options: argparse.Namespace) -> Launcher:
    return make_launcher(options.processes, options.jobs, options.config_file, threads=1)


def main(arguments: list[str] | None = None) -> int:
    """Command line. Returns the exit status, see above."""
    return run_command(launch, arguments)
