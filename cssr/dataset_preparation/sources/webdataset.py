"""Other people's WebDataset tars, compressed ones too. Nothing in them is unpickled."""

import bz2
import gzip
import lzma
import os
import re
import shutil
import tempfile
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, BinaryIO

import numpy as np

from cssr.cracks.masks import LOSSY_SUFFIXES, Read, choose_rule
from cssr.data.make_index import NamedBytes, NotRead, list_images
from cssr.data.suffixes import Reading, read_names
from cssr.data.tar_reader import Member
from cssr.data.tars import Tars, find_tars
from cssr.dataset_preparation.groups import GroupPattern, by_expression
from cssr.dataset_preparation.masks import (
    CrackColors,
    CrackValues,
    Dilate,
    ResizeMasks,
    Threshold,
    dilated,
    fitted,
    refuse_mask_options,
    upright_size,
)
from cssr.dataset_preparation.pairing import SkipUnpaired
from cssr.dataset_preparation.sources import SOURCES, Item, Root, Source, Split

ImageSuffix = Annotated[str | None, "what follows the key in the names of images, as jpg or jpg,png"]
MaskSuffix = Annotated[str | None, "what follows the key in the names of masks, as seg.png"]
ImagesOnly = Annotated[bool, "no masks, for super-resolution alone"]

_OPENERS = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\x00": lzma.open}
_DAMAGED = (OSError, EOFError, zlib.error, lzma.LZMAError)  # of a compressed file
_HELD = 4  # compressed tars that a process keeps unpacked

_unpacked: OrderedDict[Path, BinaryIO] = OrderedDict()


@SOURCES.register
def webdataset(
    root: Root,
    split: Split = None,
    image_suffix: ImageSuffix = None,
    mask_suffix: MaskSuffix = None,
    images_only: ImagesOnly = False,
    threshold: Threshold = None,
    crack_colors: CrackColors = None,
    crack_values: CrackValues = None,
    dilate: Dilate = 0,
    resize_masks: ResizeMasks = False,
    skip_unpaired: SkipUnpaired = False,
    group_pattern: GroupPattern = None,
) -> Source:
    """Tars of KEY.jpg, KEY.seg.png, ...: all .tar or .tar.gz in ROOT or ROOT/SPLIT, or of 'ROOT/x-{00..99}.tar'."""
    if re.match(r"\w+:/|pipe:", str(root)):
        raise ValueError(
            f"--root {root} is no folder: download the tars first, or train on them where they are (data.train)"
        )
    tars = find_tars(root / split if split else root)
    if tars is None:
        raise ValueError(f"--root {root} holds no tars of others, or is a set of ours; give their folder or pattern")
    requested = _requested_suffixes(image_suffix, mask_suffix, images_only)
    if images_only:
        refuse_mask_options(threshold, crack_colors, crack_values, dilate, resize_masks)
    contents = [_listed(tars.root / name) for name in tars.names]
    reading = read_names([[m.name for m in members] for members in contents], requested, images_only)
    if fault := reading.fault(_suffix_option):
        raise ValueError(f"{tars}: {fault}")
    notes = _unpaired(tars, reading, skip_unpaired)
    lossy = any(f".{suffix}".endswith(LOSSY_SUFFIXES) for suffix in reading.of("mask"))
    read, decide = choose_rule(threshold, crack_colors, crack_values, lossy)
    samples = [
        _Sample(tars.root / name, *sample)
        for name, members in zip(tars.names, contents)
        for sample in _complete_samples(reading, members)
    ]
    keys_repeat = len({sample.key for sample in samples}) < len(samples)
    group = by_expression(group_pattern)
    items = [sample.item(keys_repeat, read if reading.masked else None, resize_masks, group) for sample in samples]
    return Source("webdataset", None, items, dilated(decide, dilate) if reading.masked else None, notes)


def _requested_suffixes(image: str | None, mask: str | None, images_only: bool) -> dict[str, list[str]]:
    if image is None and mask is None:
        return {}
    if image is None or images_only == (mask is not None):
        raise ValueError(
            f"--image-suffix {image} and --mask-suffix {mask}: give both, or --image-suffix with --images-only"
        )
    options = {"image": image, "mask": mask} if mask else {"image": image}
    return {role: [word.strip().lower().lstrip(".") for word in text.split(",")] for role, text in options.items()}


def _suffix_option(image: str, mask: str) -> str:
    return f"--image-suffix {image} " + (f"--mask-suffix {mask}" if mask else "--images-only")


def _unpaired(tars: Tars, reading: Reading, skip: bool) -> tuple[str, ...]:
    if not reading.unpaired:
        return ()
    count = sum(n for n, _ in reading.unpaired)
    if not skip:
        raise ValueError(
            f"{tars}: {count} samples lack their image or mask, the first is {reading.unpaired[0][1]}; pass over them "
            "with --skip-unpaired"
        )
    return (f"passed over {count} samples without image or mask",)


def _complete_samples(reading: Reading, members: list[Member]) -> Iterator[tuple[str, Member, Member | None]]:
    """Key, image and mask of the samples of a tar that have them. ValueError where one is there twice."""
    for key, files in reading.group(members).items():
        for several in files.values():
            if len(several) > 1:
                raise ValueError(f"{several[0].name} of sample {key} is there twice; remove one of them")
        if "image" in files and ("mask" in files or not reading.masked):
            yield key, files["image"][0], files["mask"][0] if reading.masked else None


@dataclass(frozen=True)
class _Sample:
    """Place of a sample: its tar, key in this, and members."""

    tar: Path
    key: str
    image: Member
    mask: Member | None

    def item(self, twice: bool, read: Read | None, resize: bool, group: Callable[[str], str] | None) -> Item:
        """The sample unread; `twice`: several tars have the same keys. `read`: of masks, None without."""
        key = f"{self.tar.name.partition('.')[0]}/{self.key}" if twice else self.key
        image = partial(_bytes, self.tar, self.image)
        mask = partial(self._mask, read, resize) if read else None
        return Item(key, self._origin(self.image), image, mask, group=group(key) if group else None, files=(self.tar,))

    def _mask(self, read: Read, resize: bool) -> np.ndarray:
        image, mask = (NamedBytes(_bytes(self.tar, m), self._origin(m)) for m in (self.image, self.mask))
        return fitted(read(mask), upright_size(image), self._origin(self.image), resize)

    def _origin(self, member: Member) -> str:
        return f"{self.tar.name}/{member.name}"


# ---- tars ----


def _listed(path: Path) -> list[Member]:
    try:
        with _opened(path) as file:
            return list_images(file)
    except NotRead:
        raise NotRead(str(path)) from None
    except (OSError, ValueError) as problem:
        raise ValueError(f"{path}: {problem}; unpack it, fetch it again, or leave it out") from problem


def _bytes(path: Path, member: Member) -> bytes:
    with _opened(path) as file:
        return os.pread(file.fileno(), member.size, member.offset)


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """A tar, open; a compressed one unpacked to a file without name, of which a process keeps a few."""
    with open(path, "rb") as file:
        begin = file.read(6)
        unpack = next((opener for magic, opener in _OPENERS.items() if begin.startswith(magic)), None)
        if unpack is None:
            yield file
            return
    if path not in _unpacked:
        while len(_unpacked) >= _HELD:
            _unpacked.popitem(last=False)[1].close()
        _unpacked[path] = _unpack(path, unpack)
    yield _unpacked[path]


def _unpack(path: Path, opener: Callable[..., BinaryIO]) -> BinaryIO:
    file = tempfile.TemporaryFile()  # noqa: SIM115 - it stays open
    try:
        with opener(path, "rb") as packed:
            shutil.copyfileobj(packed, file, 1 << 20)
        file.flush()
    except _DAMAGED as problem:
        file.close()
        raise ValueError(f"cannot be unpacked to {tempfile.gettempdir()}: {problem}") from problem
    return file
