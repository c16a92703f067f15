#!/usr/bin/env python
"""Write photographs of shards as files: `python shards/extract.py SHARDS --out DIR`."""

import sys

from cssr.utils import interrupts

if __name__ == "__main__":
    interrupts.handle_signals()  # before imports that take seconds
    from cssr.dataset_preparation.extract import main

    sys.exit(interrupts.run(main))
