"""Pairing of files: patterns of paths below the root, with what an image and its mask share as {stem}.

In a pattern, {stem} is what the files of one sample have in common (it may span folders, unless the pattern has `**/`),
{split} the part of the set, `*` and `?` stand for letters of one name, `**/` for any folders or none. Upper and lower
case are the same.
"""

import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, NamedTuple

from cssr.cracks.masks import LOSSY_SUFFIXES, Read, read_mask
from cssr.dataset_preparation.masks import IMAGE_SUFFIXES, reader
from cssr.dataset_preparation.sources import Item
from cssr.utils.image_files import filter_by_suffix, walk
from cssr.utils.json_files import read_text
from cssr.utils.text import one_line

SkipUnpaired = Annotated[bool, "pass over images without mask, masks without image and listed names without file"]
NameList = Annotated[str | None, "text file, below the root, that names the pictures to take: one a line, name or path"]

_TOKENS = re.compile(r"(\{stem\}|\{split\}|\*\*/|\*|\?)")
_TURNED = {"**/": "(?:.+/)?", "*": "[^/]*", "?": "[^/]"}
_PART = re.compile("train|val|test|dev")  # what folders of a part of a set begin with


class Layout(NamedTuple):
    """Paths of images and masks of a set, as patterns."""

    image: str
    mask: str


@dataclass(frozen=True)
class Pairs:
    """Pictures and their masks by key: paths below `root`. `notes` say what was passed over."""

    root: Path
    pictures: dict[str, Path]
    truths: dict[str, Path]
    notes: tuple[str, ...] = ()

    @property
    def lossy(self) -> bool:
        """True if some masks are JPEGs or the like: their values are not exact."""
        return any(path.suffix.lower() in LOSSY_SUFFIXES for path in self.truths.values())

    def items(
        self, read: Read = read_mask, resize: bool | None = None, group: Callable[[str], str] | None = None
    ) -> list[Item]:
        """An item for each pair, sorted by key.

        Args:
            read: turns a mask's path into its values, H W.
            resize: match masks of another size to their images; None: the source has no such option.
            group: key -> the photograph that it comes from.
        """
        return [self._item(key, read, resize, group) for key in sorted(self.pictures)]

    def _item(self, key: str, read: Read, resize: bool | None, group: Callable[[str], str] | None) -> Item:
        path, origin = self.pictures[key], self.pictures[key].relative_to(self.root).as_posix()
        mask = reader(read, self.truths[key], path, origin, resize)
        files = path, self.truths[key]
        return Item(key, origin, path.read_bytes, mask, group=group(key) if group else None, files=files)


def check_pairs(
    pairs: Pairs, mask_place: Callable[[str], str], image_place: Callable[[str], str], skip: bool | None = None
) -> Pairs:
    """The pairs if each picture has its mask and each mask its picture.

    Args:
        mask_place, image_place: where a missing file would have to be.
        skip: pass over what has no partner, and note it; None: there is no such choice.
    Raises: ValueError for what has no partner, unless `skip`, and where no pair is left.
    """
    pictures, truths = pairs.pictures, pairs.truths
    unmasked, orphans = sorted(pictures.keys() - truths.keys()), sorted(truths.keys() - pictures.keys())
    paired = {key: path for key, path in pictures.items() if key in truths}
    if skip and paired:
        notes = omission_note("images without mask", [pictures[key].relative_to(pairs.root) for key in unmasked])
        notes += omission_note("masks without image", [truths[key].relative_to(pairs.root) for key in orphans])
        return Pairs(pairs.root, paired, {key: truths[key] for key in paired}, (*pairs.notes, *notes))
    or_skip = ", or pass over them with --skip-unpaired" if skip is False and paired else ""
    if unmasked:
        raise ValueError(
            f"missing mask: {len(unmasked)} of {len(pictures)} images have none, the first is {pictures[unmasked[0]]}; "
            f"add {mask_place(unmasked[0])} or remove the image{or_skip}"
        )
    if orphans:
        raise ValueError(
            f"missing image: {len(orphans)} of {len(truths)} masks have none, the first is {truths[orphans[0]]}; "
            f"add {image_place(orphans[0])} or remove the mask{or_skip}"
        )
    return pairs


def omission_note(what: str, names: Sequence[object]) -> tuple[str, ...]:
    """A note that counts what was passed over, and names the first; none where nothing was."""
    return (one_line(f"passed over {len(names)} {what}, the first is {names[0]}"),) if names else ()


def find_pairs(
    root: Path,
    split: str | None,
    *layouts: Layout,
    ignore: str | None = None,
    names: str | None = None,
    skip: bool | None = None,
) -> Pairs:
    """The pictures and masks of the first layout that fits: that has both or, if none has, pictures.

    Args:
        split: fills {split}; None where the layouts have none.
        ignore: regular expression; pictures with such a key are none.
        names: list of the pictures to take, as for `select`.
        skip: as for `check_pairs` and `select`.
    Raises: ValueError where no layout fits (it names the parts that there are), two files share a stem, or as
        `check_pairs` and `select`.
    """
    files = image_files(root)
    usable = [layout for layout in layouts if ("{split}" in layout.image) == (split is not None)]
    fitting = [(layout, _matched(files, root, split, layout, ignore)) for layout in usable]
    fitting = [pair for pair in fitting if pair[1].pictures]
    if not fitting:
        raise ValueError(_nothing_fits(root, split, files, layouts))
    layout, pairs = next((pair for pair in fitting if pair[1].truths), fitting[0])
    image_place, mask_place = (partial(fill_pattern, pattern, split) for pattern in layout)
    return check_pairs(select(pairs, names, skip) if names else pairs, mask_place, image_place, skip)


def _matched(files: list[str], root: Path, split: str | None, layout: Layout, ignore: str | None) -> Pairs:
    """The files of a layout, unchecked; a file that is a mask is no picture."""
    truths = match_files(files, root, layout.mask, split)
    taken = set(truths.values())
    pictures = match_files([name for name in files if root / name not in taken], root, layout.image, split)
    return Pairs(root, {k: path for k, path in pictures.items() if not (ignore and re.fullmatch(ignore, k))}, truths)


def image_files(root: Path, suffixes: Iterable[str] = IMAGE_SUFFIXES) -> list[str]:
    """Paths below the root, sorted, of files that end so; litter does not count. ValueError if it is no folder."""
    if not root.is_dir():
        raise ValueError(f"--root {root} is not a folder; give the folder that holds the dataset")
    return sorted(path.relative_to(root).as_posix() for path in filter_by_suffix(walk(root), suffixes))


def normalize_name(name: str) -> str:
    """A name in Unicode form NFC: macOS stores an accent apart from its letter, and names would not compare equal."""
    return unicodedata.normalize("NFC", name)


def match_files(files: Iterable[str], root: Path, pattern: str, split: str | None = None) -> dict[str, Path]:
    """The files of a pattern by stem; ValueError where two share one."""
    expression, paths = compile_pattern(pattern, split), {}
    for name in files:
        fit = expression.fullmatch(normalize_name(name))
        if not fit:
            continue
        stem = fit["stem"]
        if stem in paths:
            raise ValueError(f"duplicate key {stem!r}: {paths[stem]} and {root / name}; rename or remove one of them")
        paths[stem] = root / name
    return paths


def compile_pattern(pattern: str, split: str | None = None) -> re.Pattern:
    """A pattern as a regular expression with the groups `stem` and, where `split` is None, `split`."""
    defined, regex = set(), []
    for token in _TOKENS.split(normalize_name(pattern)):
        name = token[1:-1]
        if token == "{split}" and split is not None:
            regex.append(re.escape(split))
        elif token in ("{stem}", "{split}"):
            body = "[^/]+?" if name == "split" else "[^/]+" if "**/" in pattern else ".+"
            regex.append(f"(?P={name})" if name in defined else f"(?P<{name}>{body})")
            defined.add(name)
        else:
            regex.append(_TURNED.get(token) or re.escape(token))
    return re.compile("".join(regex), re.IGNORECASE)


def fill_pattern(pattern: str, split: str | None, stem: str) -> str:
    """A pattern with its blanks filled, for people."""
    return pattern.replace("{split}", split or "*").replace("{stem}", stem).replace("**/", "")


def parts_of(files: Iterable[str], *layouts: Layout) -> list[str]:
    """The parts of a set: what {split} may be, with images and masks both there."""
    parts: set[str] = set()
    for layout in layouts:
        if "{split}" in layout.image:
            names = [
                {fit["split"] for name in files if (fit := compile_pattern(pattern).fullmatch(name))}
                for pattern in layout
            ]
            parts |= names[0] & names[1]
    return sorted(parts)


def _nothing_fits(root: Path, split: str | None, files: list[str], layouts: Iterable[Layout]) -> str:
    """Message where no layout fits: the parts that there are, or how the set should look."""
    parts = parts_of(files, *layouts)
    if parts:
        return (f"unknown split {split!r}: " if split else "") + f"choose with --split from: {', '.join(parts)}"
    fitting = [layout for layout in layouts if ("{split}" in layout.image) == (split is not None)]
    expected = " or ".join(
        " with ".join(fill_pattern(pattern, split or "SPLIT", "NAME") for pattern in one) for one in fitting
    )
    if not fitting:
        return f"unknown split {split!r}: this set has no parts, leave --split out (--ratio makes parts)"
    return (
        f"{root} holds no {expected}; point --root at the folder of the set, or name its files with "
        "`folder --image-pattern ... --mask-pattern ...`"
    )


def select(pairs: Pairs, list_file: str, skip: bool | None = None) -> Pairs:
    """The pairs that a text file names, a picture a line: key, name or path; what follows a blank may be its mask.

    Args:
        list_file: path below the root.
        skip: pass over names without file, and note it.
    Raises: ValueError where the file is not there, names nothing, names twice, or names what there is not.
    """
    names = _PictureNames(pairs)
    read = [(line, names.find(line)) for line in _read_list(pairs.root, list_file)]
    named = [(line, key) for line, key in read if key is not None or not line.startswith("#")]  # others are comments
    if not named:
        raise ValueError(f"the list {pairs.root / list_file} is empty; write a picture a line")
    absent = [line for line, key in named if key is None]
    keys = [key for _, key in named if key is not None]
    if absent and not (skip and keys):
        or_skip = "" if skip is None else ", or pass over them with --skip-unpaired"
        raise ValueError(
            f"{list_file}: {len(absent)} of {len(named)} lines name no picture of the set, the first is {absent[0]!r}; "
            f"correct the list or --root{or_skip}"
        )
    if len({*keys}) < len(keys) and not skip:
        first = next(line for number, (line, key) in enumerate(named) if key in [key for _, key in named[:number]])
        raise ValueError(f"{list_file} names a picture twice: {first!r}; remove one of the lines")
    chosen = {key: pairs.pictures[key] for key in keys}
    truths = {key: pairs.truths[key] for key in chosen if key in pairs.truths}
    notes = omission_note(f"names of {list_file} without file", absent)
    return Pairs(pairs.root, chosen, truths, (*pairs.notes, *notes))


def _read_list(root: Path, list_file: str) -> list[str]:
    if Path(list_file).is_absolute():
        raise ValueError(f"the list {list_file} is an absolute path; give it relative to --root, as the index keeps it")
    try:
        lines = [line.strip() for line in read_text(root / list_file).splitlines()]
    except ValueError as problem:
        raise ValueError(f"cannot read the list {list_file}: {problem}; it is a text file below --root") from problem
    return [line for line in lines if line]


class _PictureNames:
    """Look-up of the pictures of a set by the names in a list: keys, paths, and the last parts of these."""

    def __init__(self, pairs: Pairs):
        self._pairs = pairs
        self._inside: dict[str, set[str]] = {}  # path below the root, with and without suffix -> keys
        self._keys: dict[str, set[str]] = {}  # key, with and without suffix
        self._ends: dict[str, set[str]] = {}  # the last parts of these
        for key, path in pairs.pictures.items():
            inside, suffix = normalize_name(path.relative_to(pairs.root).as_posix()), path.suffix
            for known, name in ((self._inside, inside), (self._keys, f"{normalize_name(key)}{suffix}")):
                for form in {name, name.removesuffix(suffix)}:
                    _add_name(known, form, key)
                    for end in {form.split("/", n)[-1] for n in range(form.count("/") + 1)}:
                        _add_name(self._ends, end, key)

    def find(self, line: str) -> str | None:
        """The key of the one picture that a line names; None if it names none, or several."""
        key = self._key(line)
        for blank in re.finditer(r"\s+", line) if key is None else ():
            name, rest = line[: blank.start()], line[blank.end() :]
            key = self._key(name)
            if key is not None and self._goes_with(name, rest, key):
                return key
            key = None
        return key

    def _key(self, name: str) -> str | None:
        name = normalize_name(name).replace("\\", "/").removeprefix("./")
        for known in (self._keys, self._inside, self._ends):
            if key := _only_key(known, name):
                return key
        parts, root = name.split("/"), normalize_name(self._pairs.root.resolve().name).lower()
        foreign = name.startswith("/") or re.match(r"[A-Za-z]:/", name)
        for first in range(1, len(parts)):
            key = _only_key(self._inside, "/".join(parts[first:]))
            if key and (foreign or parts[first - 1].lower() == root):
                return key if self._is_of_one_part(key, parts) else None
        key = _only_key(self._ends, parts[-1]) if foreign else None  # another machine's folders
        return key if key and self._is_of_one_part(key, parts) else None

    def _is_of_one_part(self, key: str, parts: list[str]) -> bool:
        """Return whether a picture may be the one of a path: not train/001.jpg if that says val/001.jpg."""
        own_folders = self._pairs.pictures[key].relative_to(self._pairs.root).parts
        path_parts, own_parts = (
            {match[0] for p in folders[:-1] if (match := _PART.match(p.lower()))} for folders in (parts, own_folders)
        )
        return not (path_parts and own_parts) or bool(path_parts & own_parts)

    def _goes_with(self, name: str, rest: str, key: str) -> bool:
        """Return whether `rest` can follow a picture's name: its mask, a comment or, behind a suffix, a number."""
        suffixed = Path(name).suffix.lower() in IMAGE_SUFFIXES
        if rest.startswith("#") or (suffixed and re.fullmatch(r"[-+.\d\s]+", rest)):
            return True
        mask, base = self._pairs.truths.get(key), Path(rest.replace("\\", "/")).name
        if mask is None:
            return suffixed and Path(base).suffix.lower() in IMAGE_SUFFIXES
        return normalize_name(base).lower() in {normalize_name(own).lower() for own in (mask.name, mask.stem)}


def _add_name(known: dict[str, set[str]], name: str, key: str) -> None:
    """Enter a key under its name, and in small letters, which are marked so as not to be taken for the former."""
    for form in (name, f"\0{name.lower()}"):
        known.setdefault(form, set()).add(key)


def _only_key(known: dict[str, set[str]], name: str) -> str | None:
    """The one key of a name as it is or, where there is none, in any letters."""
    keys = known.get(name) or known.get(f"\0{name.lower()}") or ()
    return next(iter(keys)) if len(keys) == 1 else None
