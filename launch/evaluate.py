#!/usr/bin/env python
"""Checkpoints on benchmarks, side by side: `python launch/evaluate.py CHECKPOINT ... --benchmarks NAME ...`."""

import sys

from cssr.utils import interrupts

if __name__ == "__main__":
    interrupts.handle_signals()  # before imports that take seconds
    from cssr.launch.options import evaluate

    sys.exit(interrupts.run(evaluate))
