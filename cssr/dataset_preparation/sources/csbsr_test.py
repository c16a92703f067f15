"""The degraded test set that CSBSR's authors give out (github.com/Yuki-11/CSBSR, "degraded original test set").

gt/ holds khanhha's test pictures of 448 x 448; 02_40/ the same blurred (sigma 0.2 to 4.0, 21 x 21, theta at random) and
reduced by 4 with torchvision's bicubic filter, as 8-bit PNGs, and the kernels. Each kernel was scaled to a maximum of 1
and cut down to 8 bits; their code, like this one, divides what it reads by its sum. It is not quite the kernel that
was applied: tails below 1/255 of the maximum are gone. The layout is the one that their code reads.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated

from cssr.cracks.masks import DEFAULT_THRESHOLD, rule_above
from cssr.dataset_preparation.groups import merged_group
from cssr.dataset_preparation.masks import Threshold, read_kernel
from cssr.dataset_preparation.pairing import Layout, find_pairs, image_files, match_files, omission_note
from cssr.dataset_preparation.sources import SOURCES, Item, Root, Source
from cssr.dataset_preparation.sources.khanhha import with_set

Blur = Annotated[str, "which degradation: a folder of ROOT with lr_images/ and kernels/"]
_NOTE = "the kernels are 8-bit pictures, here divided by their sum; they differ a little from those that were applied"


@SOURCES.register
def csbsr_test(root: Root, blur: Blur = "02_40", threshold: Threshold = None) -> Source:
    """ROOT/gt/images and gt/masks, ROOT/02_40/lr_images and 02_40/kernels (--blur): a frozen test set at scale 4."""
    truths = find_pairs(root, None, Layout("gt/images/{stem}.*", "gt/masks/{stem}.*"))
    beside = {kind: _beside(root, blur, kind, truths.pictures) for kind in ("lr_images", "kernels")}
    spare = {kind: sorted(files.keys() - truths.pictures.keys()) for kind, files in beside.items()}
    notes = [note for kind in spare for note in omission_note(f"files of {blur}/{kind} without picture", spare[kind])]
    items = [_item(item, beside, blur) for item in truths.items(group=merged_group)]
    rule = rule_above(DEFAULT_THRESHOLD if threshold is None else threshold, "JPEG masks, values 0..255")
    return Source("csbsr_test", None, items, lambda _: rule, (_NOTE, *notes))


def _beside(root: Path, blur: str, kind: str, pictures: dict[str, Path]) -> dict[str, Path]:
    """The files of a degradation by key; ValueError unless there is one for each picture."""
    files = image_files(root, (".png",))
    paths = match_files(files, root, f"{blur}/{kind}/{{stem}}.png")
    if not paths:
        blurs = sorted({name.split("/")[0] for name in files if name.split("/")[1:2] == [kind]})
        choices = f"choose with --blur from: {', '.join(blurs)}" if blurs else "point --root at the folder above gt/"
        raise ValueError(f"there is no {root / blur / kind} with PNGs; {choices}")
    absent = sorted(pictures.keys() - paths.keys())
    if absent:
        raise ValueError(
            f"missing file: {len(absent)} of {len(pictures)} pictures have none in {blur}/{kind}, the first is "
            f"{pictures[absent[0]]}; download the set again"
        )
    return paths


def _item(item: Item, beside: dict[str, dict[str, Path]], blur: str) -> Item:
    lq, kernel = beside["lr_images"][item.key], beside["kernels"][item.key]
    item = replace(item, extra={**item.extra, "blur": blur})
    files = (*item.files, lq, kernel)
    return with_set(replace(item, lq=lq.read_bytes, kernel=partial(read_kernel, kernel), files=files))
