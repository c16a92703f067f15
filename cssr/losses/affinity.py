"""DSRL's feature-affinity loss: similarities between pixels should be the same in segmentation and SR features."""

from collections.abc import Callable

import torch.nn.functional as F
from einops import einsum, rearrange
from torch import Tensor

from cssr.config.schedules import Progress
from cssr.data.batch import Batch, Outputs
from cssr.losses import LOSSES


@LOSSES.register
def feature_affinity(pool: int = 16, normalize: bool = False) -> Callable:
    """Mean absolute difference of the similarities between all places of the two features (Wang et al., DSRL).

    Per sample the paper's number; its mean over the batch is the released code's, which adds the samples up, divided by
    the number of samples that a device sees at once. Masks do not enter.

    Args:
        pool: side of the blocks over which features are averaged first, pixels.
        normalize: whether each place's features have length 1 first, as in the paper; the released code leaves it out.
    Raises:
        ValueError: from the loss, where the model gives no features or they are smaller than `pool`.
    """
    if isinstance(pool, bool) or not isinstance(pool, int) or pool < 1:
        raise ValueError(f"loss 'feature_affinity': pool must be a whole number of at least 1, got {pool!r}")

    def loss(outputs: Outputs, batch: Batch, progress: Progress) -> Tensor:
        if len(outputs.features) != 2:
            raise ValueError("loss 'feature_affinity' needs a model that gives two features: model.form=dsrl")
        of_seg, of_sr = (similarities(x) for x in outputs.features)
        return (of_sr - of_seg).abs().mean((1, 2))

    def similarities(features: Tensor) -> Tensor:
        if min(features.shape[-2:]) < pool:
            size = "x".join(map(str, features.shape[-2:]))
            raise ValueError(f"loss 'feature_affinity': pool={pool} exceeds features of {size}; use data.crop >= pool")
        vectors = rearrange(F.avg_pool2d(features, pool), "b c h w -> b c (h w)")
        vectors = F.normalize(vectors, dim=1) if normalize else vectors
        return einsum(vectors, vectors, "b c m, b c n -> b m n")

    return loss
