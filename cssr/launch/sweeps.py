"""Train a recipe over a grid of settings, evaluate every run, and tabulate mean and deviation over the seeds."""

import argparse
import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cssr.config.loading import changed_settings, load_config, parse_override, to_dict
from cssr.config.schema import Config
from cssr.config.yaml_loader import to_inline_yaml
from cssr.data.shards import parse_sets
from cssr.evaluation import run as evaluation_run
from cssr.launch.evaluations import Benchmark, Checkpoint, Evaluation, find_benchmarks, print_commands, run_evaluations
from cssr.launch.grid import Axis, Point, points, read_grid
from cssr.launch.jobs import Job, run_jobs
from cssr.launch.launcher import Launcher, make_launcher
from cssr.launch.options import check_options, sweep_parser
from cssr.launch.slurm import pick_task, submit
from cssr.launch.sweep_table import Entry, write_tables
from cssr.models.load import checkpoints
from cssr.utils.cli import run_command
from cssr.utils.files import write_atomic
from cssr.utils.json_files import read_json

# Settings that may change between two calls for the same run, by how their names begin.
_FREE_TO_CHANGE = (
    "train.run_dir",
    "train.log_every",
    "train.save_every",
    "train.keep",
    "train.sample_count",
    "train.micro_batch",
)
_FREE_TO_CHANGE += ("train.tensorboard", "train.wandb", "train.trackers")
_FREE_TO_CHANGE += ("data.workers", "data.cache", "data.retries", "data.timeout", "eval.")


@dataclass(frozen=True)
class Run:
    """A point of the grid, its directory, its settings, and the command's words that give them."""

    point: Point
    dir: Path
    config: Config
    words: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.point.name

    def missing(self) -> str:
        """Reason to train it; "" if it is finished, as train.py sees it."""
        saved, steps = checkpoints(self.dir), self.config.train.steps
        done = int(saved[-1].name.split("_")[-1]) if saved else 0
        if done < steps:
            return f"it is at step {done} of {steps}" if done else "not begun"
        return "" if (self.dir / "export").is_dir() else "it has no export yet"

    def job(self, launcher: Launcher, logs: Path) -> Job:
        return Job(
            f"training {self.name}", launcher.command("cssr/train.py", *self.words), logs / self.log, self.missing
        )

    @property
    def log(self) -> str:
        return f"{self.name}.log"

    def evaluation(self, benchmark: Benchmark, options: argparse.Namespace) -> Evaluation:
        """Its export on a benchmark; the result is in the run directory."""
        checkpoint = Checkpoint(self.dir, name=self.name)
        return Evaluation(checkpoint, benchmark, self.dir / "evaluations" / benchmark.name, options)


# ---- runs and benchmarks ----


def plan(recipe: str, axes: Sequence[Axis], fixed: Sequence[str], out: Path) -> list[Run]:
    """A run for each point of the grid; ValueError, one line, for settings that are no settings or do not fit."""
    swept = {axis.key for axis in axes}
    for text in fixed:
        key, _ = parse_override(text)
        if key in swept or key in ("train.run_dir", "train.dry_run"):
            raise ValueError(f"{text} after `--`: {'it is swept' if key in swept else 'the sweep decides that'}")
    return [_run(recipe, point, fixed, out) for point in points(axes)]


def _run(recipe: str, point: Point, fixed: Sequence[str], out: Path) -> Run:
    directory = out / point.name
    overrides = [*fixed, *point.overrides, f"train.run_dir={to_inline_yaml(str(directory))}"]
    return Run(point, directory, load_config(recipe, overrides), (recipe, *overrides))


def choose_benchmarks(options: argparse.Namespace, runs: Sequence[Run]) -> tuple[list[Benchmark], str]:
    """The benchmarks, and what the reader of the table must know of them; without any named, those of data.val."""
    if options.benchmarks:
        return find_benchmarks(options.benchmarks, options.benchmark_root), ""
    chosen = [run.config.data.val for run in runs]
    if any(val != chosen[0] for val in chosen):
        raise ValueError("data.val is swept, so that runs cannot be compared on it: name --benchmarks")
    if not chosen[0]:
        raise ValueError("no --benchmarks are named and data.val is not set: give one of them")
    names = list(parse_sets(chosen[0], "data.val"))
    note = "evaluated on data.val, by which the best checkpoints were chosen: name --benchmarks for sets never seen"
    return find_benchmarks(names, options.benchmark_root), f"No --benchmarks were named: {note}."


def check_unchanged(out: Path, runs: Sequence[Run]) -> dict[str, dict]:
    """Check that runs keep their settings. Returns the settings of all runs ever begun in `out`, these included.

    Raises: ValueError, one line, if a run that has checkpoints was begun with others.
    """
    path, shape = out / "sweep.json", {"runs": dict[str, dict[str, Any]]}
    remedy = "remove it if the settings are what they were"
    record = read_json(path, shape, remedy)["runs"] if path.exists() else {}
    for run in runs:
        settings = json.loads(json.dumps(to_dict(run.config)))
        before = record.get(run.name, settings)
        changed = [line for line in changed_settings(before, settings) if not line.startswith(_FREE_TO_CHANGE)]
        if changed and checkpoints(run.dir):
            more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
            raise ValueError(
                f"{run.dir} was begun with other settings ({changed[0]}{more}): "
                "choose another --out, or remove that directory"
            )
        record[run.name] = settings
    return record


# ---- training, evaluating, tabulating ----


def train(runs: Sequence[Run], options: argparse.Namespace) -> None:
    """Train those that are not finished."""
    launcher = make_launcher(options.processes, options.jobs, options.config_file)
    jobs = [run.job(launcher, options.out / "logs") for run in runs if run.missing()]
    if len(jobs) < len(runs):
        print(f"{len(runs) - len(jobs)} of {len(runs)} runs are trained")
    run_jobs(jobs, launcher.places)


def evaluate_runs(runs: Sequence[Run], benchmarks: Sequence[Benchmark], options: argparse.Namespace) -> None:
    """Evaluate those that are finished."""
    trained = [run for run in runs if not run.missing()]
    evaluations = [run.evaluation(benchmark, options) for benchmark in benchmarks for run in trained]
    run_evaluations(evaluations, _evaluators(options), options.out)


def _evaluators(options: argparse.Namespace) -> Launcher:
    """Processes for evaluation, as many as for training, by a plain launch file: it has no use for ZeRO."""
    processes = make_launcher(options.processes, options.jobs, options.config_file).processes
    return make_launcher(processes, options.jobs, None, threads=1)


def collect(runs: Sequence[Run], benchmarks: Sequence[Benchmark], note: str, options: argparse.Namespace) -> int:
    """Write and print the table; returns how many results are missing."""
    entries, lines = [], []
    for run in runs:
        reason = run.missing()
        if reason:
            lines.append(f"missing: {run.name}: {reason}; log: {options.out / 'logs' / run.log}")
        for evaluation in [] if reason else [run.evaluation(benchmark, options) for benchmark in benchmarks]:
            if fault := evaluation.missing():
                lines.append(f"missing: {evaluation.name}: {fault}")
            else:
                entries.append(Entry(run.point, evaluation.benchmark.name, evaluation.folder / "results.json"))
    if entries:
        print("", write_tables(entries, [run.point for run in runs], options.out, options.recipe, note), sep="\n")
        print(f"written to {options.out / 'table.md'}, table.csv and table.json")
    print(*lines, sep="\n", end="\n" if lines else "")
    return len(lines)


def print_plan(runs: Sequence[Run], benchmarks: Sequence[Benchmark], options: argparse.Namespace) -> None:
    """Print the commands that would be run, and what is done."""
    launcher, evaluators = make_launcher(options.processes, options.jobs, options.config_file), _evaluators(options)
    for run in runs:
        reason = run.missing()
        print(f"# training {run.name}: {reason or 'done'}")
        if reason:
            print(shlex.join(launcher.command("cssr/train.py", *run.words)))
        print_commands([run.evaluation(benchmark, options) for benchmark in benchmarks], evaluators)


# ---- the command line ----


def read_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """Parse and check the command line; ValueError with a remedy for what makes no sense."""
    end = argv.index("--") if "--" in argv else len(argv)
    options = sweep_parser().parse_intermixed_args(argv[:end])
    options.fixed = list(argv[end + 1 :])
    options.out = options.out or Path("runs") / f"sweep_{Path(options.recipe).stem}"
    check_options(options)
    evaluation_run.check_options(options)
    return options


def launch(argv: list[str]) -> int:
    """Run the command. Returns 0 where nothing is missing at the end."""
    options = read_arguments(argv)
    runs = plan(options.recipe, read_grid(options.settings), options.fixed, options.out)
    benchmarks, note = choose_benchmarks(options, runs)
    record = check_unchanged(options.out, runs)
    if options.dry_run:
        print_plan(runs, benchmarks, options)
        return 0
    evaluation_run.check_writable(options.out)
    if options.task is not None:
        run, options.jobs = runs[pick_task(options, len(runs))], 1
        train([run], options)
        evaluate_runs([run], benchmarks, options)
        return int(_is_unfinished(run, benchmarks, options))
    tasks = [n for n, run in enumerate(runs) if _is_unfinished(run, benchmarks, options)]
    if tasks and not options.collect:
        write_atomic(options.out / "sweep.json", json.dumps({"runs": record}, indent=1))
        if options.slurm:
            return submit("sweep", argv, options.out, tasks, options)
        train(runs, options)
        evaluate_runs(runs, benchmarks, options)
    return min(1, collect(runs, benchmarks, note, options))


def _is_unfinished(run: Run, benchmarks: Sequence[Benchmark], options: argparse.Namespace) -> bool:
    return bool(run.missing()) or any(run.evaluation(benchmark, options).missing() for benchmark in benchmarks)


def main(arguments: list[str] | None = None) -> int:
    """Command line. Returns the exit status, see above."""
    return run_command(launch, arguments)
