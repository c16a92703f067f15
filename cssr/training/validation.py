"""Validation during a run: measure the model that would be exported on all ranks, and draw samples on one."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from cssr.config.schema import Config
from cssr.data.batch import Batch
from cssr.data.loader import eval_stream
from cssr.data.shards import ShardSet
from cssr.evaluation.aggregate import aggregate, set_histogram
from cssr.evaluation.calibration import fit_temperature
from cssr.evaluation.definitions import SLOW_KEYS
from cssr.evaluation.evaluator import evaluate, gather_rows
from cssr.evaluation.visualization import sample_panels, save_picture, strip
from cssr.models.joint import JointModel, build_model
from cssr.training.fault_tolerance import is_of_memory
from cssr.training.log import Console, append_line
from cssr.training.sharded_state import copy_to_cpu, gather_weights
from cssr.utils.distributed import shards_parameters
from cssr.utils.files import digest
from cssr.utils.text import message_of

_ODD_SIZE = (40, 72)  # LQ pixels: of no crop, no multiple of a large stride


@dataclass
class Validated:
    """Result of a validation: measures (per-image means), and the samples of rank 0 as rows of pictures."""

    measures: dict[str, Any]
    panels: list[dict] = field(repr=False)
    seconds: float


class Validation:
    """Measures a model on `sets`, those of `data.val`."""

    def __init__(
        self, config: Config, sets: Sequence[ShardSet], engine: Accelerator, degrade: Callable, segmentation: bool
    ):
        self._config, self._sets, self._engine = config, sets, engine
        self._degrade, self._segmentation = degrade, segmentation

    @property
    def measured_on(self) -> str:
        """A digest of what measures depend on besides the model: the sets, and the degradation of their images."""
        config = self._config
        conditions = {"degradation": config.degradation, "seed": config.eval.seed, "limit": config.eval.limit}
        return digest({"sets": [shards.sha256 for shards in self._sets], **conditions})

    def __call__(self, model: JointModel, watched: Callable[[Iterable[Batch]], Iterator[Batch]]) -> Validated:
        """Validate `model`; all ranks must ask. It is left in evaluation mode; `watched` may end its batches early."""
        began, engine, panels = time.monotonic(), self._engine, []
        model = self._whole(model) if shards_parameters(engine) else model
        model.eval()

        def show(batch: Batch, outputs: Any) -> None:
            missing = self._config.train.sample_count - len(panels) if engine.is_main_process else 0
            indices = range(min(missing, len(batch)))
            panels.extend(sample_panels(batch, outputs, i, self._segmentation) for i in indices)

        arguments = {"tile": self._config.eval.tile, "show": show, "segmentation": self._segmentation}
        arguments["distances"] = self._config.train.best in SLOW_KEYS
        rows = gather_rows(evaluate(model, watched(self._stream()), self._degrade, engine.device, **arguments))
        measures = aggregate(rows)["image"] if rows else {}
        if rows and self._segmentation:
            # Logits were divided by the settings' temperature: what fits them comes on top of it.
            correction = fit_temperature(set_histogram(rows))
            measures["temperature"] = self._config.model.temperature * correction
        return Validated(measures, panels, time.monotonic() - began)

    @torch.no_grad()
    def try_out(self, model: JointModel, device: torch.device, validates: bool) -> None:
        """Run in advance what validation and prediction will need: an image of another size, then one of `data.val`.

        Args:
            model: on `device`; left in training mode.
        Raises: ValueError, one line: a network that does not take images of every size, a measure `train.best` that
            this model and these images do not have, an image that cannot be read.
        """
        config = self._config
        model.eval()
        try:
            model.infer(torch.zeros(1, 3, *_ODD_SIZE, device=device))
            if not validates:
                return
            stream = eval_stream(self._sets, config.model.scale, 1, config.eval.seed, limit=1)
            slow = config.train.best in SLOW_KEYS
            rows = evaluate(model, stream, self._degrade, device, slow, config.eval.tile, None, self._segmentation)
        except (AssertionError, RuntimeError) as error:
            if is_of_memory(error):
                raise
            raise ValueError(
                "validation and prediction would fail, as the model does not take images of every size: choose "
                f"another encoder in model.seg ({message_of(error)[:200]})"
            ) from error
        finally:
            model.train()
        if config.train.best in ("kernel_psnr", "lq_psnr") and rows[0].get(config.train.best) is None:
            raise ValueError(
                f"train.best={config.train.best} needs an SR network that predicts kernels (model.sr=kbpn) and a "
                "degradation that gives them (gaussian): set train.best=psnr, or choose those"
            )

    def _whole(self, model: JointModel) -> JointModel:
        """A model of its own on each rank, as ranks may have batches of different number, which parts do not allow."""
        full = build_model(self._config.model)
        full.load_state_dict(copy_to_cpu(gather_weights(model)))
        return full.to(self._engine.device)

    def _stream(self) -> Iterator[Batch]:
        config, engine = self._config, self._engine
        arguments = {"rank": engine.process_index, "world": engine.num_processes, "limit": config.eval.limit}
        sizes = config.model.scale, config.eval.batch_size
        return eval_stream(self._sets, *sizes, config.eval.seed, workers=config.data.workers, **arguments)


def record(validated: Validated, step: int, samples: int, run_dir: Path, engine: Accelerator, console: Console) -> None:
    """Log and show the measures of a validation, on one rank."""
    shown = {name: value for name, value in validated.measures.items() if value is not None}
    for tracker in engine.trackers:
        if tracker.name != "jsonl":
            tracker.log({f"val/{name}": value for name, value in shown.items()}, step=step)
    if validated.panels:
        save_picture(strip(validated.panels), run_dir / "samples" / f"step_{step:08d}.png")
    append_line(run_dir / "validation.jsonl", {"step": step, "samples": samples, **shown})  # last: a resume looks there
    text = "  ".join(f"{name} {shown[name]:.4g}" for name in ("iou_max", "aiu", "psnr", "ssim") if name in shown)
    console.line(f"validation at step {step}: {text}  ({validated.seconds:.0f} s)")


def is_better(measure: str, value: float, best: float | None) -> bool:
    """Return whether a value of a measure is better than the best so far, None if there is none."""
    sign = -1 if measure.startswith(("hd95", "ahd95", "msd", "amsd", "ece")) or measure.endswith("_error") else 1
    return best is None or sign * value > sign * best
