"""Sources: one file per dataset layout on disk.

Contract: a registered function `name(root: Root, split: Split = None, **options) -> Source` lists what there is without
decoding any of it, and raises ValueError (one sentence: the fault and the remedy) where a picture lacks its mask,
a mask its picture, or nothing is there. The command line is made from the signature: an option needs a default and an
annotation (`int`, `float`, `str`, each also `| None`, `bool` for a switch, or `Annotated` with its help text); the
first line of the docstring introduces the source. A source made from nothing has neither `root` nor `split`.

What sources share is in modules of `dataset_preparation`: `pairing.py` (files that belong together), `layout.py` (image
and mask folders), `masks.py` (mask files, mask rules, kernels), `groups.py` (the photograph that a tile comes from),
`shapes.py` (polygons and run lengths).
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from cssr.config.registry import Registry
from cssr.cracks.masks import MaskRule as MaskRule

SOURCES = Registry("source", __name__)

Root = Annotated[Path, "folder of the dataset"]
Split = Annotated[str | None, "part of the dataset, where it comes in parts"]


@dataclass(frozen=True)
class Item:
    """One picture and its mask, unread.

    `key` names the sample, `origin` says where it came from, relative to the root; neither is opened. `image()` gives
    the bytes of an image file, `mask()` the stored values (H W, any dtype) before the rule of the set makes them crack
    or not; both raise OSError or ValueError when they cannot. `mask` is None in a set without masks. `extra` goes into
    the sample's json. `lq()` gives the bytes of a low-resolution image file that belongs to the picture, `kernel()` the
    blur kernel between the two (k k float32, sum 1). `group` is the photograph that a tile or a frame comes from, which
    must not straddle training and test; None: the key itself. `valid()` says which pixels hold data (H W bool, or None
    where all do) where the image file itself does not. `files` are all files that it is made of, annotations among
    them: a shard that was finished before is written anew where one has changed since, and where `files` is None.
    """

    key: str
    origin: str
    image: Callable[[], bytes]
    mask: Callable[[], np.ndarray] | None
    extra: dict[str, Any] = field(default_factory=dict)
    lq: Callable[[], bytes] | None = None
    kernel: Callable[[], np.ndarray] | None = None
    group: str | None = None
    valid: Callable[[], np.ndarray | None] | None = None
    files: tuple[Path, ...] | None = None


@dataclass(frozen=True)
class Source:
    """Items of a dataset, as its layout lists them.

    `decide(items)` gives one mask rule for the whole set; it may read every mask, and refuse with ValueError. It is
    None where the set has no masks: such shards train super-resolution alone. `notes` are sentences that people should
    read: what was passed over, what is known to be wrong with the set.
    """

    name: str
    licence: str | None
    items: list[Item]
    decide: Callable[[Iterable[Item]], MaskRule] | None
    notes: tuple[str, ...] = ()
