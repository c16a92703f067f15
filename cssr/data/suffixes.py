"""Images and masks among the members of other people's tars, by their suffixes.

Webdataset's rule says what a key is and what a suffix: a key ends at the first dot of the name. Where keys have dots
themselves, the suffix is as much of the name's end as is known.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

from cssr.data.tar_reader import Member, Naming
from cssr.utils.image_files import IMAGE_SUFFIXES

Suffixes = Mapping[str, Sequence[str]]  # "image" and "mask" -> suffixes of members, in lower case

SLOTS = {"image": "jpg", "mask": "mask.png", "valid": "valid.png"}  # as `cssr.data.tar_reader` calls them
_IMAGE = {"image", "images", "img", "imgs", "rgb", "photo", "picture", "input", "hr"}
_MASK = {"mask", "masks", "seg", "segm", "segmentation", "label", "labels", "lbl", "gt", "annotation", "target"}
_MASK |= {"truth", "groundtruth"}
_BESIDE = {"crack", "cracks", "binary", "semantic", "ground"}  # words that may accompany those of a mask


def is_image(name: str) -> bool:
    """Tell image files by their suffix, in any case."""
    return name.lower().endswith(IMAGE_SUFFIXES)


@dataclass(frozen=True)
class Reading:
    """Interpretation of member names as samples.

    Attributes:
        roles: suffix -> what it is, of `SLOTS`.
        dots: whether keys have dots.
        forms: suffixes of a sample -> how many samples have these, and the key of the first.
        masked: whether samples have masks.
        chosen: whether people have said which members to take.
        suffixes: of all image files, for people.
    """

    roles: dict[str, str]
    dots: bool
    forms: dict[tuple[str, ...], tuple[int, str]]
    masked: bool
    chosen: bool
    suffixes: str

    @property
    def naming(self) -> Naming:
        """The same for `cssr.data.tar_reader`."""
        return Naming({suffix: SLOTS[role] for suffix, role in self.roles.items()}, folders=True, dots=self.dots)

    def of(self, role: str, form: Iterable[str] | None = None) -> list[str]:
        """The suffixes of a role in a form, or in all."""
        present = set(chain.from_iterable(self.forms)) if form is None else form
        return sorted(suffix for suffix in present if self.roles[suffix] == role)

    @property
    def needed(self) -> tuple[str, ...]:
        """The roles that a sample must have one member of."""
        return ("image", "mask") if self.masked else ("image",)

    @property
    def unclear(self) -> str | None:
        """The key of a sample with several images or masks; None if there is none."""
        double = (form for form in self.forms if any(len(self.of(role, form)) > 1 for role in self.needed))
        return next((self.forms[form][1] for form in double), None)

    @property
    def unpaired(self) -> list[tuple[int, str]]:
        """Number of samples that lack their image or mask, and the key of the first, of each such form."""
        return [count for form, count in self.forms.items() if not all(self.of(role, form) for role in self.needed)]

    @property
    def whole(self) -> int:
        """Number of samples that have what they need."""
        return sum(n for n, _ in self.forms.values()) - sum(n for n, _ in self.unpaired)

    def fault(self, option: Callable[[str, str], str]) -> str:
        """Fault of this interpretation, with the remedy; "" if there is none but that samples are unpaired.

        Args: option: (suffix of images, suffix of masks or "") -> the setting or option that selects them.
        """
        image, mask = self.of("image")[:1], self.of("mask")[:1]
        known = f"the image files end in {self.suffixes or 'nothing that is known'}"
        if self.unclear is not None:
            form = next(form for form, (_, key) in self.forms.items() if key == self.unclear)
            choice = option(self.of("image", form)[0], (self.of("mask", form) or form[-1:])[0])
            return f"it is unclear which is image and which mask: {self.unclear} has {', '.join(form)}: say {choice}"
        if not image or not self.whole:
            both = "an image and a mask" if self.masked else "an image"
            return f"no sample has {both} by its suffixes; {known}: say {option('jpg', 'mask.png')}"
        if not mask and not self.chosen:
            alone = f"or {option(image[0], '')} for the images alone, for super-resolution"
            return f"the images have no masks of known suffixes; {known}: say {option(image[0], 'SUFFIX')}, {alone}"
        return ""

    def group(self, members: Iterable[Member]) -> dict[str, dict[str, list[Member]]]:
        """key -> role -> its members, in the order of the tar; several are damage."""
        naming, samples = self.naming, {}
        for member in members:
            if split := naming.split(member.name):
                samples.setdefault(split[0], {}).setdefault(self.roles[split[1]], []).append(member)
        return samples


def read_names(tars: Sequence[Sequence[str]], requested: Suffixes, images_only: bool = False) -> Reading:
    """Interpret the names of image files (of each tar): webdataset's keys or, if these lose samples, dotted ones.

    Args:
        asked: the suffixes to take; {}: those that are known.
        alone: take images without masks.
    Returns: the better interpretation, whose `fault` and `unpaired` the caller checks.
    """
    tails = {tail for name in chain.from_iterable(tars) for tail in _tails(name)}
    roles = {tail: role for tail in sorted(tails) if (role := _role(tail, requested))}
    plain = _read(tars, roles, False, requested, images_only)
    if not any(_loses_samples(names, roles) for names in tars):
        return plain
    readings = [_read(tars, roles, True, requested, images_only), *([plain] if plain.forms else [])]
    clear = [reading for reading in readings if reading.unclear is None] or readings
    return next((reading for reading in clear if not reading.unpaired), clear[0])


def _loses_samples(names: Iterable[str], roles: Mapping[str, str]) -> bool:
    """Tell whether webdataset's keys lose samples: some have no member that is known but by the end of its name."""
    keys = {name: name[: len(name) - len(tails[0]) - 1] for name in names if (tails := _tails(name))}
    known = {keys[name] for name in keys if _tails(name)[0] in roles}
    return any(keys[name] not in known and not roles.keys().isdisjoint(_tails(name)) for name in keys)


def _tails(name: str) -> list[str]:
    """'a/b.c.jpg' -> ['c.jpg', 'jpg']; none of hidden files, such as those that macOS adds."""
    key, *parts = name.rpartition("/")[2].lower().split(".")
    parts = parts if key else []
    return [".".join(parts[n:]) for n in range(len(parts))]


def _role(suffix: str, requested: Suffixes) -> str | None:
    """Role of members of a suffix, of `SLOTS`; None: unused."""
    role = next((role for role, suffixes in requested.items() if suffix in suffixes), None)
    if role or "mask" in requested:
        return role
    if suffix == SLOTS["valid"]:
        return "valid"
    words = re.split(r"[._-]+", suffix)[:-1]
    if all(word in _IMAGE for word in words):
        return None if requested else "image"
    return "mask" if {*words} & _MASK and {*words} <= _MASK | _BESIDE | _IMAGE else None


def _read(
    tars: Sequence[Sequence[str]], roles: dict[str, str], dots: bool, requested: Suffixes, images_only: bool
) -> Reading:
    naming = Naming({suffix: SLOTS[role] for suffix, role in roles.items()}, folders=True, dots=dots)
    forms: dict[tuple[str, ...], tuple[int, str]] = {}
    for names in tars:
        samples: dict[str, set[str]] = {}
        for key, suffix in filter(None, map(naming.split, names)):
            samples.setdefault(key, set()).add(suffix)
        for key, suffixes in samples.items():
            count, first = forms.get(form := tuple(sorted(suffixes)), (0, key))
            forms[form] = count + 1, first
    any_mask = any(roles[suffix] == "mask" for form in forms for suffix in form)
    masked = "mask" in requested if requested else any_mask and not images_only
    endings = sorted({suffix for names in tars for name in names for suffix in _tails(name)[:1]})
    listed = ", ".join(endings[:6]) + ", ..." * (len(endings) > 6)
    return Reading(roles, dots, forms, masked, images_only or bool(requested), listed)
