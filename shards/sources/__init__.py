"""Sources: one file per dataset layout on disk.

Contract: a registered function `name(root: Root, split: Split = None, **options) -> Source` lists what there is without
decoding any of it, and raises ValueError (one sentence: what was found, and the remedy) where a picture lacks its mask,
a mask its picture, or nothing is there. The command line is made from the signature: an option needs a default and an
annotation (`int`, `float`, `str`, each also `| None`, `bool` for a switch, or `Annotated` with its help text); the
first line of the docstring introduces the source. A source made from nothing has neither `root` nor `split`.
`folder.py` has the parts that most layouts share.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from cssr.registry import Registry, import_siblings

SOURCES = Registry("source")

Root = Annotated[Path, "folder of the dataset"]
Split = Annotated[str | None, "part of the dataset, where it comes in parts"]


@dataclass(frozen=True)
class Item:
    """One picture and its mask, unread.

    `key` names the sample, `origin` says where it came from, relative to the root; neither is opened. `image()` gives
    the bytes of an image file, `mask()` the stored values (H W, any dtype) before the rule of the set makes them crack
    or not; both raise OSError or ValueError when they cannot. `mask` is None in a set without masks. `extra` goes into
    the sample's json.
    """

    key: str
    origin: str
    image: Callable[[], bytes]
    mask: Callable[[], np.ndarray] | None
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class MaskRule:
    """What counts as crack: a `sentence` for people, and `apply`, from stored values H W to bool H W."""

    sentence: str
    apply: Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Source:
    """What a layout holds.

    `decide(items)` gives one mask rule for the whole set; it may read every mask, and refuse with ValueError. It is
    None where the set has no masks: such shards train super-resolution alone.
    """

    name: str
    licence: str | None
    items: list[Item]
    decide: Callable[[Iterable[Item]], MaskRule] | None


import_siblings(__name__, __path__)
