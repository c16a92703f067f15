"""CrackTree (github.com/qinnzou/DeepCrack): CrackTree200, 206 of 800 x 600, and 260; CRKWH100, CrackLS315, Stone331.

The masks are centre lines one pixel wide: --dilate makes them wide enough to learn from, or measure with a tolerance.
Folder names differ from copy to copy: those of CrackTree200 as CRACK500's authors give it (cracktree200rgb,
cracktree200_gt) and of CrackTree260 (image or CrackTree260, gt) are known; the last line of the others is a guess.
"""

from functools import partial

from cssr.cracks.masks import check_threshold, decide_by_levels
from cssr.dataset_preparation.masks import Dilate, ResizeMasks, Threshold, dilated
from cssr.dataset_preparation.pairing import Layout, find_pairs
from cssr.dataset_preparation.sources import SOURCES, Root, Source

_LAYOUTS = (
    Layout("**/cracktree200rgb/{stem}.*", "**/cracktree200_gt/{stem}.*"),
    Layout("**/CrackTree260/{stem}.*", "**/gt/{stem}.*"),
    Layout("**/image/{stem}.*", "**/gt/{stem}.*"),
    Layout("**/images/{stem}.*", "**/gt/{stem}.*"),
    Layout("**/images/{stem}.*", "**/masks/{stem}.*"),
)


@SOURCES.register
def cracktree(root: Root, dilate: Dilate = 0, threshold: Threshold = None, resize_masks: ResizeMasks = False) -> Source:
    """ROOT/cracktree200rgb and cracktree200_gt, or ROOT/image(s) and gt, or images and masks; see --dilate."""
    pairs = find_pairs(root, None, *_LAYOUTS)
    decide = partial(decide_by_levels, threshold=check_threshold(threshold), lossy=pairs.lossy)
    thin = ("the masks are lines one pixel wide: --dilate 2, say, makes them wider",) if not dilate else ()
    return Source("cracktree", "academic research", pairs.items(resize=resize_masks), dilated(decide, dilate), thin)
