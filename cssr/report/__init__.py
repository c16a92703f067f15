"""Results side by side, as one page of HTML, as Markdown, LaTeX and CSV: `python -m cssr.report RESULTS... --out DIR`.

`columns` selects the measures, `facts` describes how they were obtained; `markdown`, `latex` and `page` render both.
"""

import importlib

_PUBLIC = {
    "IMAGE_COLUMNS": "columns",
    "caveats": "facts",
    "find_reference": "columns",
    "image_table": "markdown",
    "main": "__main__",
    "report": "write",
}

__all__ = [*_PUBLIC]


def __getattr__(name: str):
    """Public names are imported when first used, so that the command line is read before what takes seconds."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'cssr.report' has no attribute {name!r}")
    return getattr(importlib.import_module(f"cssr.report.{_PUBLIC[name]}"), name)
