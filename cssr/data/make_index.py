"""Index of other people's WebDataset tars: of the headers of the tars, of all images, and of some of the masks."""

import io
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from cssr.cracks.masks import BROKEN, LOSSY_SUFFIXES, MOSTLY, MaskFile, UnreadableMask, decide_by_levels, read_mask
from cssr.data.cache import Cache
from cssr.data.decode import image_size
from cssr.data.remote import DataError, Notify
from cssr.data.suffixes import SLOTS, Reading, Suffixes, is_image, read_names
from cssr.data.tar_reader import FORMAT, Member, read_members
from cssr.data.tars import Tars
from cssr.utils.images import any_size, exif_orientation
from cssr.utils.text import message_of

_PACKERS = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00")  # gzip, bzip2, xz
_ZSTANDARD = b"\x28\xb5\x2f\xfd"  # which Python's own library does not unpack
_IN_PLACE = ("jpg", "jpeg", "jpe", "jfif", "png", "webp", "tif", "tiff")
_FORMATS = ("JPEG", "PNG", "WEBP", "TIFF")  # of Pillow, for these
_MAX_MASKS = 100  # that the rule is decided from, evenly spread over the set
_HEADER = 1 << 16  # bytes that most headers of images are within
_MAX_BYTES = 1 << 28  # bytes of an image file that is read for its header, or of a mask


class NamedBytes(io.BytesIO):
    """The bytes of a file, under a name for people: what reads a path with Pillow reads these as well."""

    def __init__(self, data: bytes, name: str):
        super().__init__(data)
        self._name = name

    def __str__(self) -> str:
        return self._name


class NotInPlace(ValueError):
    """Reason that tars cannot be read in place; `option`: of make_shards.py, needed to write them anew."""

    def __init__(self, reason: str, option: str = ""):
        super().__init__(reason)
        self.option = option


class NotRead(ValueError):
    """A tar is compressed in a way that is read nowhere here."""

    def __init__(self, name: str = "it"):
        super().__init__(f"{name} is compressed by zstandard, which is not read: unpack it with `zstd -d` first")


class _Image(NamedTuple):
    """The size of an image by its header, pixels, and why it cannot be read in place, "" if it can."""

    width: int
    height: int
    reason: str


Open = Callable[[int], AbstractContextManager[BinaryIO]]  # number of a tar -> the tar


def make_index(tars: Tars, setting: str, requested: Suffixes, cache: Cache | None, notify: Notify) -> dict[str, Any]:
    """The index of tars that others have written, as `index.json` has it.

    Args: as `foreign_index` takes them.
    Raises: NotInPlace, NotRead or another ValueError, one line, where the tars cannot be read in place.
    """
    for name in tars.packed:
        if name.lower().endswith((".zst", ".zstd")):
            raise NotRead(name)
    if tars.packed:
        raise NotInPlace(f"{tars.packed[0]} is compressed")
    facts, open_tar = _entries(tars, cache, notify)
    members_of_tars = []
    for number, name in enumerate(_with_progress(tars.names, "listing tars")):
        with _name_tar_in_errors(name), open_tar(number) as file:
            members_of_tars.append(list_images(file))
    reading = read_names([[member.name for member in members] for members in members_of_tars], requested)
    if fault := reading.fault(partial(_suffix_option, tars, setting)):
        raise ValueError(fault)
    if reading.unpaired:
        count, first = sum(n for n, _ in reading.unpaired), reading.unpaired[0][1]
        raise NotInPlace(f"{count} samples lack their image or mask, the first is {first}", "--skip-unpaired")
    unreadable = [
        suffix for role in reading.needed for suffix in reading.of(role) if suffix.rpartition(".")[2] not in _IN_PLACE
    ]
    if unreadable:
        raise NotInPlace(f"there are files that end in {unreadable[0]}")
    return _index(reading, members_of_tars, facts, open_tar)


def _suffix_option(tars: Tars, setting: str, image: str, mask: str) -> str:
    """Setting that says which members are images and masks or, for commands without settings, the command."""
    if setting.startswith("data."):
        return f"data.suffixes={{image: {image}, mask: {mask}}}" if mask else f"data.suffixes={{image: {image}}}"
    return tars.remedy(f"--image-suffix {image} " + (f"--mask-suffix {mask}" if mask else "--images-only"))


@contextmanager
def _name_tar_in_errors(name: str) -> Iterator[None]:
    """Name the tar in an error."""
    try:
        yield
    except NotInPlace as error:
        raise NotInPlace(f"{name}: {error}", error.option) from None
    except NotRead:
        raise NotRead(name) from None
    except DataError:
        raise
    except (OSError, ValueError) as error:
        raise ValueError(f"{name}: {message_of(error)}; fetch or write it again") from error


def _entries(tars: Tars, cache: Cache | None, notify: Notify) -> tuple[list[dict[str, Any]], Open]:
    """Facts of each tar for the index, without its samples, and a function that opens one. Fetch remote tars."""
    if cache is None:
        paths = [tars.root / name for name in tars.names]
        stats = [path.stat() for path in paths]  # the time in place of a sha256, which takes reading all of it
        facts = [{"name": p.name, "bytes": s.st_size, "modified": s.st_mtime_ns} for p, s in zip(paths, stats)]
        return facts, lambda number: open(paths[number], "rb")
    entries = [cache.add(name, notify) for name in _with_progress(tars.names, "fetching tars")]
    facts = [{"name": entry.name, "bytes": entry.size, "sha256": entry.sha256} for entry in entries]
    return facts, lambda number: cache.use(entries[number], notify)


def _with_progress(items: Iterable[Any], label: str) -> Iterator[Any]:
    """Pass items on under a progress bar; elsewhere than on a terminal, silently."""
    return iter(tqdm(items, desc=label, unit="", leave=False, disable=None))


def list_images(file: BinaryIO) -> list[Member]:
    """The image files of a tar. ValueError where it is damaged or compressed."""
    begin = os.pread(file.fileno(), 6, 0)
    if begin.startswith(_ZSTANDARD):
        raise NotRead()
    if begin.startswith(_PACKERS):
        raise NotInPlace("it is compressed")
    size = os.fstat(file.fileno()).st_size
    return [member for member in read_members(file.fileno(), size) if is_image(member.name)]


def _index(
    reading: Reading, listed: Sequence[Sequence[Member]], facts: Sequence[dict[str, Any]], open_tar: Open
) -> dict[str, Any]:
    """The index, by the headers of all images and some of the masks."""
    sizes: Counter[str] = Counter()
    counts, masks, keys, keys_repeat = [], [], set(), False
    step = -(-reading.whole // _MAX_MASKS)
    for number, members in enumerate(_with_progress(listed, "reading headers")):
        samples = reading.group(members)
        with open_tar(number) as file:
            for row, (key, files) in enumerate(samples.items(), sum(counts)):
                name = f"{facts[number]['name']} key {key}"
                image = _header(file, files["image"][0])
                if image is None:
                    continue  # damage, which is for those who read the sample
                if image.reason:
                    raise NotInPlace(f"the image of {name} is {image.reason}")
                sizes[f"{image.width}x{image.height}"] += 1
                if reading.masked and row % step == 0:
                    masks += _read_mask(file, files["mask"][0], image, name)
        counts.append(len(samples))
        keys_repeat = keys_repeat or not keys.isdisjoint(map(hash, samples))
        keys.update(map(hash, samples))
    if not sizes:
        raise ValueError(f"none of {reading.whole} images can be read; see whether they are damaged")
    masked = reading.masked
    roles = [role for role in SLOTS if role != "mask" or masked or reading.dots]  # dotted keys end where a mask's do
    slots = {suffix: SLOTS[role] for role in roles for suffix in reading.of(role)}
    lossy = any(f".{suffix}".endswith(LOSSY_SUFFIXES) for suffix in reading.of("mask"))
    return {
        "format": FORMAT,
        "source": "webdataset",
        "masks": masked,
        "valid": bool(reading.of("valid")),
        **_rule(masks, lossy),
        "samples": sum(counts),
        "image_sizes": dict(sizes),
        "suffixes": slots,
        "dotted_keys": reading.dots,
        "shard_in_key": keys_repeat,
        "shards": [{**fact, "samples": count} for fact, count in zip(facts, counts) if count],
    }


def _header(file: BinaryIO, member: Member) -> _Image | None:
    """An image's size by its header; None if it has none that can be read."""
    for length in (_HEADER, _MAX_BYTES):
        data = os.pread(file.fileno(), min(length, member.size), member.offset)
        try:
            with any_size():
                image = Image.open(io.BytesIO(data), formats=_FORMATS)
            with image:
                return _Image(*image.size, _unfit(image, data))
        except (*BROKEN, Warning):
            continue
    return None


def _unfit(image: Image.Image, data: bytes) -> str:
    """Reason that an image cannot be read in place, as it would not look as it is meant; "" if it can."""
    if image.mode not in ("RGB", "L", "P", "1") or (image.format == "PNG" and data[24] == 16):
        return f"of mode {image.mode} or of 16 bits, not 8-bit RGB or grey"
    if "transparency" in image.info:
        return "partly transparent"
    rotated = image.format != "PNG" and exif_orientation(image) != 1  # Pillow would decode a whole PNG for it
    return "to be turned, by its EXIF orientation" if rotated else ""


def _read_mask(file: BinaryIO, member: Member, image: _Image, name: str) -> list[MaskFile]:
    """A mask as [its values]; [] for one that is damaged."""
    data = os.pread(file.fileno(), min(member.size, _MAX_BYTES), member.offset)
    try:
        image_size(data)  # else Pillow would try all the kinds that it knows
    except ValueError:
        return []
    try:
        values = read_mask(NamedBytes(data, name))
    except UnreadableMask:
        return []
    except ValueError as error:
        raise NotInPlace(str(error)) from None
    if values.shape != (image.height, image.width):
        size = f"{values.shape[1]}x{values.shape[0]}, its image {image.width}x{image.height}"
        raise NotInPlace(f"the mask of {name} is {size}", "--resize-masks")
    if values.dtype != np.uint8:
        raise NotInPlace(f"the mask of {name} has pixels without data")
    return [MaskFile(name, values)]


def _rule(masks: Sequence[MaskFile], lossy: bool) -> dict[str, Any]:
    """Rule that tells crack from background in the masks, for the index."""
    if not masks:
        return {"mask_rule": None}
    try:
        rule = decide_by_levels(masks, lossy=lossy)
    except ValueError as error:
        raise NotInPlace(str(error), "--threshold N") from None
    inverted = sum(float(rule.apply(mask.values).mean()) > MOSTLY for mask in masks)
    if 2 * inverted > len(masks):
        fault = f"{inverted} of {len(masks)} masks are crack by more than half ({rule.sentence}), as if inverted"
        raise NotInPlace(
            f"{fault}; if they are not, with --threshold N in place of --crack-values 0", "--crack-values 0"
        )
    lowest = int(rule.apply(np.arange(256)).argmax())
    return {"mask_rule": rule.sentence, "mask_above": 0 if lowest == 1 else 127}
