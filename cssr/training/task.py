"""The task: the joint model and its losses in one module, which is trained under any engine."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from cssr.config.registry import did_you_mean
from cssr.config.schedules import Progress, Schedule, bounded_schedule, phase_at
from cssr.config.schema import Config, PhaseConfig
from cssr.data.batch import Batch, send
from cssr.losses import LOSSES
from cssr.models.encoders import EncoderDecoder
from cssr.models.forms.sr_then_seg import SRThenSeg
from cssr.models.joint import JointModel, group_of

BATCH_NORMS = nn.modules.batchnorm._BatchNorm
Loss = Callable[..., Tensor]


class Task(nn.Module):
    """total = (1 - beta) SR loss + beta segmentation loss + further ones; beta is a function of the samples seen.

    Every parameter stays in the graph in every phase: a phase changes weights and learning rates, never the graph.
    """

    def __init__(self, model: JointModel, config: Config):
        super().__init__()
        self.model = model
        self._phases, self._sr_times_seg = config.phases, config.loss.sr_times_seg
        self.seg_loss = LOSSES.build(config.loss.seg)
        self.sr_losses = {
            phase.until: LOSSES.build(config.loss.sr if phase.sr is None else phase.sr) for phase in config.phases
        }
        self.extra = [_extra_loss(entry) for entry in config.loss.extra]
        betas = [config.loss.beta if phase.beta is None else phase.beta for phase in config.phases]
        self._beta = {
            phase.until: bounded_schedule(
                beta, 0, 1, "loss.beta" if phase.beta is None else f"phases: {phase.name}.beta"
            )
            for phase, beta in zip(config.phases, betas)
        }
        self._compiled: Callable | None = None  # the model's forward pass, where it is compiled
        self._held: frozenset[str] = frozenset()
        self._batch_norm = config.optim.batch_norm
        self._mix = {phase.until: build_mix(phase.mix, f"phases: {phase.name}.mix") for phase in config.phases}
        self._check_phases(config.phases)
        if self.needs_features and not isinstance(self.model.seg, EncoderDecoder):
            raise ValueError(
                "a loss (task_perceptual) compares features of an encoder, which the model has not: use "
                "model.form=sr_then_seg with model.seg=unet, pspnet, hrnet_ocr or smp"
            )

    @property
    def losses(self) -> Iterable[Loss]:
        """The losses of all phases."""
        return (self.seg_loss, *self.sr_losses.values(), *(loss for _, _, loss in self.extra))

    @property
    def needs_distance(self) -> bool:
        """Return whether a loss reads the batch's distance map."""
        return any(getattr(loss, "needs_distance", False) for loss in self.losses)

    @property
    def needs_kernel(self) -> bool:
        """Return whether a loss or a phase takes the true blur kernel."""
        of_loss = any(getattr(loss, "needs_kernel", False) for loss in self.losses)
        return of_loss or any(phase.true_kernel for phase in self._phases)

    @property
    def needs_features(self) -> bool:
        """Return whether a loss compares the segmentation network's features of SR and HR."""
        return any(getattr(loss, "needs_features", False) for loss in self.losses)

    def forward(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """Mean losses of a degraded batch on the device: `loss`, its terms `sr_loss` and `seg_loss`, and the further
        ones by name; float32.
        """
        phase = self.phase(progress)
        network = self._compiled or self.model
        kernel = batch.kernel if phase.true_kernel else None
        outputs = (
            network(batch.lq, kernel, **self._optional_arguments(batch, phase, progress)).float().where_valid(batch)
        )
        with torch.autocast(batch.lq.device.type, enabled=False):
            sr = self.sr_losses[phase.until](outputs, batch, progress)
            seg = self.seg_loss(outputs, batch, progress)
            extra = {name: loss(outputs, batch, progress).mean() for name, _, loss in self.extra}
        if self._sr_times_seg is not None and progress.samples >= self._sr_times_seg:
            sr = sr * seg.detach().clamp(min=0)  # boundary losses may fall below 0
        sr, seg, beta = sr.mean(), seg.mean(), self.beta(progress)
        total = (1 - beta) * sr + beta * seg
        for name, weight, _ in self.extra:
            total = total + weight(progress) * extra[name]
        return {"loss": total, "sr_loss": sr, "seg_loss": seg, **extra}

    def compile_model(self, **arguments: Any) -> None:
        """Have the task's own forward pass run the model compiled; `arguments` of `torch.compile`.

        The model itself is unchanged, with the names of its weights: validation and copies run it uncompiled, at any
        size. Micro-batches are of one size; a phase that holds other groups still is compiled anew.
        """
        self.model.constant_features = torch.compiler.disable(self.model.constant_features)
        self._compiled = torch.compile(self.model.forward, dynamic=False, **arguments)

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
        """Set the mode; BatchNorm that is held, or in groups that are, stays in evaluation mode."""
        super().train(mode)
        for name, module in self.model.named_modules():
            if isinstance(module, BATCH_NORMS) and self._keeps_statistics(group_of(f"{name}.")):
                module.eval()
        return self

    def _keeps_statistics(self, group: str) -> bool:
        held = self._batch_norm == "held" or (self._batch_norm == "encoder_held" and group == "encoder")
        return held or group in self._held

    def _optional_arguments(self, batch: Batch, phase: PhaseConfig, progress: Progress) -> dict[str, Any]:
        """Optional arguments of the forward pass, where a loss or the phase needs them."""
        mix, arguments = self._mix[phase.until], {}
        if mix:
            arguments["mix"] = mix(batch.hr, batch.seed, progress)
        if self.needs_features:
            arguments["features"] = True
        arguments = {**arguments, "hr": batch.hr} if arguments else {}
        return arguments if batch.valid is None else {**arguments, "valid": batch.valid}

    def _check_phases(self, phases: list[PhaseConfig]) -> None:
        groups = self.model.groups()
        for phase in phases:
            for group in phase.lr:
                if group not in groups:
                    raise ValueError(
                        f"phases: {phase.name}.lr names the group {group!r}; the model has {', '.join(groups)}"
                    )
            for group in (group for turn in phase.alternate for group in turn):
                if group not in groups:
                    raise ValueError(
                        f"phases: {phase.name}.alternate names the group {group!r}; the model has {', '.join(groups)}"
                    )
            if phase.mix is not None and not isinstance(self.model, SRThenSeg):
                raise ValueError(f"phases: {phase.name}.mix needs SR before segmentation: model.form=sr_then_seg")
            if phase.true_kernel and not getattr(self.model.sr, "predicts_kernel", False):
                raise ValueError(
                    f"phases: {phase.name}.true_kernel needs an SR network that takes a kernel: model.sr=kbpn"
                )


def _extra_loss(entry: Any) -> tuple[str, Schedule, Loss]:
    """Name, weight and loss of an entry of `loss.extra`."""
    if not isinstance(entry, dict) or set(entry) != {"loss", "weight"}:
        raise ValueError(
            f"loss.extra: an entry is {{loss: NAME or component, weight: NUMBER or schedule}}, got {entry}"
        )
    loss, component = LOSSES.build(entry["loss"]), entry["loss"]
    name = component if isinstance(component, str) else component["name"]
    return name, bounded_schedule(entry["weight"], 0, 1e6, f"loss.extra: the weight of {name}"), loss


# ---- cross-quality patch mixing ----


@dataclass(frozen=True)
class PatchMix:
    """Choice of patches of the segmented image that are HR's: a pure function of the samples' seeds and samples seen.

    SR4IR (Kim et al., CVPR 2024) trains the task network on such images (CQMix), so that it learns to see the same in
    both. A phase asks for it: `mix: {share: 0.5, size: 16}`.
    """

    share: Schedule  # of the patches that are HR's, 0..1
    size: int  # side of a patch, HR pixels

    def __call__(self, hr: Tensor, seeds: Tensor, progress: Progress) -> Tensor:
        """B 1 H W, 1 on HR's pixels and 0 elsewhere, on the device and in the dtype of `hr` (B 3 H W)."""
        rows, columns = (-(-side // self.size) for side in hr.shape[-2:])
        draws = torch.stack([_draws(seed, rows, columns) for seed in seeds.tolist()])
        chosen = send(draws < self.share(progress), hr.device, hr.dtype)[:, None]
        patches = chosen.repeat_interleave(self.size, 2).repeat_interleave(self.size, 3)
        return patches[..., : hr.shape[-2], : hr.shape[-1]]


def _draws(seed: int, rows: int, columns: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed ^ 0x5A17)  # other draws than the degradation's
    return torch.rand(rows, columns, generator=generator)


def build_mix(setting: Any, where: str) -> PatchMix | None:
    """The mixing that a phase's `mix` describes; None mixes nothing. `where` names the setting in errors.

    Raises: ValueError, one line.
    """
    if setting is None:
        return None
    names = [f.name for f in fields(PatchMix)]
    if not isinstance(setting, Mapping):
        raise ValueError(f"{where} is null or a mapping of {', '.join(names)}; got {setting!r}")
    for name in setting:
        if name not in names:
            raise ValueError(f"{where} takes no {name!r}{did_you_mean(str(name), names)}")
    size, share = setting.get("size", 16), setting.get("share", 0.5)
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise ValueError(f"{where}.size must be a whole number of at least 1 (HR pixels), got {size!r}")
    return PatchMix(bounded_schedule(share, 0, 1, f"{where}.share"), size)
