"""Files that are either the old or the new one, never a part."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PARTIAL = ".partial"  # in the names of files that are being written


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Name `path` in an error of writing to it, which by itself says what, but not where."""
    try:
        yield
    except OSError as error:
        free = ""
        with suppress(OSError):
            free = f" ({shutil.disk_usage(path.parent).free / 2**30:.1f} GiB are free there)"
        raise ValueError(
            f"{path} cannot be written: {error.strerror or error}{free}; make room, or choose another place, and run "
            "the same command again"
        ) from error


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a file, text as UTF-8, under another name first; it is on disk when it takes its own."""
    temporary = path.with_name(f"{path.name}{PARTIAL}-{os.getpid()}")
    try:
        with naming(path), open(temporary, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
