"""One process of a tiny CSBSR through four phases under an engine; rank 0 writes its losses and what moved as JSON.

python tests/support/phases_worker.py OUT.json [ZERO_STAGE]
"""

import json
import os
import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DeepSpeedPlugin

from cssr.config.loading import load_config
from cssr.config.schedules import Progress
from cssr.data.batch import Batch
from cssr.degradations import DEGRADATIONS
from cssr.models.joint import build_model, group_of
from cssr.training.optim import Hold, LearningRate, build_optimizer, held_groups
from cssr.training.task import Task
from cssr.utils.distributed import start_engine

GLOBAL, STEPS_EACH = 4, 2
PHASES = """phases=[
  {name: sr, until: 8, beta: 0, true_kernel: true, lr: {seg: 0, kernel: 0}},
  {name: kernel, until: 16, beta: 0, lr: {seg: 0, sr: 0}},
  {name: both, until: 24, beta: 0, lr: {seg: 0}},
  {name: joint}]"""
SETTINGS = [
    "model.scale=2",
    "model.sr={name: kbpn, stages: 2, width: 4, features: 4, hidden: 4, kernel_size: 7, predicted_size: 3}",
    "model.seg={name: unet, encoder: resnet10t, width: 4, "
    "encoder_args: {channels: [8, 8, 16, 16], norm_layer: groupnorm1}}",
    "degradation={name: gaussian, size: 7, sigma: [0.2, 1.5]}",
    "loss.sr=blind",
    "loss.seg=combo",
    "optim.lr=1e-3",
    PHASES,
]


def engine_of(stage: int | None) -> Accelerator:
    if stage is None:
        return start_engine()
    sizes = {"train_micro_batch_size_per_gpu": GLOBAL // int(os.environ["WORLD_SIZE"])}
    settings = {
        **sizes,
        "gradient_clipping": 1.0,
        "zero_optimization": {"stage": stage, "stage3_gather_16bit_weights_on_model_save": True},
    }
    plugin = DeepSpeedPlugin(
        hf_ds_config={**settings, "train_batch_size": GLOBAL, "zero_force_ds_cpu_optimizer": False}
    )
    os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"  # as a launch file does
    return start_engine(deepspeed_plugin=plugin)


def batch_at(step: int, engine: Accelerator, degrade) -> Batch:
    """This rank's samples of the global batch, which is the same for any number of ranks."""
    draws = torch.Generator().manual_seed(step)
    hr, mask = torch.rand(GLOBAL, 3, 32, 32, generator=draws), torch.rand(GLOBAL, 1, 32, 32, generator=draws) > 0.8
    lq, kernel = degrade(hr, torch.arange(GLOBAL) + 100 * step)
    mine = slice(engine.process_index, None, engine.num_processes)
    return Batch(hr=hr[mine], mask=mask[mine].float(), lq=lq[mine], kernel=kernel[mine])


def weights(engine: Accelerator, engine_task: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The joint model's, gathered on rank 0 (elsewhere there may be none)."""
    state = engine.get_state_dict(engine_task) or {}
    return {name.removeprefix("module.").removeprefix("model."): value.clone() for name, value in state.items()}


def moved(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> list[str]:
    """The parameter groups of which anything has changed."""
    return sorted({group_of(name) for name in before if not torch.equal(before[name], after[name])})


def main(out: str, stage: int | None) -> None:
    engine, config = engine_of(stage), load_config(None, SETTINGS)
    torch.manual_seed(0)
    model = build_model(config.model)
    task, degrade = Task(model, config), DEGRADATIONS.build(config.degradation, scale=2)
    optimizer, rates = build_optimizer(model, config), LearningRate(config)
    hold = Hold(model, optimizer)
    engine_task, engine_optimizer = engine.prepare(task, optimizer)
    losses, changes, state = [], [], weights(engine, engine_task)
    for step in range(4 * STEPS_EACH):
        progress = Progress(step * GLOBAL, 4 * STEPS_EACH * GLOBAL)
        phase = task.phase(progress)
        hold.groups = held_groups(model.groups(), phase, step)
        task.hold_still(hold.groups)
        rates.apply(optimizer, progress, phase)
        terms = engine_task(batch_at(step, engine, degrade), progress)
        engine.backward(terms["loss"])
        if stage is None:
            engine.clip_grad_norm_(engine_task.parameters(), 1.0)
        engine_optimizer.step()
        engine_optimizer.zero_grad()
        losses.append(engine.reduce(terms["loss"].detach(), "mean").item())
        before, state = state, weights(engine, engine_task)
        changes.append(moved(before, state))
    if engine.is_main_process:
        Path(out).write_text(json.dumps({"losses": losses, "moved": changes}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else None)
