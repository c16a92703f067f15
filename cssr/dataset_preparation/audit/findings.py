"""What the examination of a dataset comes to: findings, one for each kind of thing, with the samples concerned.

Here are those about single samples, and about the masks of a part; `relations.py` has those about several images.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cssr.cracks.masks import MOST_CLASSES, MOSTLY
from cssr.dataset_preparation.audit.examine import Crack, Look, sizes_in
from cssr.dataset_preparation.sources import Item, MaskRule, Source

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
    """A sample and what was found in it. `path` names it to people, below the root."""

    part: str
    path: str
    item: Item
    look: Look
    crack: Crack | None = None


@dataclass
class Part:
    """A part of the dataset, and the prefix that messages leave out of its paths.

    `compared`: only its images matter, as something to hold others against.
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
    """One kind of thing. `entries`: what goes into the JSON; `pictures`: numbers of cases to show side by side."""

    severity: str
    kind: str
    message: str
    entries: list[dict[str, Any]] = field(default_factory=list)
    pictures: list[list[int]] = field(default_factory=list)

    def line(self, examples: int = 3) -> str:
        """For people."""
        shown = "; ".join(map(_example, self.entries[:examples]))
        more = f"; and {len(self.entries) - examples} more" if len(self.entries) > examples else ""
        return f"{self.severity:8}{len(self.entries) or '':>5}  {self.kind}: {self.message}" + (
            f" [{shown}{more}]" if shown else ""
        )


def _example(entry: dict[str, Any]) -> str:
    if "images" in entry:
        return " = ".join(entry["images"][:3]) + (" = ..." if len(entry["images"]) > 3 else "")
    what = f" ({entry['what']})" if "what" in entry else ""
    return entry.get("image", entry.get("file", "")) + what


def _about(
    severity: str, kind: str, message: str, cases: Sequence[Case], chosen: Iterable[int], what: Callable | None = None
) -> list[Finding]:
    """A finding about single samples, if there are any: those whose numbers are `chosen`."""
    chosen = list(chosen)
    entries = [
        {"image": cases[n].path, "key": cases[n].item.key, **({"what": what(cases[n])} if what else {})} for n in chosen
    ]
    return [Finding(severity, kind, message, entries, [[n] for n in chosen])] if chosen else []


def of_files(cases: Sequence[Case]) -> list[Finding]:
    """What is wrong with single files."""
    found = []
    for kind, (severity, remedy) in _FAULTS.items():
        chosen = [n for n, case in enumerate(cases) if kind in case.look.faults]
        found += _about(severity, kind, remedy, cases, chosen, lambda case, kind=kind: _fault(case, kind))
    return found


def _fault(case: Case, kind: str) -> str:
    """What was found, with a hint where sizes tell one."""
    text = case.look.faults[kind]
    sizes = sizes_in(text) if kind == "sizes that differ" else None
    if not sizes:
        return text.split("; ")[0] if kind.startswith("damaged") else text  # the remedy has been said
    (width, height), (columns, rows) = sizes
    hint = f"{width}x{height} and {columns}x{rows}"
    if (width, height) == (rows, columns):
        lying = ", the image's EXIF orientation is not in the mask" if case.look.orientation >= 5 else ""
        return f"{hint}: turned by 90 degrees{lying}"
    return f"{hint}: the same shape, --resize-masks mends it" if width * rows == height * columns else hint


def of_pictures(cases: Sequence[Case]) -> list[Finding]:
    """What is remarkable about images that can be read."""
    chosen = [n for n, case in enumerate(cases) if case.look.orientation != 1 and case.item.mask]
    found = _about(
        WARNING,
        "EXIF orientation",
        "these images are turned upright, their masks are not: see that they fit",
        cases,
        chosen,
        lambda case: f"orientation {case.look.orientation}",
    )
    blank = [n for n, case in enumerate(cases) if case.look.blank]
    found += _about(WARNING, "blank images", "all of their pixels are alike; remove them", cases, blank)
    gone = [n for n, case in enumerate(cases) if case.look.missing == 1]
    found += _about(WARNING, "images without data", "all transparent or marked as missing: left out", cases, gone)
    holes = [n for n, case in enumerate(cases) if 0 < case.look.missing < 1]
    message = "transparent, or marked as missing: left out of training and measures"
    found += _about(NOTE, "pixels without data", message, cases, holes, lambda case: f"{case.look.missing:.0%}")
    shallow = [n for n, case in enumerate(cases) if case.look.note]
    found += _about(WARNING, "bits of values", "see each, and the image", cases, shallow, lambda case: case.look.note)
    reasons = defaultdict(list)
    for n, case in enumerate(cases):
        if case.look.converted:
            reasons[case.look.converted].append(n)
    for reason, chosen in sorted(reasons.items()):
        found += _about(NOTE, "will be converted", reason, cases, chosen)
    return found + _of_scales(cases)


def _of_scales(cases: Sequence[Case]) -> list[Finding]:
    found = []
    for name, kind in (("scale", "scales"), ("kernel", "kernel sides")):
        counts = Counter(getattr(case.look, name) for case in cases) - Counter({None: len(cases)})
        if len(counts) > 1:
            usual = counts.most_common(1)[0][0]
            chosen = [n for n, case in enumerate(cases) if getattr(case.look, name) not in (None, usual)]
            message = f"most have {usual}, and a set has one only; remove the others"
            found += _about(
                ERROR, f"several {kind}", message, cases, chosen, lambda case, name=name: str(getattr(case.look, name))
            )
    return found


def of_masks(part: Part, cases: Sequence[Case], label: str) -> list[Finding]:
    """What is remarkable about the masks of one part; `cases` are those of all parts, `label` names the part."""
    mine = [n for n, case in enumerate(cases) if case.part == part.name and case.look.values is not None]
    if not mine:
        return []
    found = _of_values(cases, mine, label)
    return found + [*_of_faint(part, cases, mine, label), *_of_shares(cases, mine, label)] if part.decided else found


def _of_values(cases: Sequence[Case], mine: list[int], label: str) -> list[Finding]:
    levels = sorted(set().union(*(cases[n].look.values for n in mine)))
    codes = Counter(_code(cases[n].look) for n in mine) - Counter({None: len(mine)})
    found = []
    if len(codes) > 1 and len(levels) <= MOST_CLASSES:
        usual = codes.most_common(1)[0][0]
        found += _about(
            WARNING,
            f"mixed mask values{label}",
            f"two ways to draw a crack in one set; most have 0 and {usual}",
            cases,
            [n for n in mine if _code(cases[n].look) not in (None, usual)],
            lambda case: f"0 and {_code(case.look)}",
        )
    elif 3 <= len(levels) <= MOST_CLASSES:
        found.append(Finding(NOTE, f"classes{label}", f"the masks hold {levels}"))
    soft = [n for n in mine if len(cases[n].look.values) > MOST_CLASSES]
    message = f"masks with more than {MOST_CLASSES} values, levels between"
    return found + _about(NOTE, f"soft edges{label}", message, cases, soft)


def _of_faint(part: Part, cases: Sequence[Case], mine: list[int], label: str) -> list[Finding]:
    """Masks that the rule empties, though something is drawn in them."""
    highest = max(max(cases[n].look.values) for n in mine)
    if part.rule is None or not np.all(part.rule.apply(np.full((1, 1), highest))):
        return []  # classes: what is drawn may be another one
    faint = [n for n in mine if cases[n].crack and cases[n].crack.share == 0 and _drawn(cases[n].look)]
    return _about(WARNING, f"faint masks{label}", "something is drawn, none of it counts as crack", cases, faint)


def _code(look: Look) -> int | None:
    """The one value beside 0 of a mask of two values."""
    return max(look.values) if len(look.values) == 2 and 0 in look.values else None


def _drawn(look: Look) -> bool:
    """Whether a mask without crack looks as if it had one: values 0 and 1, or soft edges. Classes may be absent."""
    return max(look.values) == 1 or (len(look.values) > MOST_CLASSES and max(look.values) > _SOFT)


def _of_shares(cases: Sequence[Case], mine: list[int], label: str) -> list[Finding]:
    shares = {n: cases[n].crack.share for n in mine if cases[n].crack and cases[n].crack.share is not None}
    if shares and not any(shares.values()):
        return [Finding(WARNING, f"no cracks{label}", f"all of {len(shares)} masks are empty; are these the masks?")]
    found = _about(NOTE, f"empty masks{label}", "images without crack", cases, [n for n in shares if shares[n] == 0])
    full = [n for n in shares if shares[n] == 1]
    found += _about(WARNING, f"full masks{label}", "everything is crack; look at them", cases, full)
    most = [n for n in shares if MOSTLY < shares[n] < 1]
    found += _about(
        WARNING,
        f"mostly crack{label}",
        "more than half of the pixels; inverted?",
        cases,
        most,
        lambda case: f"{100 * case.crack.share:.0f} %",
    )
    unread = [n for n in mine if cases[n].crack and cases[n].crack.fault]
    return found + _about(ERROR, f"masks against the rule{label}", "", cases, unread, lambda case: case.crack.fault)
