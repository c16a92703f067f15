"""khanhha's collection of crack data sets (github.com/khanhha/crack_segmentation): 448 x 448 JPEGs of a dozen sets.

Many pictures are tiles of larger photographs, and keep their names. Whether the published train and test parts share
photographs is for a check of the groups to say.
"""

from dataclasses import replace

from cssr.cracks.masks import DEFAULT_THRESHOLD, rule_above
from cssr.dataset_preparation.groups import merged_group
from cssr.dataset_preparation.layout import pair_folders, split_folder
from cssr.dataset_preparation.masks import Threshold
from cssr.dataset_preparation.sources import SOURCES, Item, Root, Source, Split


@SOURCES.register
def khanhha(root: Root, split: Split = None, threshold: Threshold = None) -> Source:
    """ROOT/train or ROOT/test (--split), each with images/ and masks/: JPEGs of the same names."""
    base = split_folder(root, split)
    items = [with_set(item) for item in pair_folders(root, base / "images", base / "masks").items(group=merged_group)]
    rule = rule_above(DEFAULT_THRESHOLD if threshold is None else threshold, "JPEG masks, values 0..255")
    return Source("khanhha", None, items, lambda _: rule)


def with_set(item: Item) -> Item:
    """Add the set that a picture came from, the head of its name: CRACK500 of CRACK500_2016.jpg, CFD of CFD001.jpg."""
    name = item.key.rsplit("/", 1)[-1]
    head = name.split("_", 1)[0] if "_" in name else name.rstrip("0123456789")
    return replace(item, extra={**item.extra, "set": head})
