#!/usr/bin/env python
"""What a launch file would run here: `python launch/doctor.py --config_file FILE [RECIPE] [a.b=c ...]`."""

from cssr.utils import interrupts

if __name__ == "__main__":  # before imports that take seconds
    interrupts.answer()

import sys

if __name__ == "__main__":
    from cssr.launch.doctor import main

    sys.exit(interrupts.run(main))
