"""Which photographs are meant: by files, folders, patterns, and the frames of videos."""

import glob
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from cssr.done import file_facts
from cssr.photographs import Photograph, open_photograph

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
VIDEOS = (".mp4", ".mov", ".avi", ".mkv", ".m4v", ".webm", ".mts")


@dataclass
class Source:
    """One photograph: a file, or a frame of a video."""

    stem: str  # under which its results are written
    path: Path
    frame: int | None = None  # from 0
    image: np.ndarray | None = None  # H W 3 uint8, of a frame

    @property
    def name(self) -> str:
        """As it is told to the user."""
        return str(self.path) if self.frame is None else f"{self.path} frame {self.frame}"

    def open(self) -> Photograph:
        """To be read; ValueError, one line, if it cannot be."""
        return open_photograph(self.path if self.image is None else self.image)

    def facts(self) -> dict[str, Any]:
        """By which it is known again."""
        return {**file_facts(self.path), "frame": self.frame}


def photographs(sources: Path | Sequence[Path], apart: Path | None = None) -> dict[str, Path]:
    """The photographs (and videos) of files, folders with their subfolders, and patterns such as `pier/*.jpg`.

    By the stem under which their results are written: a file's own, below a folder or a pattern its path there; where
    two would be the same, with the suffix. What lies in `apart` is left out.
    Raises: ValueError, one line, where there is none.
    """
    found: dict[str, Path] = {}
    for path, name in _named([sources] if isinstance(sources, Path) else list(sources)):
        if apart is not None and apart.resolve() in path.resolve().parents:
            continue
        stem = str(name.with_suffix(""))
        found[str(name) if found.get(stem, path) != path else stem] = path
    if not found:
        raise ValueError(f"no photograph in {_first(sources)} but in the directory of results")
    return found


def _named(sources: list[Path]) -> Iterator[tuple[Path, Path]]:
    """(file, the name that its results take) of all that is meant."""
    alone = [source for source in sources if source.is_file()]
    same = len({source.stem for source in alone}) < len(alone)
    root = Path(os.path.commonpath([source.absolute().parent for source in alone])) if same else None
    for source in sources:
        if source.is_file():
            yield source, source.absolute().relative_to(root) if root else Path(source.name)
        else:
            yield from _below(source)


def _below(source: Path) -> Iterator[tuple[Path, Path]]:
    """What a folder or a pattern holds."""
    if source.is_dir():
        root, paths = source, [path for path in source.rglob("*") if path.suffix.lower() in SUFFIXES]
    elif glob.has_magic(str(source)):
        root, paths = _fixed_part(source), [Path(path) for path in glob.glob(str(source), recursive=True)]
        paths = [path for path in paths if path.suffix.lower() in SUFFIXES + VIDEOS]
    else:
        raise ValueError(f"no photograph or folder at {source}")
    if not paths:
        raise ValueError(f"no photograph in {source}: none of its files ends with {' '.join(SUFFIXES)}")
    yield from ((path, path.relative_to(root)) for path in sorted(paths))


def _fixed_part(pattern: Path) -> Path:
    """The folder in which a pattern begins."""
    parts = pattern.parts
    count = next(number for number, part in enumerate(parts) if glob.has_magic(part))
    return Path(*parts[:count])


def is_video(path: Path) -> bool:
    """By its suffix."""
    return path.suffix.lower() in VIDEOS


def count(found: dict[str, Path], every: int) -> int:
    """How many photographs there are, about: frames as videos say."""
    return sum(_frames(path, every) if is_video(path) else 1 for path in found.values())


def _frames(path: Path, every: int) -> int:
    capture = cv2.VideoCapture(str(path))
    try:
        return max(1, -(-int(capture.get(cv2.CAP_PROP_FRAME_COUNT)) // every))
    finally:
        capture.release()


def each(found: dict[str, Path], every: int) -> Iterator[Source]:
    """One by one; of videos each `every`-th frame, the first included, as `STEM_000120`."""
    for stem, path in found.items():
        if is_video(path):
            yield from frames(stem, path, every)
        else:
            yield Source(stem, path)


def frames(stem: str, path: Path, every: int) -> Iterator[Source]:
    """The frames of a video; if it has none, itself, which cannot be opened as a photograph."""
    capture = cv2.VideoCapture(str(path))
    number = 0
    try:
        while capture.grab():
            if number % every == 0:
                image = capture.retrieve()[1]
                yield Source(f"{stem}_{number:06d}", path, number, np.ascontiguousarray(image[..., ::-1]))
            number += 1
    finally:
        capture.release()
    if not number:
        yield Source(stem, path)


def _first(sources: Path | Sequence[Path]) -> str:
    return re.sub(r"\s+", " ", str(sources if isinstance(sources, Path) else sources[0]))
