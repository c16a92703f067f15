"""UAV75 (github.com/ben-z-original/uav75): 75 photographs of concrete by a drone, 512 x 512, fine cracks on planking.

Its masks are RGBA, opaque, with three greys: 0, 204 for planking patterns (background that looks like cracks), 255 for
cracks, drawn as lines. The published parts share photographs (11 of 43): DSC00550 is tested, DSC00550b trained on. The
group is the name without the crop's letter; cut anew by group where that matters.
"""

from functools import partial

from cssr.dataset_preparation.groups import lettered_crop
from cssr.dataset_preparation.masks import Dilate, decide_by_classes, dilated
from cssr.dataset_preparation.pairing import Layout, find_pairs
from cssr.dataset_preparation.sources import SOURCES, Root, Source, Split

_CRACK, _OTHERS = 255, {0: "background", 204: "planking, background too"}
_LAYOUT = Layout("**/{split}_img/{stem}.*", "**/{split}_lab/{stem}.*")


@SOURCES.register
def uav75(root: Root, split: Split = None, dilate: Dilate = 0) -> Source:
    """ROOT/train_img and train_lab, val_img and val_lab, test_img and test_lab (--split): X.jpg and X.png."""
    pairs = find_pairs(root, split, _LAYOUT)
    decide = partial(decide_by_classes, crack=_CRACK, others=_OTHERS)
    note = "some photographs of this set have crops in two of its published parts; see their groups"
    return Source("uav75", "GPL-3.0", pairs.items(group=lettered_crop), dilated(decide, dilate), (note,))
