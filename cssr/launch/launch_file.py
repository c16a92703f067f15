"""Launch files: read one with accelerate's options, and find the reasons for which accelerate would not run it so.

Nothing is started here. `faults` knows where accelerate 1.15 and DeepSpeed silently do something else, or fail
late; each fault is one line with its remedy.
"""

import importlib.util
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
import yaml
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file

from cssr.config.yaml_loader import Texts, load_yaml
from cssr.utils.annotations import Within
from cssr.utils.json_files import misfit, read_bytes
from cssr.utils.machine import cores
from cssr.utils.machine import memory as own_memory
from cssr.utils.text import message_of

DDP = ("MULTI_GPU", "MULTI_NPU", "MULTI_MLU", "MULTI_SDAA", "MULTI_MUSA", "MULTI_XPU", "MULTI_HPU", "MULTI_NEURON")
_PACKAGES = ("deepspeed", "transformers")
_COUNT = Annotated[int, Within(-1, 10**6)]  # processes or machines
_RANGES = {"num_processes": (1, 10**6), "num_machines": (1, 10**6), "main_process_port": (0, 65535)}  # of options
_SHAPE = {  # of a launch file, as far as it is used here
    "?compute_environment": str | None,
    "?distributed_type": str | bool | None,
    "?num_processes": _COUNT | None,
    "?num_machines": _COUNT,
    "?machine_rank": _COUNT | None,
    "?main_process_ip": str | None,
    "?main_process_port": int | None,
    "?mixed_precision": str | bool | None,
    "?use_cpu": bool,
    "?gpu_ids": str | int | None,
    "?rdzv_backend": str | None,
    "?deepspeed_config": {"?zero_stage": int, "?offload_optimizer_device": str, "?deepspeed_multinode_launcher": str},
    "?fsdp_config": {"?fsdp_version": int},
    "?dynamo_config": {"?dynamo_backend": str},
}


@dataclass(frozen=True)
class LaunchFile:
    """Settings of a launch file and accelerate's options; None where neither gives one."""

    kind: str  # accelerate's distributed_type
    processes: int | None  # over all machines
    machines: int = 1
    machine_rank: int | None = None  # as an option: the 0 in a file is the same on all machines
    main_ip: str | None = None
    precision: str = "no"  # no, bf16, fp16, fp8
    cpu: bool = False  # --cpu
    use_cpu: bool = False  # of the file
    gpu_ids: str = "all"
    rendezvous: str = "static"
    deepspeed: Mapping[str, Any] = field(default_factory=dict)
    fsdp: Mapping[str, Any] = field(default_factory=dict)
    dynamo: str = "no"  # accelerate's backend of torch.compile

    @property
    def strategy(self) -> str:
        """Strategy of accelerate's launcher: `simple` (one process), `ddp`, `zero` or `fsdp`."""
        of_kind = {"DEEPSPEED": "zero", "FSDP": "fsdp", **dict.fromkeys(DDP, "ddp")}
        return "simple" if self.cpu else of_kind.get(self.kind, "simple")

    @property
    def per_machine(self) -> int:
        """Processes that the launcher starts on a machine."""
        return 1 if self.strategy == "simple" else (self.processes or 0) // self.machines

    @property
    def world(self) -> int:
        """Processes that would run."""
        return 1 if self.strategy == "simple" else self.per_machine * self.machines

    @property
    def zero_stage(self) -> int:
        """1, 2 or 3; 0 without DeepSpeed."""
        return int(self.deepspeed.get("zero_stage", 2)) if self.strategy == "zero" else 0

    @property
    def offloads(self) -> bool:
        """Return whether the optimizer's state and step are on the CPU."""
        return self.strategy == "zero" and self.deepspeed.get("offload_optimizer_device", "none") != "none"

    @property
    def in_parts(self) -> bool:
        """Return whether a rank keeps a part of the weights only."""
        return self.zero_stage == 3 or self.strategy == "fsdp"


@dataclass(frozen=True)
class Machine:
    """The machine that a launch would run on, as far as it matters."""

    device: str = "cpu"  # cuda, xpu, ...
    devices: int = 0  # accelerators that can be seen
    name: str = ""  # of a device
    memory: int | None = None  # bytes of a device; of this machine, where there is none
    packages: frozenset[str] = frozenset(_PACKAGES)  # those that are installed, of the ones that DeepSpeed needs
    compiles: bool = True  # whether there are a C++ compiler and ninja
    environment: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def here(cls) -> "Machine":
        """This machine."""
        device = torch.accelerator.current_accelerator(check_available=True)
        compiler, ninja = (shutil.which(name) for name in (os.environ.get("CXX", "c++"), "ninja"))
        facts = {
            "packages": frozenset(name for name in _PACKAGES if importlib.util.find_spec(name)),
            "compiles": bool(compiler and ninja),
            "environment": dict(os.environ),
        }
        if device is None:
            return cls(memory=own_memory(), **facts)
        properties = getattr(torch.get_device_module(device), "get_device_properties", lambda _: None)(0)
        memory, name = getattr(properties, "total_memory", None), getattr(properties, "name", "")
        return cls(device.type, torch.accelerator.device_count(), name, memory, **facts)


def read_launch_file(path: Path, options: Mapping[str, Any]) -> LaunchFile:
    """A launch file by accelerate's own reader, under options of `accelerate launch` (None: not given).

    Raises: ValueError, one line, for a file that accelerate cannot read.
    """
    fault = None
    try:
        content = read_bytes(path)
        load_yaml(content, Texts, "it is not valid YAML")  # no key twice: accelerate takes the last
        fault = misfit(yaml.safe_load(content), _SHAPE)
        file = None if fault else load_config_from_file(str(path))
    except Exception as error:  # what YAML, enumerations and dataclasses raise
        raise ValueError(f"--config_file {path}: {message_of(error) or type(error).__name__}") from error
    if fault:
        raise ValueError(f"--config_file {path} is no launch file of accelerate: {fault}")
    if not isinstance(file, ClusterConfig):
        raise ValueError(f"--config_file {path}: compute_environment must be LOCAL_MACHINE")
    for name, word in (("distributed_type", "NO"), ("mixed_precision", "no")):
        if isinstance(getattr(file, name), bool):
            raise ValueError(f'--config_file {path}: {name}: {word} is false in YAML, write {name}: "{word}"')
    options_given = {name: value for name, value in options.items() if value is not None}
    port = {"main_process_port": file.main_process_port or 0}
    for name, value in {**port, **options_given}.items():
        low, high = _RANGES.get(name, (value, value))
        if not low <= value <= high:
            raise ValueError(f"{name}: {value} cannot be: give --{name} a number of {low} to {high}")
    return LaunchFile(
        kind=file.distributed_type.value,
        processes=max(options_given.get("num_processes", file.num_processes) or 0, 0) or None,
        machines=max(options_given.get("num_machines", file.num_machines), 1),
        machine_rank=options_given.get("machine_rank", file.machine_rank or None),
        main_ip=options_given.get("main_process_ip", file.main_process_ip),
        precision=str(options_given.get("mixed_precision", file.mixed_precision or "no")).lower(),
        cpu=options_given.get("cpu", False),
        use_cpu=file.use_cpu,
        gpu_ids=str(file.gpu_ids or "all"),
        rendezvous=file.rdzv_backend or "static",
        deepspeed=file.deepspeed_config,
        fsdp=file.fsdp_config,
        dynamo=str(options_given.get("dynamo_backend", (file.dynamo_config or {}).get("dynamo_backend", "no"))).lower(),
    )


# ---- what accelerate would not run as asked ----


def faults(launch: LaunchFile, machine: Machine) -> list[str]:
    """Faults by which a launch would silently do something else, or fail late; one line each, with the remedy."""
    if launch.processes is None:
        return ["num_processes is neither in the launch file nor given: add --num_processes N"]
    general = [
        *_kind_faults(launch),
        *_dynamo_faults(launch),
        *_cpu_faults(launch, machine),
        *_device_faults(launch, machine),
        *_machine_faults(launch),
    ]
    return [
        *general,
        *_precision_faults(launch, machine),
        *_deepspeed_faults(launch, machine),
        *_fsdp_faults(launch, machine),
    ]


def _kind_faults(launch: LaunchFile) -> Iterator[str]:
    if launch.kind == "MULTI_CPU":
        yield (
            f"distributed_type: MULTI_CPU silently runs one process, not {launch.processes}: "
            "use launch/cpu_2proc.yaml, with --num_processes N"
        )
    elif launch.kind not in ("NO", "DEEPSPEED", "FSDP", *DDP):
        yield f"distributed_type: {launch.kind} is not supported: use one of the files in launch/"
    elif launch.strategy == "simple" and (launch.processes > 1 or launch.machines > 1):
        reason = "--cpu" if launch.cpu else f'distributed_type: "{launch.kind}"'
        yield (
            f"{reason} silently runs one process on each machine, not {launch.processes} together: "
            "use launch/cpu_2proc.yaml or launch/multi_gpu.yaml, or num_processes: 1"
        )


def _dynamo_faults(launch: LaunchFile) -> Iterator[str]:
    if launch.dynamo not in ("no", "none"):
        yield (
            f"dynamo_backend: {launch.dynamo} renames the weights, with which no checkpoint can be written: "
            'set dynamo_config: {dynamo_backend: "NO"}, and train.compile=true'
        )


def _cpu_faults(launch: LaunchFile, machine: Machine) -> Iterator[str]:
    forced = machine.environment.get("ACCELERATE_USE_CPU", "false").lower() in ("1", "true", "yes")
    if launch.strategy == "zero" and forced:
        yield "ACCELERATE_USE_CPU in the environment silently turns DeepSpeed into DDP: unset it (ZeRO runs on CPUs)"
    if launch.use_cpu and launch.strategy != "simple" and machine.devices and not forced:
        yield (
            f"use_cpu: true does not reach the processes of {launch.kind}, which would use the {machine.device} "
            "devices: remove it, and for CPUs set ACCELERATE_USE_CPU=true in the environment"
        )


def _device_faults(launch: LaunchFile, machine: Machine) -> Iterator[str]:
    visible = machine.devices
    if visible and launch.gpu_ids != "all":
        visible = min(len(launch.gpu_ids.split(",")), visible)
    limit = max(16, 4 * cores())
    if not visible and launch.per_machine > limit:
        yield (
            f"{launch.per_machine} processes on a machine without accelerator and with {cores()} cores: "
            f"set --num_processes to at most {limit * launch.machines}"
        )
    on_cpu = launch.strategy == "simple" or machine.environment.get("ACCELERATE_USE_CPU", "").lower() == "true"
    if visible and launch.per_machine > visible and not on_cpu:
        yield (
            f"{launch.per_machine} processes on a machine with {visible} {machine.device} devices: "
            f"set --num_processes to at most {visible * launch.machines}"
        )


def _machine_faults(launch: LaunchFile) -> Iterator[str]:
    if launch.strategy == "simple":
        return
    if launch.machine_rank is not None and not 0 <= launch.machine_rank < launch.machines:
        yield f"--machine_rank {launch.machine_rank} with num_machines: {launch.machines}: ranks begin at 0"
    if launch.machines == 1:
        return
    if launch.processes % launch.machines:
        yield (
            f"num_processes: {launch.processes} is no multiple of num_machines: {launch.machines}; accelerate would "
            f"silently run {launch.world}: num_processes counts the processes of all machines"
        )
    if not launch.main_ip:
        yield "several machines need the address of machine 0: add --main_process_ip ADDRESS"
    if launch.machine_rank is None:
        last = launch.machines - 1
        yield f"every machine would take itself for machine 0, and wait: add --machine_rank R, 0 to {last}, on each"
    if launch.rendezvous != "static":
        yield f"rdzv_backend: {launch.rendezvous} does not bring several machines together here: use static"
    if launch.strategy == "zero" and launch.deepspeed.get("deepspeed_multinode_launcher") != "standard":
        yield (
            "DeepSpeed's launcher would go to the other machines by ssh: "
            "add deepspeed_multinode_launcher: standard to deepspeed_config"
        )


def _precision_faults(launch: LaunchFile, machine: Machine) -> Iterator[str]:
    if launch.precision == "fp16" and launch.strategy == "zero":
        yield "mixed_precision: fp16 does not go with DeepSpeed here: use bf16 or no"
    elif launch.precision == "fp16" and not machine.devices:
        yield "mixed_precision: fp16 needs a GPU: use bf16 or no"
    elif launch.precision not in ("no", "bf16", "fp16"):
        yield f"mixed_precision: {launch.precision} is not supported: use bf16 or no"


def _deepspeed_faults(launch: LaunchFile, machine: Machine) -> Iterator[str]:
    if launch.strategy != "zero":
        return
    missing = [name for name in _PACKAGES if name not in machine.packages]
    if missing:
        yield f"DeepSpeed under accelerate needs {' and '.join(missing)}: pip install 'cssr[deepspeed]'"
    if not machine.compiles and (launch.offloads or not machine.devices):
        yield "DeepSpeed compiles C++ for the CPU when it first runs: install g++ and ninja, and have both on PATH"
    if "deepspeed_config_file" in launch.deepspeed:
        yield (
            "deepspeed_config_file does not go with mixed_precision in the launch file, and training sets its sizes "
            "itself: give zero_stage and the like in deepspeed_config, as launch/zero2.yaml does"
        )
    if launch.zero_stage not in (1, 2, 3):
        yield f"zero_stage: {launch.zero_stage} is not supported: 1, 2 or 3; launch/multi_gpu.yaml without ZeRO"


def _fsdp_faults(launch: LaunchFile, machine: Machine) -> Iterator[str]:
    if launch.strategy != "fsdp":
        return
    if not machine.devices:
        yield "FSDP without a GPU silently becomes something else: use launch/cpu_2proc.yaml or launch/zero2.yaml"
    if int(launch.fsdp.get("fsdp_version", 1)) != 2:
        yield "fsdp_version: 1 is not supported: use launch/fsdp2.yaml"


def notes(launch: LaunchFile, machine: Machine) -> list[str]:
    """Notes on what works, but perhaps not as meant."""
    lines = []
    if not machine.devices and (launch.strategy == "ddp" or (launch.strategy == "simple" and not launch.use_cpu)):
        lines.append("there is no GPU here: the processes would run on the CPU")
    if launch.use_cpu and launch.strategy != "simple" and not machine.devices:
        lines.append(f"use_cpu: true does not reach the processes of {launch.kind}; without GPUs that is all the same")
    return lines
