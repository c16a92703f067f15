"""Tars as other people write them: by webdataset's writers and by tarfile, of pictures of coordinates."""

import io
import tarfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import webdataset
from hand_made import write_tar
from helpers import coordinates
from PIL import Image

HEIGHT, WIDTH = 24, 32
Files = list[tuple[str, bytes]]  # suffix, bytes


def picture(number: int) -> np.ndarray:
    """H W 3 uint8."""
    return coordinates(number, HEIGHT, WIDTH)


def mask(number: int) -> np.ndarray:
    """H W uint8, 0 or 1: a stroke of blocks of 8 pixels, which a JPEG keeps apart."""
    values = np.zeros((HEIGHT, WIDTH), np.uint8)
    values[8 * (number % 3) : 8 * (number % 3) + 8, : 8 + 8 * (number % 4)] = 1
    return values


def coded(array: np.ndarray, kind: str = "PNG", **options) -> bytes:
    """An array as the bytes of an image file."""
    buffer = io.BytesIO()
    lossless = {"WEBP": {"lossless": True}, "JPEG": {"quality": 95}}.get(kind, {})
    Image.fromarray(array).save(buffer, kind, **lossless, **options)
    return buffer.getvalue()


def usual(number: int) -> Files:
    """What most sets hold: a JPEG, a PNG with 0 and 255."""
    return [("jpg", coded(picture(number), "JPEG")), ("seg.png", coded(mask(number) * 255))]


def by_tarfile(
    root: Path,
    files: Callable[[int], Files] = usual,
    counts: Sequence[int] = (4, 3, 5),
    key: str = "k{:03d}",
    form: int = tarfile.GNU_FORMAT,
    name: str = "x-{:06d}.tar",
) -> Path:
    """Tars of so many samples each, in `root`."""
    root.mkdir(parents=True, exist_ok=True)
    for tar, numbers in enumerate(numbered(counts)):
        members = [(f"{key.format(n)}.{suffix}", data) for n in numbers for suffix, data in files(n)]
        write_tar(root / name.format(tar), members, form)
    return root


def by_webdataset(root: Path, files: Callable[[int], Files] = usual, key: str = "k{:03d}", per_tar: int = 4) -> Path:
    """Twelve samples by `webdataset.ShardWriter`."""
    root.mkdir(parents=True, exist_ok=True)
    with webdataset.ShardWriter(str(root / "x-%06d.tar"), maxcount=per_tar, encoder=False, verbose=0) as writer:
        for number in range(12):
            writer.write({"__key__": key.format(number), **dict(files(number))})
    return root


def numbered(counts: Iterable[int]) -> list[range]:
    """[2, 3] -> [range(0, 2), range(2, 5)]."""
    ends = np.cumsum([0, *counts]).tolist()
    return [range(start, end) for start, end in zip(ends, ends[1:])]
