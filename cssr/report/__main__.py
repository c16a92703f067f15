"""`python -m cssr.report`."""

from cssr.utils import interrupts

if __name__ == "__main__":  # before imports that take seconds
    interrupts.answer()

import sys

from cssr.report.command import main

if __name__ == "__main__":
    sys.exit(interrupts.run(main))
