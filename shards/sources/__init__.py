"""What a layout of files of one's own is written with: `from sources import SOURCES, Item, MaskRule, Root, Source`."""

from cssr.dataset_preparation.sources import SOURCES, Item, MaskRule, Root, Source, Split

__all__ = ["SOURCES", "Item", "MaskRule", "Root", "Source", "Split"]
