"""Text: errors and names of files in one line, tables in Markdown."""

import re
from collections.abc import Container, Sequence

# No XML may hold these, and a terminal obeys some.
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029\ufffe\uffff]")


def message_of(error: BaseException) -> str:
    """The message of an error, in one line."""
    return " ".join(str(error).split())


def one_line(text: str) -> str:
    """The text with line ends, control characters and bytes that are no text written out: names may hold some."""
    text = text.encode("utf-8", "backslashreplace").decode()
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def markdown_table(
    head: Sequence[str], rows: Sequence[Sequence[str]], right: Container[int] = (), aligned: bool = False
) -> str:
    """A Markdown table; the columns numbered in `right` are set flush right.

    Args:
        aligned: fill cells with blanks, so that the columns line up for those who read it as text.
    """
    widths = [max(3, *map(len, column)) for column in zip(head, *rows)]
    rule = ["-" * (width - 1) + ":" if n in right else "-" * width for n, width in enumerate(widths)]
    if not aligned:
        widths, rule = [0] * len(head), ["---:" if n in right else "---" for n in range(len(head))]
    lines = [
        [cell.rjust(width) if n in right else cell.ljust(width) for n, (cell, width) in enumerate(zip(row, widths))]
        for row in (head, *rows)
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in (lines[0], rule, *lines[1:]))
