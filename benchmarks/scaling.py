"""Several processes against one: `python benchmarks/scaling.py [--strategies] [--json FILE]`.

Trains a small CSBSR by the launch files, one process and two, one thread each, the same micro-batch a process, in
turns, and compares the medians of steady steps: starting up and the first steps are left out. Samples are decoded by
the training process itself (data.workers=0), so that a process is a core. Where there is a GPU: steps and memory of one
GPU for configs/csbsr_pspnet.yaml. `--strategies` takes ZeRO-1, 2 and 3 along (DeepSpeed).

    --predict       images/s of many GPUs, from the seconds of one GPU's step: the table of docs/scaling.md
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch
from forecast import markdown, predict
from harness import write
from machine import ROOT, facts

PARAMETERS = 89.3e6  # of csbsr_pspnet
SKIP = 2  # first steps: memory is allocated, DDP arranges its buckets
TIMEOUT = 3600  # seconds for a run
SMALL = [
    "model.scale=2",
    "model.sr={name: kbpn, stages: 2, width: 4, features: 4, hidden: 4, kernel_size: 7, predicted_size: 3}",
    "model.seg={name: unet, encoder: resnet10t, width: 4, encoder_args: {channels: [8, 8, 16, 16]}}",
    "degradation={name: gaussian, size: 7, sigma: [0.2, 1.5]}",
    "loss.sr=blind", "loss.seg=combo", "optim.lr=1e-3", "optim.clip_norm=1.0",
]  # fmt: skip
STEADY = [  # every step logged, nothing between the steps, all losses from the first one; ZeRO-3 takes no average
    "phases=[{name: joint}]", "train.log_every=1", "train.val_every=0", "train.save_every=1000000",
    "train.tensorboard=false", "optim.ema=null",
]  # fmt: skip


@dataclass
class Case:
    """A launch file with so many processes, and what came out: seconds of steady steps by round, GiB of rank 0."""

    name: str
    file: str
    ranks: int
    rounds: list[list[float]] = field(default_factory=list)
    memory: float = 0.0

    @property
    def seconds(self) -> float:
        """Seconds of a step, the median of all rounds."""
        return median(second for steps in self.rounds for second in steps)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    arg_parser = parser()
    options = arg_parser.parse_args(arguments)
    if options.steps <= SKIP or options.rounds < 1:
        arg_parser.error(f"--steps {options.steps} --rounds {options.rounds}: needs more than {SKIP} steps and a round")
    if options.predict:
        print("\n".join(markdown(predict(options.step_seconds, options.batch, options.parameters))))
        return
    with tempfile.TemporaryDirectory() as scratch:
        workspace = Workspace(Path(scratch), options)
        try:
            measured = time_steps(workspace, options)
        except RuntimeError as error:
            sys.exit(f"error: {error}")
    if options.json:
        write({"measured": measured, "settings": workspace.settings, "machine": facts()}, options.json)


def parser() -> argparse.ArgumentParser:
    """Parser of the command line."""
    arg_parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = arg_parser.add_argument
    add("--predict", action="store_true", help="see above")
    add("--strategies", action="store_true", help="ZeRO-1, 2 and 3 too (needs deepspeed)")
    add("--json", type=Path, metavar="FILE", help="write figures, settings, machine and versions")
    add("--recipe", help="YAML to train; default: the small CSBSR, on a GPU configs/csbsr_pspnet.yaml")
    add("--rounds", type=int, default=5, help="turns of each case (5)")
    add("--steps", type=int, default=14, help=f"of a run, of which the first {SKIP} do not count (14)")
    add("--crop", type=int, help="HR pixels a side (128; on a GPU 224)")
    add("--batch", type=int, default=6, help="samples of a process in a step (6)")
    add("--step-seconds", type=float, nargs="+", default=[0.0133, 0.0222, 0.0667], metavar="T")
    add("--parameters", type=float, default=PARAMETERS, help="of the model, for --predict (89.3e6)")
    return arg_parser


# ---- runs ----


class Workspace:
    """Shards of drawn photographs, and runs over them in `scratch`."""

    def __init__(self, scratch: Path, options: argparse.Namespace):
        self.scratch, self.on_device = scratch, on_device()
        recipe = options.recipe or (str(ROOT / "configs/csbsr_pspnet.yaml") if self.on_device else None)
        small = [] if recipe else SMALL
        pretrained = ["model.seg.pretrained=false"] if recipe and not options.recipe else []
        crop, workers = options.crop or (224 if self.on_device else 128), 8 if self.on_device else 0
        data = [f"data.crop={crop}", f"data.workers={workers}", "data.lanes=48"]
        self.settings = [*([recipe] if recipe else []), *small, *pretrained, *STEADY, *data]
        self.shards = scratch / "shards"
        make = [sys.executable, ROOT / "shards/make_shards.py", "synthetic", "--out", self.shards]
        make += ["--count", 96, "--size", 2 * crop, "--shard-size", 24]
        subprocess.run([str(word) for word in make], check=True, capture_output=True)

    def run(self, case: Case, steps: int, batch: int, *more: str) -> list[dict[str, Any]]:
        """Train for so many steps of `batch` samples over all ranks; returns what is logged at each step.

        Raises: RuntimeError with its stderr, where a step is missing. Exit codes say nothing: DeepSpeed may abort on
        its way out, after all is written.
        """
        with tempfile.TemporaryDirectory(dir=self.scratch) as folder:
            paths = [f"data.train={self.shards}", f"train.run_dir={folder}/run"]
            length = [f"train.steps={steps}", f"train.batch_size={batch}"]
            words = [*self._launcher(case), str(ROOT / "cssr/train.py"), *self.settings, *paths, *length, *more]
            env = {**os.environ, "OMP_NUM_THREADS": "1"}
            done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=TIMEOUT)
            log = Path(folder) / "run/metrics.jsonl"
            lines = [json.loads(line) for line in log.read_text().splitlines()] if log.is_file() else []
        if len(lines) < steps:
            raise RuntimeError(f"{case.name}: {len(lines)} of {steps} steps: {reason(done.stderr)}")
        return lines

    def _launcher(self, case: Case) -> list[str]:
        words = [sys.executable, "-m", "accelerate.commands.launch", "--quiet", "--main_process_port", "0"]
        words += ["--config_file", str(ROOT / "launch" / case.file), "--num_processes", str(case.ranks)]
        return words if self.on_device else [*words, "--mixed_precision", "no"]


def reason(stderr: str) -> str:
    """The reason for which a run ended: training's own line, or else the end of its stderr."""
    own = [line for line in stderr.splitlines() if line.startswith("error: ")]
    return own[0].removeprefix("error: ") if own else stderr[-4000:]


def on_device() -> bool:
    """Return whether training would use a GPU."""
    return torch.accelerator.is_available() and os.environ.get("ACCELERATE_USE_CPU", "").lower() not in ("1", "true")


def cases(on_device: bool, strategies: bool) -> list[Case]:
    """One process first; on a CPU two of each strategy, on a GPU one."""
    if on_device:
        first, ranks = [Case("one GPU", "single_gpu.yaml", 1)], 1
    else:
        first, ranks = [Case("one process", "cpu.yaml", 1), Case("two, DDP", "cpu_2proc.yaml", 2)], 2
    count = {1: "one", 2: "two"}[ranks]
    stages = [Case(f"{count}, ZeRO-{stage}", f"zero{stage}.yaml", ranks) for stage in (1, 2, 3)]
    return first + (stages if strategies else [])


# ---- throughput ----


def time_steps(workspace: Workspace, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Seconds of a step, in turns, as conditions change; prints the table."""
    measured = cases(workspace.on_device, options.strategies)
    for turn in range(options.rounds):
        for case in measured[:: -1 if turn % 2 else 1]:
            batch = case.ranks * options.batch
            lines = workspace.run(case, options.steps, batch)
            case.rounds.append([batch / line["images_per_s"] for line in lines[SKIP:]])
            case.memory = max(case.memory, lines[-1]["memory_gib"])
    rows = [summary(case, measured[0], options.batch) for case in measured]
    report(rows)
    return rows


def summary(case: Case, one: Case, batch: int) -> dict[str, Any]:
    """Figures of a case; `ratio` is its images/s over those of `one`, and that of each round by itself."""
    ratio = case.ranks * one.seconds / case.seconds
    ratios = [case.ranks * median(base) / median(steps) for base, steps in zip(one.rounds, case.rounds)]
    return {
        "case": case.name, "ranks": case.ranks, "step_seconds": case.seconds,
        "images_per_s": case.ranks * batch / case.seconds, "ratio": ratio, "ratio_of_rounds": ratios,
        "memory_gib": case.memory, "seconds_of_rounds": case.rounds,
    }  # fmt: skip


def report(rows: Sequence[dict[str, Any]]) -> None:
    """Print the table."""
    print(f"{'':<14}{'s a step':>10}{'images/s':>10}{'times one':>11}{'its rounds':>14}{'GiB a rank':>12}")
    for row in rows:
        rounds = f"{min(row['ratio_of_rounds']):.2f}..{max(row['ratio_of_rounds']):.2f}"
        print(f"{row['case']:<14}{row['step_seconds']:>10.4f}{row['images_per_s']:>10.1f}", end="")
        print(f"{row['ratio']:>11.2f}{rounds:>14}{row['memory_gib']:>12.2f}")


if __name__ == "__main__":
    main()
