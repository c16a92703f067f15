"""Findings about several images: the same, nearly the same, of the same spot, within one part or across parts."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from cssr.dataset_preparation.audit.findings import ERROR, NOTE, WARNING, Case, Finding
from cssr.dataset_preparation.audit.overlaps import Overlap
from cssr.dataset_preparation.audit.similarity import Links, groups_of


def _across(cases: Sequence[Case], numbers: Iterable[int]) -> bool:
    return len({cases[n].part for n in numbers}) > 1


def _touched(cases: Sequence[Case], groups: Iterable[Sequence[int]]) -> str:
    """How many images of each part stand in these groups."""
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
    found, parts = [], {case.part for case in cases}
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
        found.append(Finding(weight, kind, touched + remedy, entries, [groups[g] for g in chosen]))
    return found


_PARTING = "keep them in one part when the set is cut"


def of_copies(cases: Sequence[Case]) -> list[Finding]:
    """Images whose pixels are the same."""
    by_digest = defaultdict(list)
    for n, case in enumerate(cases):
        if case.look.digest and not case.look.blank:
            by_digest[case.look.digest].append(n)
    groups = [group for group in by_digest.values() if len(group) > 1]
    kinds = ("copies across parts", "copies")
    remedies = ("remove them from one of the parts", "the same pixels; keep one of each")
    found = _related(kinds, remedies, ERROR, cases, groups, [{}] * len(groups))
    unlike = [g for g in groups if len({cases[n].look.mask_digest for n in g} - {None}) > 1]
    if unlike:
        entries = [{"images": [cases[n].path for n in group]} for group in unlike]
        found.append(Finding(WARNING, "contradicting masks", "the same image, another mask", entries, unlike))
    return found


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
    return _related(kinds, ("remove them from one of the parts", _PARTING), WARNING, cases, groups, facts)


def of_overlaps(cases: Sequence[Case], overlaps: list[Overlap]) -> list[Finding]:
    """Images that show the same spot, the surest first."""
    ranked = sorted(overlaps, key=lambda o: (-o.points, o.first, o.second))
    facts = [{"points": o.points, "scale": o.scale} for o in ranked]
    kinds = ("the same spot across parts", "the same spot")
    remedies = ("cut the set by photograph or place instead", _PARTING)
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
