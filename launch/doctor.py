#!/usr/bin/env python
"""Say what a launch file would run: `python launch/doctor.py --config_file FILE [RECIPE] [a.b=c ...]`."""

import sys

from cssr.utils import interrupts

if __name__ == "__main__":
    interrupts.handle_signals()  # before imports that take seconds
    from cssr.launch.doctor import main

    sys.exit(interrupts.run(main))
