"""Changes of each crack between two surveys: `python -m cssr.compare OLD NEW --out DIR`.

OLD and NEW are what `cssr.predict PHOTOGRAPHS --measure --out DIR` has written of photographs of the same spots.
"""

from cssr.utils import interrupts

if __name__ == "__main__":  # before imports that take seconds
    interrupts.handle_signals()

import argparse
import sys
from pathlib import Path

from cssr.utils.cli import ExitingParser, exit_on_error, program


def parser() -> argparse.ArgumentParser:
    """The options."""
    parser = ExitingParser(prog=program("python -m cssr.compare"), description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("old", type=Path, help="directory of results of cssr.predict --measure")
    add("new", type=Path, help="the same, of a later day")
    add("--out", type=Path, required=True, help="directory for changes.csv, changes.xlsx, comparison.json, "
        "comparison.html, and a picture of each pair")  # fmt: skip
    add("--pairs", type=Path, metavar="CSV", help="which photographs are of one spot: columns old and new, names of "
        "files (by name, then by the map, then by features)")  # fmt: skip
    add("--by", choices=("auto", "features", "georeference"), default="auto", help="how pairs are registered (auto: "
        "features, else the georeference)")  # fmt: skip
    add("--width-uncertainty", type=float, metavar="PX", help="standard uncertainty of a width, pixels of the "
        "photograph (as each survey has it: 0.6)")  # fmt: skip
    add("--end-uncertainty", type=float, default=2.0, metavar="PX", help="the same of the position of a crack's end "
        "(2)")  # fmt: skip
    return parser


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    options = parser().parse_args(arguments)
    from cssr.survey.comparison import run

    with exit_on_error():
        run(options)


if __name__ == "__main__":
    sys.exit(interrupts.run(main))
