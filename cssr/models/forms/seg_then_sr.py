"""Segmentation of the LQ image, then super-resolution of the mask."""

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from cssr.config.schema import ModelConfig
from cssr.data.batch import Outputs
from cssr.models.forms import FORMS
from cssr.models.joint import JointModel
from cssr.models.seg import SEG
from cssr.models.sr import SR
from cssr.models.tiling import Moments, Tiles, Windows, for_each_tile, reduced_valid

_LOGIT_BOUND = 1e-6  # probabilities of a super-resolved mask are kept this far from 0 and 1


class SegThenSR(JointModel):
    """Segmentation of the LQ image, then super-resolution of the mask ("inverse").

    Unverified against the published code, which has no numbers to compare with.
    """

    def forward(
        self,
        lq: Tensor,
        kernel: Tensor | None = None,
        valid: Tensor | None = None,
        moments: tuple[Tensor, Tensor] | None = None,
    ) -> Outputs:
        """`mask_sr` and its logits; `lq_logits` and `aux` are of LQ size, for `loss.seg=at_lq`.

        There is no SR image: `sr` is the bicubic enlargement, to look at. `moments`: as `normalize` takes them.
        """
        lq_logits, *aux = self._uncalibrated(self.normalize(lq, moments, reduced_valid(valid, self.scale)))
        mask_sr = self.sr(lq_logits.sigmoid())[0]
        logits = self.calibrate(mask_sr.float().clamp(_LOGIT_BOUND, 1 - _LOGIT_BOUND).logit())
        sr = self.clip(F.interpolate(lq, scale_factor=self.scale, mode="bicubic"))
        return Outputs(sr=sr, logits=logits, aux=tuple(aux), lq_logits=lq_logits, mask_sr=mask_sr)

    def _tile_forward(self, lq: Windows, tiles: Tiles) -> Callable[[Tensor], Outputs]:
        """Normalise tiles by the moments of the whole image."""
        moments, (height, width) = Moments(), lq.shape
        for top in range(0, height, tiles.side):
            strip = (top, 0, min(tiles.side, height - top), width)
            rows, valid = self._to_input(lq.read(*strip)), lq.valid(*strip) if getattr(lq, "masked", False) else None
            moments.add(rows, None if valid is None else valid.to(rows.device))
        statistics = moments.result()
        return lambda part: self(part, moments=tuple(for_each_tile(moment, part) for moment in statistics))


@FORMS.register
def seg_then_sr(config: ModelConfig, seg: dict[str, Any]) -> SegThenSR:
    """`model.seg` on the LQ image, then `model.sr` on its probabilities (one channel)."""
    if "channels" not in SR.parameters(config.sr["name"]):
        able = [name for name in SR.names() if "channels" in SR.parameters(name)]
        raise ValueError(
            f"model.form=seg_then_sr: model.sr={config.sr['name']} enlarges images only, not masks; "
            f"choose from {', '.join(able)}"
        )
    model = SegThenSR(config, SR.build(config.sr, scale=config.scale, channels=1), SEG.build(seg))
    if getattr(model.seg, "takes_kernel", False):
        raise ValueError(f"model.form=seg_then_sr: model.seg={seg['name']} needs a blur kernel, and none is predicted")
    return model
