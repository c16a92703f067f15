"""Losses: `(outputs, batch, progress) -> Tensor[B]`, one value a sample, float32.

Contract: a registered function `name(**settings)` returns such a callable. It is pure: what changes in the course of a
run is a function of `progress` (samples seen), never a counter. Segmentation losses take logits; an empty mask is a
normal sample. `cssr/losses/segmentation.py` and `super_resolution.py` say what each gives there.
"""

from cssr.registry import Registry, import_siblings

LOSSES = Registry("loss")

import_siblings(__name__, __path__)
