"""Degradations: high-resolution image -> low-resolution image and blur kernel, on the device.

Contract: a registered function `name(scale, **settings)` returns a callable `degrade(hr, seeds) -> (lq, kernel)`:
`hr` B 3 H W float32 0..1, `seeds` B int64 on the CPU; `lq` B 3 H/scale W/scale float32; `kernel` B 1 k k float32 or
None. Each sample's parameters depend on its own seed alone. The callable's `resampler` (a str) names what reduced the
image; it is recorded with the results.
"""

from cssr.registry import Registry, import_siblings

DEGRADATIONS = Registry("degradation")

import_siblings(__name__, __path__)
