"""Degradations: high-resolution image -> low-resolution image and blur kernel, on the device.

Contract: a registered function `name(scale, **settings)` returns a callable `degrade(hr, seeds) -> (lq, kernel)`:
`hr` B 3 H W float32 0..1, `seeds` B int64 on the CPU; `lq` B 3 H/scale W/scale float32; `kernel` B 1 k k float32 or
None. Each sample's parameters depend on its own seed only and are drawn on the CPU (`draws.py`); pixels are computed
for the whole batch on `hr`'s device. The attribute `resampler` (str) describes the reduction, for the results.

A new blur is one function that draws kernels (contract: `blurs.py`); reduction, noise and JPEG are added to it, and
`compound` and `random_blur` can name it.
"""

from cssr.config.registry import Registry

DEGRADATIONS = Registry("degradation", __name__)
