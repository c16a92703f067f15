"""Start of a run: its own newest checkpoint, the weights of another model, or fresh ones."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cssr.config.loading import changed_settings, to_dict
from cssr.config.schema import Config
from cssr.models.export import load_weights
from cssr.models.joint import JointModel, build_model
from cssr.models.load import checkpoints, holds_segmentation, init_from, read_best


@dataclass(frozen=True)
class Start:
    """Where a run begins or resumes.

    Attributes:
        step: taken so far.
        best: value of `train.best` of the best checkpoint, where it can be compared with what comes.
        changed: a clause for each setting that differs from the checkpoint's.
    """

    step: int = 0
    best: float | None = None
    changed: tuple[str, ...] = ()


def initial_model(config: Config, checkpoint: Path | None) -> JointModel:
    """The model with the weights of a checkpoint of this run, of `train.init_from`, or fresh ones, seeded.

    `config.model.sr` becomes what the network can be built from without a file of weights.
    """
    other = None if checkpoint else config.train.init_from
    fresh = not checkpoint and not (other and holds_segmentation(other))
    torch.manual_seed(config.train.seed)
    model = build_model(config.model, fresh)
    config.model.sr = getattr(model.sr, "settings", config.model.sr)
    if other:
        init_from(model, other)
    if checkpoint:
        load_weights(model, checkpoint / "model.safetensors")
    if config.optim.batch_norm == "sync":
        model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)
    return model


def resumed(config: Config, state: Mapping[str, Any], measured_on: Any) -> Start:
    """The start that a checkpoint's state tells, once its tensors are restored.

    Args:
        measured_on: what validation measures on, as `best.json` records it; None without validation.
    Raises: ValueError for another batch size, as samples seen would not be whole steps.
    """
    run_dir, changed = Path(config.train.run_dir), changed_settings(state["config"], to_dict(config))
    if state["samples"] != state["step"] * config.train.batch_size:
        raise ValueError(
            f"train.batch_size={config.train.batch_size}: {run_dir} was trained with "
            f"{state['samples'] // state['step']}; use that, or another train.run_dir with train.init_from"
        )
    best, names = read_best(run_dir), {path.name for path in checkpoints(run_dir)}
    comparable = best and best["measure"] == config.train.best and best["checkpoint"] in names
    if comparable and measured_on and best.get("measured_on", measured_on) != measured_on:
        comparable = False
        changed.append(
            f"what data.val holds or how it is measured, since {best['checkpoint']} was the best "
            f"({best['measure']} {best['value']:.4g}): the best is chosen anew from here on"
        )
    return Start(state["step"], best["value"] if comparable else None, tuple(changed))
