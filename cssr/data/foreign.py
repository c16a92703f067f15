"""Index of other people's WebDataset tars, made once, of their headers.

The index is kept beside the tars or, where nothing can be written there, in the cache. It is made again when the name,
size or time of a tar changes, or `data.suffixes` asks for another one. One process makes it, the others wait.
"""

import fcntl
import hashlib
import io
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from cssr.cracks.masks import BROKEN, LOSSY_SUFFIXES, MOSTLY, MaskFile, Unreadable, decide_by_levels, read_mask
from cssr.data.cache import Cache
from cssr.data.decode import image_size
from cssr.data.remote import DataError, Notify, is_remote
from cssr.data.suffixes import SLOTS, Reading, Suffixes, is_image, read_names
from cssr.data.tar_reader import FORMAT, Member, read_members
from cssr.data.tars import Tars
from cssr.utils.files import write_atomic
from cssr.utils.images import any_size

_VERSION = 1  # of what is kept; another one is made again
_PACKERS = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00")  # gzip, bzip2, xz
_ZSTANDARD = b"\x28\xb5\x2f\xfd"  # which Python's own library does not unpack
_IN_PLACE = ("jpg", "jpeg", "jpe", "jfif", "png", "webp", "tif", "tiff")
_FORMATS = ("JPEG", "PNG", "WEBP", "TIFF")  # of Pillow, for these
_ASKED_AT_ONCE = 16  # tars elsewhere, for their size and time
_MOST_MASKS = 100  # that the rule is decided from, evenly spread over the set
_HEADER = 1 << 16  # bytes that most headers of images are within
_LARGEST = 1 << 28  # bytes of an image file that is read for its header, or of a mask


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


def foreign_index(
    tars: Tars, setting: str, suffixes: Mapping[str, Any], cache: Cache | None, directory: Path, say: Notify
) -> bytes:
    """The index of other people's tars, as JSON; made, if it is not there yet or they have changed.

    Args:
        setting: that named the tars, for errors. suffixes: `data.suffixes`.
        cache: of tars elsewhere. directory: where the index is kept if that cannot be beside the tars.
    Raises: DataError, one line, where the tars cannot be read in place.
    """
    asked = {
        role: [suffix.lower().lstrip(".") for suffix in ([given] if isinstance(given, str) else given)]
        for role, given in suffixes.items()
    }
    stamps = _stamps(tars, setting, cache, say)
    paths = _places(tars, directory)
    for path in paths:
        if kept := _kept(path, stamps, asked):
            return kept
    with _locked(paths) as path:
        if kept := _kept(path, stamps, asked):  # another process has made it meanwhile
            return kept
        try:
            index = _make(tars, setting, asked, cache, say)
        except NotInPlace as error:
            raise DataError(
                f"{setting}: {tars}: {error}: they cannot be read in place; {tars.remedy(error.option)}"
            ) from error
        except DataError:
            raise
        except ValueError as error:
            raise DataError(f"{setting}: {tars}: {error}") from error
        write_atomic(path, json.dumps({"version": _VERSION, "tars": stamps, "suffixes": asked, "index": index}))
    roles = {slot: role for role, slot in SLOTS.items()}
    suffixes = ", ".join(f"{suffix} {roles[slot]}" for suffix, slot in index["suffixes"].items())
    about = f"{index['samples']} samples in {len(index['shards'])} tars ({suffixes}); masks: {index['mask_rule']}"
    say(f"{tars}: {about}; this index is kept in {path}")
    return json.dumps(index).encode()


def _stamps(tars: Tars, setting: str, cache: Cache | None, say: Notify) -> list[list[Any]]:
    """Name, size and time of each tar, as far as they are known."""
    if cache:
        with ThreadPoolExecutor(_ASKED_AT_ONCE) as threads:
            return [[*both] for both in zip(tars.names, threads.map(lambda n: cache.remote.stamp(n, say), tars.names))]
    try:
        facts = [(name, (tars.root / name).stat()) for name in tars.names]
    except OSError as error:
        raise DataError(f"{setting}: {error.filename}: {error.strerror}; correct the path or pattern") from None
    return [[name, stat.st_size, stat.st_mtime_ns] for name, stat in facts]


def _places(tars: Tars, directory: Path) -> list[Path]:
    """Paths that the index may have, the best one first."""
    if is_remote(tars.root):
        return [directory / f"index-{_digest(str(tars))}.json"]
    there = directory / f"index-{_digest(os.path.realpath(tars.root) + '/' + tars.label)}.json"
    return [tars.root / f"cssr-index-{_digest(tars.label)}.json", there]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _kept(path: Path, stamps: list[list[Any]], asked: Suffixes) -> bytes | None:
    """The index of a file, if it is of these tars, and of these suffixes where some are asked for."""
    try:
        kept = json.loads(path.read_bytes())
        same = kept["version"] == _VERSION and kept["tars"] == stamps and (not asked or kept["suffixes"] == asked)
        return json.dumps(kept["index"]).encode() if same else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


@contextmanager
def _locked(paths: Sequence[Path]) -> Iterator[Path]:
    """Hold the lock of the first of the files that can be written; gives that file."""
    problem = None
    for path in paths:
        lock = path.with_name(f"{path.name}.lock")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(lock, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            problem = error
            continue
        with open(handle, "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            try:
                yield path
            finally:
                lock.unlink(missing_ok=True)  # who waits for it finds the index made
        return
    raise DataError(f"data.cache: {paths[-1].parent} cannot be written: {problem.strerror}; choose another directory")


def _say(tars: Tars, setting: str, image: str, mask: str) -> str:
    """Setting that says which members are images and masks or, for commands without settings, the command."""
    if setting.startswith("data."):
        return f"data.suffixes={{image: {image}, mask: {mask}}}" if mask else f"data.suffixes={{image: {image}}}"
    return tars.remedy(f"--image-suffix {image} " + (f"--mask-suffix {mask}" if mask else "--images-only"))


def _make(tars: Tars, setting: str, asked: Suffixes, cache: Cache | None, say: Notify) -> dict[str, Any]:
    for name in tars.packed:
        if name.lower().endswith((".zst", ".zstd")):
            raise NotRead(name)
    if tars.packed:
        raise NotInPlace(f"{tars.packed[0]} is compressed")
    facts, open_tar = _entries(tars, cache, say)
    listed = []
    for number, name in enumerate(_watch(tars.names, "listing tars")):
        with _naming(name), open_tar(number) as file:
            listed.append(list_images(file))
    reading = read_names([[member.name for member in members] for members in listed], asked)
    if fault := reading.fault(partial(_say, tars, setting)):
        raise ValueError(fault)
    if reading.unpaired:
        lacking, first = sum(n for n, _ in reading.unpaired), reading.unpaired[0][1]
        raise NotInPlace(f"{lacking} samples lack their image or mask, the first is {first}", "--skip-unpaired")
    strange = [
        suffix for role in reading.needed for suffix in reading.of(role) if suffix.rpartition(".")[2] not in _IN_PLACE
    ]
    if strange:
        raise NotInPlace(f"there are files that end in {strange[0]}")
    return _index(reading, listed, facts, open_tar)


@contextmanager
def _naming(name: str) -> Iterator[None]:
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
        raise ValueError(f"{name}: {' '.join(str(error).split())}; fetch or write it again") from error


def _entries(tars: Tars, cache: Cache | None, say: Notify) -> tuple[list[dict[str, Any]], Open]:
    """Facts of each tar for the index, without its samples, and a function that opens one. Fetch remote tars."""
    if cache is None:
        paths = [tars.root / name for name in tars.names]
        stats = [path.stat() for path in paths]  # the time in place of a sha256, which takes reading all of it
        facts = [{"name": p.name, "bytes": s.st_size, "modified": s.st_mtime_ns} for p, s in zip(paths, stats)]
        return facts, lambda number: open(paths[number], "rb")
    entries = [cache.add(name, say) for name in _watch(tars.names, "fetching tars")]
    facts = [{"name": entry.name, "bytes": entry.size, "sha256": entry.sha256} for entry in entries]
    return facts, lambda number: cache.use(entries[number], say)


def _watch(items: Iterable[Any], what: str) -> Iterator[Any]:
    """Pass items on under a progress bar; elsewhere than on a terminal, silently."""
    return iter(tqdm(items, desc=what, unit="", leave=False, disable=not sys.stderr.isatty()))


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
    counts, masks, keys, twice = [], [], set(), False
    step = -(-reading.whole // _MOST_MASKS)
    for number, members in enumerate(_watch(listed, "reading headers")):
        samples = reading.group(members)
        with open_tar(number) as file:
            for row, (key, files) in enumerate(samples.items(), sum(counts)):
                where = f"{facts[number]['name']} key {key}"
                image = _header(file, files["image"][0])
                if image is None:
                    continue  # damage, which is for those who read the sample
                if image.reason:
                    raise NotInPlace(f"the image of {where} is {image.reason}")
                sizes[f"{image.width}x{image.height}"] += 1
                if reading.masked and row % step == 0:
                    masks += _read_mask(file, files["mask"][0], image, where)
        counts.append(len(samples))
        twice = twice or not keys.isdisjoint(map(hash, samples))
        keys.update(map(hash, samples))
    if not sizes:
        raise ValueError(f"none of {reading.whole} images can be read; see whether they are damaged")
    masked = reading.masked
    roles = [role for role in SLOTS if role != "mask" or masked or reading.dots]  # dotted keys end where a mask's do
    used = {suffix: SLOTS[role] for role in roles for suffix in reading.of(role)}
    lossy = any(f".{suffix}".endswith(LOSSY_SUFFIXES) for suffix in reading.of("mask"))
    return {
        "format": FORMAT,
        "source": "webdataset",
        "masks": masked,
        "valid": bool(reading.of("valid")),
        **_rule(masks, lossy),
        "samples": sum(counts),
        "image_sizes": dict(sizes),
        "suffixes": used,
        "dotted_keys": reading.dots,
        "shard_in_key": twice,
        "shards": [{**fact, "samples": count} for fact, count in zip(facts, counts) if count],
    }


def _header(file: BinaryIO, member: Member) -> _Image | None:
    """An image's size by its header; None if it has none that can be read."""
    for length in (_HEADER, _LARGEST):
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
    turned = image.format != "PNG" and image.getexif().get(0x0112, 1) != 1  # Pillow would decode a whole PNG for it
    return "to be turned, by its EXIF orientation" if turned else ""


def _read_mask(file: BinaryIO, member: Member, image: _Image, where: str) -> list[MaskFile]:
    """A mask as [its values]; [] for one that is damaged."""
    data = os.pread(file.fileno(), min(member.size, _LARGEST), member.offset)
    try:
        image_size(data)  # else Pillow would try all the kinds that it knows
    except ValueError:
        return []
    try:
        values = read_mask(NamedBytes(data, where))
    except Unreadable:
        return []
    except ValueError as error:
        raise NotInPlace(str(error)) from None
    if values.shape != (image.height, image.width):
        size = f"{values.shape[1]}x{values.shape[0]}, its image {image.width}x{image.height}"
        raise NotInPlace(f"the mask of {where} is {size}", "--resize-masks")
    if values.dtype != np.uint8:
        raise NotInPlace(f"the mask of {where} has pixels without data")
    return [MaskFile(where, values)]


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
        most = f"{inverted} of {len(masks)} masks are crack by more than half ({rule.sentence}), as if inverted"
        raise NotInPlace(
            f"{most}; if they are not, with --threshold N in place of --crack-values 0", "--crack-values 0"
        )
    lowest = int(rule.apply(np.arange(256)).argmax())
    return {"mask_rule": rule.sentence, "mask_above": 0 if lowest == 1 else 127}
