"""Cross-quality patch mixing: some patches of the image that is segmented are HR's, the others SR's.

SR4IR (Kim et al., CVPR 2024) trains the task network on such images (CQMix), so that it learns to see the same in both.
A phase asks for it: `mix: {share: 0.5, size: 16}`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from cssr.config.registry import did_you_mean
from cssr.config.schedules import Progress, Schedule, bounded_schedule


@dataclass(frozen=True)
class PatchMix:
    """Choice of the pixels that are HR's: a pure function of the samples' seeds and the samples seen."""

    share: Schedule  # of the patches that are HR's, 0..1
    size: int  # side of a patch, HR pixels

    def __call__(self, hr: Tensor, seeds: Tensor, progress: Progress) -> Tensor:
        """B 1 H W, 1 on HR's pixels and 0 elsewhere, on the device and in the dtype of `hr` (B 3 H W)."""
        rows, columns = (-(-side // self.size) for side in hr.shape[-2:])
        draws = torch.stack([_draws(int(seed), rows, columns) for seed in seeds])
        chosen = (draws < self.share(progress)).to(hr.device, hr.dtype)[:, None]
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
    known = [f.name for f in fields(PatchMix)]
    if not isinstance(setting, Mapping):
        raise ValueError(f"{where} is null or a mapping of {', '.join(known)}; found {setting!r}")
    for name in setting:
        if name not in known:
            raise ValueError(f"{where} takes no {name!r}{did_you_mean(str(name), known)}")
    size, share = setting.get("size", 16), setting.get("share", 0.5)
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise ValueError(f"{where}.size must be a whole number of at least 1 (HR pixels), found {size!r}")
    return PatchMix(bounded_schedule(share, 0, 1, f"{where}.share"), size)
