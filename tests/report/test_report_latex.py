"""LaTeX tables: everything escaped, one number a cell, braces and environments closed."""

import re

import pytest
from made_results import HR, facts, rows, write

from cssr.evaluation.results import load
from cssr.report.latex import escape_latex, latex_tables

CLOSED = re.compile(r"\\(begin|end)\{(\w+)\}")
TEXT = re.compile(r"\\(textbackslash|textasciitilde|textasciicircum|textless|textgreater|textbar|textasciigrave)\{\}")
SIGNS = {"backslash": "\\", "asciitilde": "~", "asciicircum": "^", "less": "<", "greater": ">", "bar": "|"}


def read_back(tex: str) -> str:
    """What escaped text shows."""
    names = SIGNS | {"asciigrave": "`"}
    tex = re.sub(r"\{([*[])\}", r"\1", tex)
    text = TEXT.sub(lambda found: f"\0{names[found[1].removeprefix('text')]}", tex)
    assert not re.search(r"(?<![\\\0])[&%$#_{}~^\\]", re.sub(r"\\[&%$#_{}]", "", text))  # nothing is a command
    return re.sub(r"\\([&%$#_{}])", r"\1", text).replace("\0", "")


@pytest.mark.parametrize(
    "text", ["100 % of A_1 & B#2", r"\input{/etc/passwd}", "$x^2$ ~ {y}", "a <b> |c| `d`", "kühl", "[1] *2*"]
)
def test_escaped_text_shows_itself_and_runs_nothing(text):
    assert read_back(escape_latex(text)) == text


def test_line_breaks_and_quotes():
    assert escape_latex('a\n\n"b"') == r"a \textquotedbl{}b\textquotedbl{}"


def parsed(tex: str) -> list[list[list[str]]]:
    """Lines of cells of each tabular; all environments and braces must close."""
    stack = []
    for what, name in CLOSED.findall(tex):
        if what == "begin":
            stack.append(name)
        else:
            assert stack.pop() == name
    plain = re.sub(r"\\\\|\\[{}]", "", tex)
    assert stack == [] and plain.count("{") == plain.count("}")
    tables = []
    for columns, body in re.findall(r"\\begin\{tabular\}\{(lr*)\}(.*?)\\end\{tabular\}", tex, re.DOTALL):
        lines = [line[:-3] for line in body.splitlines() if line.endswith(r" \\")]
        cells = [re.split(r"(?<!\\) & ", line) for line in lines]
        assert all(len(line) == len(columns) for line in cells)
        tables.append(cells)
    return tables


def test_tables_hold_what_the_markdown_does(tmp_path):
    paths = [
        write(tmp_path / "a", rows(40, psnr=29.0), facts("CSSR_1 & co")),
        write(tmp_path / "b", rows(60, psnr=28.0), facts("CSBSR")),
        write(tmp_path / "hr", rows(80, psnr=float("inf"), mse=0.0), facts("HR", **HR)),
    ]
    results = load(paths)
    image, pooled = parsed(latex_tables(results, results[2], "100 %"))
    broken = (r"IoU\_max\\(threshold)", r"95 \% of\\IoU\_max", r"share\\of HR", "AIU")
    assert image[0][:5] == ["result", *(rf"\shortstack[r]{{{text}}}" for text in broken[:3]), broken[3]]
    assert [line[:4] for line in image[1:]] == [
        [r"CSSR\_1 \& co", "0.400 (0.01)", "0.400--0.400", r"50.0 \%"],
        ["CSBSR", r"\textbf{0.600} (0.01)", "0.600--0.600", r"\textbf{75.0 \%}"],
        ["HR", "0.800 (0.01)", "0.800--0.800", r"100.0 \%"],
    ]
    assert image[3][image[0].index(r"\shortstack[r]{PSNR\\{[}dB]}")] == "--"
    assert len(pooled) == 4 and r"\caption{100 \%, per image.}" in latex_tables(results, None, "100 %")
