"""Degradations: high-resolution image -> low-resolution image and blur kernel, on the device.

Contract: a registered function `name(scale, **settings)` returns a callable `degrade(hr, seeds) -> (lq, kernel)`:
`hr` B 3 H W float32 0..1, `seeds` B int64 on the CPU; `lq` B 3 H/scale W/scale float32; `kernel` B 1 k k float32 or
None. Each sample's parameters depend on its own seed alone: they are drawn on the CPU (`draws.py`), and all pixel work
is done for the whole batch on `hr`'s device. The callable's `resampler` (a str) names what reduced the image; it is
recorded with the results.

To add a blur is to add one function that draws its kernels (`blurs.py` says how); reduction, noise and JPEG come with
it, and `compound` and `random_blur` can name it.
"""

from cssr.config.registry import Registry

DEGRADATIONS = Registry("degradation", __name__)
