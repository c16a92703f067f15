"""Command lines of launch/evaluate.py and launch/sweep.py, and names for what they write; quick to import."""

import argparse
import importlib
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from cssr.evaluate import add_options as add_evaluation_options
from cssr.launch.launcher import find_launch_file
from cssr.utils.cli import Parser, program
from cssr.utils.files import free_name, safe_name

EVALUATE = """Evaluate checkpoints on benchmarks and report them side by side; what is done already is not done again.

    python launch/evaluate.py runs/cssr runs/csbsr@best --benchmarks data/photos/val --distances
    python launch/evaluate.py runs/* --benchmarks uav315 khanhha --slurm --sbatch-args='--gres=gpu:1 --time=1:00:00'

A checkpoint is a run directory, an export, or RUN@best, RUN@last, RUN@STEP. A benchmark is a shard directory or its
name under --benchmark-root. Results go to OUT/CHECKPOINT/BENCHMARK, the report of all to OUT/report. A result is kept
as long as checkpoint, data and options are what they were, and computed anew otherwise. It is the same for any number
of processes and jobs: images are evaluated one by one, by one thread a process, unless --batch-size and the environment
variable OMP_NUM_THREADS say otherwise; each of their values rounds in its own way.

Exit status: 0 all is evaluated, 1 something failed or is missing, 2 a mistake on the command line, 130 interrupted.
"""

SWEEP = """Train a recipe over a grid of settings, evaluate every run, and tabulate mean and deviation over the seeds.

    python launch/sweep.py configs/csbsr_pspnet.yaml beta=0.1,0.3,0.5 seed=0,1,2 --benchmarks khanhha uav315 \\
        --out runs/beta -- data.train=SHARDS/khanhha/train data.val=SHARDS/khanhha/val

What is swept comes before `--`, what all runs share after it. A key may be shortened to its last part where that is one
setting's alone: beta is loss.beta, seed train.seed, lr optim.lr. A value may be a component: seg=pspnet,"{name: unet,
encoder: vgg11}". Each run has its directory in OUT, called after its settings; the same command resumes what
was interrupted, and does what is missing. The table (table.md, table.csv, table.json in OUT) has a line for each
setting but for its seed: mean and standard deviation (n - 1) over its seeds, per image.

Exit status: 0 all is there, 1 something failed or is missing, 2 a mistake on the command line, 130 interrupted.
"""

_PARSER_OPTIONS = {"formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False}


def evaluate(arguments: list[str] | None = None) -> int:
    """Command line of launch/evaluate.py. Returns the exit status."""
    return _start("cssr.launch.evaluations", evaluation_parser, arguments)


def sweep(arguments: list[str] | None = None) -> int:
    """Command line of launch/sweep.py. Returns the exit status."""
    return _start("cssr.launch.sweeps", sweep_parser, arguments)


def _start(module: str, parser: Callable[[], Parser], arguments: list[str] | None) -> int:
    """Run a module's `main`, which takes seconds to import; --help does not need it."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if {"-h", "--help"} & {*arguments}:
        parser().print_help()
        return 0
    return importlib.import_module(module).main(arguments)


def evaluation_parser() -> Parser:
    """Parser of launch/evaluate.py."""
    parser = Parser(prog=program("launch/evaluate.py"), description=EVALUATE, **_PARSER_OPTIONS)
    parser.add_argument("checkpoints", nargs="+", metavar="CHECKPOINT", help="run, export, or RUN@best, @last, @STEP")
    parser.add_argument("--out", type=Path, default=Path("evaluations"), metavar="DIR", help="(%(default)s)")
    _add_benchmark_options(parser, required=True)
    _add_options(parser)
    return parser


def sweep_parser() -> Parser:
    """Parser of launch/sweep.py, with settings among the options: `parse_intermixed_args`."""
    parser = Parser(prog=program("launch/sweep.py"), description=SWEEP, **_PARSER_OPTIONS)
    parser.add_argument("recipe", metavar="RECIPE", help="what is trained, a YAML of configs/")
    parser.add_argument("settings", nargs="+", metavar="KEY=V1,V2,...", help="what is swept")
    parser.add_argument("--out", type=Path, metavar="DIR", help="of the runs and the table (runs/sweep_RECIPE)")
    _add_benchmark_options(parser, required=False)
    _add_options(parser)
    return parser


def _add_benchmark_options(parser: argparse.ArgumentParser, required: bool) -> None:
    """Add options of benchmarks, and of evaluations on them."""
    add, root = parser.add_argument, os.environ.get("CSSR_BENCHMARKS", "data/benchmarks")
    add("--benchmarks", nargs="+", required=required, metavar="NAME", help="shard directories, or names under the root")
    add("--benchmark-root", type=Path, default=Path(root), metavar="DIR", help=f"($CSSR_BENCHMARKS, or else {root})")
    add_evaluation_options(parser)
    parser.set_defaults(batch_size=1)


def _add_options(parser: argparse.ArgumentParser) -> None:
    """Add options of jobs."""
    add = parser.add_argument
    add("--processes", type=int, metavar="N", help="processes, and devices, of each job (1)")
    add("--jobs", type=int, metavar="N", help="jobs at a time (as many as the devices, or the cores, are enough for)")
    add("--config-file", metavar="FILE", help="accelerate's launch file (of launch/, by the devices at hand)")
    add("--dry-run", action="store_true", help="print the commands, and what is done already; start and write nothing")
    add("--slurm", action="store_true", help="submit a Slurm array, at most --jobs at a time, and a job that collects")
    add("--sbatch-args", default="", metavar="ARGS", help="for sbatch: --sbatch-args='--gres=gpu:1 --time=2:00:00'")
    add("--task", type=int, metavar="N", help="do this task alone, as a Slurm array does")
    add("--collect", action="store_true", help="start nothing: report what there is")


def check_options(options: argparse.Namespace) -> None:
    """ValueError, one line, for numbers and combinations that make no sense."""
    for name in ("processes", "jobs"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name} must be at least 1, got {value}")
    if options.config_file:
        find_launch_file(options.config_file)
    if options.sbatch_args and not options.slurm:
        raise ValueError("--sbatch-args is for sbatch: give --slurm as well")
    try:
        shlex.split(options.sbatch_args)
    except ValueError as error:
        raise ValueError(f"--sbatch-args {options.sbatch_args}: {error}") from None


# ---- names ----


def distinct_names(paths: Sequence[Sequence[str]]) -> list[str]:
    """A file name for each path, given by its parts: the last part, and as many before it as tell equal ones apart."""
    paths = [[part for part in path if part != "/"] for path in paths]
    depth = [1] * len(paths)
    while True:
        names = [safe_name("_".join(path[-d:]), also="@=,+")[:120] for path, d in zip(paths, depth)]
        ambiguous = [n for n, name in enumerate(names) if names.count(name) > 1 and depth[n] < len(paths[n])]
        if not ambiguous:
            break
        for n in ambiguous:
            depth[n] += 1
    taken: list[str] = []
    for name in names:  # equal ones have lost what a file name cannot hold
        taken.append(free_name(name, taken))
    return taken
