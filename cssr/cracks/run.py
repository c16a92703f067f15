"""Measure the cracks of mask files: length, width and direction of each, as tables, GeoJSON and pictures."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from cssr.cracks.files import Georeference, Units, write_geojson, write_picture, write_table
from cssr.cracks.masks import LOSSY_SUFFIXES, MOSTLY, MaskFile, choose_rule
from cssr.cracks.measure import MAX_CRACKS, Crack, TooRagged, check_max_cracks, measure_cracks
from cssr.utils.cli import exit_on_error
from cssr.utils.files import free_stem, naming_path
from cssr.utils.image_files import IMAGE_SUFFIXES, filter_by_suffix, lost_links_note, walk
from cssr.utils.images import open_image
from cssr.utils.text import one_line

_LOSS_FREE = (".png", ".tif", ".tiff", ".bmp")  # what masks of a folder are, if there are any; else all images
_MASK, _PICTURE = "_mask", "_cracks"  # what the names of predicted masks end with, and those of the pictures here
_PIXEL_SCALE, _TIE_POINTS, _MATRIX, _GEO_KEYS = 33550, 33922, 34264, 34735  # tags of GeoTIFF 1.1
_RASTER_TYPE, _GEOGRAPHIC, _PROJECTED, _IS_POINT, _USER_DEFINED = 1025, 2048, 3072, 2, 32767  # keys and values in them


@dataclass(frozen=True)
class Criterion:
    """Rule for what is crack in a mask: at most one of these (`cssr.cracks.masks.choose_rule`); none: by its values."""

    threshold: int | None = None
    colors: str | None = None
    values: str | None = None


def read_mask(path: Path, criterion: Criterion = Criterion()) -> tuple[np.ndarray, Georeference | None]:
    """Read a mask as H W bool, and its place on the map if the file (GeoTIFF) states one.

    What is crack is decided as for a dataset of this one mask (`cssr.cracks.masks`). Raises: ValueError where it
    cannot be read, or it is unclear what is crack in it.
    """
    read, decide = choose_rule(
        criterion.threshold, criterion.colors, criterion.values, path.suffix.lower() in LOSSY_SUFFIXES
    )
    values = read(path)
    try:
        mask = decide([MaskFile(path.name, values)]).apply(values)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    with open_image(path) as image:
        return mask, _georeference(getattr(image, "tag_v2", {}))


def _georeference(tags: dict) -> Georeference | None:
    """Georeference by the tags that Pillow reads: measuring masks goes without rasterio, which is an extra."""
    keys = tags.get(_GEO_KEYS) or ()
    values = {keys[i]: keys[i + 3] for i in range(4, len(keys) - 3, 4) if keys[i + 1] == 0}  # (key, 0, 1, value)
    code = values.get(_PROJECTED, values.get(_GEOGRAPHIC, _USER_DEFINED))
    crs = None if code == _USER_DEFINED else f"urn:ogc:def:crs:EPSG::{code}"
    if tags.get(_MATRIX):
        a, b, _, c, d, e, _, f = tags[_MATRIX][:8]
    elif tags.get(_PIXEL_SCALE) and tags.get(_TIE_POINTS):
        (x, y, _, east, north), (a, e) = tags[_TIE_POINTS][:5], tags[_PIXEL_SCALE][:2]
        b, d, c, f, e = 0.0, 0.0, east - x * a, north + y * e, -e
    else:
        return None
    half = 0.5 if values.get(_RASTER_TYPE) == _IS_POINT else 0.0  # then the tie point is a pixel's middle
    return Georeference((a, b, c - half * (a + b), d, e, f - half * (d + e)), crs)


def masks_at(sources: Sequence[Path]) -> dict[str, Path]:
    """Mask files by the stem under which their results are written.

    Of a folder (with its subfolders) in which some are called `..._mask`, as `cssr.predict` does, only those.
    Raises: ValueError, one line, where there is none.
    """
    masks: dict[str, Path] = {}
    listed: set[Path] = set()
    for source in sources:
        if not source.exists():
            raise ValueError(f"no mask or folder at {source}")
        folder = source if source.is_dir() else source.parent
        for path in _files(source) if source.is_dir() else [source]:
            if path not in listed:
                masks[free_stem(path.relative_to(folder), masks)] = path
                listed.add(path)
    return masks


def _files(folder: Path) -> list[Path]:
    images, suffixes = filter_by_suffix(walk(folder)), " ".join(IMAGE_SUFFIXES)
    files = filter_by_suffix(images, _LOSS_FREE) or images
    if len(files) < len(images):
        omitted = f"{len(images) - len(files)} files that end with none of {' '.join(_LOSS_FREE)}"
        print(one_line(f"note: {folder}: left out {omitted}: name them if they are masks"), file=sys.stderr)
    files = [path for path in files if not (path.stem.endswith(_PICTURE) and path.with_suffix(".csv").is_file())]
    files = [path for path in files if path.stem.endswith(_MASK)] or files
    lost = lost_links_note(folder)
    if not files:
        raise ValueError(f"no mask in {folder}: {lost or f'none of its files ends with {suffixes}'}")
    if lost:
        print(one_line(f"warning: {lost}"), file=sys.stderr)
    return files


def measure_file(
    path: Path,
    stem: Path,
    units: Units,
    least_length: float,
    criterion: Criterion = Criterion(),
    max_cracks: int = MAX_CRACKS,
) -> list[Crack]:
    """Measure a mask file and write `stem_cracks.csv`, `.geojson` and `.png`.

    `least_length`: photograph's pixels. `max_cracks`: as for `measure_cracks`; what is left out is reported on stderr.
    """
    mask, place = read_mask(path, criterion)
    if mask.mean() > MOSTLY:
        remedy = "if it is inverted, name the cracks with --crack-values 0"
        tqdm.write(one_line(f"warning: {path} is crack by {mask.mean():.0%}; {remedy}"), file=sys.stderr)

    def warn(sentence: str) -> None:
        tqdm.write(one_line(f"warning: {path}: {sentence}; raise --most-cracks for more"), file=sys.stderr)

    try:
        cracks = measure_cracks(mask, least_length * units.scale, None, max_cracks, warn, sys.stderr.isatty())
    except TooRagged as error:
        raise ValueError(f"{path}: {error}, or raise --most-cracks {max_cracks}") from None
    target = stem.with_name(stem.name + _PICTURE)
    with naming_path(target.parent):
        write_table(cracks, target.with_name(f"{target.name}.csv"), units)
        write_geojson(cracks, target.with_name(f"{target.name}.geojson"), units, place)
        write_picture(mask, cracks, target.with_name(f"{target.name}.png"), units)
    return cracks


def summary(cracks: Sequence[Crack], units: Units) -> str:
    """The cracks of an image in a few words."""
    if not cracks:
        return "no cracks"
    per, unit = (1, "px") if units.mm_per_pixel is None else (units.mm_per_pixel, "mm")
    length, widest = (x * per / units.scale for x in (sum(c.length for c in cracks), max(c.max_width for c in cracks)))
    return f"{len(cracks)} crack{'s' * (len(cracks) > 1)}, {length:.4g} {unit} long, at most {widest:.3g} {unit} wide"


def run(options: argparse.Namespace) -> None:
    """Measure all masks that the command line of `cssr.measure` names."""
    with exit_on_error():
        units = Units(options.scale, options.mm_per_pixel)
        if not 0 <= options.least_length < float("inf"):
            raise ValueError(f"--least-length must be 0 or more, got {options.least_length}")
        check_max_cracks(options.most_cracks)
        criterion = Criterion(options.threshold, options.crack_colors, options.crack_values)
        choose_rule(criterion.threshold, criterion.colors, criterion.values)
        masks = masks_at(options.masks)
        with naming_path(options.out):  # before the first mask is measured
            options.out.mkdir(parents=True, exist_ok=True)
        failed = _measure_all(masks, options, units, criterion)
    print(f"{len(masks) - len(failed)} masks: table, GeoJSON and picture of each in {options.out}")
    if failed:
        sys.exit(f"error: {len(failed)} of {len(masks)} masks failed: {', '.join(failed[:5])}")


def _measure_all(masks: dict[str, Path], options: argparse.Namespace, units: Units, criterion: Criterion) -> list[str]:
    failed = []
    for stem, path in tqdm(masks.items(), unit="mask", disable=None):
        try:
            cracks = measure_file(path, options.out / stem, units, options.least_length, criterion, options.most_cracks)
        except ValueError as error:
            tqdm.write(one_line(f"error: {error}"), file=sys.stderr)
        else:
            tqdm.write(one_line(f"{path}: {summary(cracks, units)}"))
            continue
        failed.append(path.name)
    return failed
