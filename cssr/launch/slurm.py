"""Submit a command as a Slurm array, one task for each of its parts, and a job that collects the results."""

import argparse
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from cssr.utils.files import write_atomic

_TASK = "$SLURM_ARRAY_TASK_ID"


def submit(command: str, arguments: Sequence[str], out: Path, tasks: Sequence[int], options: argparse.Namespace) -> int:
    """Write `out/slurm`, submit the array of `tasks` and the job that collects; where sbatch is not, say how to.

    Each task is the same `cssr COMMAND` with `--task N`; the job that collects, with `--collect`, runs whatever became
    of them.
    Raises: ValueError, one line, with what sbatch says.
    """
    scripts, name = (out / "slurm").absolute(), f"cssr-{command}"
    scripts.mkdir(parents=True, exist_ok=True)
    command_words = [sys.executable, "-m", "cssr", command]
    task = _script(scripts / "task.sh", [*command_words, "--task", _TASK, *arguments])
    collect = _script(scripts / "collect.sh", [*command_words, "--collect", *arguments])
    sbatch_options, pattern = shlex.split(options.sbatch_args), str(scripts).replace("%", "%%")
    limit = f"%{options.jobs}" if options.jobs else ""
    # SIGTERM to the launcher two minutes before the time is up: training writes a checkpoint
    array = ["sbatch", "--parsable", f"--job-name={name}", f"--output={pattern}/%A_%a.log", "--signal=B:TERM@120"]
    array += [f"--array={_ranges(tasks)}{limit}", *sbatch_options, str(task)]
    after = ["sbatch", "--parsable", f"--job-name={name}-report", f"--output={pattern}/report_%j.log"]
    if not shutil.which("sbatch"):
        after += ["--dependency=afterany:JOB", *sbatch_options, str(collect)]
        print("sbatch is not here; where it is:", f"  {shlex.join(array)}", f"  {shlex.join(after)}", sep="\n")
        return 0
    number = _sbatch(array)
    last = _sbatch([*after, f"--dependency=afterany:{number}", *sbatch_options, str(collect)])
    print(f"submitted {len(tasks)} tasks as job {number}, the report as job {last}; logs: {scripts}")
    return 0


def _script(path: Path, command: Sequence[str]) -> Path:
    """A batch script that becomes the command: a signal for the script is one for the launcher."""
    words = [f'"{_TASK}"' if word == _TASK else shlex.quote(word) for word in command]
    text = f"#!/usr/bin/env bash\ncd {shlex.quote(os.getcwd())} && exec {' '.join(words)}\n"
    write_atomic(path, text)
    path.chmod(0o755)
    return path


def _ranges(tasks: Sequence[int]) -> str:
    """0,1,2,5 as 0-2,5."""
    runs: list[list[int]] = []
    for task in sorted(tasks):
        if runs and task == runs[-1][1] + 1:
            runs[-1][1] = task
        else:
            runs.append([task, task])
    return ",".join(f"{first}" if first == last else f"{first}-{last}" for first, last in runs)


def _sbatch(command: Sequence[str]) -> str:
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode != 0:
        raise ValueError(f"sbatch refused: {' '.join(result.stderr.split()) or f'exit status {result.returncode}'}")
    return result.stdout.strip().split(";")[0]


def pick_task(options: argparse.Namespace, count: int) -> int:
    """The task that `--task` names; ValueError if there are fewer."""
    if not 0 <= options.task < count:
        raise ValueError(f"--task {options.task}: there are tasks 0 to {count - 1}; was the command changed?")
    return options.task
