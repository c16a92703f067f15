"""Forms of the joint model, the ways in which the two networks are joined: one file each.

Contract: a registered function `name(config, seg, fresh, **settings) -> JointModel` (it may leave out what it does not
need of these three): the `model` settings, those of the segmentation network with or without `pretrained`, and whether
pretrained weights are fetched. What the model itself keeps to is said in cssr/models/joint.py.
"""

from cssr.config.registry import Registry

FORMS = Registry("form of the joint model", __name__)
