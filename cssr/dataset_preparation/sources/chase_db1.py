"""CHASE_DB1 (researchdata.kingston.ac.uk/96): vessels in 28 photographs of the retina, 999 x 960, both eyes of a child.

There is no official split: --split train is children 01 to 10, test 11 to 14, as most papers have it.
"""

from typing import Annotated

from cssr.dataset_preparation.layout import grey_source
from cssr.dataset_preparation.pairing import Layout, Pairs, find_pairs
from cssr.dataset_preparation.sources import SOURCES, Root, Source, Split

Observer = Annotated[int, "observer who drew the masks: 1, as in most papers, or 2"]
_MARKS = {1: "1stHO", 2: "2ndHO"}
_TRAINED = range(1, 11)  # the children of the first 20 photographs


@SOURCES.register
def chase_db1(root: Root, split: Split = None, observer: Observer = 1) -> Source:
    """ROOT/Image_01L.jpg and ROOT/Image_01L_1stHO.png, in one folder or in two; --split train or test by custom."""
    if observer not in _MARKS:
        raise ValueError(f"--observer is {observer}; there are 1 and 2")
    if split not in (None, "train", "test"):
        raise ValueError(f"unknown split {split!r}: choose with --split from: train, test")
    layout = Layout("**/Image_{stem}.*", f"**/Image_{{stem}}_{_MARKS[observer]}.*")
    pairs = _part(find_pairs(root, None, layout, ignore=r"(?!\d\d[LR]$).*"), split)
    return grey_source("chase_db1", "CC BY 4.0", pairs, group=lambda key: f"child {key[:2]}")


def _part(pairs: Pairs, split: str | None) -> Pairs:
    """The pairs of a part; keys are 01L, 01R, ... of a child's left and right eye."""
    if split is None:
        return pairs
    keys = [key for key in pairs.pictures if (int(key[:2]) in _TRAINED) == (split == "train")]
    return Pairs(pairs.root, *({key: paths[key] for key in keys} for paths in (pairs.pictures, pairs.truths)))
