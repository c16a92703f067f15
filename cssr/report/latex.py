"""The tables in LaTeX, for a paper: `booktabs`, everything escaped."""

import re
from collections.abc import Sequence

from cssr import __version__
from cssr.report.columns import Cell, Table, image_measures, pooled_measures, with_intervals
from cssr.results import Result

_SPECIAL = {
    **{sign: rf"\{sign}" for sign in "&%$#_{}"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}"},
    **{">": r"\textgreater{}", "|": r"\textbar{}", '"': r"\textquotedbl{}", "`": r"\textasciigrave{}"},
}
_HEAD = (
    f"% Written by cssr {__version__}. In the preamble: \\usepackage[T1]{{fontenc}} \\usepackage{{booktabs}}\n"
    "% \\usepackage{graphicx}. A table is made smaller where it is wider than the line, never larger."
)
_FIT = r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%"


def escape_latex(words: str) -> str:
    """Words as LaTeX sets them literally, on one line."""
    return re.sub(r'[&%$#_{}\\~^<>|"`]', lambda found: _SPECIAL[found[0]], " ".join(words.split()))


def latex_tables(results: Sequence[Result], base: Result | None, title: str) -> str:
    """Two floating tables: per image, and pooled over all pixels."""
    parts = (("per image", "image", image_measures(results, base)), ("pooled", "pooled", pooled_measures(results)))
    tables = [_floating(table, f"{escape_latex(title)}, {how}", f"tab:{label}") for how, label, table in parts]
    return "\n\n".join([_HEAD, *tables]) + "\n"


def _floating(table: Table, caption: str, label: str) -> str:
    heads, rows = with_intervals(table)
    lines = [[escape_latex(result.name), *map(_cell, row)] for result, row in zip(table.results, rows)]
    body = [_line(["result", *map(escape_latex, heads)]), r"\midrule", *map(_line, lines)]
    return "\n".join(
        [
            *(r"\begin{table}", r"\centering", rf"\caption{{{caption}.}}", rf"\label{{{label}}}", _FIT),
            *(rf"\begin{{tabular}}{{l{'r' * len(heads)}}}", r"\toprule", *body, r"\bottomrule"),
            *(r"\end{tabular}}", r"\end{table}"),
        ]
    )


def _line(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"


def _cell(cell: Cell) -> str:
    text = escape_latex(cell.text).replace(" to ", "--")
    return (rf"\textbf{{{text}}}" if cell.best else "--" if text == "-" else text) + cell.after
