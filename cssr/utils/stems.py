"""Names of results, after the files that they are of."""

import itertools
from collections.abc import Container
from pathlib import Path


def free(name: Path, taken: Container[str]) -> str:
    """A stem for a file that no other has: without its suffix, with it, or numbered."""
    plain, whole = str(name.with_suffix("")), str(name)
    numbered = (f"{whole}-{number}" for number in itertools.count(2))
    return next(stem for stem in itertools.chain((plain, whole), numbered) if stem not in taken)
