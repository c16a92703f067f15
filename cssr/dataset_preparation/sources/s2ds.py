"""S2DS (github.com/ben-z-original/s2ds): 743 patches of 1024 x 1024 of bridges and the like, seven classes by colour.

Cracks are white; spalling red, corrosion yellow, efflorescence cyan, vegetation green, control points blue, the rest
black. Cracks are drawn as lines. The patches are cut from larger photographs, of which their names say nothing.
"""

from functools import partial

from cssr.cracks.masks import decide_by_members, pack_colour, read_colours, show_colour
from cssr.dataset_preparation.masks import Dilate, dilated
from cssr.dataset_preparation.pairing import Layout, find_pairs
from cssr.dataset_preparation.sources import SOURCES, Root, Source, Split

_CRACK = pack_colour(255, 255, 255)
_LAYOUT = Layout("**/{split}/{stem}.png", "**/{split}/{stem}_lab.png")


@SOURCES.register
def s2ds(root: Root, split: Split = None, dilate: Dilate = 0) -> Source:
    """ROOT/train, val or test (--split): N.png with N_lab.png beside it."""
    pairs = find_pairs(root, split, _LAYOUT)
    others = " (other colours are other defects, or background)"
    decide = partial(decide_by_members, crack=[_CRACK], option="cracks of S2DS", show=show_colour, others=others)
    return Source("s2ds", "must not be shared or distributed", pairs.items(read_colours), dilated(decide, dilate))
