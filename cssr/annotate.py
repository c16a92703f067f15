"""Predicted cracks as annotations to correct, and which photographs to label first: `python -m cssr.annotate RESULTS`.

RESULTS is what `cssr.predict PHOTOGRAPHS --measure --out RESULTS` has written.
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
    parser = ExitingParser(prog=program("python -m cssr.annotate"), description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("results", type=Path, help="directory of results of cssr.predict --measure")
    add("--out", type=Path, required=True, help="directory for coco.json (run lengths), coco_polygons.json, "
        "label_studio.json, cvat.xml")  # fmt: skip
    add("--root", type=Path, help="folder of the photographs, from which annotations name them (that which holds all)")
    add("--prefix", default="/data/local-files/?d=", help="of the images' addresses in Label Studio "
        "(/data/local-files/?d=)")  # fmt: skip
    add("--least-confidence", type=float, default=0.0, metavar="P", help="cracks less probable are left out (0)")
    add("--rank", action="store_true", help="also rank.csv and rank.jpg: the photographs about which the model is "
        "least certain first, as their labels teach most")  # fmt: skip
    return parser


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    options = parser().parse_args(arguments)
    from cssr.survey.annotate import run

    with exit_on_error():
        run(options)


if __name__ == "__main__":
    sys.exit(interrupts.run(main))
