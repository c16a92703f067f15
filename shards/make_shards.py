#!/usr/bin/env python
"""Make shards from a dataset on disk: `python shards/make_shards.py SOURCE --out DIR ...`."""

import sys

from cssr.utils import interrupts

if __name__ == "__main__":
    interrupts.handle_signals()  # before imports that take seconds
    from cssr.dataset_preparation.make import main

    sys.exit(interrupts.run(main))
