"""Make a benchmark: degrade a shard set once, so that every method is evaluated on the same LQ images.

    python shards/make_benchmark.py --data data/test --degradation configs/benchmarks/motion.yaml --out data/test_motion
    accelerate launch cssr/evaluate.py RUN --data data/test_motion

Each sample holds the HR image (its file byte for byte, unless it must be cut to a multiple of the scale), the mask, the
LQ image as an 8-bit PNG, the kernel as float32 where the degradation has one, and what the json of the original says.
The LQ images are those that evaluation would make of --data by itself with the same degradation and seed, but for the
rounding to 8 bits. The same input gives the same bytes, for any number of --workers: all is computed on the CPU.

A mistake stops with one line that says what to do, and leaves nothing behind; after a kill or on a full disk the same
command continues from the shards that were finished. `make_shards.py --check DIR` checks the result, `show.py DIR`
shows it.
"""

import argparse
from pathlib import Path

from cssr.utils.cli import Parser, program, run_command
from cssr.utils.machine import check_processes, cores


def read_arguments(argv: list[str]) -> argparse.Namespace:
    """Parse and check the command line; ValueError with a remedy for what makes no sense."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = Parser(prog=program("make_benchmark.py"), description=__doc__, formatter_class=raw, allow_abbrev=False)
    add = parser.add_argument
    add("--data", required=True, metavar="SHARDS", help="shard set to degrade: its folder or address")
    add("--degradation", type=Path, required=True, metavar="FILE", help="one of configs/benchmarks, or your own")
    add("--out", type=Path, required=True, metavar="DIR", help="folder to make; must not exist, or be empty")
    add("--shard-size", type=int, help="samples per tar (256, less where there would be fewer than 16 tars)")
    add("--workers", type=int, default=cores(), help="processes; the result is the same for any number (%(default)s)")
    add("--keep", action="store_true", help="when interrupted or stopped by a mistake, keep finished shards")
    args = parser.parse_args(argv)
    check_processes(args.workers, "--workers", gib=0.2, least=1)
    if args.shard_size is not None and args.shard_size < 1:
        raise ValueError(f"--shard-size is {args.shard_size}; give at least 1")
    args.out, args.tiling = args.out.absolute(), None
    return args


def make(args: argparse.Namespace) -> str:
    """Do what the command line asks. Returns a summary for people."""
    # imported once the command line is read, as torch takes seconds
    import torch

    from cssr import __version__
    from cssr.data.shards import open_sets
    from cssr.dataset_preparation.benchmark import degraded_source, header_of, read_benchmark
    from cssr.dataset_preparation.make import sample_list, with_safe_keys, write_set
    from cssr.dataset_preparation.show import summarize
    from cssr.dataset_preparation.workspace import check_free
    from cssr.utils.installed import find_file

    torch.set_num_threads(1)  # the processes, which are forked, must find no threads begun
    check_free(args.out)
    benchmark = read_benchmark(find_file(args.degradation, "configs"))
    degrade = benchmark.build()
    (shards,) = open_sets(args.data, "--data")
    source = with_safe_keys(degraded_source(shards, benchmark, degrade))
    parts = {"": source.items}
    plan = {
        "the version of this tool": __version__,
        "--shard-size": args.shard_size,
        "the benchmark": vars(benchmark),
        "the index of --data": shards.sha256,
        "the list of samples": sample_list(parts),
    }
    ((directory, index),) = write_set(source, parts, plan, header_of(shards, benchmark, degrade.resampler), args)
    evaluation = f"accelerate launch cssr/evaluate.py RUN --data {directory}"
    return f"{summarize(directory, index)}\n  benchmark: {benchmark.name}; to evaluate on it: {evaluation}"


def _run(argv: list[str]) -> int:
    print(make(read_arguments(argv)))
    return 0


def main(argv: list[str] | None = None) -> int:
    """Run the command line. Returns the exit code: 0, 2 for a mistake of the user, 130 when interrupted."""
    return run_command(_run, argv, "nothing was written, run the command again")
