"""Evaluation by the papers' measures: `accelerate launch cssr/evaluate.py RUN_OR_EXPORT --data SHARDS`."""

from cssr.utils import interrupts

if __name__ == "__main__":  # before imports that take seconds
    interrupts.handle_signals()

import argparse
import sys
from pathlib import Path

from cssr.utils.cli import ExitingParser, program, quick_imports


def parser() -> argparse.ArgumentParser:
    """The options."""
    parser = ExitingParser(prog=program("accelerate launch cssr/evaluate.py"), description=__doc__)
    parser.add_argument("model", type=Path, help="run, export, or model of the package (small-x4)")
    parser.add_argument("--data", required=True, help="shard directory to evaluate on")
    parser.add_argument("--checkpoint", default="export", help="of a run: export (default), best, last, or a step")
    parser.add_argument("--out", type=Path, help="where results.json and pictures go (default: MODEL/evaluations/DATA)")
    parser.add_argument("--name", help="how reports call this result (default: the model's directory)")
    add_options(parser)
    return parser


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of how it is evaluated, which a launcher has as well."""
    parser.add_argument(
        "--distances",
        action="store_true",
        help="also HD95 and MSD at 99 thresholds, clDice, clIoU, boundary F1, errors of crack widths, lengths (slower)",
    )
    parser.add_argument(
        "--tta",
        action="store_true",
        help="test-time augmentation: probabilities averaged over flips and quarter turns (segmentation takes 8 x)",
    )
    parser.add_argument(
        "--degradation",
        help="another one than in training, or than what the shards store, as YAML: '{name: gaussian, sigma: [1, 2]}'",
    )
    parser.add_argument(
        "--batch-size", type=int, default=4, help="images of equal size evaluated together (%(default)s)"
    )
    parser.add_argument(
        "--tile", type=int, default=0, help="LQ pixels a side of tiles for large images (0: whole images)"
    )
    parser.add_argument("--limit", type=int, help="evaluate the first images only")
    parser.add_argument("--workers", type=int, default=0, help="loader processes per rank (0)")
    parser.add_argument("--seed", type=int, default=0, help="of the degradation (0)")


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    options = parser().parse_args(arguments)
    with quick_imports(compiler=False):  # takes seconds, which --help does not need
        from cssr.evaluation.run import run

    run(options)


if __name__ == "__main__":
    sys.exit(interrupts.run(main))
