"""Classes of severity, and the tables of limits."""

import pytest

from cssr.survey.severity import load_limits, shipped

CLASSES = "classes: [{name: fine, above: 0}, {name: wide, above: 0.2}, {name: gaping, above: 1}]"


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text(f"name: own\n{CLASSES}\n")
    return str(path)


@pytest.mark.parametrize("name", shipped())
def test_tables_of_the_package_say_where_they_come_from(name):
    limits = load_limits(name)
    assert limits.source and limits.class_of(0.0)[0] == 0 and limits.class_of(1e3)[0] == len(limits.classes) - 1


@pytest.mark.parametrize(
    "width, uncertainty, at, within",
    [
        (0.1, 0.05, 0, [0]),
        (0.2, 0.0, 0, [0]),  # up to a limit, inclusive
        (0.2001, 0.0, 1, [1]),
        (0.19, 0.02, 0, [0, 1]),
        (0.6, 0.5, 1, [0, 1, 2]),
        (0.05, 0.1, 0, [0]),
    ],
)
def test_a_width_within_its_uncertainty_of_a_limit_may_be_of_several_classes(table, width, uncertainty, at, within):
    found = load_limits(table).class_of(width, uncertainty)
    assert (found[0], [*found[1]]) == (at, within)


@pytest.mark.parametrize(
    "text, message",
    [
        ("[", "it is not valid YAML"),
        ("name: a\nclasses: []\nname: b", "'name' is there twice"),
        ("3", "a table has name, classes"),
        ("name: x\nclasses: [{name: a, above: 0}]", "two or more"),
        ("name: x\nclasses: [{name: a, above: 0}, {name: b, above: 0.3}, {name: c, above: 0.2}]", "rise"),
        ("name: x\nclasses: [{name: a, above: 0.1}, {name: b, above: 0.3}]", "begin with 0"),
        ("name: x\nclasses: [{name: a, above: 0}, {name: b, above: .nan}]", "name: text, above: mm"),
        ("name: x\nclasses: [{name: a, above: 0}, {name: b, above: wide}]", "name: text, above: mm"),
        ("name: x\nclasses: [{name: a, above: 0}, {name: a, above: 1}]", "same name"),
        (f"name: x\nwidth: widest\n{CLASSES}", "mean, p95, max"),
        (f"name: x\nunit: cm\n{CLASSES}", "widths in mm, got unit"),
        ("name: x\nclasses: [{name: a, above: 0}, {name: ' ', above: 1}]", "'' cannot be the name of a class"),
        ("name: x\nclasses: [{name: a, above: 0}, {name: true, above: 1}]", "name: text, above: mm"),
        ("name: x\nclasses: [{name: a, above: 0}, {name: size of a pixel not known, above: 1}]", "give another"),
    ],
)
def test_mistakes_in_a_table_are_one_line(text, message, tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        load_limits(str(path))
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_table_that_is_not_there_names_those_that_are():
    with pytest.raises(ValueError, match="en1992-1-1"):
        load_limits("din")
