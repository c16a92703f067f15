"""The photograph that a tile or frame comes from, by its name: the group that a split keeps in one part."""

import re
from collections.abc import Callable, Sequence
from typing import Annotated

GroupPattern = Annotated[str | None, "regular expression; its group in a name is the photograph, as '^(.+)_[0-9]+$'"]

_COORDINATES = {  # numbers at the end of a tile's name, after _ each: where it was cut from its photograph
    "CRACK500": 2,
    "GAPS384": 2,
    "Rissbilder": 4,
    "Volker": 4,
    "noncrack": 1,
}


def without_numbers(key: str, count: int) -> str:
    """The key without its last `count` numbers: ("20160222_081011_1_361", 2) -> "20160222_081011"."""
    return re.sub(rf"(_\d+){{{count}}}(\.[A-Za-z]+)?$", "", key)


def merged_group(key: str) -> str:
    """The photograph of a picture in sets merged from others; its name begins with that of its set."""
    name = key.rsplit("/", 1)[-1]
    for head, count in _COORDINATES.items():
        if name.lower().startswith(head.lower()):
            return without_numbers(key, count)
    if name.startswith("DeepCrack"):
        return numbered_crop(key)
    return without_numbers(key, 1) if re.fullmatch(r"\d+_\d+", name) else key


def numbered_crop(key: str) -> str:
    """The key without a crop's number: "11125-1" -> "11125"."""
    return re.sub(r"-\d+$", "", key)


def lettered_crop(key: str) -> str:
    """The key without a crop's letter: "DSC00550b" -> "DSC00550"."""
    return re.sub(r"(?<=\d)[a-z]$", "", key)


def roboflow_original(key: str) -> str:
    """The picture that Roboflow made others of: "IMG_1_jpg.rf.0a1b" -> "IMG_1"."""
    return re.sub(r"_(jpe?g|png|bmp|tiff?|webp)\.rf\..*$", "", key, flags=re.IGNORECASE)


def by_expression(pattern: str | None) -> Callable[[str], str] | None:
    """The function of --group-pattern: the part of a key that its first group, or all of it, matches; else the key.

    Raises: ValueError where it is no regular expression.
    """
    if pattern is None:
        return None
    try:
        expression = re.compile(pattern)
    except re.error as problem:
        raise ValueError(
            f"--group-pattern {pattern!r} is no regular expression: {problem}; e.g. '^(.+)_[0-9]+$'"
        ) from problem

    def group(key: str) -> str:
        match = expression.search(key)
        return (match[1] if expression.groups else match[0]) or key if match else key

    return group


def unmatched(pattern: str | None, keys: Sequence[str]) -> tuple[str, ...]:
    """A note that counts the keys in which --group-pattern finds nothing, and names the first; none if there are none.

    Raises: ValueError where it finds nothing in any key: each image would be a group of its own.
    """
    odd = [key for key in keys if not re.search(pattern, key)] if pattern else []
    if odd and len(odd) == len(keys):
        raise ValueError(
            f"--group-pattern {pattern!r} fits none of {len(keys)} names, the first is {odd[0]!r}; correct it or "
            "leave it out"
        )
    about = f"--group-pattern fits {len(keys) - len(odd)} of {len(keys)} names"
    return (f"{about}, the others are groups of their own, the first is {odd[0]!r}",) if odd else ()
