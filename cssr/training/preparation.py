"""What settings, data and processes come to before anything is built: batch sizes, open sets, what is measured."""

import os
from dataclasses import dataclass

from accelerate import Accelerator

from cssr.config.schema import Config
from cssr.data.checks import check_lq, is_stored, open_train_sets
from cssr.data.sampler import check_split
from cssr.data.shards import ShardSet, open_sets
from cssr.evaluation.evaluator import measures_segmentation
from cssr.training.checks import check_best, check_memory, check_strategy, check_training
from cssr.utils import distributed as engines
from cssr.utils.machine import check_processes


@dataclass(frozen=True)
class Prepared:
    """What a run goes by beside its settings."""

    micro_batch: int  # samples of a process at a time
    accumulation: int  # micro-batches of an optimizer step
    lq_scale: int | None  # of the LQ images that the shards store; None: HR images are degraded
    train_sets: list[ShardSet]
    val_sets: list[ShardSet]
    validates: bool
    segmentation: bool  # whether validation measures it


def prepare(config: Config, engine: Accelerator) -> Prepared:
    """Find every mistake of the user that settings and data show.

    Raises: ValueError, one line: the setting, what was found, the remedy.
    """
    world, scale = engine.num_processes, config.model.scale
    micro_batch = config.train.micro_batch or max(config.train.batch_size // world, 1)
    engines.check_compilation(engine)
    per_machine = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) * config.data.workers
    check_processes(per_machine, f"data.workers={config.data.workers}", gib=0.3)
    check_memory(micro_batch, config.data.crop)
    check_split(config.data.lanes, config.train.batch_size, world, config.data.workers, micro_batch)
    check_strategy(config, engines.shards_parameters(engine), engine.device.type)
    lq_scale = scale if is_stored(config.degradation) else None
    train_sets = open_train_sets(config.data, lq_scale)
    check_training(config, train_sets)
    validates = config.train.val_every > 0 and config.data.val is not None
    val_sets = open_sets(config.data.val, "data.val", config.data) if validates else []
    check_lq([shards for shards in val_sets if lq_scale or (shards.lq and scale > 1)], scale, "data.val")
    segmentation = measures_segmentation(config.model, val_sets, "data.val")
    check_best(config.train.best, segmentation or not validates)
    accumulation = config.train.batch_size // (world * micro_batch)
    return Prepared(micro_batch, accumulation, lq_scale, train_sets, val_sets, validates, segmentation)
