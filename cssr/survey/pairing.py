"""Pair the photographs of two surveys that show one spot: by name, georeference, features, or a table."""

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from cssr.survey.geometry import Transform
from cssr.survey.photographs import Results, SurveyPhotograph, picture_of
from cssr.survey.registration import (
    NotRegistered,
    Picture,
    Registration,
    by_features,
    by_georeference,
    common_area,
    matches,
)
from cssr.utils import geotiff
from cssr.utils.json_files import read_text

WAYS = ("auto", "features", "georeference")
_STRONGEST = 500  # features by which photographs are sought
_ALIKE, _TRIED = 10, 3  # of these that must match, and how many photographs are then tried
_APART = 0.05  # of a photograph's diagonal by which features and georeference may differ
_PATIENCE = 2  # seconds before a bar is shown


@dataclass(frozen=True)
class Pair:
    """Photographs of one spot."""

    old: SurveyPhotograph
    new: SurveyPhotograph
    registration: Registration


@dataclass(frozen=True)
class Refused:
    """Photographs that are not compared, and why."""

    old: SurveyPhotograph | None
    new: SurveyPhotograph | None
    reason: str

    def __str__(self) -> str:
        names = [photograph.name for photograph in (self.old, self.new) if photograph]
        return f"{' and '.join(names)}: {self.reason}"


def pair_up(
    old: Results, new: Results, table: Path | None = None, way: str = "auto"
) -> tuple[list[Pair], list[Refused]]:
    """Pairs of photographs, each photograph in one at most, in the order of the new ones; and the others.

    Args:
        table: CSV with columns old and new; then no others are looked for.
        way: of registration, one of WAYS.
    Raises: ValueError, one line, for a table that is damaged or names no photograph.
    """
    if table is not None:
        return _register_all(_read_table(table, old, new), way)
    by_key = {photograph.key: photograph for photograph in old.photographs}
    same = [(by_key[photograph.key], photograph) for photograph in new.photographs if photograph.key in by_key]
    pairs, refused = _register_all(same, way)
    for seek in (_by_map, _by_features):
        remaining = [_remaining(results, pairs, side) for side, results in (("old", old), ("new", new))]
        if all(remaining) and (seek is _by_map or way != "georeference"):
            pairs += seek(*remaining, way)
    pairs.sort(key=lambda pair: new.photographs.index(pair.new))
    return pairs, list(_unpaired(old, new, pairs, refused))


def register(old: SurveyPhotograph, new: SurveyPhotograph, way: str = "auto") -> Registration:
    """The map of the pixels of one photograph to those of the other.

    By features where they hold, and agree with the georeference, if there is one; else by that.
    Raises: NotRegistered, one line.
    """
    by_map = None
    if way != "features" and old.affine and new.affine:
        to_new = None if old.crs == new.crs else _map_to_map(old, new)
        try:
            by_map = by_georeference(old.affine, new.affine, (old.shape, new.shape), to_new)
        except ValueError as error:  # of a map that is unknown, too
            raise NotRegistered(str(error)) from None
    if way == "georeference":
        if by_map is None:
            raise NotRegistered("one of them has no georeference")
        return by_map
    try:
        by_picture = by_features(picture_of(old), picture_of(new))
    except NotRegistered:
        if by_map is None:
            raise
        return by_map
    if by_map:
        height, width = old.shape
        corners = np.array([[0, 0], [width, 0], [width, height], [0, height]], float)
        distance = float(np.linalg.norm(by_picture.place(corners) - by_map.place(corners), axis=1).mean())
        if distance > _APART * np.hypot(*new.shape):
            raise NotRegistered(
                f"by features they are {distance:.0f} pixels off from where the georeference has them: say which is "
                "right by --by features or --by georeference"
            )
    return by_picture


def _map_to_map(old: SurveyPhotograph, new: SurveyPhotograph) -> Transform:
    unknown = [photograph.name for photograph in (old, new) if not photograph.crs]
    if unknown:
        raise NotRegistered(f"the map of {unknown[0]} has no name, that of the other has one")
    if not geotiff.installed():
        raise NotRegistered(f"they are on maps of {old.crs} and {new.crs}: pip install 'cssr[large]' to compare them")
    return lambda points: geotiff.reprojected(points, old.crs, new.crs)


def _register_all(
    candidates: Sequence[tuple[SurveyPhotograph, SurveyPhotograph]], way: str
) -> tuple[list[Pair], list[Refused]]:
    pairs, refused = [], []
    for old, new in _with_progress(candidates, "registering", "pair"):
        try:
            pairs.append(Pair(old, new, register(old, new, way)))
        except NotRegistered as reason:
            refused.append(Refused(old, new, str(reason)))
    return pairs, refused


def _with_progress(items: Sequence, title: str, unit: str) -> tqdm:
    return tqdm(items, title, leave=False, unit=unit, delay=_PATIENCE, disable=None)


def _remaining(results: Results, pairs: Sequence[Pair], side: str) -> list[SurveyPhotograph]:
    paired = {getattr(pair, side) for pair in pairs}
    return [photograph for photograph in results.photographs if photograph not in paired]


def _unpaired(old: Results, new: Results, pairs: Sequence[Pair], refused: Sequence[Refused]) -> Iterator[Refused]:
    """Those of one name that are in no pair, and photographs alone."""
    remaining = {side: _remaining(results, pairs, side) for side, results in (("old", old), ("new", new))}
    for photograph in refused:
        if photograph.old in remaining["old"] and photograph.new in remaining["new"]:
            remaining["old"].remove(photograph.old)
            remaining["new"].remove(photograph.new)
            yield photograph
    yield from (
        Refused(photograph, None, f"no photograph of {new.directory} shows its spot") for photograph in remaining["old"]
    )
    yield from (
        Refused(None, photograph, f"no photograph of {old.directory} shows its spot") for photograph in remaining["new"]
    )


# ---- candidates ----


def _read_table(table: Path, old: Results, new: Results) -> list[tuple[SurveyPhotograph, SurveyPhotograph]]:
    try:
        rows = list(csv.DictReader(io.StringIO(read_text(table), newline="")))
    except (ValueError, csv.Error) as error:
        raise ValueError(f"--pairs: {table} cannot be read: {error}; save it as CSV again") from None
    if not rows or not {"old", "new"} <= rows[0].keys():
        raise ValueError(f"--pairs: {table} needs columns old and new under a row of these names, and a row for a pair")
    chosen = []
    for number, row in enumerate(rows, 2):
        pair = []
        for side, results in (("old", old), ("new", new)):
            named = [photograph for photograph in results.photographs if row[side] in photograph.names]
            if len(named) != 1:
                count_text = "no photograph" if not named else f"{len(named)} photographs"
                raise ValueError(
                    f"--pairs: {table}, line {number}: {row[side]!r} is {count_text} of {results.directory}"
                )
            pair.append(named[0])
        chosen.append(tuple(pair))
    for side, photographs in zip(("old", "new"), zip(*chosen)):
        repeated = next((one for n, one in enumerate(photographs) if one in photographs[:n]), None)
        if repeated:
            raise ValueError(f"--pairs: {table} names {repeated.name} twice under {side}: a photograph is in one pair")
    return chosen


def _by_map(old: Sequence[SurveyPhotograph], new: Sequence[SurveyPhotograph], way: str) -> list[Pair]:
    """Pairs of the largest common areas on the map first."""
    if way == "features":
        return []
    areas = []
    for a in old:
        for b in new:
            if a.affine and b.affine:
                try:
                    placed = register(a, b, "georeference")
                    areas.append((-common_area(placed.matrix, a.shape, b.shape), len(areas), a, b))
                except NotRegistered:
                    continue
    return _register_best(areas, way)


def _by_features(old: Sequence[SurveyPhotograph], new: Sequence[SurveyPhotograph], way: str) -> list[Pair]:
    """Pairs of which the strongest features match most."""
    pictures = {side: _strongest(photographs) for side, photographs in ((0, old), (1, new))}
    alike = []
    for b in _with_progress([one for one in new if one in pictures[1]], "searching", "photo"):
        counts = [(-len(matches(pictures[0][a], pictures[1][b])), n, a) for n, a in enumerate(old) if a in pictures[0]]
        alike += [(count, len(alike) + n, a, b) for count, n, a in sorted(counts)[:_TRIED] if count <= -_ALIKE]
    return _register_best(alike, way)


def _strongest(photographs: Sequence[SurveyPhotograph]) -> dict[SurveyPhotograph, Picture]:
    pictures = {}
    for photograph in _with_progress(photographs, "reading", "photo"):
        try:
            picture = picture_of(photograph)
        except NotRegistered:
            continue
        strongest = np.s_[:_STRONGEST]
        pictures[photograph] = Picture(
            picture.shape,
            picture.factor,
            picture.valid,
            picture.points[strongest].copy(),
            picture.descriptors[strongest].copy(),
        )
    return pictures


def _register_best(ranked: Sequence[tuple[float, int, SurveyPhotograph, SurveyPhotograph]], way: str) -> list[Pair]:
    """Register candidates in the order of their ranks, each photograph in one pair at most."""
    pairs, paired = [], set()
    for _, _, old, new in sorted(ranked, key=lambda entry: entry[:2]):
        if not {old, new} & paired:
            try:
                pairs.append(Pair(old, new, register(old, new, way)))
            except NotRegistered:
                continue
            paired |= {old, new}
    return pairs
