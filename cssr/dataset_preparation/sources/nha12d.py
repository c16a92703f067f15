"""NHA12D (github.com/ZheningHuang/NHA12D-Crack-Detection-Dataset-and-Comparison-Study): 80 frames of survey vehicles.

1920 x 1080, asphalt and concrete in two viewing directions. Masks are RGB: black, and one of two colours, both crack.
"""

from cssr.cracks.masks import read_colours
from cssr.dataset_preparation.pairing import Layout, find_pairs
from cssr.dataset_preparation.sources import SOURCES, MaskRule, Root, Source, Split

_ALL = Layout("**/Raw_images/{stem}.*", "**/Masks/{stem}.*")
_PART = Layout("**/{split}/Raw_images/{stem}.*", "**/{split}/Masks/{stem}.*")


@SOURCES.register
def nha12d(root: Root, split: Split = None) -> Source:
    """ROOT/PART/Raw_images/X.jpg and ROOT/PART/Masks/X.png; --split Asphalt_pavement_FD, ... takes one part."""
    pairs = find_pairs(root, split, _ALL, _PART)
    rule = MaskRule("masks by colour: crack = any but black", lambda values: values > 0)
    return Source("nha12d", None, pairs.items(read_colours), lambda _: rule)
