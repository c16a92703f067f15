#!/usr/bin/env python
"""Report all that is wrong with a dataset: `python shards/doctor.py SOURCE --root DIR --out DIR`."""

import sys

from cssr.utils import interrupts

if __name__ == "__main__":
    interrupts.handle_signals()  # before imports that take seconds
    from cssr.dataset_preparation.audit.run import main

    sys.exit(interrupts.run(main))
