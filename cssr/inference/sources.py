"""Sources of photographs: files, folders, patterns, and the frames of videos."""

import glob
import itertools
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from cssr.inference import resume
from cssr.utils.files import free_stem
from cssr.utils.image_files import (
    IMAGE_SUFFIXES,
    filter_by_suffix,
    is_litter,
    lost_links_note,
    masks_beside,
    misnamed_masks,
    unread_note,
    walk,
)
from cssr.utils.photographs import Photograph, open_photograph

os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # OpenCV would write to stderr; this module reports damage itself
VIDEOS = (".mp4", ".mov", ".avi", ".mkv", ".m4v", ".webm", ".mts")


_MIN_SHARE = 0.95  # of the frames that a video says it has, which is an estimate for some formats


@dataclass
class Source:
    """One photograph: a file, or a frame of a video."""

    stem: str  # under which its results are written
    path: Path
    frame: int | None = None  # from 0
    image: np.ndarray | None = None  # H W 3 uint8, of a frame
    problem: str = ""  # why it cannot be opened

    @property
    def name(self) -> str:
        """Name shown to the user."""
        return str(self.path) if self.frame is None else f"{self.path} frame {self.frame}"

    def open(self, bits: int | None = None) -> Photograph:
        """Open the photograph; ValueError, one line, if it cannot be read. `bits`: as for `open_photograph`."""
        if self.problem:
            raise ValueError(self.problem)
        return open_photograph(self.path if self.image is None else self.image, bits=bits)

    def facts(self) -> dict[str, Any]:
        """Facts by which it is known again."""
        return {**resume.file_facts(self.path), "frame": self.frame}


def photographs(sources: Path | Sequence[Path], apart: Path | None = None) -> dict[str, Path]:
    """The photographs of files, folders with their subfolders, and patterns as `pier/*.jpg`; videos but of folders.

    By the stem under which their results are written: a file's own, below a folder or a pattern its path there, below
    several the path from the folder that holds them all; where two would be the same, with the suffix, or numbered.
    What a folder or pattern has in `apart` is left out.
    Raises: ValueError, one line, where there is none, or results of a photograph and of a frame would be the same.
    """
    paths: dict[str, Path] = {}
    listed: set[Path] = set()
    for path, name in _named_files([sources] if isinstance(sources, Path) else list(sources), apart):
        if path not in listed:
            paths[free_stem(name, paths)] = path
            listed.add(path)
    if not paths:
        raise ValueError(f"no photograph in {_first_text(sources)} but in the directory of results")
    _check_frames(paths)
    return paths


def _check_frames(paths: dict[str, Path]) -> None:
    """No photograph may be called like a frame of a video."""
    for stem, path in paths.items():
        video = paths.get(re.sub(r"_\d{6,}$", "", stem))
        if video is not None and video != path and is_video(video):
            raise ValueError(f"results of {path} and of a frame of {video} would have one name: predict them apart")


def _named_files(sources: list[Path], apart: Path | None) -> Iterator[tuple[Path, Path]]:
    """Yield (file, the name under which its results are written) of all sources."""
    alone = [source for source in sources if source.is_file()]
    same = len({source.stem for source in alone}) < len(alone)
    root = _common_folder([_absolute(source).parent for source in alone]) if same else None
    folders = [_absolute(_root(source)) for source in sources if not source.is_file()]
    above = _common_folder(folders) if len({*folders}) > 1 else None
    for source in sources:
        if source.is_file():
            yield source, _absolute(source).relative_to(root) if root else Path(source.name)
            continue
        for path, name in _below(source):
            if apart is None or Path(os.path.realpath(apart)) not in Path(os.path.realpath(path)).parents:
                yield path, _absolute(path).relative_to(above) if above else name


def _absolute(path: Path) -> Path:
    """Absolute and without `..`, so that a name below a folder never leads out of it."""
    return Path(os.path.abspath(path))


def _common_folder(folders: Sequence[Path]) -> Path:
    """The folder that holds them all."""
    return Path(os.path.commonpath(folders))


def _below(source: Path) -> Iterator[tuple[Path, Path]]:
    """Files in a folder or of a pattern."""
    root = _root(source)
    if source.is_dir():
        paths = _photographs(filter_by_suffix(walk(source)))
    elif glob.has_magic(str(source)):
        paths = _photographs(filter_by_suffix(_matching(source), IMAGE_SUFFIXES + VIDEOS))
    else:
        raise ValueError(f"no photograph or folder at {source}")
    if not paths:
        videos = "; videos are given by name or pattern" if source.is_dir() else ""
        unread = unread_files_note([source])
        reason = unread or f"none of its files ends with {' '.join(IMAGE_SUFFIXES)}{videos}"
        raise ValueError(f"no photograph in {source}: {reason}")
    yield from ((path, path.relative_to(root)) for path in sorted(paths))


def _matching(pattern: Path) -> list[Path]:
    """The files that a pattern matches; litter below the folder in which it begins is none."""
    paths = (Path(path) for path in glob.glob(str(pattern), recursive=True))
    below = ((path, path.relative_to(_root(pattern)).parts) for path in paths if path.is_file())
    return [path for path, parts in below if not any(map(is_litter, parts))]


def _photographs(paths: Iterable[Path]) -> list[Path]:
    """The paths but results of an earlier prediction, and masks of others by their names."""
    paths = without_results(paths)
    masks = {*masks_beside(paths)}
    return [path for path in paths if path not in masks]


def without_results(paths: Iterable[Path]) -> list[Path]:
    """The paths but those that an earlier prediction has written, as the records beside them say."""
    others, written = [], {}
    for path in paths:
        if path.parent not in written:
            records = (resume.read(record) for record in path.parent.glob(f"*{resume.ENDING}"))
            written[path.parent] = {Path(name).name for record in records if record for name in record["files"]}
        if path.name not in written[path.parent]:
            others.append(path)
    return others


def unread_files_note(sources: Sequence[Path]) -> str:
    """Warning of files in folders and patterns that look like photographs but are not read; "" without any."""
    folders = [path for source in sources if source.is_dir() for path in walk(source)]
    files = folders + [path for source in sources if not source.exists() for path in _matching(source)]
    masks = masks_beside(without_results(filter_by_suffix(files)))
    first = masks[0] if masks else None
    masks_note = f"passed over {len(masks)} masks beside their photographs ({first}): name a file itself to predict it"
    lost = [lost_links_note(source) for source in sources]
    return "; ".join(filter(None, [masks_note if masks else "", unread_note(files), misnamed_masks(files), *lost]))


def _root(source: Path) -> Path:
    """A folder itself, or the one in which a pattern begins."""
    if source.is_dir():
        return source
    return Path(*itertools.takewhile(lambda part: not glob.has_magic(part), source.parts))


def is_video(path: Path) -> bool:
    """Return whether a file is a video, by its suffix."""
    return path.suffix.lower() in VIDEOS


def count_photographs(paths: dict[str, Path], every: int) -> int:
    """Approximate count of photographs: frames as videos say."""
    return sum(_frames(path, every) if is_video(path) else 1 for path in paths.values())


def _frames(path: Path, every: int) -> int:
    capture = cv2.VideoCapture(str(path))
    try:
        return max(1, -(-_stated_frames(capture) // every))
    finally:
        capture.release()


def _stated_frames(capture: cv2.VideoCapture) -> int:
    """Approximate count of frames, as a video says."""
    return int(capture.get(cv2.CAP_PROP_FRAME_COUNT))


def iterate_sources(paths: dict[str, Path], every: int) -> Iterator[Source]:
    """Yield the photographs one by one; of videos each `every`-th frame, the first included, as `STEM_000120`."""
    for stem, path in paths.items():
        if is_video(path):
            yield from frames(stem, path, every)
        else:
            yield Source(stem, path)


def frames(stem: str, path: Path, every: int) -> Iterator[Source]:
    """The frames of a video; if it has none or breaks off, last itself, which cannot be opened as a photograph."""
    capture = cv2.VideoCapture(str(path))
    stated, number = _stated_frames(capture), 0
    try:
        while capture.grab():
            if number % every == 0:
                read, image = capture.retrieve()
                if not read:
                    break
                yield Source(f"{stem}_{number:06d}", path, number, np.ascontiguousarray(image[..., ::-1]))
            number += 1
    finally:
        capture.release()
    if not number:
        yield Source(stem, path)
    elif number < _MIN_SHARE * stated:
        yield Source(stem, path, problem=f"{path}: it breaks off after {number} of {stated} frames")


def _first_text(sources: Path | Sequence[Path]) -> str:
    return re.sub(r"\s+", " ", str(sources if isinstance(sources, Path) else sources[0]))
