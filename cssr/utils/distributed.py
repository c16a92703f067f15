"""The accelerate engine that training and evaluation run on, and what ranks send each other."""

import importlib.util
import os
import warnings
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import (
    DistributedDataParallelKwargs,
    DistributedType,
    DynamoBackend,
    InitProcessGroupKwargs,
    broadcast_object_list,
)
from timm.utils import distribute_bn
from torch import Tensor, nn
from torch.distributed import PrefixStore, TCPStore

OFFLOADED = (torch.optim.Adam, torch.optim.AdamW, torch.optim.Adagrad)
_OVERDUE = 60  # seconds by which a collective outlives the watchdog: the latter's message says more


def start_engine(timeout: float = 1800, **arguments: Any) -> Accelerator:
    """The engine; without a GPU (and without DeepSpeed) it is asked for the CPU, which launch files cannot do.

    Buffers are not broadcast from rank 0 before each forward pass: `average_batch_norm` counts every rank's.

    Args:
        timeout: seconds after which ranks that wait for another give up.
        arguments: of `Accelerator`.
    Raises: ValueError where the world is not the one that the launcher has asked for, or cannot be had here.
    """
    has_device, deepspeed = torch.accelerator.is_available(), _asked_for("DEEPSPEED")
    if deepspeed:
        _check_deepspeed()
        _leave_out_inference()
    if _asked_for("FSDP") and not has_device:
        raise ValueError("FSDP needs GPUs, here are none: use launch/cpu_2proc.yaml or launch/zero2.yaml")
    groups = InitProcessGroupKwargs(
        backend=None if has_device or not deepspeed else "gloo", timeout=timedelta(seconds=timeout + _OVERDUE)
    )
    # accelerate has no other name for it yet
    warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
    _init_restarted_group(timeout)
    handlers = [DistributedDataParallelKwargs(broadcast_buffers=False), groups]
    engine = Accelerator(cpu=not has_device and not deepspeed, kwargs_handlers=handlers, **arguments)
    _check_world(engine.num_processes)
    if deepspeed and not uses_deepspeed(engine):
        raise ValueError("the launch file asks for DeepSpeed, but ACCELERATE_USE_CPU prevents it: unset that")
    return engine


def _init_restarted_group(timeout: float) -> None:
    """Form the group of ranks here after a restart by torchrun.

    Its store outlives the restart, and with it the addresses of ranks that are gone: each attempt needs its own names.
    """
    attempt = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    if not attempt or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    patience = timedelta(seconds=timeout + _OVERDUE)
    address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    torch.distributed.init_process_group(
        torch.distributed.get_default_backend_for_device(device),
        store=PrefixStore(f"attempt_{attempt}", TCPStore(*address, is_master=False, timeout=patience)),
        rank=int(os.environ["RANK"]),
        world_size=int(os.environ["WORLD_SIZE"]),
        timeout=patience,
    )


def _asked_for(strategy: str) -> bool:
    """Return whether the launch file names it."""
    return os.environ.get(f"ACCELERATE_USE_{strategy}", "false").lower() == "true"


def _check_deepspeed() -> None:
    missing = [name for name in ("deepspeed", "transformers") if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(
            f"the launch file asks for DeepSpeed, but {' and '.join(missing)} is not installed: "
            "pip install 'cssr[deepspeed]'"
        )
    if os.environ.get("ACCELERATE_MIXED_PRECISION") == "fp16":
        raise ValueError("mixed_precision=fp16 does not go with DeepSpeed here: use bf16 or no")


def _leave_out_inference() -> None:
    """On a CPU, keep DeepSpeed from compiling an operator of its inference: a minute at the start, and a compiler."""
    from deepspeed import ops

    ops.__compatible_ops__["deepspeed_shm_comm"] = False


def _check_world(world: int) -> None:
    """`CSSR_WORLD_SIZE` comes from a script above the launcher, which sets `WORLD_SIZE`."""
    for variable in ("CSSR_WORLD_SIZE", "WORLD_SIZE"):
        expected = int(os.environ.get(variable, world if variable == "CSSR_WORLD_SIZE" else 1))
        if world != expected:
            raise ValueError(
                f"the launcher asked for {expected} processes ({variable}), accelerate runs {world}: "
                "use one of the launch files in launch/; `python launch/doctor.py --config_file X` explains a file"
            )


def check_compilation(engine: Accelerator) -> None:
    """Refuse to train what accelerate would compile: the names of its weights change, and no checkpoint has them."""
    if engine.state.dynamo_plugin.backend != DynamoBackend.NO:
        raise ValueError(
            f"accelerate's dynamo_backend {engine.state.dynamo_plugin.backend.value} renames the weights: leave "
            '--dynamo_backend out, answer no in `accelerate config` (dynamo_config: {dynamo_backend: "NO"}), and set '
            "train.compile=true"
        )


def uses_deepspeed(engine: Accelerator) -> bool:
    """Return whether DeepSpeed runs the step."""
    return engine.distributed_type == DistributedType.DEEPSPEED


def shards_parameters(engine: Accelerator) -> bool:
    """Return whether a rank holds parts of the parameters only: ZeRO-3 and FSDP."""
    zero3 = uses_deepspeed(engine) and engine.deepspeed_plugin.zero_stage == 3
    return zero3 or engine.distributed_type == DistributedType.FSDP


def flattens(engine: Accelerator) -> bool:
    """Return whether the engine flattens weights, which must then be contiguous: DeepSpeed and FSDP."""
    return uses_deepspeed(engine) or engine.distributed_type == DistributedType.FSDP


def precision(engine: Accelerator) -> str:
    """`no` or `bf16` or `fp16`, whoever sees to it."""
    if uses_deepspeed(engine) and "torch_autocast" in engine.deepspeed_plugin.deepspeed_config:
        return "bf16"
    return engine.mixed_precision


def set_memory_format(module: nn.Module, layout: torch.memory_format) -> None:
    """Put the weights of convolutions into this order in memory; their names, shapes and values stay."""
    for parameter in module.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=layout)


def configure_deepspeed(
    engine: Accelerator, optimizer: torch.optim.Optimizer, micro_batch: int, accumulation: int, clip_norm: float | None
) -> None:
    """Give DeepSpeed the sizes of a step, as numbers, before anything is prepared; without it, do nothing.

    Its own bf16 mode makes parameters bf16, with which BatchNorm fails on a CPU and exports lose precision: bf16 here
    means autocast, over float32 parameters.
    """
    if not uses_deepspeed(engine):
        return
    settings = engine.deepspeed_plugin.deepspeed_config
    if settings["zero_optimization"].get("stage") == 0:
        raise ValueError("zero_stage: 0 is not supported: 1, 2 or 3; launch/multi_gpu.yaml without ZeRO")
    _check_offload(settings, optimizer)
    settings["zero_optimization"].pop("compute_grad_norm", None)  # by it, steps with bad losses are left out
    trained = sum(parameter.numel() for group in optimizer.param_groups for parameter in group["params"])
    settings["zero_optimization"].setdefault("reduce_bucket_size", trained)  # or it takes 2 GB, always
    settings |= {
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": clip_norm or 0.0,
    }
    engine.gradient_accumulation_steps = accumulation
    if settings.get("bf16", {}).get("enabled"):
        settings |= {"bf16": {"enabled": False}, "torch_autocast": {"enabled": True, "dtype": "bfloat16"}}


def _check_offload(settings: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> None:
    """accelerate puts DeepSpeed's Adam in the place of whatever else was asked for."""
    device = settings["zero_optimization"].get("offload_optimizer", {}).get("device", "none")
    if device != "none" and type(optimizer) not in OFFLOADED:
        raise ValueError(
            f"optim.optimizer: {type(optimizer).__name__} cannot be offloaded to the CPU, where DeepSpeed runs adam, "
            "adamw and adagrad only: take one of them, or launch/zero2.yaml"
        )


def accumulating(engine: Accelerator, module: nn.Module, last: bool) -> AbstractContextManager:
    """Around forward and backward of a micro-batch: whether ranks exchange gradients, which they do at the last."""
    engine.sync_gradients = last
    return nullcontext() if last or uses_deepspeed(engine) else engine.no_sync(module)


def backward(engine: Accelerator, loss: Tensor, accumulation: int) -> None:
    """Backward of a micro-batch's mean loss; DeepSpeed divides by the accumulation itself."""
    engine.backward(loss if uses_deepspeed(engine) else loss / accumulation)


def base_optimizer(optimizer: Any) -> torch.optim.Optimizer:
    """The one that steps, within what engines wrap around it."""
    while hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    return optimizer


def average_batch_norm(engine: Accelerator, *modules: nn.Module) -> None:
    """Average BatchNorm statistics, which each rank has of its own samples, over the ranks."""
    if engine.num_processes > 1:
        for module in modules:
            distribute_bn(module, engine.num_processes, reduce=True)


def from_main_process(engine: Accelerator, compute: Callable[[], Any]) -> Any:
    """Call `compute` on rank 0 only and return its result on every rank."""
    shared = [compute() if engine.is_main_process else None]
    if engine.num_processes > 1:
        broadcast_object_list(shared)
    return shared[0]


class AnyRank:
    """Logical or over the ranks, over the CPUs, so that no device has to be waited for."""

    def __init__(self, engine: Accelerator, timeout: float = 1800):
        several, patience = engine.num_processes > 1, timedelta(seconds=timeout + _OVERDUE)
        self.group = torch.distributed.new_group(backend="gloo", timeout=patience) if several else None

    def __call__(self, here: bool) -> bool:
        """The same answer on all ranks; all must ask."""
        if self.group is None:
            return here
        flag = torch.tensor(int(here))
        torch.distributed.all_reduce(flag, group=self.group)
        return bool(flag)


class RankSum:
    """Sum of a few numbers over the ranks, exchanged while other work is done.

    Work that is queued later can use it on the device; the host reads a copy that waits for none of that work.

    Args:
        values: this rank's, a vector on the engine's device, which becomes the sum.
    """

    def __init__(self, engine: Accelerator, values: Tensor):
        self._values, self._work, self._copy = values, None, None
        if engine.num_processes > 1:
            self._work = torch.distributed.all_reduce(values, async_op=True)
        if values.device.type == "cuda":
            self._copy = self._copied()

    def on_device(self) -> Tensor:
        """The sum; a GPU, and not the host, waits for it."""
        if self._work:
            self._work.wait()
        return self._values

    def read(self) -> list[float]:
        """The sum, waited for."""
        if self._copy is None:
            return self.on_device().tolist()
        host, event = self._copy
        event.synchronize()
        return host.tolist()

    def _copied(self) -> tuple[Tensor, torch.cuda.Event]:
        """A copy to the host by a stream of its own, as the others have the backward pass to do."""
        host, stream = torch.empty(self._values.shape, pin_memory=True), torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            host.copy_(self.on_device(), non_blocking=True)
        self._values.record_stream(stream)
        return host, stream.record_event()
