"""Super-resolution networks: one file each.

Contract: a registered function `name(scale, **settings) -> nn.Module`. Its
`forward(lq, kernel=None) -> (sr, kernel)` takes `lq` (B 3 h w, about 0..1) and returns `sr` (B 3 h*scale w*scale,
unclipped) and the blur kernel it predicts (B 1 k k) or None. A `kernel` that is given (B 1 k k) takes the place of the
predicted one; networks that predict none ignore it. A network that predicts a kernel says so, `predicts_kernel = True`,
says its side, `kernel_size`, and calls what predicts it `predictor`: that is the parameter group `kernel`. One that
knows better than `cssr/training/activation_checkpointing.py` what to recompute at a time names it: `recomputed`, a
property. A function that takes `channels` makes networks for masks too. A network that starts from a file offers
`settings`, which rebuild it without.
"""

from cssr.config.registry import Registry

SR = Registry("SR network", __name__)
