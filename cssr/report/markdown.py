"""The report as Markdown: tables that are also aligned as plain text."""

from collections.abc import Sequence

from cssr.evaluation.results import Result
from cssr.report.columns import NOTE, Cell, Table, image_measures, pooled_measures, with_intervals
from cssr.report.facts import MARKDOWN, Definition, caveats, definitions, fact, split_facts
from cssr.utils.text import markdown_table


def image_table(results: Sequence[Result], base: Result | None) -> str:
    """The Markdown table per image; what not every evaluation measures where any result has it, shares with a
    reference.
    """
    return _measures(image_measures(results, base))


def compose(results: Sequence[Result], base: Result | None, title: str, pictures: Sequence[str]) -> str:
    """The whole report; `pictures` are its blocks of them."""
    blocks = [f"# {MARKDOWN.text(title)}", "## Per image", image_table(results, base), f"Bold: {NOTE}"]
    blocks += ["## Pooled over all pixels", _measures(pooled_measures(results))]
    blocks += ["## How it was evaluated", *caveats(results), _facts(results)]
    if any(result.segmented for result in results):
        blocks += ["## IoU over the threshold", "![IoU over the threshold, per image and pooled](curves.png)"]
    blocks += ["## Pictures", *pictures] if pictures else []
    lines = "\n".join(map(_definition, definitions(results, base)))
    blocks += ["## Definitions", f"<details><summary>What each number is</summary>\n\n{lines}\n\n</details>"]
    return "\n\n".join(blocks) + "\n"


def _measures(table: Table) -> str:
    heads, rows = with_intervals(table)
    names = [MARKDOWN.text(result.name) for result in table.results]
    lines = [[name, *map(_cell, row)] for name, row in zip(names, rows)]
    return markdown_table(["result", *map(MARKDOWN.text, heads)], lines, range(1, len(heads) + 1), aligned=True)


def _cell(cell: Cell) -> str:
    return (MARKDOWN.strong(cell.text) if cell.best else cell.text) + cell.after


def _facts(results: Sequence[Result]) -> str:
    """Facts that all results share as a list, the rest as a table."""
    shared, own = split_facts(results)
    blocks = ["\n".join(f"- {key}: {fact(results[0], key)}" for key in shared)] if shared else []
    if own:
        rows = [[MARKDOWN.text(result.name), *(fact(result, key) for key in own)] for result in results]
        blocks += ["These differ:", markdown_table(["result", *own], rows, aligned=True)]
    return "\n\n".join(blocks)


def _definition(definition: Definition) -> str:
    names = f" ({', '.join(map(MARKDOWN.text, definition.names))})" if definition.names else ""
    return f"- **{MARKDOWN.text(definition.label)}**{names}: {MARKDOWN.text(definition.text)}"
