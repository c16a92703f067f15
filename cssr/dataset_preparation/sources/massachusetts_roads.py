"""Massachusetts Roads (cs.toronto.edu/~vmnih/data): 1,171 aerial photographs of 1500 x 1500, 1 m a pixel.

Roads in place of cracks, as CSBSR has it. Some training photographs have white areas without data, where the masks go
on; some copies lack masks.
"""

from cssr.dataset_preparation.layout import grey_set
from cssr.dataset_preparation.masks import Threshold
from cssr.dataset_preparation.pairing import SkipUnpaired
from cssr.dataset_preparation.sources import SOURCES, Root, Source, Split

_LAYOUTS = (
    ("**/tiff/{split}/{stem}.*", "**/tiff/{split}_labels/{stem}.*"),
    ("**/png/{split}/{stem}.*", "**/png/{split}_labels/{stem}.*"),
    ("**/{split}/sat/{stem}.*", "**/{split}/map/{stem}.*"),
    ("**/{split}/input/{stem}.*", "**/{split}/output/{stem}.*"),
)


@SOURCES.register
def massachusetts_roads(
    root: Root, split: Split = None, threshold: Threshold = None, skip_unpaired: SkipUnpaired = False
) -> Source:
    """ROOT/tiff/SPLIT and SPLIT_labels, ROOT/SPLIT/sat and map, or ROOT/SPLIT/input and output."""
    return grey_set("massachusetts_roads", None, root, split, *_LAYOUTS, threshold=threshold, skip=skip_unpaired)
