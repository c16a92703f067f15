"""Files that are either the old or the new one, never a part."""

import os
from pathlib import Path

PARTIAL = ".partial"  # in the names of files that are being written


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a file, text as UTF-8, under another name first; it is on disk when it takes its own."""
    temporary = path.with_name(f"{path.name}{PARTIAL}-{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
