"""SR network, normalisation, segmentation network: the form of CSSR and of CSBSR."""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cssr.config.schema import ModelConfig
from cssr.data.batch import Outputs
from cssr.models.forms import FORMS
from cssr.models.joint import JointModel
from cssr.models.seg import SEG
from cssr.models.sr import SR
from cssr.models.tiling import Kept, Moments, Tiles, Windows, WithValid, for_each_tile, valid_rows

_KERNEL_TILES = 16  # of a large image from which its kernel is estimated, evenly over it


class SRThenSeg(JointModel):
    """SR network, normalisation, segmentation network: CSSR and CSBSR."""

    def forward(
        self,
        lq: Tensor,
        kernel: Tensor | None = None,
        hr: Tensor | None = None,
        mix: Tensor | None = None,
        features: bool = False,
        valid: Tensor | None = None,
    ) -> Outputs:
        """SR image and crack logits, with the predicted kernel and auxiliary logits where the networks have them.

        Args:
            hr: B 3 H W, in training: what `mix` and `features` refer to.
            mix: B 1 H W, the share of HR in the image that is segmented; what is returned as SR is not mixed.
            features: whether the segmentation encoder's feature maps, of SR and of HR, are returned too.
            valid: B 1 H W, 1 on the pixels that hold data, which kernel and moments are of; None: all do.
        """
        sr, predicted = self._enlarged(lq, kernel, valid)
        sr = self.clip(sr)
        mixed = sr if mix is None else torch.lerp(sr, hr.to(sr.dtype), mix.to(sr.dtype))
        image = self.normalize(mixed, valid=valid)
        logits, *aux = self.segment(image, predicted)
        outputs = Outputs(sr=sr, logits=logits, kernel=predicted, aux=tuple(aux))
        if features:
            outputs.sr_features = self.encoder_features(image if mix is None else self.normalize(sr, valid=valid))
            with torch.no_grad():
                outputs.hr_features = self.encoder_features(self.normalize(hr, valid=valid))
        return outputs

    @torch.no_grad()
    def infer_rows(self, lq: Windows, tiles: Tiles, kept: Kept) -> Iterator[tuple[str, Tensor]]:
        """A predicted kernel is the mean over tiles' kernels; the normalisation sees the whole SR image."""
        kernel, moments, top = None, Moments(), 0
        if self._predicts_kernel:
            kernel = self._global_kernel(lq, tiles)
            yield "kernel", kernel
        for rows in tiles.rows(lambda x: self.sr(self._to_input(x), for_each_tile(kernel, x))[0], lq, self.scale):
            rows = self.clip(rows)
            valid = valid_rows(lq, top, rows.shape[-2], self.scale)
            moments.add(rows, None if valid is None else valid.to(rows.device))
            kept.append(rows)
            top += rows.shape[-2]
            yield "sr", rows
        statistics = moments.result()
        for rows in tiles.enlarged(self.scale).rows(lambda x: self._segmented(x, statistics, kernel), kept):
            yield "logits", rows

    @property
    def rounds(self) -> int:
        """Two: SR image, then cracks; the kernel is estimated from a few tiles before."""
        return 2

    @property
    def _predicts_kernel(self) -> bool:
        return getattr(self.sr, "predicts_kernel", False)

    def _segmented(self, part: Tensor, moments: tuple[Tensor, Tensor], kernel: Tensor | None) -> Tensor:
        part = self._to_input(part)
        mean, variance = (for_each_tile(moment, part) for moment in moments)
        return self.segment(self.normalize(part, (mean, variance)), for_each_tile(kernel, part))[0]

    def _enlarged(self, lq: Tensor, kernel: Tensor | None, valid: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """SR image and kernel, the latter predicted from the valid pixels where the network can."""
        if valid is None or not getattr(self.sr, "takes_valid", False):
            return self.sr(lq, kernel)
        return self.sr(lq, kernel, valid)

    def _weighed_kernel(self, x: Tensor) -> Tensor:
        """Kernel and share of valid pixels of tiles B 4 h w, as B k*k+1."""
        x = self._to_input(x)
        valid = x[:, 3:]
        kernel = self._enlarged(x[:, :3], None, F.interpolate(valid, scale_factor=self.scale))[1]
        return torch.cat((kernel.flatten(1), valid.mean((1, 2, 3))[:, None]), 1)

    def _masked_kernel(self, lq: Windows, tiles: Tiles) -> Tensor:
        """Mean kernel over tiles, weighted by valid pixels; over all tiles if the sampled ones have none."""
        image = WithValid(lq)
        rows = torch.stack([*tiles.sampled(self._weighed_kernel, image, _KERNEL_TILES)])  # tiles B k*k+1
        if not (rows[..., -1].sum(0) > 0).all():
            rows = torch.stack([row for _, row in tiles.results(self._weighed_kernel, image)])
        weight = rows[..., -1:]
        kernel = (rows[..., :-1] * weight).sum(0) / weight.sum(0).clamp(min=1e-12)
        return kernel.view(len(kernel), 1, self.sr.kernel_size, -1)

    def _global_kernel(self, lq: Windows, tiles: Tiles) -> Tensor:
        if getattr(lq, "masked", False):
            return self._masked_kernel(lq, tiles)
        kernels = tiles.sampled(lambda x: self.sr(self._to_input(x))[1], lq, _KERNEL_TILES)
        return torch.stack([*kernels]).mean(0)


@FORMS.register
def sr_then_seg(config: ModelConfig, seg: dict[str, Any]) -> SRThenSeg:
    """`model.sr`, then `model.seg` on the SR image."""
    if config.sr.get("channels", 3) != 3:
        raise ValueError(f"model.sr.channels={config.sr['channels']!r}: images have 3; leave it out")
    model = SRThenSeg(config, SR.build(config.sr, scale=config.scale), SEG.build(seg))
    _check_kernel(model)
    return model


def _check_kernel(model: JointModel) -> None:
    """A segmentation network that takes the kernel needs an SR network that predicts one, of the same size."""
    if not getattr(model.seg, "takes_kernel", False):
        return
    if not getattr(model.sr, "predicts_kernel", False):
        raise ValueError(
            f"model.seg={model.config.seg['name']} needs the blur kernel, which model.sr={model.config.sr['name']} "
            "does not predict: model.sr=kbpn does"
        )
    if model.seg.kernel_size != model.sr.kernel_size:
        raise ValueError(
            f"model.seg.kernel_size={model.seg.kernel_size} must be that of model.sr, {model.sr.kernel_size}"
        )
