"""Joint training: `accelerate launch [--config_file launch/X.yaml] cssr/train.py configs/Y.yaml [a.b=c ...]`.

A run reads settings and data, builds the model, resumes, loops (step, log, validate, save), and exports: see
`cssr/training/trainer.py`. To resume, run the same command again. Progress is shown in steps; schedules count samples
seen.
"""

from cssr.utils import interrupts

if __name__ == "__main__":  # before imports that take seconds
    interrupts.handle_signals()

import sys

from cssr.config.loading import described, wants_help
from cssr.utils.cli import quick_imports


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if wants_help(arguments):
        print(described(__doc__))
        return
    with quick_imports():  # takes seconds, which --help does not need
        from cssr.training.run import run

    run(arguments)


if __name__ == "__main__":
    sys.exit(interrupts.run(main))
