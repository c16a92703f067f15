"""Names for layouts of files of one's own: `from sources import SOURCES, Item, MaskRule, Root, Source`."""

from cssr.dataset_preparation.sources import SOURCES, Item, MaskRule, Root, Source, Split

__all__ = ["SOURCES", "Item", "MaskRule", "Root", "Source", "Split"]
