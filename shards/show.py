#!/usr/bin/env python
"""Summarize shards in words and as a picture: `python shards/show.py SHARDS --out FILE`."""

import sys

from cssr.utils import interrupts

if __name__ == "__main__":
    interrupts.handle_signals()  # before imports that take seconds
    from cssr.dataset_preparation.show import main

    sys.exit(interrupts.run(main))
