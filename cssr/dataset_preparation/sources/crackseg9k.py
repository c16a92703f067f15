"""CrackSeg9k (arxiv.org/abs/2208.13054): some 9,200 pictures of 400 x 400 from ten sets, their masks made alike.

Versions differ in what is there, and issue 4 of its repository counts 744 bad pairs; --skip-unpaired passes over files
without partner. The lists train.txt and test.txt name a picture a line. A corrected copy has img_dir/SPLIT and
ann_dir/SPLIT.
"""

from pathlib import Path

from cssr.dataset_preparation.groups import merged_group
from cssr.dataset_preparation.layout import grey_source
from cssr.dataset_preparation.masks import ResizeMasks, Threshold
from cssr.dataset_preparation.pairing import Layout, SkipUnpaired, find_pairs
from cssr.dataset_preparation.sources import SOURCES, Root, Source, Split
from cssr.utils.image_files import filter_by_suffix, walk

_FLAT = Layout("**/Images/{stem}.*", "**/Masks/{stem}.*")
_CORRECTED = Layout("**/img_dir/{split}/{stem}.*", "**/ann_dir/{split}/{stem}.*")


@SOURCES.register
def crackseg9k(
    root: Root,
    split: Split = None,
    threshold: Threshold = None,
    resize_masks: ResizeMasks = False,
    skip_unpaired: SkipUnpaired = False,
) -> Source:
    """ROOT/Images and ROOT/Masks; --split train takes what ROOT/train.txt names; or img_dir/SPLIT and ann_dir/SPLIT."""
    names = _list(root, split)
    if names:
        pairs = find_pairs(root, None, _FLAT, names=names, skip=skip_unpaired)
    else:
        pairs = find_pairs(root, split, *([_CORRECTED] if split else [_FLAT, _CORRECTED]), skip=skip_unpaired)
    return grey_source("crackseg9k", None, pairs, threshold, resize_masks, merged_group)


def _list(root: Path, split: str | None) -> str | None:
    """The list of a split, relative to the root; ValueError with the lists that there are."""
    lists: dict[str, str] = {}
    for path in filter_by_suffix(walk(root), (".txt",)):
        name = path.relative_to(root).as_posix()
        if path.stem == split and split in lists:
            raise ValueError(
                f"two lists are of split {split!r}: {lists[split]} and {name} in {root}; remove one of them"
            )
        lists[path.stem] = name
    if split is None or split in lists or not any(name.startswith(("train", "test", "val")) for name in lists):
        return lists.get(split)
    raise ValueError(f"unknown split {split!r}: there is no {split}.txt; choose with --split from: {', '.join(lists)}")
