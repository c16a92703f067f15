"""DeepCrack (github.com/yhlleo/DeepCrack): 300 and 237 photographs of 544 x 384, cracks of many widths and surfaces.

The folders are as its README says. Names such as 11125-1 are taken, on their face, for crops of photograph 11125.
"""

from cssr.dataset_preparation.groups import numbered_crop
from cssr.dataset_preparation.layout import grey_set
from cssr.dataset_preparation.masks import ResizeMasks, Threshold
from cssr.dataset_preparation.sources import SOURCES, Root, Source, Split


@SOURCES.register
def deepcrack(
    root: Root, split: Split = None, threshold: Threshold = None, resize_masks: ResizeMasks = False
) -> Source:
    """ROOT/train_img and train_lab, test_img and test_lab (--split): X.jpg and X.png."""
    licence, layout = (
        "non-commercial research and education only",
        ("**/{split}_img/{stem}.*", "**/{split}_lab/{stem}.*"),
    )
    options = {"threshold": threshold, "resize": resize_masks, "group": numbered_crop}
    return grey_set("deepcrack", licence, root, split, layout, **options)
