"""The tables in LaTeX, for a paper: `booktabs`, everything escaped."""

import re
from collections.abc import Sequence

from cssr import __version__
from cssr.evaluation.results import Result
from cssr.report.columns import Cell, Table, image_measures, pooled_measures, with_intervals

_SPECIAL = {
    **{sign: rf"\{sign}" for sign in "&%$#_{}"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}"},
    **{">": r"\textgreater{}", "|": r"\textbar{}", '"': r"\textquotedbl{}", "`": r"\textasciigrave{}"},
    **{sign: f"{{{sign}}}" for sign in "[*"},  # right behind a line's end, LaTeX reads them as part of it
}
_HEAD = (
    f"% Written by cssr {__version__}. In the preamble: \\usepackage[T1]{{fontenc}} \\usepackage{{booktabs}}\n"
    "% \\usepackage{graphicx}. A table is made smaller where it is wider than the line, never larger."
)
_FIT = r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%"


def escape_latex(words: str) -> str:
    """Words as LaTeX sets them literally, on one line."""
    return re.sub(r'[&%$#_{}\\~^<>|"`*[]', lambda match: _SPECIAL[match[0]], " ".join(words.split()))


def latex_tables(results: Sequence[Result], base: Result | None, title: str) -> str:
    """Two floating tables: per image, and pooled over all pixels."""
    parts = (("per image", "image", image_measures(results, base)), ("pooled", "pooled", pooled_measures(results)))
    tables = [
        _floating(table, f"{escape_latex(title)}, {aggregation}", f"tab:{label}") for aggregation, label, table in parts
    ]
    return "\n\n".join([_HEAD, *tables]) + "\n"


def _floating(table: Table, caption: str, label: str) -> str:
    heads, rows = with_intervals(table)
    lines = [[escape_latex(result.name), *map(_cell, row)] for result, row in zip(table.results, rows)]
    body = [_line(["result", *map(_heading, heads)]), r"\midrule", *map(_line, lines)]
    return "\n".join(
        [
            *(r"\begin{table}", r"\centering", rf"\caption{{{caption}.}}", rf"\label{{{label}}}", _FIT),
            *(rf"\begin{{tabular}}{{l{'r' * len(heads)}}}", r"\toprule", *body, r"\bottomrule"),
            *(r"\end{tabular}}", r"\end{table}"),
        ]
    )


def _line(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"


def _heading(label: str) -> str:
    """Broken where both lines are about as long, so that columns are as narrow as their numbers."""
    words = label.split()
    halves = [(" ".join(words[:n]), " ".join(words[n:])) for n in range(1, len(words))]
    if not halves:
        return escape_latex(label)
    upper, lower = min(halves, key=lambda lines: max(map(len, lines)))
    return rf"\shortstack[r]{{{escape_latex(upper)}\\{escape_latex(lower)}}}"


def _cell(cell: Cell) -> str:
    text = escape_latex(cell.text).replace(" to ", "--")
    return (rf"\textbf{{{text}}}" if cell.best else "--" if text == "-" else text) + cell.after
