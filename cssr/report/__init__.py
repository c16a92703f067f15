"""Results side by side, as one page of HTML, as Markdown, LaTeX and CSV: `python -m cssr.report RESULTS... --out DIR`.

`columns` picks the measures, `facts` says how they came about; `markdown`, `latex` and `page` set both; `files` writes.
"""

from cssr.report.columns import IMAGE_COLUMNS, find_reference
from cssr.report.command import main
from cssr.report.facts import caveats
from cssr.report.files import report
from cssr.report.markdown import image_table

__all__ = ["IMAGE_COLUMNS", "caveats", "find_reference", "image_table", "main", "report"]
