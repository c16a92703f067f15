#!/usr/bin/env python
"""Evaluate checkpoints on benchmarks and report them side by side; what is done already is not done again.

    python launch/evaluate.py runs/cssr runs/csbsr@best --benchmarks data/photos/val --distances
    python launch/evaluate.py runs/* --benchmarks uav315 khanhha --slurm --sbatch-args='--gres=gpu:1 --time=1:00:00'

A checkpoint is a run directory, an export, or RUN@best, RUN@last, RUN@STEP. A benchmark is a shard directory or its
name under --benchmark-root. Results go to OUT/CHECKPOINT/BENCHMARK, the report of all to OUT/report. A result is kept
as long as checkpoint, data and options are what they were, and computed anew otherwise. It is the same for any number
of processes and jobs: images are evaluated one by one, by one thread a process, unless --batch-size and the environment
variable OMP_NUM_THREADS say otherwise; each of their values rounds in its own way.

Exit status: 0 all is evaluated, 1 something failed or is missing, 2 a mistake on the command line, 130 interrupted.
"""

from cssr.utils import interrupts

if __name__ == "__main__":  # before imports that take seconds
    interrupts.answer()

import sys

from cssr.launch.options import evaluation_parser

if __name__ == "__main__" and {"-h", "--help"} & {*sys.argv}:  # without imports that take seconds
    evaluation_parser(__doc__).print_help()
    sys.exit()

if __name__ == "__main__":
    from cssr.launch.evaluations import main

    sys.exit(interrupts.run(main))
