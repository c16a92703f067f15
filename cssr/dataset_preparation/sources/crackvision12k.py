"""CrackVision12K (rdr.ucl.ac.uk/articles/dataset/CrackVision12K/26946472): 12,000 pictures of 256 x 256.

Refined from 13 public sets by image processing, for Hybrid-Segmentor.
"""

from cssr.dataset_preparation.layout import grey_set
from cssr.dataset_preparation.masks import ResizeMasks, Threshold
from cssr.dataset_preparation.sources import SOURCES, Root, Source, Split


@SOURCES.register
def crackvision12k(
    root: Root, split: Split = None, threshold: Threshold = None, resize_masks: ResizeMasks = False
) -> Source:
    """ROOT/train, val or test (--split), each with IMG/ and GT/; split_dataset_final/ may be between."""
    licence, layout = (
        "non-commercial research and education only",
        ("**/{split}/IMG/{stem}.*", "**/{split}/GT/{stem}.*"),
    )
    return grey_set("crackvision12k", licence, root, split, layout, threshold=threshold, resize=resize_masks)
