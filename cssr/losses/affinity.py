"""Feature-affinity loss of DSRL: pixel similarities of segmentation and SR features should agree."""

from collections.abc import Callable

import torch.nn.functional as F
from einops import einsum, rearrange
from torch import Tensor

from cssr.config.schedules import Progress
from cssr.data.batch import Batch, Outputs
from cssr.losses import LOSSES


@LOSSES.register
def feature_affinity(pool: int = 16, normalize: bool = False) -> Callable:
    """Mean absolute difference of two similarity matrices, each of all pairs of positions (Wang et al. 2020, DSRL).

    Each sample's value is the paper's. The released code sums over samples: divided by the samples per device, that is
    the batch mean of these values. Masks are not used.

    Args:
        pool: side of the blocks over which features (B C H W) are averaged first, pixels.
        normalize: scale the feature vector of each position to length 1, as in the paper (not in the released code).
    Raises:
        ValueError: for a `pool` below 1; from the loss, where the model returns no features or they are smaller.
    """
    if isinstance(pool, bool) or not isinstance(pool, int) or pool < 1:
        raise ValueError(f"loss 'feature_affinity': pool must be a whole number of at least 1, got {pool!r}")

    def loss(outputs: Outputs, batch: Batch, progress: Progress) -> Tensor:
        if len(outputs.features) != 2:
            raise ValueError("loss 'feature_affinity' needs a model that gives two features: model.form=dsrl")
        seg_similarity, sr_similarity = (similarities(features) for features in outputs.features)  # B n n each
        return (sr_similarity - seg_similarity).abs().mean((1, 2))

    def similarities(features: Tensor) -> Tensor:
        if min(features.shape[-2:]) < pool:
            size = "x".join(map(str, features.shape[-2:]))
            raise ValueError(f"loss 'feature_affinity': pool={pool} exceeds features of {size}; use data.crop >= pool")
        vectors = rearrange(F.avg_pool2d(features, pool), "b c h w -> b c (h w)")
        vectors = F.normalize(vectors, dim=1) if normalize else vectors
        return einsum(vectors, vectors, "b c m, b c n -> b m n")

    return loss
