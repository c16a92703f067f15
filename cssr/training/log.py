"""Logs of a run: metrics.jsonl, optional trackers of accelerate, and progress on the console."""

import importlib.util
import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker
from tqdm import tqdm

from cssr.config.registry import did_you_mean
from cssr.config.schema import TrainConfig
from cssr.utils.files import naming_path, write_atomic
from cssr.utils.machine import peak_memory


class JsonlTracker(GeneralTracker):
    """`metrics.jsonl`: one line a logged step, flushed as it is written."""

    name = "jsonl"
    requires_logging_directory = False

    def __init__(self, path: Path):
        super().__init__(_blank=True)
        self.path = path

    @property
    def tracker(self) -> Path:
        return self.path

    def log(self, values: dict[str, Any], step: int | None = None, **kwargs: Any) -> None:
        append_line(self.path, {"step": step, **values})


def append_line(path: Path, values: dict[str, Any]) -> None:
    """Append one JSON object to a file of lines."""
    with naming_path(path), open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(values) + "\n")


def truncate_lines(path: Path, step: int) -> None:
    """Drop the lines after `step` (and a half-written last one), so that a resumed run has no step twice."""
    if not path.is_file():
        return
    lines = [line for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if _step_of(line) <= step]
    write_atomic(path, "".join(f"{line}\n" for line in lines))


def has_step(path: Path, step: int) -> bool:
    """Return whether a file of lines has one of this step."""
    return path.is_file() and any(
        _step_of(line) == step for line in path.read_text(encoding="utf-8", errors="replace").splitlines()
    )


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")


def trackers(train: TrainConfig, run_dir: Path) -> list[Any]:
    """Trackers for accelerate. Raises: ValueError for one that it does not know, or without its package."""
    chosen: list[Any] = [JsonlTracker(run_dir / "metrics.jsonl")]
    names = ["wandb"] * (train.wandb is not None) + train.trackers
    if train.tensorboard and importlib.util.find_spec("tensorboard"):
        names.insert(0, "tensorboard")
    for name in dict.fromkeys(names):
        if name not in LOGGER_TYPE_TO_CLASS:
            known = sorted(map(str, LOGGER_TYPE_TO_CLASS))
            raise ValueError(f"train.trackers: unknown tracker {name!r}{did_you_mean(name, known)}: {', '.join(known)}")
        if not importlib.util.find_spec(name):
            raise ValueError(f"tracker {name} is not installed: pip install {name.replace('_', '-')}, or leave it out")
        chosen.append(name)
    return chosen


def tracker_settings(run_dir: Path, step: int) -> dict[str, dict[str, Any]]:
    """Settings by which trackers continue from the step where a run was stopped, for `Accelerator.init_trackers`."""
    path = run_dir / "mlflow_run_id"
    mlflow = {"run_id": path.read_text()} if path.is_file() else {"run_name": run_dir.name}
    return {"tensorboard": {"purge_step": step + 1}, "mlflow": mlflow}


def save_tracker_runs(accelerator: Accelerator, run_dir: Path) -> None:
    """Store what `tracker_settings` needs to continue the runs of trackers."""
    for tracker in accelerator.trackers:
        if tracker.name == "mlflow" and accelerator.is_main_process:
            write_atomic(run_dir / "mlflow_run_id", tracker.tracker.info.run_id)


def ignore_tensorboard_errors(arguments: threading.ExceptHookArgs) -> None:
    """`threading.excepthook` that ignores tensorboard's writer: its error is raised by the next call that logs."""
    if not type(arguments.thread).__module__.startswith("tensorboard"):
        threading.__excepthook__(arguments)


def memory_gib(device: torch.device) -> float:
    """Largest memory used so far: the device's allocator's, or this process's on a CPU; GiB."""
    backend = getattr(torch, device.type, None)
    if device.type != "cpu" and hasattr(backend, "max_memory_allocated"):
        return backend.max_memory_allocated(device) / 2**30
    return peak_memory() / 2**30


class Console:
    """Progress for a person: a bar on a terminal, plain lines with the time left elsewhere, and a copy in `log.txt`."""

    def __init__(self, total: int, done: int, path: Path | None, enabled: bool):
        self.total, self.start, self.began, self.path, self.enabled = total, done, time.monotonic(), path, enabled
        terminal = enabled and sys.stderr.isatty()
        self.bar = tqdm(total=total, initial=done, unit="step", dynamic_ncols=True) if terminal else None

    def line(self, text: str) -> None:
        """Write a line of text."""
        if not self.enabled:
            return
        tqdm.write(text, file=sys.stderr) if self.bar else print(text, flush=True)
        if self.path:
            with naming_path(self.path), open(self.path, "a", encoding="utf-8") as file:
                file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")

    def step(self) -> None:
        """Count a step."""
        if self.bar:
            self.bar.update()

    def metrics(self, step: int, values: dict[str, Any]) -> None:
        """The logged values of a step, with the time left."""
        text = "  ".join(f"{name} {value:.4g}" for name, value in values.items() if isinstance(value, float))
        if self.bar:
            self.bar.set_postfix_str(text.replace("  ", " "))
        seconds_left = (time.monotonic() - self.began) / max(step - self.start, 1) * (self.total - step)
        if self.enabled and not self.bar:
            self.line(f"step {step}/{self.total}  {text}  left {format_duration(seconds_left)}")

    def close(self) -> None:
        """Close the progress bar."""
        if self.bar:
            self.bar.close()


def format_duration(seconds: float) -> str:
    """Hours, minutes and seconds."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def parameter_counts(model: torch.nn.Module) -> str:
    """Number of parameters of each group, in millions."""
    counts = {name: getattr(p, "ds_numel", p.numel()) for name, p in model.named_parameters()}  # ZeRO-3 shows parts
    groups = {group: sum(counts[name] for name in names) for group, names in model.groups().items()}
    return ", ".join(f"{group} {count / 1e6:.2f} M" for group, count in groups.items())
