"""The task: the joint model and its losses, the one module that is trained, whatever the engine."""

import torch
from torch import Tensor, nn

from cssr.batch import Batch
from cssr.config import Config, PhaseConfig
from cssr.losses import LOSSES
from cssr.models.joint import JointModel
from cssr.schedules import Progress, build_schedule, phase_at

_BATCH_NORMS = nn.modules.batchnorm._BatchNorm


class Task(nn.Module):
    """total = (1 - beta) SR loss + beta segmentation loss; beta is a function of the samples seen.

    Every parameter stays in the graph in every phase: a phase changes weights and learning rates, never the graph.
    """

    def __init__(self, model: JointModel, config: Config):
        super().__init__()
        self.model = model
        self.sr_loss, self.seg_loss = LOSSES.build(config.loss.sr), LOSSES.build(config.loss.seg)
        self.needs_distance = any(getattr(loss, "needs_distance", False) for loss in (self.sr_loss, self.seg_loss))
        self._phases = config.phases
        betas = [config.loss.beta if phase.beta is None else phase.beta for phase in config.phases]
        self._beta = {phase.until: build_schedule(beta) for phase, beta in zip(config.phases, betas)}
        self._held: frozenset[str] = frozenset()
        self._check_phases(config.phases)

    def forward(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """Mean losses of a degraded batch on the device: `loss`, and its terms `sr_loss` and `seg_loss`; float32."""
        outputs = self.model(batch.lq).float()
        with torch.autocast(batch.lq.device.type, enabled=False):
            sr, seg = self.sr_loss(outputs, batch, progress).mean(), self.seg_loss(outputs, batch, progress).mean()
        beta = self.beta(progress)
        return {"loss": (1 - beta) * sr + beta * seg, "sr_loss": sr, "seg_loss": seg}

    def phase(self, progress: Progress) -> PhaseConfig:
        """The phase in which the run is."""
        return phase_at(self._phases, progress.samples)

    def beta(self, progress: Progress) -> float:
        """The weight of the segmentation loss."""
        return self._beta[self.phase(progress).until](progress)

    def hold_still(self, groups: frozenset[str]) -> None:
        """Keep the BatchNorm statistics of these parameter groups as they are, from now on."""
        if groups != self._held:
            self._held = groups
            self.train(self.training)

    def train(self, mode: bool = True) -> "Task":
        """As in any module, but BatchNorm in groups that are held still stays in evaluation mode."""
        super().train(mode)
        for group in self._held:
            for module in getattr(self.model, group).modules():
                if isinstance(module, _BATCH_NORMS):
                    module.eval()
        return self

    def _check_phases(self, phases: list[PhaseConfig]) -> None:
        known = self.model.groups()
        for phase in phases:
            for group in phase.lr:
                if group not in known:
                    raise ValueError(
                        f"phases: {phase.name}.lr names the group {group!r}; the model has {', '.join(known)}"
                    )
