"""Findings about a dataset: one for each kind of fault or oddity, with the samples concerned.

First those about single samples and the masks of a part, then those about several images (the same, nearly the same, of
the same spot, within one part or across parts).
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cssr.cracks.masks import MAX_CLASSES, MOSTLY
from cssr.dataset_preparation.audit.examine import Crack, FileState, sizes_in
from cssr.dataset_preparation.audit.similarity import Links, Overlap, groups_of
from cssr.dataset_preparation.sources import Item, MaskRule, Source
from cssr.utils.text import one_line

ERROR, WARNING, NOTE = "error", "warning", "note"
_FAULTS = {  # kind -> severity, remedy
    "zero-byte files": (ERROR, "download them again, or remove image and mask"),
    "damaged images": (ERROR, "replace them, or remove image and mask"),
    "damaged masks": (ERROR, "replace them, or remove mask and image"),
    "masks that cannot be used": (ERROR, "see each"),
    "sizes that differ": (ERROR, "give image and mask the same size"),
    "LQ images that cannot be used": (ERROR, "replace them, or remove the pairs"),
    "kernels that cannot be used": (ERROR, "store k x k finite numbers of sum 1"),
    "faulty JPEG data": (WARNING, "decoders fill such places with grey or noise: look at them"),
}
_SOFT = 32  # grey level that the noise of JPEG masks without crack does not reach


@dataclass
class Case:
    """A sample and the results of its examination. `path` names it to people, below the root."""

    part: str
    path: str
    item: Item
    state: FileState
    crack: Crack | None = None


@dataclass
class Part:
    """A part of the dataset, and the prefix that messages leave out of its paths.

    `compared`: only its images matter, to compare others with.
    """

    name: str
    cases: list[Case]
    source: Source
    prefix: str
    compared: bool = False
    rule: MaskRule | None = None
    decided: bool = True  # else the rule is makeshift, for figures only


@dataclass
class Finding:
    """A kind of fault or oddity. `entries`: what goes into the JSON; `pictures`: numbers of cases to show together."""

    severity: str
    kind: str
    message: str
    entries: list[dict[str, Any]] = field(default_factory=list)
    pictures: list[list[int]] = field(default_factory=list)

    def line(self, examples: int = 3) -> str:
        """A line for people."""
        shown = "; ".join(map(_example, self.entries[:examples]))
        more = f"; and {len(self.entries) - examples} more" if len(self.entries) > examples else ""
        return one_line(
            f"{self.severity:8}{len(self.entries) or '':>5}  {self.kind}: {self.message}"
            + (f" [{shown}{more}]" if shown else "")
        )


def _example(entry: dict[str, Any]) -> str:
    if "images" in entry:
        return " = ".join(entry["images"][:3]) + (" = ..." if len(entry["images"]) > 3 else "")
    detail = f" ({entry['what']})" if "what" in entry else ""
    return entry.get("image", entry.get("file", "")) + detail


def _about(
    severity: str, kind: str, message: str, cases: Sequence[Case], chosen: Iterable[int], detail: Callable | None = None
) -> list[Finding]:
    """A finding about single samples, if there are any: those with the numbers `chosen`."""
    chosen = list(chosen)
    entries = [
        {"image": cases[n].path, "key": cases[n].item.key} | ({"what": detail(cases[n])} if detail else {})
        for n in chosen
    ]
    return [Finding(severity, kind, message, entries, [[n] for n in chosen])] if chosen else []


def of_files(cases: Sequence[Case]) -> list[Finding]:
    """Findings about single files."""
    findings = []
    for kind, (severity, remedy) in _FAULTS.items():
        chosen = [n for n, case in enumerate(cases) if kind in case.state.faults]
        findings += _about(severity, kind, remedy, cases, chosen, lambda case, kind=kind: _fault(case, kind))
    return findings


def _fault(case: Case, kind: str) -> str:
    """A fault in words, with a hint where sizes give one."""
    text = case.state.faults[kind]
    sizes = sizes_in(text) if kind == "sizes that differ" else None
    if not sizes:
        return text.split("; ")[0] if kind.startswith("damaged") else text  # the remedy has been said
    (width, height), (columns, rows) = sizes
    hint = f"{width}x{height} and {columns}x{rows}"
    if (width, height) == (rows, columns):
        hint_of_exif = ", the image's EXIF orientation is not in the mask" if case.state.orientation >= 5 else ""
        return f"{hint}: turned by 90 degrees{hint_of_exif}"
    return f"{hint}: the same shape, --resize-masks mends it" if width * rows == height * columns else hint


def of_pictures(cases: Sequence[Case]) -> list[Finding]:
    """Findings about images that can be read."""
    chosen = [n for n, case in enumerate(cases) if case.state.orientation != 1 and case.item.mask]
    findings = _about(
        WARNING,
        "EXIF orientation",
        "these images are turned upright, their masks are not: see that they fit",
        cases,
        chosen,
        lambda case: f"orientation {case.state.orientation}",
    )
    blank = [n for n, case in enumerate(cases) if case.state.blank]
    findings += _about(WARNING, "blank images", "all of their pixels are alike; remove them", cases, blank)
    gone = [n for n, case in enumerate(cases) if case.state.missing == 1]
    findings += _about(WARNING, "images without data", "all transparent or marked as missing: left out", cases, gone)
    holes = [n for n, case in enumerate(cases) if 0 < case.state.missing < 1]
    message = "transparent, or marked as missing: left out of training and measures"
    findings += _about(NOTE, "pixels without data", message, cases, holes, lambda case: f"{case.state.missing:.0%}")
    shallow = [n for n, case in enumerate(cases) if case.state.note]
    findings += _about(
        WARNING, "bits of values", "see each, and the image", cases, shallow, lambda case: case.state.note
    )
    reasons = defaultdict(list)
    for n, case in enumerate(cases):
        if case.state.converted:
            reasons[case.state.converted].append(n)
    for reason, chosen in sorted(reasons.items()):
        findings += _about(NOTE, "will be converted", reason, cases, chosen)
    return findings + _of_scales(cases)


def _of_scales(cases: Sequence[Case]) -> list[Finding]:
    findings = []
    for name, kind in (("scale", "scales"), ("kernel", "kernel sides")):
        counts = Counter(getattr(case.state, name) for case in cases) - Counter({None: len(cases)})
        if len(counts) > 1:
            usual = counts.most_common(1)[0][0]
            chosen = [n for n, case in enumerate(cases) if getattr(case.state, name) not in (None, usual)]
            message = f"most have {usual}, and a set has one only; remove the others"
            findings += _about(
                ERROR, f"several {kind}", message, cases, chosen, lambda case, name=name: str(getattr(case.state, name))
            )
    return findings


def of_masks(part: Part, cases: Sequence[Case], label: str) -> list[Finding]:
    """Findings about the masks of one part; `cases` are those of all parts, `label` names the part."""
    mine = [n for n, case in enumerate(cases) if case.part == part.name and case.state.values is not None]
    if not mine:
        return []
    findings = _of_values(cases, mine, label)
    return (
        findings + [*_of_faint(part, cases, mine, label), *_of_shares(cases, mine, label)] if part.decided else findings
    )


def _of_values(cases: Sequence[Case], mine: list[int], label: str) -> list[Finding]:
    levels = sorted(set().union(*(cases[n].state.values for n in mine)))
    codes = Counter(_code(cases[n].state) for n in mine) - Counter({None: len(mine)})
    findings = []
    if len(codes) > 1 and len(levels) <= MAX_CLASSES:
        usual = codes.most_common(1)[0][0]
        findings += _about(
            WARNING,
            f"mixed mask values{label}",
            f"two ways to draw a crack in one set; most have 0 and {usual}",
            cases,
            [n for n in mine if _code(cases[n].state) not in (None, usual)],
            lambda case: f"0 and {_code(case.state)}",
        )
    elif 3 <= len(levels) <= MAX_CLASSES:
        findings.append(Finding(NOTE, f"classes{label}", f"the masks hold {levels}"))
    soft = [n for n in mine if len(cases[n].state.values) > MAX_CLASSES]
    message = f"masks with more than {MAX_CLASSES} values, levels between"
    return findings + _about(NOTE, f"soft edges{label}", message, cases, soft)


def _of_faint(part: Part, cases: Sequence[Case], mine: list[int], label: str) -> list[Finding]:
    """Masks that the rule empties, though something is drawn in them."""
    highest = max(max(cases[n].state.values) for n in mine)
    if part.rule is None or not np.all(part.rule.apply(np.full((1, 1), highest))):
        return []  # classes: what is drawn may be another one
    faint = [n for n in mine if cases[n].crack and cases[n].crack.share == 0 and _drawn(cases[n].state)]
    return _about(WARNING, f"faint masks{label}", "something is drawn, none of it counts as crack", cases, faint)


def _code(state: FileState) -> int | None:
    """The one value beside 0 of a mask of two values."""
    return max(state.values) if len(state.values) == 2 and 0 in state.values else None


def _drawn(state: FileState) -> bool:
    """Return whether a mask without crack looks as if it had one: values 0 and 1, or soft edges."""
    return max(state.values) == 1 or (len(state.values) > MAX_CLASSES and max(state.values) > _SOFT)


def _of_shares(cases: Sequence[Case], mine: list[int], label: str) -> list[Finding]:
    shares = {n: cases[n].crack.share for n in mine if cases[n].crack and cases[n].crack.share is not None}
    if shares and not any(shares.values()):
        return [Finding(WARNING, f"no cracks{label}", f"all of {len(shares)} masks are empty; are these the masks?")]
    findings = _about(NOTE, f"empty masks{label}", "images without crack", cases, [n for n in shares if shares[n] == 0])
    full = [n for n in shares if shares[n] == 1]
    findings += _about(WARNING, f"full masks{label}", "everything is crack; look at them", cases, full)
    mostly_crack = [n for n in shares if MOSTLY < shares[n] < 1]
    findings += _about(
        WARNING,
        f"mostly crack{label}",
        "more than half of the pixels; inverted?",
        cases,
        mostly_crack,
        lambda case: f"{100 * case.crack.share:.0f} %",
    )
    unread = [n for n in mine if cases[n].crack and cases[n].crack.fault]
    return findings + _about(ERROR, f"masks against the rule{label}", "", cases, unread, lambda case: case.crack.fault)


def _across(cases: Sequence[Case], numbers: Iterable[int]) -> bool:
    return len({cases[n].part for n in numbers}) > 1


def _touched(cases: Sequence[Case], groups: Iterable[Sequence[int]]) -> str:
    """Counts of the images of each part in these groups."""
    numbers = {n for group in groups for n in group}
    counts, all_of = Counter(cases[n].part for n in numbers), Counter(case.part for case in cases)
    return ", ".join(f"{counts[part]} of {all_of[part]} images of {part}" for part in sorted(counts) if part)


def _related(
    kinds: tuple[str, str], remedies: tuple[str, str], severity: str, cases: Sequence[Case], groups: list, facts: list
) -> list[Finding]:
    """Findings about groups of images: across parts, which is worse, and within one.

    Args:
        severity: of what is across parts; the rest is a warning where parts are still to be made, else a note.
        facts: what to add to each group's entry.
    """
    findings, parts = [], {case.part for case in cases}
    for kind, remedy, crossing in zip(kinds, remedies, (True, False)):
        chosen = [n for n, group in enumerate(groups) if _across(cases, group) == crossing]
        if not chosen:
            continue
        entries = [
            {"images": [cases[n].path for n in groups[g]], "parts": [cases[n].part for n in groups[g]], **facts[g]}
            for g in chosen
        ]
        touched = f"{_touched(cases, [groups[g] for g in chosen])}; " if crossing else ""
        weight = severity if crossing else WARNING if len(parts) == 1 else NOTE
        findings.append(Finding(weight, kind, touched + remedy, entries, [groups[g] for g in chosen]))
    return findings


_TOGETHER = "keep them in one part when the set is cut"


def of_copies(cases: Sequence[Case]) -> list[Finding]:
    """Images with the same pixels."""
    by_digest = defaultdict(list)
    for n, case in enumerate(cases):
        if case.state.digest and not case.state.blank:
            by_digest[case.state.digest].append(n)
    groups = [group for group in by_digest.values() if len(group) > 1]
    kinds = ("copies across parts", "copies")
    remedies = ("remove them from one of the parts", "the same pixels; keep one of each")
    findings = _related(kinds, remedies, ERROR, cases, groups, [{}] * len(groups))
    unlike = [g for g in groups if len({cases[n].state.mask_digest for n in g} - {None}) > 1]
    if unlike:
        entries = [{"images": [cases[n].path for n in group]} for group in unlike]
        findings.append(Finding(WARNING, "contradicting masks", "the same image, another mask", entries, unlike))
    return findings


def of_links(cases: Sequence[Case], links: Links) -> list[Finding]:
    """Images that hardly differ."""
    groups = groups_of(links.first, links.second, len(cases))
    closest, turned = defaultdict(list), defaultdict(bool)
    owner = {n: g for g, group in enumerate(groups) for n in group}
    for first, distance, way in zip(links.first.tolist(), links.distance.tolist(), links.way.tolist()):
        closest[owner[first]].append(distance)
        turned[owner[first]] |= way > 0
    facts = [{"distance": max(closest[g]), "turned": turned[g]} for g in range(len(groups))]
    kinds = ("near-duplicates across parts", "near-duplicates")
    return _related(kinds, ("remove them from one of the parts", _TOGETHER), WARNING, cases, groups, facts)


def of_overlaps(cases: Sequence[Case], overlaps: list[Overlap]) -> list[Finding]:
    """Images that show the same spot, the surest first."""
    ranked = sorted(overlaps, key=lambda o: (-o.points, o.first, o.second))
    facts = [{"points": o.points, "scale": o.scale} for o in ranked]
    kinds = ("the same spot across parts", "the same spot")
    remedies = ("cut the set by photograph or place instead", _TOGETHER)
    return _related(kinds, remedies, WARNING, cases, [[o.first, o.second] for o in ranked], facts)


def of_groups(cases: Sequence[Case]) -> list[Finding]:
    """Photographs of which tiles or frames, by their names, are in several parts."""
    groups = defaultdict(list)
    for n, case in enumerate(cases):
        if case.item.group is not None:
            groups[case.item.group].append(n)
    crossing = {name: group for name, group in groups.items() if _across(cases, group)}
    entries = [
        {"image": name, "parts": sorted({cases[n].part for n in group}), "what": f"{len(group)} images"}
        for name, group in sorted(crossing.items())
    ]
    touched = _touched(cases, crossing.values())
    message = f"by their names, {touched}; cut the set by photograph instead"
    return [Finding(WARNING, "photographs in several parts", message, entries)] if entries else []
