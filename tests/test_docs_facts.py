"""What docs/ says beside its commands: names, the plan's example, equations, against the code."""

import json
import re
import tarfile
from pathlib import Path

import pytest
from conftest import draw_shards

from cssr.definitions import KEYS, definitions
from cssr.lanes import LanePlan, MixedPlan

DOCS = Path(__file__).parents[1] / "docs"


def text(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


def named(page: str) -> set[str]:
    """All that stands in backticks."""
    return set(re.findall(r"`([^`\n]+)`", page))


def tables(page: str, heading: str) -> list[dict[str, list[int]]]:
    """The tables of numbers below a heading whose first cell is `place`: rows by their names."""
    found: list[dict[str, list[int]]] = []
    for line in page.split(heading)[1].splitlines():
        name, *cells = [cell.strip() for cell in line.strip("|").split("|")]
        if name == "place":
            found.append({})
        if found and cells and all(cell.isdigit() for cell in cells):
            found[-1][name] = [int(cell) for cell in cells]
    return found


# ---- docs/metrics.md ----


@pytest.mark.parametrize("key", sorted({*KEYS, *definitions()}))
def test_every_measure_is_explained(key):
    assert key in named(text("metrics.md")), f"docs/metrics.md has no `{key}`: say what it is and where it is computed"


# ---- docs/shards.md ----


@pytest.mark.parametrize("number, counts, lanes, window", [(0, [3, 4], 3, 16384), (1, [3, 4, 5], 2, 4)])
def test_the_plans_example_is_what_the_plan_does(number, counts, lanes, window):
    rows = tables(text("shards.md"), "## The plan")[number]
    mixed, plan = MixedPlan([counts], [1], lanes, 0, window), LanePlan(counts, lanes, 0, window)
    starts = [sum(counts[:shard]) for shard in range(len(counts))]
    assert len(rows["place"]) == 12
    for column, place in enumerate(rows["place"]):
        _, shard, index = mixed.locate(place)
        row, lane = divmod(place, lanes)
        found = {
            "pass": row // plan.rows,
            "lane": lane,
            "sample": starts[shard] + index,
            "shard": shard,
            "in it": index,
        }
        assert {name: values[column] for name, values in rows.items() if name != "place"} == {
            name: value for name, value in found.items() if name in rows
        }


def test_the_index_and_the_json_hold_nothing_that_is_not_explained(tmp_path):
    out = draw_shards(tmp_path / "set", 4, 64, "--ratio", "train=0.5", "val=0.5")
    index = json.loads((out / "train/index.json").read_text())
    with tarfile.open(out / "train" / index["shards"][0]["name"]) as tar:
        facts = json.load(tar.extractfile(next(m for m in tar if m.name.endswith(".json"))))
    explained = named(text("shards.md"))
    assert {*index, *index["shards"][0], *facts, *json.loads((out / "split.json").read_text())} <= explained
