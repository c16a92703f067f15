"""Find changes of cracks between two photographs of one spot: new, grown, unchanged, reduced or gone.

A change exceeds its uncertainty. Cracks are compared in the pixels of the new photograph, where both photographs show
the surface.
"""

import math
from dataclasses import dataclass

import numpy as np

from cssr.survey.collect import COVERAGE
from cssr.survey.matching import Cracks, MatchedCracks, View, match
from cssr.survey.registration import Registration

STATES = ("new", "grown", "unchanged", "reduced", "gone", "unclear", "out of view")

_VISIBLE = 0.5  # of a crack that the other photograph must show
_HINTED = 0.5  # of a crack that the other survey must see faintly for it not to be new, or gone


@dataclass(frozen=True)
class Uncertainty:
    """Standard uncertainties: of the position of a crack's end, and of a width, pixels of the photograph; of a length
    along its line, a share of it. `width` says which width is compared: mean, p95 or max.
    """

    end: float
    along: float
    widths: tuple[float, float]  # of the old and of the new survey
    width: str = "p95"
    detectable: tuple[float | None, float | None] = (None, None)


@dataclass(frozen=True)
class Change:
    """Cracks of either photograph that are one; lengths and widths in pixels of the new photograph.

    Attributes:
        state: one of STATES. change: what differs beyond the uncertainty ("longer, wider").
        old, new: indices into the cracks of either photograph.
        lengths, widths: old and new, None where there is none; the widths are those where both have the crack.
        length_uncertainty, width_uncertainty: expanded (95 %), of the differences.
        added, lost: lengths of the new crack beside the old ones, and of the old beside the new.
        faint: length that one survey has and the other sees faintly, which counts as there.
        seen: share of the line that both photographs show.
        missed: whether it is narrower than what the survey without it would surely find: it is not gone then, but
            unclear.
        place: (x, y) in the new photograph, where it has changed most.
    """

    state: str
    change: str
    old: tuple[int, ...]
    new: tuple[int, ...]
    lengths: tuple[float | None, float | None]
    widths: tuple[float | None, float | None]
    length_uncertainty: float
    width_uncertainty: float
    added: float
    lost: float
    faint: float
    seen: float
    missed: bool
    place: tuple[float, float]


def changes(
    old: Cracks,
    new: Cracks,
    registration: Registration,
    uncertainty: Uncertainty,
    views: tuple[View, View] | None = None,
) -> list[Change]:
    """All cracks of both photographs, each once, as changes: new and grown ones first.

    `views` of the old and the new photograph say what they show beside; None: all.
    """
    pair = match(old, new, registration, views or (View(old.shape), View(new.shape)))
    compared = _Comparison(pair, uncertainty)
    made = [compared.change(*group) for group in pair.groups]
    return sorted(made, key=lambda change: (STATES.index(change.state), -max(length or 0 for length in change.lengths)))


@dataclass(frozen=True)
class _Comparison:
    """The matched cracks of two photographs, and how exactly they are measured."""

    pair: MatchedCracks
    uncertainty: Uncertainty

    def change(self, olds: list[int], news: list[int]) -> Change:
        """Cracks that are one, as a change."""
        before, after, to_old, to_new = self.pair.before, self.pair.after, self.pair.to_old, self.pair.to_new
        a, b = before.segments_of(olds), after.segments_of(news)
        total = len(a) + len(b)
        a, b = a[before.seen[a]], b[after.seen[b]]
        seen = (len(a) + len(b)) / max(1, total)
        beside = a[to_new[a] < 0], b[to_old[b] < 0]
        hinted = beside[0][before.faint[beside[0]]], beside[1][after.faint[beside[1]]]
        faint = float(before.length[hinted[0]].sum()), float(after.length[hinted[1]].sum())
        beside = np.setdiff1d(beside[0], hinted[0]), np.setdiff1d(beside[1], hinted[1])
        # A line counts for both where one survey has it and the other sees it faintly.
        lengths = float(before.length[a].sum()) + faint[1], float(after.length[b].sum()) + faint[0]
        uncertainties = self._uncertainties(olds, news, lengths)
        missed = False
        if olds and news:
            widths = (
                _width(before.width[a[to_new[a] >= 0]], self.uncertainty.width),
                _width(after.width[b[to_old[b] >= 0]], self.uncertainty.width),
            )
            words = _differences(lengths, widths, uncertainties)
            state = "grown" if {"longer", "wider"} & {*words} else "reduced" if words else "unchanged"
        else:
            name, words = f"{self.uncertainty.width}_width_px", []
            widths = tuple(
                max((samples.cracks.rows[n][name] * scale for n in chosen), default=None)
                for samples, chosen, scale in ((before, olds, self.pair.scale), (after, news, 1.0))
            )
            unclear = max(lengths) <= uncertainties[0] or sum(faint) > _HINTED * max(lengths)
            missed = self._may_be_missed(widths)
            unclear |= missed and not news
            state = "out of view" if seen < _VISIBLE else "unclear" if unclear else "gone" if olds else "new"
        return Change(
            state,
            ", ".join(words),
            tuple(olds),
            tuple(news),
            tuple(length if chosen else None for length, chosen in zip(lengths, (olds, news))),
            widths,
            *uncertainties,
            float(after.length[beside[1]].sum()),
            float(before.length[beside[0]].sum()),
            sum(faint),
            seen,
            missed,
            self._place(olds, news, beside, words),
        )

    def _may_be_missed(self, widths: tuple[float | None, float | None]) -> bool:
        """Return whether the survey without a crack would miss one so narrow."""
        (old, new), (before, after) = widths, self.uncertainty.detectable
        if old is None:
            return before is not None and new is not None and new < before * self.pair.scale
        return after is not None and old < after

    def _uncertainties(self, olds: list[int], news: list[int], lengths: tuple[float, float]) -> tuple[float, float]:
        """Expanded uncertainties of the differences of lengths and of widths."""
        before, after = (
            sum(map(side.ends, chosen)) for side, chosen in ((self.pair.before, olds), (self.pair.after, news))
        )
        ends, (old, new) = before * self.pair.scale**2 + after, self.uncertainty.widths
        length = math.hypot(self.uncertainty.end * ends**0.5, self.uncertainty.along * max(lengths))
        return COVERAGE * length, COVERAGE * math.hypot(old * self.pair.scale, new)

    def _place(
        self, olds: list[int], news: list[int], beside: tuple[np.ndarray, np.ndarray], words: list[str]
    ) -> tuple[float, float]:
        """Position of the change in the new photograph, x and y."""
        if not news:
            samples, indices = self.pair.before, self.pair.before.segments_of(olds)
        else:
            samples, indices = self.pair.after, self.pair.after.segments_of(news)
            if "longer" in words and len(beside[1]):
                indices = beside[1]
            elif "wider" in words:
                indices = indices[self.pair.to_old[indices] >= 0]
                growth = self.pair.after.width[indices] - self.pair.before.width[self.pair.to_old[indices]]
                indices = indices[[int(np.nanargmax(growth))]] if np.isfinite(growth).any() else indices
        return tuple(samples.middle[indices[len(indices) // 2]].tolist())


def _differences(lengths: tuple, widths: tuple, uncertainty: tuple[float, float]) -> list[str]:
    """The differences beyond the uncertainty: longer, wider, ..."""
    words = []
    for (old, new), limit, (more, less) in zip(
        (lengths, widths), uncertainty, (("longer", "shorter"), ("wider", "narrower"))
    ):
        if old is not None and new is not None and abs(new - old) > limit:
            words.append(more if new > old else less)
    return words


def _width(values: np.ndarray, kind: str) -> float | None:
    """Mean, 95th percentile or greatest of widths; None without any."""
    values = values[np.isfinite(values)]
    if not len(values):
        return None
    return float({"mean": np.mean, "max": np.max}.get(kind, lambda v: np.percentile(v, 95))(values))
