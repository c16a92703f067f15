"""Length and width of the cracks of masks: `python -m cssr.measure MASK|FOLDER ... --out DIR`."""

from cssr.utils import interrupts

if __name__ == "__main__":  # before imports that take seconds
    interrupts.handle_signals()

import argparse
import sys
from pathlib import Path

from cssr.utils.cli import ExitingParser, program


def parser() -> argparse.ArgumentParser:
    """The options."""
    parser = ExitingParser(prog=program("python -m cssr.measure"), description=__doc__)
    add = parser.add_argument
    add("masks", nargs="+", type=Path, help="mask files of 1 or 8 bit, or folders of them")
    add("--out", type=Path, required=True, help="directory to write to")
    add("--scale", type=float, default=1.0, help="mask pixels a side of one pixel of the photograph (1)")
    add("--mm-per-pixel", type=float, help="width of a pixel of the photograph; adds columns in millimetres")
    add("--least-length", type=float, default=0.0, help="leave out cracks shorter than so many photograph's pixels (0)")
    about = "of a mask measure the largest N components, of at most 2 N branches (10000)"
    add("--most-cracks", type=int, default=10_000, metavar="N", help=about)
    add("--threshold", type=int, metavar="N", help="crack = mask value > N (without it, the values of a mask decide)")
    add("--crack-colors", metavar="COLOURS", help="crack = these colours: 'R,G,B' or '#RRGGBB', blanks between several")
    add("--crack-values", metavar="VALUES", help="crack = these grey values, as 1,2")
    return parser


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    options = parser().parse_args(arguments)
    from cssr.cracks.run import run  # takes seconds, which --help does not need

    run(options)


if __name__ == "__main__":
    sys.exit(interrupts.run(main))
