"""One network with two heads, for SR and for segmentation: the form of DSRL."""

from typing import Any

from torch import Tensor

from cssr.config.registry import Count
from cssr.config.schema import ModelConfig
from cssr.data.batch import Outputs
from cssr.models.blocks import pad_to_multiple
from cssr.models.dsrl import Upsample
from cssr.models.dsrl import dsrl as dual_network
from cssr.models.forms import FORMS
from cssr.models.joint import JointModel
from cssr.models.tta import mean_logits


class Dual(JointModel):
    """One network with two heads (DSRL), as `sr`."""

    def forward(self, lq: Tensor, kernel: Tensor | None = None, valid: Tensor | None = None) -> Outputs:
        """SR, logits, and the two features that DSRL's affinity loss compares."""
        sr, logits, *features = self._both(lq)
        if not self.training and self.orientations > 1:
            logits = mean_logits(lambda part, _: self._both(part)[1], lq, None, self.orientations)
        return Outputs(sr=self.clip(sr), logits=self.calibrate(logits), features=tuple(features))

    def _both(self, lq: Tensor) -> tuple[Tensor, ...]:
        height, width = (side * self.scale for side in lq.shape[-2:])
        outputs = self.sr(pad_to_multiple(lq, getattr(self.sr, "stride", 1)))
        return tuple(x[..., :height, :width] for x in (*outputs[:2], *outputs[2]))


@FORMS.register
def dsrl(
    config: ModelConfig,
    fresh: bool,
    upsample: Upsample = "deconv",
    encoder: str = "resnet101",
    pretrained: bool | str = False,
    width: Count = 16,
    encoder_args: dict[str, Any] | None = None,
) -> Dual:
    """Dual super-resolution learning: one network for both; `model.sr` and `model.seg` have no effect.

    The settings are those of `cssr/models/dsrl.py`.
    """
    weights = pretrained if fresh else False
    return Dual(config, dual_network(config.scale, upsample, encoder, weights, width, encoder_args=encoder_args), None)
