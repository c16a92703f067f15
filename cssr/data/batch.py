"""Batches, and outputs of the joint model: the name, shape, dtype and range of every tensor."""

from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_NO_CRACK = 30.0  # logit of certain background, negated


def send(tensor: Tensor, device: torch.device | str, dtype: torch.dtype | None = None) -> Tensor:
    """The tensor on `device`, as `dtype`, without waiting for it: what uses it is queued after it."""
    tensor, device = tensor.to(dtype=dtype), torch.device(device)
    to_gpu = tensor.device.type == "cpu" and device.type == "cuda"
    return (tensor.pin_memory() if to_gpu else tensor).to(device, non_blocking=True)


@dataclass
class Batch:
    """A batch of samples; B samples, H x W pixels at high resolution, h = H / scale, w = W / scale.

    The loader fills the first five; the degradation, on the device, fills `lq` and `kernel`, unless they are stored.
    """

    hr: Tensor  # B 3 H W, high-resolution image: uint8 0..255 from the loader, float32 0..1 on the device
    mask: Tensor  # B 1 H W, 1 on crack pixels, 0 elsewhere: uint8 from the loader, float32 on the device
    distance: Tensor | None = None  # B 1 H W float32, signed distance, pixels: < 0 in cracks; all 0 without any
    seed: Tensor | None = None  # B int64, the seed of each sample's degradation (kept on the CPU)
    key: list[str] = field(default_factory=list)  # B sample ids
    lq: Tensor | None = None  # B 3 h w float32 about 0..1, the degraded low-resolution image; stored: as `hr`
    kernel: Tensor | None = None  # B 1 k k float32, sums to 1, the blur kernel of each sample; None without blur
    valid: Tensor | None = None  # B 1 H W, 1 where a pixel holds data: as `mask`; None: all do

    def to(self, device: torch.device | str) -> "Batch":
        """The batch on `device`, images and masks as float32 (0..1)."""
        names = ("hr", "mask", "distance", "lq", "kernel", "valid")
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        moved = {name: send(tensor, device) for name, tensor in given.items()}
        for name in {"hr", "lq"} & moved.keys():
            moved[name] = moved[name].float() / 255 if moved[name].dtype == torch.uint8 else moved[name]
        floats = {name: moved[name].float() for name in ("mask", "valid") if name in moved}
        return replace(self, **{**moved, **floats})

    def __len__(self) -> int:
        return len(self.hr)


@dataclass
class Outputs:
    """Outputs of a joint model."""

    sr: Tensor  # B 3 H W, super-resolved image; clipped to 0..1 where the model's settings say so
    logits: Tensor  # B 1 H W, crack logits; probability = sigmoid
    kernel: Tensor | None = None  # B 1 k k, predicted blur kernel (SR networks that predict one)
    aux: tuple[Tensor, ...] = ()  # each B 1 H W, logits of auxiliary heads
    features: tuple[Tensor, ...] = ()  # B 3 y x each, of segmentation and of SR, equal sizes (DSRL)
    lq_logits: Tensor | None = None  # B 1 h w, crack logits at low resolution (segmentation before SR)
    sr_features: tuple[Tensor, ...] = ()  # B C y x each, the segmentation network's on SR, where a loss asks for them
    hr_features: tuple[Tensor, ...] = ()  # likewise on HR, equal sizes, without gradient
    mask_sr: Tensor | None = None  # B 1 H W, the super-resolved mask, unclipped (segmentation before SR)

    def where_valid(self, batch: Batch) -> "Outputs":
        """Replace outputs at pixels without data by the truth, so that losses and measures are 0 there.

        Feature maps that losses compare are 0 where most of the pixels below hold no data.
        """
        if batch.valid is None:
            return self
        valid = batch.valid > 0
        low = F.max_pool2d(batch.valid, batch.hr.shape[-1] // batch.lq.shape[-1]) > 0 if batch.lq is not None else valid

        def masked(logits: Tensor) -> Tensor:
            keep = valid if logits.shape[-2:] == valid.shape[-2:] else low
            return logits.where(keep, logits.new_tensor(-_NO_CRACK)) if logits.shape[-2:] == keep.shape[-2:] else logits

        return replace(
            self,
            sr=self.sr.where(valid, batch.hr.to(self.sr.dtype)),
            logits=masked(self.logits),
            aux=tuple(map(masked, self.aux)),
            lq_logits=None if self.lq_logits is None else masked(self.lq_logits),
            mask_sr=None if self.mask_sr is None else self.mask_sr * batch.valid.to(self.mask_sr.dtype),
            features=_zero_invalid(self.features, batch.valid),
            sr_features=_zero_invalid(self.sr_features, batch.valid),
            hr_features=_zero_invalid(self.hr_features, batch.valid),
        )

    def float(self) -> "Outputs":
        """All tensors as float32: losses and measures are computed in it under any precision."""
        return Outputs(**{f.name: _float(getattr(self, f.name)) for f in fields(self)})


def _zero_invalid(maps: tuple[Tensor, ...], valid: Tensor) -> tuple[Tensor, ...]:
    """Feature maps, 0 where less than half of the pixels are valid; tokens (B N C) as they are."""
    shares = (F.adaptive_avg_pool2d(valid, x.shape[-2:]) if x.dim() == 4 else None for x in maps)
    return tuple(x if share is None else x.where(share >= 0.5, x.new_zeros(())) for x, share in zip(maps, shares))


def _float(value: Tensor | tuple[Tensor, ...] | None) -> Any:
    return tuple(map(_float, value)) if isinstance(value, tuple) else value if value is None else value.float()
