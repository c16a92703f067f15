"""Mistakes on a command line: one line, from every command."""

import pytest

from cssr import annotate, compare, convert, deploy, evaluate, measure, predict

COMMANDS = {
    "annotate": (annotate.parser, ["results"]),
    "compare": (compare.parser, ["old", "new"]),
    "convert": (convert.parser, ["file", "--recipe", "r"]),
    "deploy": (deploy.parser, ["run"]),
    "evaluate": (evaluate.parser, ["run", "--data", "d"]),
    "measure": (measure.parser, ["masks"]),
    "predict": (predict.parser, ["photos"]),
}


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize(
    "more, said",
    [
        (["--out", "a", "--out=b"], "--out is given 2 times; give it once, with all that belongs to it"),
        (["--out", "a", "--no-such"], "unrecognized arguments: --no-such; `"),
    ],
)
def test_mistakes_on_a_command_line_are_one_line(name, more, said, capsys):
    parser, words = COMMANDS[name]
    with pytest.raises(SystemExit) as end:
        parser().parse_args([*words, *more])
    lines = capsys.readouterr().err.splitlines()
    assert end.value.code == 2 and len(lines) == 1 and lines[0].startswith(f"error: {said}")
