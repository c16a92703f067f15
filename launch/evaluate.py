#!/usr/bin/env python
"""Evaluate checkpoints on benchmarks: `python launch/evaluate.py CHECKPOINT ... --benchmarks NAME ...`."""

import sys

from cssr.utils import interrupts

if __name__ == "__main__":
    interrupts.handle_signals()  # before imports that take seconds
    from cssr.launch.options import evaluate

    sys.exit(interrupts.run(evaluate))
