"""Samples into tars: what a shard holds, byte for byte, and how a directory of shards comes to be whole or not at all.

A sample is `key.jpg` or `key.png` (8-bit RGB), `key.mask.png` (1-bit, white = crack; none in a set without masks, whose
index says "masks": false) and `key.json`. Beside the shards lies index.json. Neither holds a time or an absolute path,
so that the same input gives the same bytes.
"""

import hashlib
import io
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps
from sources import Item, MaskRule
from webdataset import TarWriter

FORMAT = "cssr-shards-1"
KEPT = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png"}  # MPO: a JPEG of a telephone, with a second picture behind it
ORIENTATION = 0x0112  # EXIF tag; 1 is upright
MODE_NAMES = {"L": "grey", "1": "1-bit", "P": "palette", "LA": "grey with alpha", "I": "32-bit", "F": "float"}
BROKEN = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)  # what Pillow raises for damaged files


@dataclass(frozen=True)
class Picture:
    """An image file as it is stored: bytes, `jpg` or `png`, size in pixels, why it was converted (None: it was not)."""

    data: bytes
    suffix: str
    width: int
    height: int
    converted: str | None


@dataclass
class Tally:
    """What the samples of one part add up to; goes into the index."""

    shares: list[float | None] = field(default_factory=list)  # None: a sample without mask
    converted: Counter = field(default_factory=Counter)
    sizes: Counter = field(default_factory=Counter)

    def add(self, facts: dict[str, Any]) -> None:
        """Count one sample by its json."""
        self.shares.append(facts["crack_share"])
        self.sizes[f"{facts['width']}x{facts['height']}"] += 1
        if facts["converted"]:
            self.converted[facts["converted"]] += 1

    def summary(self) -> dict[str, Any]:
        """The counts under their names in index.json; `crack_share` is the mean over samples, 0..1; None: no masks."""
        masks = None not in self.shares
        return {
            "samples": len(self.shares),
            "crack_share": round(float(np.mean(self.shares)), 6) if masks else None,
            "empty_masks": sum(share == 0 for share in self.shares) if masks else None,
            "converted": dict(sorted(self.converted.items())),
            "image_sizes": dict(sorted(self.sizes.items())),
        }


def store_picture(data: bytes) -> Picture:
    """Keep an upright 8-bit RGB JPEG or PNG as it is, make an 8-bit RGB PNG of anything else; ValueError if damaged."""
    try:
        with Image.open(io.BytesIO(data)) as stored:
            stored.load()
            reason = _why_convert(stored, data)
            if reason is None:
                return Picture(data, KEPT[stored.format], *stored.size, None)
            upright = ImageOps.exif_transpose(_to_rgb(stored))
    except BROKEN as problem:
        raise ValueError(f"cannot read the image: {problem}") from problem
    upright.info.clear()  # no EXIF, profile or text goes along
    return Picture(_png(upright), "png", *upright.size, reason)


def _why_convert(stored: Image.Image, data: bytes) -> str | None:
    deep = stored.format == "PNG" and data[24] == 16  # bit depth in IHDR; Pillow shows such files as plain RGB
    if deep or stored.mode.startswith("I;16"):
        return "16-bit to 8-bit RGB"
    if stored.mode != "RGB":
        return f"{MODE_NAMES.get(stored.mode, stored.mode)} to RGB"
    if stored.getexif().get(ORIENTATION, 1) != 1:
        return "EXIF orientation applied"
    return None if stored.format in KEPT else f"{stored.format} to PNG"


def _to_rgb(stored: Image.Image) -> Image.Image:
    """Any mode to 8-bit RGB; alpha is dropped, 16 bits are scaled (Pillow itself would clip them at 255)."""
    if stored.mode == "F":
        raise ValueError("its pixels are floating-point numbers; store it as an 8-bit image")
    if not stored.mode.startswith("I"):
        return (stored.convert("RGBA") if stored.mode == "P" else stored).convert("RGB")  # a palette may have alpha
    exif = stored.getexif()
    rgb = Image.fromarray(np.rint(np.clip(np.asarray(stored), 0, 65535) / 257).astype(np.uint8)).convert("RGB")
    if ORIENTATION in exif:
        rgb.getexif()[ORIENTATION] = exif[ORIENTATION]
    return rgb


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def encode(item: Item, rule: MaskRule | None, source: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read one item. Returns what TarWriter takes, and the facts in its json. ValueError names the file at fault."""
    try:
        picture = store_picture(item.image())
    except (OSError, ValueError) as problem:
        both = "the image and its mask" if rule else "the image"
        raise ValueError(f"{item.origin}: {problem}; replace or remove {both}") from problem
    mask = None if rule is None else _mask(item, rule, picture)
    facts = {
        **item.extra,
        "key": item.key,
        "source": source,
        "origin": item.origin,
        "width": picture.width,
        "height": picture.height,
        "crack_share": None if mask is None else float(mask.mean()),
        "converted": picture.converted,
    }
    sample = {
        "__key__": item.key,
        picture.suffix: picture.data,
        **({} if mask is None else {"mask.png": _png(Image.fromarray(mask))}),
        "json": json.dumps(facts, sort_keys=True, ensure_ascii=False).encode(),
    }
    return sample, facts


def _mask(item: Item, rule: MaskRule, picture: Picture) -> np.ndarray:
    mask = rule.apply(item.mask())
    if mask.shape != (picture.height, picture.width):
        raise ValueError(
            f"{item.origin} is {picture.width}x{picture.height}, but its mask is "
            f"{mask.shape[1]}x{mask.shape[0]}; give both the same size"
        )
    return mask


def write_part(
    directory: Path, items: list[Item], rule: MaskRule | None, shard_size: int, header: dict[str, Any], watch=iter
) -> dict[str, Any]:
    """Write the shards of one part and its index.json into `directory`. Returns the index.

    `header` is what the index says about the whole (source, split, ...); `watch` wraps the iteration, to show progress.
    Without a `rule` the samples have no masks.
    """
    directory.mkdir(parents=True, exist_ok=True)
    tally, shards, samples = Tally(), [], watch(items)
    for number in range(-(-len(items) // shard_size)):
        path = directory / f"shard-{number:06d}.tar"
        count = min(shard_size, len(items) - number * shard_size)
        _write_shard(path, (next(samples) for _ in range(count)), rule, header["source"], tally)
        shards.append({"name": path.name, "samples": count, "bytes": path.stat().st_size, "sha256": _sha256(path)})
    next(samples, None)  # lets the progress bar close itself
    about = {"masks": rule is not None, "mask_rule": rule.sentence if rule else None}
    index = {"format": FORMAT, **header, **about, **tally.summary(), "shards": shards}
    _save(directory / "index.json", (json.dumps(index, indent=1, ensure_ascii=False) + "\n").encode())
    _sync(directory)
    return index


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _write_shard(path: Path, items: Iterable[Item], rule: MaskRule | None, source: str, tally: Tally) -> None:
    with path.open("wb") as file:
        # PAX headers hold names longer than 100 bytes; shorter names give the same bytes as plain ustar
        with TarWriter(file, user="cssr", group="cssr", mode=0o644, mtime=0, encoder=False, format="PAX_FORMAT") as tar:
            for item in items:
                sample, facts = encode(item, rule, source)
                tar.write(sample)
                tally.add(facts)
        file.flush()
        os.fsync(file.fileno())


def _save(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync(directory: Path) -> None:
    """Make the names in a directory last through a power cut."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def check_free(out: Path) -> None:
    """ValueError unless `out` is absent or an empty directory."""
    if out.is_dir() and any(out.iterdir()):
        raise ValueError(f"--out {out} exists and is not empty; remove it or choose another folder")
    if (out.exists() or out.is_symlink()) and not out.is_dir():
        raise ValueError(f"--out {out} exists and is no folder; choose another name")


@contextmanager
def whole_or_nothing(out: Path) -> Iterator[Path]:
    """A directory beside `out` to write into: it becomes `out` at the end, and vanishes if anything fails."""
    partial = out.with_name(f"{out.name}.partial-{os.getpid()}")
    if partial.exists():
        raise ValueError(f"{partial} is left from a run that was killed; remove it")
    missing = [parent for parent in out.parents if not parent.exists()]  # nearest first
    try:
        partial.mkdir(parents=True)
        yield partial
        _sync(partial)
        os.rename(partial, out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        for parent in missing:
            if parent.is_dir() and not any(parent.iterdir()):
                parent.rmdir()
        raise
    _sync(out.parent)
