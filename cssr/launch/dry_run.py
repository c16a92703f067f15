"""Dry run of a recipe under a launch file: how its batch is split, its data, its parameters, the memory of a rank."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from cssr.config.loading import load_config
from cssr.config.schema import Config
from cssr.data.checks import check_kernels, check_lq, is_stored, open_train_sets
from cssr.data.remote import is_remote
from cssr.data.sampler import check_split
from cssr.data.shards import ShardSet, open_sets, parse_sets
from cssr.data.tars import find_tars
from cssr.degradations import DEGRADATIONS
from cssr.evaluation.evaluator import measures_segmentation
from cssr.launch.launch_file import LaunchFile, Machine
from cssr.launch.memory import FakeTask, Need, bytes_on_cpu, largest_micro_batch, make_optimizer, needs
from cssr.training.checks import check_best, check_degradation, check_strategy, check_training
from cssr.utils.distributed import OFFLOADED
from cssr.utils.text import message_of

GIB = 2**30
Row = tuple[str, str]
Section = tuple[str, list[Row]]


def run_dry(settings: Sequence[str], launch: LaunchFile, machine: Machine) -> tuple[list[Section], list[str]]:
    """Dry run of these settings: sections to print, and the reasons for which it would not run."""
    recipe = None if "=" in settings[0] else settings[0]
    try:
        config = load_config(recipe, settings[recipe is not None :])
    except ValueError as error:
        return [], [str(error)]
    dry_run = DryRun(config, launch, machine)
    return [(recipe or "settings", dry_run.rows()), *dry_run.memory()], dry_run.faults


class DryRun:
    """Checks of train.py without an engine and without memory; each that fails is a fault."""

    def __init__(self, config: Config, launch: LaunchFile, machine: Machine):
        self.config, self.launch, self.machine = config, launch, machine
        self.faults: list[str] = []
        self.micro_batch = config.train.micro_batch or max(config.train.batch_size // launch.world, 1)
        self.accumulation = max(config.train.batch_size // (launch.world * self.micro_batch), 1)
        self.on_cpu = not machine.devices or launch.use_cpu or launch.cpu
        self.sets: list[ShardSet] = []
        self.fake: FakeTask | None = None
        self.optimizer: torch.optim.Optimizer | None = None
        self.kernel: tuple[int, ...] | None = None

    @contextmanager
    def _collect_faults(self) -> Iterator[None]:
        try:
            yield
        except ValueError as error:
            self.faults.append(str(error))

    def rows(self) -> list[Row]:
        """Batch, lanes, data and parameters."""
        sizes = self.config.train.batch_size, self.launch.world, self.config.data.workers, self.micro_batch
        with self._collect_faults():
            check_split(self.config.data.lanes, *sizes)
        with self._collect_faults():
            check_strategy(self.config, self.launch.in_parts, "cpu" if self.on_cpu else self.machine.device)
        data = self._data()
        with self._collect_faults():
            self.fake = FakeTask(self.config)
        with self._collect_faults():
            self._check_optimizer()
        with self._collect_faults():
            self._check_kernel()
        return [*self._sizes(), ("data", data), *self._parameters()]

    def _sizes(self) -> list[Row]:
        config, world = self.config, self.launch.world
        workers = max(config.data.workers, 1)
        split = f"ranks x micro-batch x accumulation = {world} x {self.micro_batch} x {self.accumulation}"
        lanes_per_worker = config.data.lanes / world / workers
        lanes = f"{config.data.lanes}: ranks x workers x lanes of each = {world} x {workers} x {lanes_per_worker:g}"
        return [("batch", f"{config.train.batch_size}: {split}"), ("lanes", lanes)]

    # ---- data ----

    def _data(self) -> str:
        """The training sets, checked as train.py does; or why they are not."""
        train = self.config.data.train
        if train is None:
            return "data.train is not set: what depends on the data is not checked"
        missing = []
        with self._collect_faults():
            missing = [path for path in parse_sets(train, "data.train") if _is_missing(path)]
        if missing:
            return f"{missing[0]} is not here: what depends on the data is not checked"
        with self._collect_faults():
            self._check_sets()
        return f"{sum(map(len, self.sets))} samples in {len(self.sets)} sets" if self.sets else "see the error"

    def _check_sets(self) -> None:
        config, scale = self.config, self.config.model.scale
        lq_scale = scale if is_stored(config.degradation) else None
        sets = open_train_sets(config.data, lq_scale)
        check_training(config, sets)
        self.sets = sets
        validates = config.train.val_every > 0 and config.data.val is not None
        val_sets = open_sets(config.data.val, "data.val", config.data) if validates else []
        check_lq([shards for shards in val_sets if lq_scale or (shards.lq and scale > 1)], scale, "data.val")
        check_best(config.train.best, measures_segmentation(config.model, val_sets, "data.val") or not validates)

    # ---- what is built ----

    def _check_optimizer(self) -> None:
        self.optimizer = make_optimizer(self.config)
        if self.launch.offloads and type(self.optimizer) not in OFFLOADED:
            raise ValueError(
                f"optim.optimizer={self.config.optim.optimizer} would silently become DeepSpeed's Adam, the one "
                "that steps on the CPU: set adam, adamw or adagrad, or use launch/zero2.yaml"
            )

    def _check_kernel(self) -> None:
        """Degrade an empty image, or look at what the sets store."""
        config = self.config
        if self.fake is None:
            return
        if not is_stored(config.degradation):
            degrade = DEGRADATIONS.build(config.degradation, scale=config.model.scale)
            side = config.data.crop
            kernel = degrade(torch.zeros(1, 3, side, side), torch.zeros(1, dtype=torch.int64))[1]
            self.kernel = None if kernel is None else tuple(kernel.shape[1:])
            check_degradation(config, degrade, self.fake.task)
        elif self.fake.task.needs_kernel:
            side = getattr(self.fake.model.sr, "kernel_size", None)
            self.kernel = (1, side, side) if side else None
            check_kernels(self.sets, side, "data.train")

    def _parameters(self) -> list[Row]:
        if self.fake is None:
            return []
        sizes = ", ".join(f"{name} {count / 1e6:.2f} M" for name, count in self.fake.groups().items())
        return [("parameters", f"{sizes}; together {self.fake.parameters / 1e6:.2f} M")]

    # ---- memory ----

    def memory(self) -> list[Section]:
        """The memory of a rank, beside that of its device; a need that is larger is a fault."""
        if self.fake is None or self.optimizer is None:
            return []
        title = "memory of a rank, GiB, estimated"
        try:
            activations = self.fake.activations(self.micro_batch, self.kernel, self.launch.precision != "no")
        except Exception as error:  # networks of one's own may look at the values that these tensors do not have
            reason = message_of(error)[:160]
            return [(title, [("unknown", f"the model needs true tensors: {type(error).__name__}: {reason}")])]
        needed = needs(self.launch, self.fake, self.optimizer, activations)
        self._check_memory(needed)
        return [(title, [*map(_row, needed), *self._total(needed)])]

    def _total(self, needed: list[Need]) -> list[Row]:
        available = self._available()
        owner = "this machine's for each of its processes" if self.on_cpu else "the device's"
        compared = f"of {available / GIB:.2f}, {owner}" if available else ""
        rows = [_row(Need("together", sum(need.bytes for need in needed), compared))]
        if size := bytes_on_cpu(self.launch, self.fake, self.optimizer):
            rows.append(_row(Need("on the CPU", size, "weights, gradients and state of the part")))
        return rows

    def _available(self) -> float | None:
        """Bytes that a rank may use; None where that is not known."""
        if self.on_cpu and self.machine.devices:
            return None
        shared = self.launch.per_machine if self.on_cpu else 1
        return self.machine.memory / shared if self.machine.memory else None

    def _check_memory(self, needed: list[Need]) -> None:
        available, sizes = self._available(), {need.name: need.bytes for need in needed}
        total = sum(sizes.values())
        if not available or total <= available:
            return
        fits = largest_micro_batch(sizes, available, self.micro_batch)
        samples_per_rank = max(self.config.train.batch_size // self.launch.world, 1)
        fitting = [n for n in range(1, min(fits, samples_per_rank) + 1) if samples_per_rank % n == 0]
        remedy = f"train.micro_batch={fitting[-1]}" if fitting else "a smaller data.crop, or mixed_precision: bf16"
        self.faults.append(
            f"a rank would need about {total / GIB:.1f} GiB, and has {available / GIB:.1f}: set {remedy}"
        )


def _is_missing(path: str) -> bool:
    tars = find_tars(path)
    return not (is_remote(path) or Path(path).exists() or (tars and Path(tars.root, tars.names[0]).exists()))


def _row(need: Need) -> Row:
    return need.name, f"{need.bytes / GIB:7.3f}  {need.reason}".rstrip()
