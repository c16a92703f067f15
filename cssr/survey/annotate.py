"""Write annotation files for a directory of results, and rank its photographs for labelling."""

import argparse
import csv
import io
import json
import os
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

from cssr.survey import annotations
from cssr.survey.annotations import AnnotatedPhotograph
from cssr.survey.collect import LINES, read_lines, reading_result
from cssr.utils.files import naming_path, write_atomic
from cssr.utils.images import open_image
from cssr.utils.json_files import read_json
from cssr.utils.text import one_line

_RECORD = "_prediction.json"
_SHEET, _CELL = 24, 320  # photographs of the sheet, and pixels of a side


def run(options: argparse.Namespace) -> None:
    """Run `cssr.annotate`. Raises: ValueError, one line."""
    if not 0 <= options.least_confidence <= 1:
        raise ValueError(f"--least-confidence must be in 0..1, got {options.least_confidence}")
    prefixes = measured_prefixes(options.results)
    bar = tqdm(prefixes, unit="photo", disable=None)
    everything = [annotations.read(prefix, options.least_confidence) for prefix in bar]
    photographs = _named([photograph for photograph in everything if photograph.is_file], options.root)
    if len(photographs) < len(everything):
        frames = len(everything) - len(photographs)
        print(f"left out {frames} frames of videos: predict them as pictures to annotate them", file=sys.stderr)
    with naming_path(options.out):
        options.out.mkdir(parents=True, exist_ok=True)
    contents = {
        "coco.json": json.dumps(annotations.coco(photographs)),
        "coco_polygons.json": json.dumps(annotations.coco(photographs, polygons=True)),
        "label_studio.json": json.dumps(annotations.label_studio(photographs, options.prefix)),
        "cvat.xml": annotations.cvat(photographs),
    }
    for name, content in contents.items():
        write_atomic(options.out / name, content)
    cracks = sum(len(photograph.instances) for photograph in photographs)
    print(f"{cracks} cracks of {len(photographs)} photographs: {', '.join(contents)} in {options.out}")
    if options.rank:
        files = [prefix for prefix, photograph in zip(prefixes, everything) if photograph.is_file]
        rank(files, photographs, options.out)


def measured_prefixes(results: Path) -> list[Path]:
    """`prefixes_of` a directory of results; ValueError, too, where a file of lines is damaged."""
    prefixes = prefixes_of(results)
    for prefix in prefixes:
        read_lines(prefix)
    return prefixes


def prefixes_of(results: Path) -> list[Path]:
    """Path prefixes of the results of measured photographs in a directory.

    Raises: ValueError, one line, where there is none, or results that were written are gone.
    """
    if not results.is_dir():
        raise ValueError(f"no directory at {results}")
    records = sorted(results.rglob(f"*{_RECORD}"))
    prefixes = [record.with_name(record.name.removesuffix(_RECORD)) for record in records]
    measured = [prefix for prefix in prefixes if prefix.with_name(prefix.name + LINES).is_file()]
    without = sorted({*prefixes} - {*measured})
    missing = [prefix for prefix in without if prefix.name + LINES in _files_of(prefix)]
    if missing:
        raise ValueError(f"results of {len(missing)} photographs are gone, {missing[0]}{LINES} first: predict again")
    if not measured:
        content = f"{len(records)} predicted photographs without measures" if records else "no results"
        raise ValueError(f"{results} holds {content}: run cssr.predict PHOTOGRAPHS --measure --out {results}")
    return measured


def _files_of(prefix: Path) -> dict[str, Any]:
    """The files that prediction has written of a photograph, by its record."""
    return read_json(prefix.with_name(prefix.name + _RECORD), {"?files": dict}).get("files", {})


def _named(photographs: Sequence[AnnotatedPhotograph], root: Path | None) -> list[AnnotatedPhotograph]:
    """Name photographs relative to their common folder or `root`; ValueError without any, or if one is not below it."""
    if not photographs:
        raise ValueError("nothing to annotate: all results are of frames of videos")
    paths = [Path(os.path.abspath(photograph.name)) for photograph in photographs]
    folder = Path(os.path.abspath(root)) if root else Path(os.path.commonpath([path.parent for path in paths]))
    outside = [path for path in paths if folder not in path.parents]
    if outside:
        raise ValueError(f"--root: {outside[0]} is not below {folder}")
    path, count = Counter(paths).most_common(1)[0]
    if count > 1:
        raise ValueError(f"{count} of these results are of one photograph, {path}: annotate a folder of them at a time")
    return [replace(p, name=path.relative_to(folder).as_posix()) for p, path in zip(photographs, paths)]


# ---- ranking for labelling ----


def rank(prefixes: Sequence[Path], photographs: Sequence[AnnotatedPhotograph], out: Path) -> list[tuple[float, str]]:
    """Write `rank.csv` and `rank.jpg`: photographs by the mean entropy of their probabilities, bits a pixel.

    Probabilities are the calibrated ones that prediction has written (with --tta, means over orientations).
    Raises: ValueError where they were not written, or are damaged.
    """
    names = [one_line(photograph.name) for photograph in photographs]
    scores = [entropy(_valid_probabilities(*both)) for both in zip(prefixes, photographs)]
    order = sorted(range(len(prefixes)), key=lambda n: (-scores[n], names[n]))
    ranked = [(scores[n], names[n]) for n in order]
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["rank", "photograph", "entropy_bits_per_pixel"])
    writer.writerows((position, name, f"{score:.6f}") for position, (score, name) in enumerate(ranked, 1))
    write_atomic(out / "rank.csv", table.getvalue())
    cells = [_cell(prefixes[n], position, *ranked[position - 1]) for position, n in enumerate(order[:_SHEET], 1)]
    columns = min(6, len(cells))
    cells += [np.full_like(cells[0], 255)] * (-len(cells) % columns)
    rows = [np.hstack(cells[start : start + columns]) for start in range(0, len(cells), columns)]
    _, encoded = cv2.imencode(".jpg", np.vstack(rows)[..., ::-1])
    write_atomic(out / "rank.jpg", encoded.tobytes())
    print(f"label first {ranked[0][1]}, last {ranked[-1][1]}: rank.csv and rank.jpg in {out}")
    return ranked


def entropy(prob: np.ndarray) -> float:
    """Mean entropy of crack probabilities (any shape, uint8 of which 255 is 1, or float 0..1), bits."""
    levels = np.bincount(np.asarray(np.round(prob * (1 if prob.dtype == np.uint8 else 255)), np.uint8).ravel())
    p = np.arange(len(levels)) / 255
    with np.errstate(divide="ignore", invalid="ignore"):
        bits = -np.nan_to_num(p * np.log2(p)) - np.nan_to_num((1 - p) * np.log2(1 - p))
    return float((bits * levels).sum() / levels.sum())


def probabilities(prefix: Path) -> np.ndarray | None:
    """Crack probabilities of a photograph: H W (H W 2 with alpha), uint8 of which 255 is 1, or float; None without any.

    Raises: ValueError, one line, for a file that is damaged or holds something else.
    """
    for ending in ("_prob.png", "_prob.tif", "_prob.npy"):
        path = prefix.with_name(prefix.name + ending)
        if path.is_file():
            with reading_result(path):
                return _checked_probabilities(path)
    return None


def _checked_probabilities(path: Path) -> np.ndarray:
    if path.suffix == ".npy":
        prob = np.load(path, mmap_mode="r", allow_pickle=False)
    else:
        with open_image(path) as image:
            prob = np.asarray(image)
    if not (prob.dtype == np.uint8 or prob.dtype.kind == "f") or prob.shape[2:] not in ((), (2,)) or prob.ndim < 2:
        raise ValueError(f"its values are {prob.dtype} {[*prob.shape]}, no probabilities")
    return prob


def _valid_probabilities(prefix: Path, photograph: AnnotatedPhotograph) -> np.ndarray:
    prob = probabilities(prefix)
    if prob is None:
        raise ValueError(f"--rank: no probabilities of {prefix}: predict with prob among --write")
    size = photograph.height, photograph.width
    if any(have % own or not have for have, own in zip(prob.shape, size)):
        raise ValueError(f"--rank: the probabilities of {prefix}, {[*prob.shape]}, are of another size than its "
                         f"photograph, {[*size]}: predict again")  # fmt: skip
    valid = prob[prob[..., 1] > 0][:, 0] if prob.ndim == 3 else prob if prob.dtype == np.uint8 else prob[prob == prob]
    if not valid.size or prob.dtype != np.uint8 and not (valid.min() >= 0 and valid.max() < 1.001):
        raise ValueError(f"--rank: the probabilities of {prefix} are not within 0 to 1, or none: predict again")
    return valid


def _cell(prefix: Path, position: int, score: float, name: str) -> np.ndarray:
    """A square of the sheet: the picture with cracks drawn in, and its place."""
    path = prefix.with_name(f"{prefix.name}_cracks.png")
    with reading_result(path), open_image(path) as picture:
        picture.thumbnail((_CELL, _CELL - 30))
        small = np.asarray(picture.convert("RGB"))
    cell = np.full((_CELL, _CELL, 3), 255, np.uint8)
    cell[30 : 30 + small.shape[0], : small.shape[1]] = small
    text = f"{position}. {name[-28:]}  {score:.3f}"
    return cv2.putText(cell, text, (4, 20), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (0, 0, 0), 1, cv2.LINE_AA)
