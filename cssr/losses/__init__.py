"""Losses: `(outputs, batch, progress) -> Tensor[B]`, one value a sample, float32.

Contract: a registered function `name(**settings)` returns such a callable. It is pure: what changes in the course of a
run is a function of `progress` (samples seen), never a counter. Its attributes `needs_distance` and `needs_kernel`,
where they are true, ask for the batch's distance maps and true blur kernels. Segmentation losses take logits; an empty
mask is a normal sample, and each module says what its losses give there.
"""

from cssr.config.registry import Registry

LOSSES = Registry("loss", __name__)
