"""TUT (github.com/Karl1109/TUT): cracks of many materials, the benchmark of SCSegamba and CrackSCF.

The folders are those that the authors' code reads, with masks thresholded at 127.
"""

from cssr.dataset_preparation.layout import grey_set
from cssr.dataset_preparation.masks import ResizeMasks, Threshold
from cssr.dataset_preparation.sources import SOURCES, Root, Source, Split


@SOURCES.register
def tut(root: Root, split: Split = None, threshold: Threshold = None, resize_masks: ResizeMasks = False) -> Source:
    """ROOT/train_img and train_lab, val_img and val_lab, test_img and test_lab (--split)."""
    layout = "**/{split}_img/{stem}.*", "**/{split}_lab/{stem}.*"
    return grey_set("tut", None, root, split, layout, threshold=threshold, resize=resize_masks)
