"""Profile of a training step on a CPU, layer by layer: `python benchmarks/step_profile.py [RECIPE ...]`.

Steps of the recipe's own networks, batch and crop, on one drawn batch, under PyTorch's profiler. Two tables: by part
(degradation, networks, losses, forward and backward; the update), and by kind of layer, forward and backward together,
with its arithmetic and what share of the machine's rate that is. Loading is not in a step: `benchmarks/data.py`.
"""

import argparse
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from math import prod
from typing import Any

import machine
import torch
from step_memory import of_recipe
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile, record_function
from training_step import drawn

from cssr.config.schedules import Progress
from cssr.degradations import DEGRADATIONS
from cssr.models.joint import build_model
from cssr.training.step import Stepper
from cssr.training.task import Task
from cssr.utils import distributed as engines
from cssr.utils.text import markdown_table

RECIPES = ("real/small_x4", "real/hr", "uav315_csbsr_cpu")
SR, SEG, LOSSES, DEGRADATION = PARTS = ("SR network", "segmentation network", "losses", "degradation")
KINDS = {  # by words of an operation's name
    "BatchNorm": ("batch_norm",),
    "activations": ("relu", "hardtanh", "sigmoid", "softplus", "threshold"),
    "copies, concatenations, pixel shuffles": ("copy", "cat", "shuffle", "contiguous", "clone", "pad", "fill", "zero"),
    "enlargement, pooling": ("upsample", "pool"),
    "optimizer, averages": ("adam", "lerp", "_foreach"),
}
STEPS = 3


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    arg_parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arg_parser.add_argument("recipes", nargs="*", default=RECIPES, help=f"below configs/ ({' '.join(RECIPES)})")
    arg_parser.add_argument("--threads", type=int, default=1)
    options = arg_parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    rates = machine.rates("cpu", "cpu", options.threads)
    rate = max(rates["matmul float32"], rates["conv float32"])
    print(f"{machine.processor()}, threads: {options.threads}, {rate / 1e9:.0f} GFLOP/s in float32")
    for recipe in options.recipes:
        events = profiled(recipe)
        print(f"\n{recipe}\n\n{by_part(events)}\n\n{by_kind(events, rate)}", flush=True)


def profiled(recipe: str) -> list[FunctionEvent]:
    """Operations of `STEPS` steps in the middle of a run, but those that another one has started."""
    config = of_recipe(recipe)
    task = Task(build_model(config.model), config).train()
    total, count = config.train.steps * config.train.batch_size, config.train.batch_size
    for name, network in ((SR, task.model.sr), (SEG, task.model.seg), (LOSSES, task)):
        if network is not None:
            network.forward = named(name, network.forward)
    degrade = named(DEGRADATION, DEGRADATIONS.build(config.degradation, scale=config.model.scale))
    stepper = Stepper(task, config, engines.start_engine(mixed_precision="no"), degrade, count, 1)
    batch, middle = drawn(count, config.data.crop), Progress(total // 2, total)

    def step(number: int) -> None:
        stepper.step(iter([batch]), middle, number)
        stepper.settle()

    for number in (1, 2):
        step(number)
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as recorded:
        for number in range(3, 3 + STEPS):
            step(number)
    operations = [event for event in recorded.events() if event.name.startswith("aten::")]
    return [event for event in operations if not any(outer.name.startswith("aten::") for outer in around(event))]


def named(name: str, function: Callable) -> Callable:
    """The function, under a name in the profile."""

    def call(*args: Any, **kwargs: Any) -> Any:
        with record_function(name):
            return function(*args, **kwargs)

    return call


def around(event: FunctionEvent) -> Iterator[FunctionEvent]:
    """The events that an event is within, from the innermost."""
    while event.cpu_parent is not None:
        event = event.cpu_parent
        yield event


def by_part(events: Sequence[FunctionEvent]) -> str:
    """Table: part, forward or backward; ms of a step; share of the step."""
    nodes = [next((outer for outer in around(e) if outer.name.startswith("autograd::engine")), None) for e in events]
    parts = {e.sequence_nr: part(e) for e, node in zip(events, nodes) if node is None and e.sequence_nr >= 0}
    times: dict[str, float] = defaultdict(float)
    for event, node in zip(events, nodes):  # a node of the backward pass has the number of what it derives
        name = f"{parts.get(node.sequence_nr, LOSSES)}, backward" if node else part(event)
        times[name] += event.cpu_time_total
    return table("part", times)


def part(event: FunctionEvent) -> str:
    """The innermost of `PARTS` that an event is within."""
    return next((outer.name for outer in around(event) if outer.name in PARTS), "update, and the rest")


def by_kind(events: Sequence[FunctionEvent], rate: float) -> str:
    """Table: kind of layer; ms of a step; share of the step; GFLOP; share of `rate`, FLOP/s."""
    times: dict[str, float] = defaultdict(float)
    flop: dict[str, float] = defaultdict(float)
    for event in events:
        times[kind(event)] += event.cpu_time_total
        if event.name == "aten::convolution_backward":
            result, image, weight = event.input_shapes[:3]
            pixels = image if result[2] > image[2] else result  # of a transposed convolution, those of its input
            flop[kind(event)] += 3 * 2 * prod(pixels) * prod(weight[1:])  # backward is twice the forward pass
    return table("kind", times, flop, rate)


def kind(event: FunctionEvent) -> str:
    """Row of an operation in the table."""
    if "conv" not in event.name:
        return next((name for name, words in KINDS.items() if any(word in event.name for word in words)), "other")
    image, weight = event.input_shapes[1:3] if "backward" in event.name else event.input_shapes[:2]
    depthwise = weight[1] == 1 and weight[0] == image[1] > 1
    return f"{weight[2]} x {weight[3]} convolutions{', depthwise' if depthwise else ''}"


def table(head: str, times: Mapping[str, float], flop: Mapping[str, float] | None = None, rate: float = 1.0) -> str:
    """The rows, the longest first; `times` in microseconds of all steps."""
    whole, rows = sum(times.values()), []
    for name, time in sorted(times.items(), key=lambda row: -row[1]):
        row = [name, f"{time / STEPS / 1e3:.0f}", f"{time / whole:.0%}"]
        if flop:
            reached = flop.get(name, 0) / (time / 1e6) / rate
            row += [f"{flop.get(name, 0) / STEPS / 1e9:.1f}", f"{reached:.0%}" if reached else ""]
        rows.append(tuple(row))
    rows.append(("together", f"{whole / STEPS / 1e3:.0f}", "", *(("", "") if flop else ())))
    return markdown_table((head, "ms", "share", *(("GFLOP", "of the rate") if flop else ())), rows, right=range(1, 5))


if __name__ == "__main__":
    main()
