"""A dry run: one batch forward and backward, and a print of what would be trained; nothing is written."""

from collections.abc import Iterator

from accelerate import Accelerator

from cssr.config.schedules import Progress
from cssr.data.batch import Batch
from cssr.training.checks import RunSetup
from cssr.training.log import memory_gib, parameter_counts
from cssr.training.step import Stepper
from cssr.utils import distributed as engines


def dry_run(
    stepper: Stepper, stream: Iterator[Batch], progress: Progress, engine: Accelerator, setup: RunSetup
) -> None:
    """Take a batch through the task, and print sizes, losses and memory."""
    batch = stepper.next(stream)
    stepper.task.train()
    terms = stepper.module(batch, progress)
    engines.backward(engine, terms["loss"], setup.accumulation)
    if engine.is_main_process:
        tensors = {name: getattr(batch, name) for name in ("lq", "hr", "mask", "kernel")}
        print(f"dry run: parameters {parameter_counts(stepper.model)}")
        print(f"  micro-batch {setup.micro_batch} x accumulation {setup.accumulation} on {engine.device}")
        print("  " + "  ".join(f"{name} {tuple(t.shape)}" for name, t in tensors.items() if t is not None))
        print("  " + "  ".join(f"{name} {value.item():.4g}" for name, value in terms.items()))
        print(f"  memory {memory_gib(engine.device):.2f} GiB")
