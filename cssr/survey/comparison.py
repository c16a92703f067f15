"""Compare two surveys: the change of each crack, as a table, a picture of each pair, JSON and HTML."""

import argparse
import functools
import json
import math
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, select_autoescape
from tqdm import tqdm

from cssr import __version__
from cssr.cracks import pixel_size
from cssr.cracks.pixel_size import PixelSize
from cssr.survey import tables
from cssr.survey.change_picture import COLOURS, draw
from cssr.survey.changes import STATES, Change, Uncertainty, changes
from cssr.survey.collect import COVERAGE, Row
from cssr.survey.pairing import Pair, Refused, pair_up
from cssr.survey.photographs import Results, cracks_of, image_of, view_of
from cssr.survey.registration import apply_homography
from cssr.survey.report import data_uri
from cssr.survey.write import write_files
from cssr.utils.images import encode_image, open_image
from cssr.utils.text import one_line

LISTED = 1000  # rows of the page's table; all are in changes.csv
_ALONG = 0.01  # standard uncertainty of a length, of it
_FAINT = 0.4  # of the threshold of probability, from which on a crack is seen faintly: measured, docs/survey.md
_SHOWN = 12  # sentences of a kind on the terminal
_DECIMALS = 3
_SIDE, _IN_PAGE = 1100, 1600  # pixels of the longer side: of a photograph in a picture, of that in the page
_MAP_DECIMALS = 6

# columns of the table: name, unit, meaning
COLUMNS = {
    "change": ("", "number, as in the pictures"),
    "pair": ("", "number of the pair of photographs, as in the names of the pictures"),
    "state": (
        "",
        "new, grown, unchanged, reduced, gone, unclear (too short, or seen faintly), or out of view of one",
    ),
    "differs": ("", "what differs beyond the uncertainty"),
    "old_photograph": ("", "file of the old survey"),
    "new_photograph": ("", "file of the new survey"),
    "old_cracks": ("", "numbers in the old photograph: several where they have grown together"),
    "new_cracks": ("", "numbers in the new photograph"),
    "x_px": ("px", "position in the new photograph, where it has changed most, from the left"),
    "y_px": ("px", "the same, from the upper edge"),
    "map_x": ("map", "the same on the new photograph's map"),
    "map_y": ("map", "the same on the map"),
    "old_length_px": ("px", "length that both photographs show; pixels of the new photograph, as all that follow"),
    "new_length_px": ("px", "the same in the new survey"),
    "length_change_px": ("px", "their difference"),
    "length_uncertainty_px": ("px", "its expanded uncertainty (95 %)"),
    "added_px": ("px", "length of the new line where there was none"),
    "lost_px": ("px", "length of the old line where there is none now"),
    "faint_px": ("px", "length that one survey has and the other sees faintly, which counts for both"),
    "old_width_px": ("px", "width along what both surveys have"),
    "new_width_px": ("px", "the same in the new survey"),
    "width_change_px": ("px", "their difference"),
    "width_uncertainty_px": ("px", "its expanded uncertainty (95 %)"),
    "old_length_mm": ("mm", "length in the old survey"),
    "new_length_mm": ("mm", "length in the new survey"),
    "length_change_mm": ("mm", "their difference"),
    "length_uncertainty_mm": ("mm", "its expanded uncertainty (95 %)"),
    "old_width_mm": ("mm", "width in the old survey"),
    "new_width_mm": ("mm", "width in the new survey"),
    "width_change_mm": ("mm", "their difference"),
    "width_uncertainty_mm": ("mm", "its expanded uncertainty (95 %)"),
    "seen": ("0..1", "share of its length that both photographs show"),
    "may_be_missed": ("", "yes: narrower than what the survey without it finds with a probability of 90 %"),
    "registration_px": ("px", "standard uncertainty of a position of the old photograph in the new"),
    "mm_per_pixel": ("mm", "size of the new photograph's pixels"),
    "mm_per_pixel_by": ("", "how it is known"),
}


def run(options: argparse.Namespace) -> None:
    """Run `cssr.compare`. Raises: ValueError, one line."""
    for name in ("width_uncertainty", "end_uncertainty"):
        value = getattr(options, name)
        if value is not None and not 0 <= value < math.inf:
            raise ValueError(f"--{name.replace('_', '-')} must be 0 or more, got {value}")
    old, new = Results(options.old), Results(options.new)
    pairs, refused = pair_up(old, new, options.pairs, options.by)
    _print_sentences("not compared", refused)
    if not pairs:
        raise ValueError(f"no two photographs of {old.directory} and {new.directory} show one spot: see above")
    widths = tuple(
        survey.width_uncertainty if options.width_uncertainty is None else options.width_uncertainty
        for survey in (old, new)
    )
    uncertainty = Uncertainty(options.end_uncertainty, _ALONG, widths, new.width, (old.detectable, new.detectable))
    comparison = Comparison(old, new, pairs, refused, uncertainty)
    _print_sentences("warning", comparison.notes)
    comparison.write(options.out)
    counts = ", ".join(f"{count} {state}" for state, count in comparison.states().items() if count) or "no cracks"
    print(f"{len(pairs)} pairs of photographs: {counts}: changes.csv, comparison.html and pictures in {options.out}")


def _print_sentences(kind: str, sentences: Sequence[object]) -> None:
    for sentence in sentences[:_SHOWN]:
        _print(f"{kind}: {sentence}")
    if len(sentences) > _SHOWN:
        _print(f"{kind}: {len(sentences) - _SHOWN} more like these")


def _print(sentence: str) -> None:
    print(one_line(sentence), file=sys.stderr)


class Comparison:
    """All changes between two surveys.

    Attributes:
        rows: one for each change, by the names of COLUMNS; None where a value is not known.
        notes: sentences on sizes of pixels that disagree.
    """

    def __init__(
        self, old: Results, new: Results, pairs: Sequence[Pair], refused: Sequence[Refused], uncertainty: Uncertainty
    ):
        self.old, self.new, self.pairs, self.refused, self._uncertainty = old, new, pairs, refused, uncertainty
        self.rows: list[Row] = []
        self.notes: list[str] = []
        self._changes: list[list[Change]] = []
        self._first: list[int] = []  # number of each pair's first change
        for number, pair in enumerate(tqdm(pairs, "comparing", leave=False, disable=None), 1):
            views = view_of(pair.old, _FAINT * old.threshold), view_of(pair.new, _FAINT * new.threshold)
            made = changes(cracks_of(pair.old), cracks_of(pair.new), pair.registration, uncertainty, views)
            self._first.append(len(self.rows) + 1)
            self._changes.append(made)
            size = self._size(pair)
            self.rows += [self._row(pair, number, change, size) for change in made]

    def states(self, rows: Sequence[Row] | None = None) -> dict[str, int]:
        """Count of each state."""
        counts = Counter(row["state"] for row in (self.rows if rows is None else rows))
        return {state: counts[state] for state in STATES}

    def by_pair(self) -> list[list[Row]]:
        """Rows of each pair."""
        rows: list[list[Row]] = [[] for _ in self.pairs]
        for row in self.rows:
            rows[row["pair"] - 1].append(row)
        return rows

    def _size(self, pair: Pair) -> PixelSize | None:
        """Size of the new photograph's pixels, by either survey."""
        sizes = [] if pair.new.size is None else [pair.new.size]
        if pair.old.size is not None:
            scale, size = pair.registration.scale(pair.old.shape), pair.old.size
            sizes.append(PixelSize(size.mm / scale, size.uncertainty / scale, f"{size.source}, old survey"))
        chosen, warnings = pixel_size.best(sizes)
        self.notes += [f"{pair.new.name}: {sentence}" for sentence in warnings]
        return chosen

    def _row(self, pair: Pair, number: int, change: Change, size: PixelSize | None) -> Row:
        old, new = cracks_of(pair.old), cracks_of(pair.new)
        row: Row = dict.fromkeys(COLUMNS)
        row |= {"change": len(self.rows) + 1, "pair": number, "state": change.state, "differs": change.change}
        row |= {"old_photograph": pair.old.name, "new_photograph": pair.new.name}
        for side, cracks, chosen in (("old", old, change.old), ("new", new, change.new)):
            row[f"{side}_cracks"] = " ".join(str(cracks.rows[n]["number"]) for n in chosen)
        row |= dict(zip(("x_px", "y_px"), (round(value, _DECIMALS) for value in change.place)))
        if pair.new.affine:
            affine = np.array([*np.reshape(pair.new.affine, (2, 3)), (0, 0, 1)])
            row |= dict(
                zip(
                    ("map_x", "map_y"),
                    apply_homography(np.array([change.place]), affine)[0].round(_MAP_DECIMALS).tolist(),
                )
            )
        values = {"length": (change.lengths, change.length_uncertainty)}
        values["width"] = (change.widths, change.width_uncertainty)
        for name, (both, off) in values.items():
            row |= _measure_columns(name, both, off, size)
        row |= {"added_px": round(change.added, _DECIMALS), "lost_px": round(change.lost, _DECIMALS)}
        row["faint_px"] = round(change.faint, _DECIMALS)
        row |= {"seen": round(change.seen, _DECIMALS), "registration_px": round(pair.registration.error, _DECIMALS)}
        row["may_be_missed"] = "yes" if change.missed else None
        if size:
            row |= {"mm_per_pixel": size.mm, "mm_per_pixel_by": size.source}
        return row

    # ---- files ----

    def write(self, out: Path) -> None:
        """Write `changes.csv`, `changes.xlsx` (extra `survey`), `comparison.json`, `comparison.html`, and the pictures.

        All have temporary names until they are whole. Raises: ValueError where they cannot be written.
        """
        names = [f"pair_{number:03d}.jpg" for number in range(1, len(self.pairs) + 1)]
        earlier = (path.name for path in out.glob("pair_[0-9][0-9][0-9]*.jpg")) if out.is_dir() else ()
        writers: dict[str, Callable[[Path], Any] | None] = dict.fromkeys(earlier)
        writers |= {name: functools.partial(self._picture, index) for index, name in enumerate(names)}
        with_book = find_spec("xlsxwriter") is not None
        writers |= {
            "changes.csv": lambda path: tables.write_rows(COLUMNS, self.rows, path),
            "changes.xlsx": self._book if with_book else None,
            "comparison.json": lambda path: path.write_text(json.dumps(self.summary(), indent=1), encoding="utf-8"),
            "comparison.html": lambda path: path.write_text(
                self.page([path.with_name(name) for name in names]), encoding="utf-8"
            ),
        }
        write_files(out, writers)
        if not with_book:
            _print("changes.xlsx not written: pip install 'cssr[survey]'")

    def _picture(self, index: int, path: Path) -> None:
        pair = self.pairs[index]
        images = image_of(pair.old, _SIDE), image_of(pair.new, _SIDE)
        picture = draw(pair, images, self._changes[index], self._first[index])
        path.write_bytes(encode_image(picture, "JPEG", quality=92, subsampling=0))

    def _book(self, path: Path) -> None:
        header = ("pair", "old", "new", *STATES, "registered by", "features", "error px")
        rows = [
            (n, p.old.name, p.new.name, *self.states(rows_of_pair).values(), r.by, r.matches, round(r.error, _DECIMALS))
            for n, (p, rows_of_pair) in enumerate(zip(self.pairs, self.by_pair()), 1)
            for r in (p.registration,)
        ]
        sheets = {
            "changes": (list(COLUMNS), (row.values() for row in self.rows)),
            "pairs": (header, rows),
            "not compared": (("old", "new", "reason"), map(_refusal, self.refused)),
        }
        facts = [(name, str(value)) for name, value in self._facts().items()]
        tables.write_book(path, sheets, len(self.rows), COLUMNS, facts)

    def _facts(self) -> dict[str, Any]:
        return {
            "old": str(self.old.directory),
            "new": str(self.new.directory),
            "cssr": __version__,
            "width_compared": self._uncertainty.width,
            "width_uncertainty_px": list(self._uncertainty.widths),
            "end_uncertainty_px": self._uncertainty.end,
            "length_uncertainty": self._uncertainty.along,
            "coverage": COVERAGE,
        }

    def summary(self) -> dict[str, Any]:
        """The comparison in numbers: settings, states, each pair with its homography, and what was not compared."""
        pairs = [
            {
                "old": pair.old.name,
                "new": pair.new.name,
                "by": pair.registration.by,
                "matches": pair.registration.matches,
                "error_px": pair.registration.error,
                "old_to_new": pair.registration.matrix.tolist(),
                "picture": f"pair_{number:03d}.jpg",
            }
            for number, pair in enumerate(self.pairs, 1)
        ]
        refused = [dict(zip(("old", "new", "reason"), _refusal(refusal))) for refusal in self.refused]
        return {**self._facts(), "states": self.states(), "notes": self.notes, "pairs": pairs, "not_compared": refused}

    def page(self, pictures: Sequence[Path]) -> str:
        """The comparison as HTML, in one file."""
        environment = Environment(loader=PackageLoader("cssr.survey", "pages"), autoescape=select_autoescape())
        order = sorted(self.rows, key=lambda row: (STATES.index(row["state"]), -_extent_of(row), row["change"]))
        shown = []
        for number, (pair, rows, path) in enumerate(zip(self.pairs, self.by_pair(), pictures), 1):
            with open_image(path) as picture:
                shown.append((number, pair, self.states(rows), data_uri(picture.convert("RGB"), _IN_PAGE)))
        return environment.get_template("comparison.html").render(
            today=date.today().isoformat(),
            version=__version__,
            comparison=self,
            facts=self._facts(),
            states=[(state, count, COLOURS[state]) for state, count in self.states().items() if count],
            colours=COLOURS,
            pairs=shown,
            listed=order[:LISTED],
            refused=list(map(str, self.refused)),
        )


def _measure_columns(
    name: str, values: tuple[float | None, float | None], uncertainty: float, size: PixelSize | None
) -> Row:
    """Old, new, difference and its uncertainty, in pixels and mm."""
    old, new = values
    change = None if old is None or new is None else new - old
    row: Row = {f"old_{name}_px": old, f"new_{name}_px": new, f"{name}_change_px": change}
    row[f"{name}_uncertainty_px"] = uncertainty
    if size:
        row |= {key.replace("_px", "_mm"): value and value * size.mm for key, value in row.items()}
        scale_error = COVERAGE * size.uncertainty * abs(change or 0)
        row[f"{name}_uncertainty_mm"] = math.hypot(uncertainty * size.mm, scale_error)
    return {key: value if value is None else round(value, _DECIMALS) for key, value in row.items()}


def _extent_of(row: Mapping[str, Any]) -> float:
    """Sort key of changes of one state, pixels."""
    return max(abs(row["length_change_px"] or 0), row["new_length_px"] or 0 if row["state"] == "new" else 0)


def _refusal(one: Refused) -> tuple[str | None, str | None, str]:
    return *(photograph and photograph.name for photograph in (one.old, one.new)), one.reason
