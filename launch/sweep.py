#!/usr/bin/env python
"""Train a recipe over a grid of settings: `python launch/sweep.py RECIPE KEY=V1,V2 ... --benchmarks NAME ...`."""

import sys

from cssr.utils import interrupts

if __name__ == "__main__":
    interrupts.handle_signals()  # before imports that take seconds
    from cssr.launch.options import sweep

    sys.exit(interrupts.run(sweep))
