"""Share devices and cores among jobs, and make the launch command of each job."""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from cssr.utils.installed import find_file, folder
from cssr.utils.machine import check_processes

_PACKAGE = Path(__file__).resolve().parents[1]
_VISIBLE = {  # the environment variable that says which devices a process sees; mps has none, and one device
    "cuda": "CUDA_VISIBLE_DEVICES",
    "xpu": "ZE_AFFINITY_MASK",
    "npu": "ASCEND_RT_VISIBLE_DEVICES",
    "mlu": "MLU_VISIBLE_DEVICES",
    "musa": "MUSA_VISIBLE_DEVICES",
    "sdaa": "SDAA_VISIBLE_DEVICES",
    "hpu": "HABANA_VISIBLE_MODULES",
}


def devices() -> list[str]:
    """Names of the devices at hand as the environment variable of their kind lists them; none on a CPU."""
    import torch  # here, as it takes seconds: --help needs no device

    if os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true") or not torch.accelerator.is_available():
        return []
    visible = os.environ.get(_visible() or "", "")
    return visible.split(",") if visible else [str(n) for n in range(torch.accelerator.device_count())]


def _visible() -> str | None:
    import torch

    kind = torch.accelerator.current_accelerator()
    return _VISIBLE.get(kind.type) if kind else None


@dataclass(frozen=True)
class Launcher:
    """Launch command of a job: its processes, its launch file, and the environments of the jobs that run at a time."""

    processes: int
    file: Path
    threads: int  # of each process
    places: tuple[dict[str, str], ...]

    def command(self, script: str, *arguments: str) -> list[str]:
        """`accelerate launch` of a script of this repository; no two jobs ask for the same port."""
        launch = [sys.executable, "-m", "accelerate.commands.launch", "--quiet", "--config_file", str(self.file)]
        launch += ["--num_processes", str(self.processes), "--num_cpu_threads_per_process", str(self.threads)]
        launch += ["--main_process_port", "0"] if self.processes > 1 else []
        return [*launch, str(_PACKAGE.parent / script), *arguments]


def make_launcher(processes: int | None, jobs: int | None, file: str | None, threads: int | None = None) -> Launcher:
    """Share the devices, or the cores, among jobs. `threads`: None shares the cores out.

    Raises: ValueError, one line, for an unknown launch file and for more processes than devices.
    """
    chosen = find_launch_file(file) if file else None
    processes = processes or (_processes_of(chosen) if chosen else 1)
    available, cores = devices(), len(os.sched_getaffinity(0))
    if available and processes > len(available):
        raise ValueError(f"--processes {processes}: there are {len(available)} devices")
    jobs = jobs or max(1, (len(available) or cores) // processes)
    check_processes(processes * jobs, f"--processes {processes} x --jobs {jobs}", gib=1, per_core=2)
    from_environment = int(os.environ["OMP_NUM_THREADS"]) if os.environ.get("OMP_NUM_THREADS", "").isdigit() else None
    threads = from_environment or threads or max(1, cores // (jobs * processes))
    single, multiple = ("single_gpu", "multi_gpu") if available else ("cpu", "cpu_2proc")
    default = folder("launch") / f"{single if processes == 1 else multiple}.yaml"
    return Launcher(processes, chosen or default, threads, _places(available, processes, jobs))


def _places(available: Sequence[str], processes: int, jobs: int) -> tuple[dict[str, str], ...]:
    variable = _visible() if available else None
    if not variable:
        return ({},) * jobs
    device_sets = [[available[(job * processes + n) % len(available)] for n in range(processes)] for job in range(jobs)]
    return tuple({variable: ",".join(chosen)} for chosen in device_sets)


def find_launch_file(text: str) -> Path:
    """A launch file by its path, or by its name in launch/; ValueError lists those."""
    path = find_file(text, "launch")
    if path.is_file():
        return path
    names = ", ".join(sorted(path.stem for path in folder("launch").glob("*.yaml")))
    raise ValueError(f"--config-file {text}: no such file; in launch/ there are {names}")


def _processes_of(path: Path) -> int:
    try:
        return int(yaml.safe_load(path.read_text(encoding="utf-8"))["num_processes"])
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError, ValueError):
        raise ValueError(f"--config-file {path} says no num_processes: it is no launch file of accelerate") from None
