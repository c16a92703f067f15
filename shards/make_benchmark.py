#!/usr/bin/env python
"""Make a benchmark of shards: `python shards/make_benchmark.py --data SHARDS --degradation FILE --out DIR`."""

import sys

from cssr.utils import interrupts

if __name__ == "__main__":
    interrupts.handle_signals()  # before imports that take seconds
    from cssr.dataset_preparation.make_benchmark import main

    sys.exit(interrupts.run(main))
