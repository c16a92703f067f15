#!/usr/bin/env python
"""Train a recipe over a grid of settings, evaluate every run, and tabulate mean and deviation over the seeds.

    python launch/sweep.py configs/csbsr_pspnet.yaml beta=0.1,0.3,0.5 seed=0,1,2 --benchmarks khanhha uav315 \\
        --out runs/beta -- data.train=SHARDS/khanhha/train data.val=SHARDS/khanhha/val

What is swept comes before `--`, what all runs share after it. A key may be shortened to its last part where that is one
setting's alone: beta is loss.beta, seed train.seed, lr optim.lr. A value may be a component: seg=pspnet,"{name: unet,
encoder: vgg11}". Each run has its directory in OUT, called after its settings; the same command goes on where it was
interrupted, and does what is missing. The table (table.md, table.csv, table.json in OUT) has a line for each setting
but for its seed: mean and standard deviation (n - 1) over its seeds, per image.

Exit status: 0 all is there, 1 something failed or is missing, 2 a mistake on the command line, 130 interrupted.
"""

from cssr.utils import interrupts

if __name__ == "__main__":  # before imports that take seconds
    interrupts.answer()

import sys

from cssr.launch.options import sweep_parser

if __name__ == "__main__" and {"-h", "--help"} & {*sys.argv}:  # without imports that take seconds
    sweep_parser(__doc__).print_help()
    sys.exit()

if __name__ == "__main__":
    from cssr.launch.sweeps import main

    sys.exit(interrupts.run(main))
