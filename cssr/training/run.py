"""Run the command line of `cssr/train.py`; mistakes of the user end in one line."""

import os
import sys
from pathlib import Path

from cssr.config.loading import load_config
from cssr.config.schema import Config
from cssr.training.fault_tolerance import explain
from cssr.training.trainer import Run
from cssr.utils.files import error_line


def run(arguments: list[str]) -> None:
    """Train by a recipe and settings, `configs/Y.yaml a.b=c ...`; ends the process with one line where that fails."""
    try:
        recipe = arguments[0] if "=" not in arguments[0] or Path(arguments[0]).is_file() else None
        config = load_config(recipe, arguments[recipe is not None :])
    except (ValueError, OSError) as error:
        sys.exit(_exit_message(error))
    try:
        run = Run(config)
    except ValueError as error:
        sys.exit(_exit_message(error))
    except (OSError, RuntimeError, MemoryError) as error:
        sys.exit(f"error: {_explained(error, config, config.train.micro_batch or config.train.batch_size, True)}")
    try:
        run.train()
    except (ValueError, OSError, RuntimeError, MemoryError) as error:
        sys.exit(f"error: {_explained(error, config, run.setup.micro_batch)}")
    if run.interrupted:
        sys.exit(128 + run.stop.number)


def _exit_message(error: Exception) -> str | int:
    """Exit message of rank 0, exit status 1 of the others: all ranks meet the same mistake."""
    return f"error: {error_line(error)}" if os.environ.get("RANK", "0") == "0" else 1


def _explained(error: Exception, config: Config, micro_batch: int, building: bool = False) -> str:
    """A line that explains an error; an error without an explanation is raised again."""
    explained = explain(error, config, micro_batch, building)
    if explained is None and not isinstance(error, (ValueError, OSError)):
        raise error
    return error_line(explained or error)
