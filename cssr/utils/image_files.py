"""Image files of folders: which suffixes are read, and a walk that follows links and leaves litter alone."""

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path

from PIL import features

_HEIF = (".heic", ".heif", ".hif")  # read where pillow-heif is installed
_OPTIONAL = {"jpg_2000": (".jp2", ".j2k", ".jpf", ".jpx"), "avif": (".avif",)}  # by what Pillow was built with
IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".tif", ".tiff", ".webp"),
    *(suffix for codec, suffixes in _OPTIONAL.items() if features.check(codec) for suffix in suffixes),
    *(_HEIF if find_spec("pillow_heif") else ()),
)
_RAW = (".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".orf", ".rw2", ".pef", ".srw", ".raw", ".iiq", ".3fr")
_OTHERS = (*(suffix for suffixes in _OPTIONAL.values() for suffix in suffixes), ".gif", ".jxl", ".psd", ".tga", ".ecw")
LIKE_IMAGES = {*_HEIF, *_RAW, *_OTHERS, ".ppm", ".pgm", ".sid", ".jls", ".exr"} - {*IMAGE_SUFFIXES}  # not read
BESIDE = ".msk"  # what GDAL adds to the name of a file for that of a mask of its pixels
_LITTER = {"@eaDir", "__MACOSX", "#recycle", "$RECYCLE.BIN", "System Volume Information", "lost+found"}
_MASK = re.compile(r"(.+)[-_. ](?:mask|gt|groundtruth|ground_truth|label|annotation)s?", re.IGNORECASE)


def is_litter(name: str) -> bool:
    """Return whether a file or folder of this name is hidden, or a by-product of an operating system, NAS or editor."""
    return name.startswith(".") or name in _LITTER


def walk(folder: Path) -> Iterator[Path]:
    """Yield the files below a folder, sorted by path; linked folders too, unless they hold the link themselves.

    Litter (`is_litter`), and what is neither a file nor a link to one, is left out.
    """
    yield from sorted(_walk(folder, (os.path.realpath(folder),))) if folder.is_dir() else ()


def lost_links_note(folder: Path) -> str:
    """Say how many links below a folder lead nowhere, as to a disk that is not there; "" without any."""
    lost: list[Path] = []
    if folder.is_dir():
        list(_walk(folder, (os.path.realpath(folder),), lost))
    if not lost:
        return ""
    return f"passed over {len(lost)} links that lead nowhere ({min(lost)}): fetch what they name, or remove them"


def _walk(folder: Path, above: tuple[str, ...], lost: list[Path] | None = None) -> Iterator[Path]:
    """As `walk`; links that lead nowhere are added to `lost`."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if is_litter(entry.name):
                continue
            path, link = folder / entry.name, entry.is_symlink()
            if os.path.isfile(path) if link else entry.is_file():  # a link to itself is an error of the entry's own
                yield path
            elif os.path.isdir(path) if link else entry.is_dir():
                real = os.path.realpath(path) if link else os.path.join(above[-1], entry.name)
                if not any(os.path.commonpath((real, other)) == real for other in above):
                    yield from _walk(path, (*above, real), lost)
            elif link and lost is not None and not os.path.exists(path):
                lost.append(path)


def filter_by_suffix(paths: Iterable[Path], suffixes: Iterable[str] = IMAGE_SUFFIXES) -> list[Path]:
    """Select the paths that end with one of the suffixes, in any case."""
    return [path for path in paths if path.suffix.lower() in {*suffixes}]


def unread_note(paths: Iterable[Path]) -> str:
    """Say how many of the files look like photographs but are of kinds that are not read; "" if none does."""
    counts = Counter(path.suffix.lower() for path in paths if path.suffix.lower() in LIKE_IMAGES)
    if not counts:
        return ""
    kinds = ", ".join(f"{count} {suffix}" for suffix, count in sorted(counts.items()))
    return f"passed over {counts.total()} files that look like photographs ({kinds}): {remedy(counts)}"


def misnamed_masks(paths: Iterable[Path]) -> str:
    """Say how many masks of missing pixels (`a.msk`) have no photograph that they are called after (`a.tif.msk`)."""
    paths = {*paths}
    lost = sorted(path for path in filter_by_suffix(paths, [BESIDE]) if path.with_suffix("") not in paths)
    if not lost:
        return ""
    return f"passed over {len(lost)} masks of missing pixels ({lost[0]}): call them photo.tif.msk, of photo.tif"


def masks_beside(paths: Iterable[Path]) -> list[Path]:
    """The files that are masks by their names: x_mask.png, x-gt.png, x.jpg.png where x.jpg is in the same folder."""
    paths = list(paths)
    files = {*paths}
    names = {path.parent / name for path in paths for name in (path.name, path.stem)}

    def is_mask(path: Path) -> bool:
        match = _MASK.fullmatch(path.stem)
        double = Path(path.stem).suffix.lower() in IMAGE_SUFFIXES and path.with_suffix("") in files
        return double or bool(match and path.parent / match[1] in names)

    return [path for path in paths if is_mask(path)]


def remedy(suffixes: Iterable[str]) -> str:
    """Remedy for files of suffixes that are not read."""
    heif = {*suffixes} <= {*_HEIF}
    return "pip install pillow-heif, or convert them to JPEG" if heif else "convert them to JPEG, PNG or TIFF"


def register_heif() -> None:
    """Have Pillow read HEIC where pillow-heif is installed."""
    if find_spec("pillow_heif"):
        from pillow_heif import register_heif_opener

        register_heif_opener()
