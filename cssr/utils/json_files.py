"""JSON that others have written, checked against a shape before it is used; errors name the file and the place."""

import json
import os
import stat
from pathlib import Path
from typing import Any

from cssr.utils.annotations import described, fits, shortened
from cssr.utils.text import message_of

_MAX_BYTES = 1 << 28  # bytes
_MAX_VALUES = 20_000_000  # values, each of which takes 70 bytes of memory and more


def read_json(path: Path, shape: Any = Any, remedy: str = "write it again") -> Any:
    """The JSON of a file in UTF-8, UTF-16, UTF-32 or (failing that) Latin-1, with or without a byte order mark.

    Args:
        shape: as for `check_shape`.
        remedy: what the error says to do.
    Raises: ValueError, one line, for what is no regular file, no JSON, nested too deeply, or not of the shape.
    """
    return parse_json(read_bytes(path), str(path), shape, remedy)


def read_bytes(path: Path, largest: int = _MAX_BYTES) -> bytes:
    """A regular file; ValueError for a pipe, a device, a folder, a file that is too large or cannot be read."""
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:  # a pipe without a writer does not hang
            facts = os.fstat(file.fileno())
            if not stat.S_ISREG(facts.st_mode):
                raise ValueError(f"{path} is no regular file")
            if facts.st_size > largest:
                raise ValueError(f"{path} has {facts.st_size} bytes, more than {largest}: cut it into several")
            return file.read()
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from None


def read_text(path: Path) -> str:
    """The text of a file, encoded as `read_json` has it; errors as of `read_bytes`."""
    return decode_text(read_bytes(path))


def decode_text(data: bytes) -> str:
    """Text in UTF-8, UTF-16, UTF-32 or (failing that) Latin-1, without its byte order mark."""
    try:
        text = data.decode(json.detect_encoding(data))
    except UnicodeDecodeError:
        text = data.decode("latin-1")
    return text.removeprefix("\ufeff")


def parse_json(data: bytes, name: str, shape: Any = Any, remedy: str = "write it again") -> Any:
    """Parse JSON as `read_json` does, from bytes; errors call them `name`."""
    values = sum(map(data.count, (b",", b"[", b"{")))
    if values > _MAX_VALUES:
        raise ValueError(f"{name} has some {values} values, more than {_MAX_VALUES}: cut it into several")
    try:
        value = json.loads(decode_text(data), object_pairs_hook=no_key_twice)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else message_of(error)
        raise ValueError(f"{name} is damaged, no JSON: {reason}; {remedy}") from None
    fault = misfit(value, shape)
    if fault:
        raise ValueError(f"{name} is damaged, or something else: {fault}; {remedy}")
    return value


def no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make a JSON object, as `object_pairs_hook`; ValueError for a key that comes twice: one value would be lost."""
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for number, name in enumerate(names) if name in names[:number])
        raise ValueError(f"{shortened(twice)} is there twice in one object")
    return made


def misfit(value: Any, shape: Any, path: str = "") -> str | None:
    """Describe what does not fit a shape, and where; None if all does.

    A shape is an annotation (`int`, `str | None`, `list[float]`, a bounded number), `{"name": shape, "?name": shape}`
    for an object with at least these keys (those with ? may be absent), or `[shape]` for a list of such.
    """
    where = path or "the whole"
    if isinstance(shape, dict):
        if not isinstance(value, dict):
            return f"{where} must be an object, got {shortened(value)}"
        for key, inner in shape.items():
            name, optional = key.removeprefix("?"), key.startswith("?")
            if name not in value:
                if optional:
                    continue
                return f"{where} has no {name}"
            fault = misfit(value[name], inner, f"{path}.{name}".lstrip("."))
            if fault:
                return fault
        return None
    if isinstance(shape, list):
        if not isinstance(value, list):
            return f"{where} must be a list, got {shortened(value)}"
        faults = (misfit(part, shape[0], f"{path}[{number}]") for number, part in enumerate(value))
        return next((fault for fault in faults if fault), None)
    return None if fits(value, shape) else f"{where} must be {described(shape)}, got {shortened(value)}"
