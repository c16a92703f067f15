"""Say what a launch file would run here, and refuse what would silently run as something else.

    python launch/doctor.py --config_file launch/zero2.yaml configs/csbsr_pspnet.yaml data.train=SHARDS
    python launch/doctor.py --config_file multi_node --num_machines 2 --num_processes 16 --machine_rank 0 \\
        --main_process_ip 10.0.0.1 configs/cssr.yaml train.batch_size=32

Give what `accelerate launch` and train.py would be given. Without a recipe only the launch is looked at; without data
(data.train unset, or not on this machine) all but the data. Nothing is started, downloaded or written. Memory is an
estimate for one rank's training step, without the libraries (about 0.5 GiB on a GPU) and the workspace of convolutions.

Exit status: 0 it would run, 2 it would not, or not as the file says: one line for each fault.
"""

import argparse
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from cssr.utils.cli import ExitingParser, program
from cssr.utils.text import message_of

_OPTIONS = {
    "num_processes": int,
    "num_machines": int,
    "machine_rank": int,
    "main_process_ip": str,
    "main_process_port": int,
    "mixed_precision": str,
    "dynamo_backend": str,
}
Row = tuple[str, str]


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line."""
    options = build_parser().parse_args(arguments)
    warnings.filterwarnings("ignore")
    fault = library_fault()
    faults = [fault] if fault else examine(options)
    for fault in faults:
        print(f"error: {fault}", file=sys.stderr)
    if not faults:
        print("\nit would run")
    return 2 if faults else 0


def build_parser() -> argparse.ArgumentParser:
    """The options of `accelerate launch` that matter, by its names, and what train.py takes."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = ExitingParser(
        prog=program("launch/doctor.py"), description=__doc__, formatter_class=raw, allow_abbrev=False
    )
    add = parser.add_argument
    add("--config_file", "--config-file", required=True, metavar="FILE", help="a launch file, or its name in launch/")
    for name, kind in _OPTIONS.items():
        add(f"--{name}", f"--{name.replace('_', '-')}", type=kind, metavar="X", help="as for accelerate launch")
    add("--cpu", action="store_true", help="as for accelerate launch")
    add("settings", nargs="*", metavar="[RECIPE] [a.b=c ...]", help="as for train.py")
    return parser


def library_fault(load: Callable[[str], Any] = __import__) -> str | None:
    """Reason why the libraries cannot be imported, with the cure; first, as `accelerate launch` needs them."""
    for name in ("torch", "torchvision", "accelerate", "cssr"):
        try:
            load(name)
        except Exception as error:  # torchvision raises RuntimeError where its operators do not fit torch
            reason = message_of(error)[:200]
            if name == "torchvision" or "torchvision::" in reason:
                return (
                    "torchvision cannot be imported, as a CPU-only torch beside the registry's torchvision cannot, and "
                    f"neither can timm and accelerate: install torch and torchvision from the same place ({reason})"
                )
            return f"{name} cannot be imported: pip install -e . ({reason})"
    return None


def examine(options: argparse.Namespace) -> list[str]:
    """Print what would run; returns the faults."""
    from cssr.launch.launch_file import Machine, faults, notes, read_launch_file
    from cssr.launch.launcher import find_launch_file

    try:
        path = find_launch_file(options.config_file)
        launch = read_launch_file(path, vars(options))
    except ValueError as error:
        return [str(error)]
    machine = Machine.here()
    problems = faults(launch, machine)
    show(str(path), [*launch_rows(launch, machine), *(("note", note) for note in notes(launch, machine))])
    if options.settings and launch.processes:
        from cssr.launch.dry_run import run_dry

        sections, more = run_dry(options.settings, launch, machine)
        for title, rows in sections:
            show(title, rows)
        problems += more
    return problems


def launch_rows(launch: Any, machine: Any) -> list[Row]:
    """Content of the launch file, in words."""
    device = machine.device if machine.devices and not launch.use_cpu and not launch.cpu else "cpu"
    available = (
        f"{machine.devices} x {machine.name or machine.device} here" if machine.devices else "no accelerator here"
    )
    rows = [("type", f"{launch.kind}: {_strategy(launch)}")]
    on_each = f" = {launch.per_machine} on each of {launch.machines} machines" if launch.machines > 1 else ""
    rows.append(("world size", f"{launch.world}{on_each}"))
    return [*rows, ("device", f"{device} ({available})"), ("precision", _precision(launch))]


def _strategy(launch: Any) -> str:
    if launch.strategy == "zero":
        parts = {1: "optimizer state", 2: "optimizer state and gradients", 3: "optimizer state, gradients and weights"}
        offload = ", the optimizer on the CPU" if launch.offloads else ""
        return f"DeepSpeed ZeRO-{launch.zero_stage}, {parts.get(launch.zero_stage, '')} in parts{offload}"
    names = {"simple": "one process", "ddp": "DDP", "fsdp": "FSDP, optimizer state, gradients and weights in parts"}
    return names[launch.strategy]


def _precision(launch: Any) -> str:
    if launch.precision == "no":
        return "float32"
    notes = {"zero": "DeepSpeed's autocast over float32 weights", "fsdp": "weights are cast as they are gathered"}
    return f"{launch.precision}, {notes.get(launch.strategy, 'autocast over float32 weights')}"


def show(title: str, rows: Sequence[Row]) -> None:
    """A title, and its rows in two columns."""
    print(title)
    for name, text in rows:
        print(f"  {name:<12} {text}")
