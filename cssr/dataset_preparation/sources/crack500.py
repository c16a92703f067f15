"""CRACK500 (github.com/fyangneil/pavement-crack-detection): 500 photographs of pavement, and 3,368 tiles of them.

Tiles are X.jpg with X.png beside it in traincrop/, valcrop/, testcrop/; the photographs are X.jpg with X_mask.png in
traindata/, valdata/, testdata/ (folders of the same name may be nested, as the archives unpack). Copies go about with
SPLIT/images and SPLIT/masks, too. A tile's name begins with its photograph's: 20160222_081011_1_361 is of
20160222_081011, from x = 1, y = 361.
"""

from functools import partial
from typing import Annotated

from cssr.dataset_preparation.groups import without_numbers
from cssr.dataset_preparation.layout import grey_set
from cssr.dataset_preparation.masks import ResizeMasks, Threshold
from cssr.dataset_preparation.sources import SOURCES, Root, Source, Split

Whole = Annotated[bool, "the whole photographs of SPLITdata/, not the tiles of SPLITcrop/"]
_WHOLE = ("**/{split}data/{stem}.jpg", "**/{split}data/{stem}_mask.png")
_TILES = (
    ("**/{split}crop/{stem}.jpg", "**/{split}crop/{stem}.png"),
    ("**/{split}/images/{stem}.jpg", "**/{split}/masks/{stem}.png"),
)


@SOURCES.register
def crack500(
    root: Root,
    split: Split = None,
    whole: Whole = False,
    threshold: Threshold = None,
    resize_masks: ResizeMasks = False,
) -> Source:
    """ROOT/traincrop, valcrop or testcrop (--split train, ...): X.jpg and X.png; or traindata, ... with --whole."""
    layouts, group = ([_WHOLE], None) if whole else (_TILES, partial(without_numbers, count=2))
    return grey_set("crack500", None, root, split, *layouts, threshold=threshold, resize=resize_masks, group=group)
