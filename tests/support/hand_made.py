"""Shards written by hand, member by member: stored LQ images, and what no writer of ours would write."""

import hashlib
import io
import json
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from helpers import coordinates, mask_of, png
from PIL import Image

Members = Sequence[tuple[str, bytes]]


def write_tar(
    path: Path, members: Iterable[tuple[str | tarfile.TarInfo, bytes]], form: int = tarfile.PAX_FORMAT
) -> Path:
    """A tar of (name or header, bytes)."""
    with tarfile.open(path, "w", format=form) as tar:
        for name, data in members:
            header = tarfile.TarInfo(name) if isinstance(name, str) else name
            header.size = len(data) if header.isreg() else header.size
            tar.addfile(header, io.BytesIO(data) if header.isreg() else None)
    return path


def write_index(root: Path, counts: Mapping[str, int], sizes: Sequence[str] = ("24x20",), **facts: Any) -> Path:
    """index.json for tars that are there: {name: samples}. `facts` come over what it would say."""
    shards = []
    for name, samples in counts.items():
        data = (root / name).read_bytes()
        shards.append(
            {"name": name, "samples": samples, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        )
    index = {"format": "cssr-shards-1", "masks": True, "image_sizes": dict.fromkeys(sizes, 1), "shards": shards}
    (root / "index.json").write_text(json.dumps({**index, **facts}))
    return root


def pair(number: int, height: int = 20, width: int = 24, key: str = "") -> list[tuple[str, bytes]]:
    """The members of a sample of coordinates."""
    image, key = coordinates(number, height, width), key or f"k-{number:03d}"
    return [(f"{key}.png", png(image)), (f"{key}.mask.png", mask_png(mask_of(image)))]


def mask_png(mask: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(mask > 0).save(buffer, "PNG")
    return buffer.getvalue()


def write_pairs(root: Path, counts: Sequence[int], **facts: Any) -> Path:
    """A set of coordinates in tars of so many samples each."""
    root.mkdir(parents=True)
    starts = np.cumsum([0, *counts])
    for n, count in enumerate(counts):
        write_tar(root / f"s{n}.tar", [part for k in range(count) for part in pair(int(starts[n]) + k)])
    return write_index(root, {f"s{n}.tar": count for n, count in enumerate(counts)}, **facts)


def npy(array: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return buffer.getvalue()


def kernel_of(number: int, side: int = 5) -> np.ndarray:
    """A kernel that is like none of its mirror images."""
    kernel = np.random.default_rng(number).random((side, side)).astype(np.float32)
    return kernel / kernel.sum()


def write_stored(root: Path, count: int = 8, scale: int = 2, kernel: int | None = 5, extra: int = 0, **facts) -> Path:
    """Samples of coordinates whose LQ images hold the coordinates of the upper left of each block of `scale` pixels.

    `extra`: rows and columns beyond a multiple of the scale.
    """
    root.mkdir(parents=True)
    height, width, members = 20 + extra, 24 + extra, []
    for n in range(count):
        image = coordinates(n, height, width)
        members += pair(n, height, width)
        members += [(f"k-{n:03d}.lq.png", png(image[:20:scale, :24:scale]))]
        members += [(f"k-{n:03d}.kernel.npy", npy(kernel_of(n, kernel)))] if kernel else []
    write_tar(root / "s0.tar", members)
    facts = {"lq": True, "scale": scale, "kernel": kernel, **facts}
    return write_index(root, {"s0.tar": count}, [f"{width}x{height}"], **facts)
