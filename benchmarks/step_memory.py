"""Memory of a training step by recipe and batch, and what a GPU would make of it: `python benchmarks/step_memory.py`.

Counted on tensors without contents (`cssr/launch/memory.py`): weights, gradients, moments, average, and what forward
and backward pass keep. It grows by the same for each image, so two batches tell all others. Then, for a GPU of so many
GiB: the largest batch, images a second at a share of the rate of its matrix units, and the cores that decode as many.

    --measure N     beside it, the most that this process's memory grows in two steps of N images on the CPU
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from forecast import arithmetic_seconds
from machine import ROOT
from model_sizes import sizes
from training_step import drawn

from cssr.config.loading import load_config
from cssr.config.schedules import Progress
from cssr.config.schema import Config
from cssr.degradations import DEGRADATIONS
from cssr.launch.memory import FLOAT, FakeTask, make_optimizer, state_values_per_parameter
from cssr.models.joint import build_model
from cssr.training.log import memory_gib
from cssr.training.step import Stepper
from cssr.training.task import Task
from cssr.utils import distributed as engines
from cssr.utils.text import markdown_table

RECIPES = ("csbsr_pspnet", "csbsr_hrnet_ocr", "csbsr_blurskip", "csbsr_crackformer", "cssr", "dsrl", "real/small_x4")
HEADINGS = ("recipe", "crop", "GiB fixed", "GiB an image", "largest batch", "GMAC an image", "images/s", "cores")


@dataclass(frozen=True)
class Gpu:
    """A GPU as its maker states it. `share`: of its rate that a step is taken to reach, 0..1."""

    memory: float = 139 * 2**30  # bytes, of an H200
    rate: float = 989e12  # FLOP/s, bfloat16, dense
    share: float = 0.4
    decoded: float = 727.0  # samples a second that a core makes (docs/training.md)


@dataclass(frozen=True)
class Memory:
    """Bytes of a rank in a step: `fixed`, and for each image. `half`: under bfloat16 autocast."""

    config: Config
    half: bool = True

    @cached_property
    def _parts(self) -> tuple[float, float]:
        scale, side = self.config.model.scale, self.config.data.crop
        degrade = DEGRADATIONS.build(self.config.degradation, scale=scale)
        kernel = degrade(torch.zeros(1, 3, side, side), torch.zeros(1, dtype=torch.long))[1]
        shape = None if kernel is None else tuple(kernel.shape[1:])
        fake = FakeTask(self.config)
        two, four = (fake.activations(count, shape, self.half) for count in (2, 4))  # some networks refuse one image
        each = (four - two) / 2
        state = FLOAT * fake.parameters * (1 + state_values_per_parameter(make_optimizer(self.config)))
        average = fake.bytes if self.config.optim.ema else 0
        return fake.bytes + state + average + max(two - 2 * each, 0), each

    def of(self, images: int) -> float:
        """Bytes of a step of so many images."""
        return self._parts[0] + images * self._parts[1]

    def largest(self, memory: float) -> int:
        """The largest batch that fits into so many bytes."""
        return max(int((memory - self._parts[0]) / self._parts[1]), 0)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    arg_parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arg_parser.add_argument("recipes", nargs="*", default=RECIPES, help=f"below configs/ ({' '.join(RECIPES)})")
    arg_parser.add_argument("--measure", type=int, metavar="N", help="see above; in float32")
    arg_parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)  # a process that measures itself
    options = arg_parser.parse_args(arguments)
    if options.alone:
        print(grown(of_recipe(options.recipes[0]), options.measure))
    elif options.measure:
        rows = [beside(name, options.measure) for name in options.recipes]
        print(markdown_table(("recipe", "images", "GiB counted", "GiB measured", "ratio"), rows, right=range(1, 5)))
    else:
        print(markdown_table(HEADINGS, [row(name, Gpu()) for name in options.recipes], right=range(1, 8)))


def of_recipe(name: str) -> Config:
    """Settings of a recipe, the encoder from scratch."""
    config = load_config(ROOT / "configs" / f"{name}.yaml")
    if isinstance(config.model.seg, dict) and "pretrained" in config.model.seg:
        config.model.seg["pretrained"] = False
    return config


def row(name: str, gpu: Gpu) -> tuple[str, ...]:
    """A line of the table."""
    config = of_recipe(name)
    memory, macs = Memory(config), sizes(config.model, config.data.crop)[1]
    rate = 1 / arithmetic_seconds(macs, 1, gpu.rate, gpu.share)
    fixed, each = memory.of(0) / 2**30, (memory.of(1) - memory.of(0)) / 2**30
    most = f"{memory.largest(gpu.memory):,}"
    figures = f"{fixed:.2f}", f"{each:.2f}", most, f"{macs / 1e9:.1f}", f"{rate:,.0f}", f"{rate / gpu.decoded:.1f}"
    return name, str(config.data.crop), *figures


def beside(name: str, images: int) -> tuple[str, ...]:
    """Counted and measured, in float32."""
    counted = Memory(of_recipe(name), half=False).of(images) / 2**30
    words = [sys.executable, str(Path(__file__)), name, "--alone", "--measure", str(images)]
    exact = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(1 << 17)}  # freed tensors go back: no gaps of the allocator
    done = subprocess.run(words, env=exact, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{name}: {done.stderr.strip().splitlines()[-1]}")
    measured = float(done.stdout.splitlines()[-1])
    return name, str(images), f"{counted:.2f}", f"{measured:.2f}", f"{measured / counted:.2f}"


def grown(config: Config, images: int) -> float:
    """GiB by which this process's greatest memory exceeds that of the imports, after two steps."""
    Task(build_model(config.model), config)  # imports the parts that the recipe names
    engine = engines.start_engine(mixed_precision="no")
    before, total = memory_gib(torch.device("cpu")), config.train.steps * config.train.batch_size
    task = Task(build_model(config.model), config).train()
    degrade = DEGRADATIONS.build(config.degradation, scale=config.model.scale)
    stepper = Stepper(task, config, engine, degrade, images, 1)
    batch = drawn(images, config.data.crop)
    for number in (1, 2):
        stepper.step(iter([batch]), Progress(total - 1, total), number)
    return memory_gib(torch.device("cpu")) - before


if __name__ == "__main__":
    main()
