"""README.md and docs/: every command runs, every block of code too, and every name, link and setting is there."""

import re
from pathlib import Path

import pytest
import yaml
from docs_commands import PAGES, ROOT, Place, blocks, expanded, inline_commands, inside, spans
from helpers import shipped

from cssr.config.loading import load_config
from cssr.config.schema import Config
from cssr.degradations import DEGRADATIONS
from cssr.losses import LOSSES
from cssr.models.seg import SEG
from cssr.models.sr import SR
from cssr.survey.severity import load_limits

LANGUAGES = {"bash", "python", "yaml", "text"}
SECTIONS = "model|data|loss|optim|train|eval|degradation"
SETTING = re.compile(rf"({SECTIONS})(\.\w+)*=.+|phases=.+|imports=.+")
ZOOS = {"model.sr": SR, "model.seg": SEG, "loss.sr": LOSSES, "loss.seg": LOSSES, "degradation": DEGRADATIONS}
RECIPES = sorted((ROOT / "configs").glob("*.yaml"))


def listed(language: str) -> list:
    """The blocks of all pages, as test parameters."""
    return [pytest.param(block, id=f"{page.name}:{line}") for page in PAGES for line, block in blocks(page, language)]


def of_pages(find) -> list:
    """What is found in each page, as test parameters."""
    return [pytest.param(page, what, id=f"{page.name}:{what}") for page in PAGES for what in dict.fromkeys(find(page))]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return Place(tmp_path_factory.mktemp("docs"))


# ---- commands and code ----


@pytest.mark.parametrize("block", listed("bash"))
def test_commands_run(block, place):
    commands = expanded(block, place.root)
    assert commands, "a block of bash without a command: call it ```text"
    assert all(place.run(command) for command in commands)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_within_the_text_are_understood(page, place):
    commands = [command for line in inline_commands(page) for command in expanded(line, place.root)]
    assert all(place.run(command, only_words=True) for command in commands)


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=lambda page: page.name)
def test_python_runs(page, place, own_parts):
    """The blocks of a page in order, each by itself."""
    with inside(place.root):
        for line, block in blocks(page, "python"):
            names = {"__name__": "docs"}
            exec(compile("\n" * line + block, str(page), "exec"), names)
            assert len(names) > 1, f"{page.name}:{line}: a block that imports and defines nothing"


@pytest.mark.parametrize("block", listed("yaml"))
def test_recipes_and_tables_of_limits_in_the_text_are_read(block, place, tmp_path):
    values = yaml.safe_load(block)
    if "classes" in values:
        (tmp_path / "limits.yaml").write_text(block)
        assert load_limits(str(tmp_path / "limits.yaml")).name == values["name"]
        return
    values.pop("imports", None)
    if "base" in values:
        values["base"] = str(ROOT / values["base"])
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(values))
    assert isinstance(load_config(tmp_path / "recipe.yaml"), Config)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_blocks_say_what_they_are(page):
    """So that none is passed over."""
    fences = re.findall(r"^```(.*)$", page.read_text(encoding="utf-8"), re.M)
    assert len(fences) % 2 == 0 and set(fences[1::2]) <= {""}
    assert set(fences[::2]) <= LANGUAGES, f"call a block one of {', '.join(sorted(LANGUAGES))}"


@pytest.mark.parametrize(
    "line, says",
    [
        ("convert a.png b.png", "the docs use `convert`, which the test does not know how to run: add a line"),
        ("python -m cssr.data.cache DIR", "the docs use `python -m cssr.data.cache`"),
        ("python shards/missing.py", "shards/missing.py, which is not there"),
        ("python -m cssr.predict runs/cssr PHOTOGRAPHS --outt x", "ends with 2"),
        ("accelerate launch --config_file launch/none.yaml cssr/train.py RECIPE", "no launch/none.yaml"),
        ("accelerate launch cssr/train.py configs/none.yaml", "no recipe at configs/none.yaml"),
        ("accelerate launch cssr/train.py RECIPE train.stepz=3", "train.stepz"),
        ("if true; then", "bash refuses the block"),
        ("pip install cssr[none]", "setup.cfg has no extra none"),
    ],
)
def test_what_is_wrong_is_named(line, says, place):
    with pytest.raises((pytest.fail.Exception, AssertionError, ValueError), match=re.escape(says)):
        for command in expanded(line, place.root):
            place.run(command)


# ---- names ----


@pytest.mark.parametrize(
    "page, setting", of_pages(lambda page: [span for span in spans(page) if SETTING.fullmatch(span)])
)
def test_settings_are_known(page, setting):
    assert isinstance(load_config(None, re.split(rf" (?=(?:{SECTIONS}|phases)[.=])", setting)), Config)


def names_of_settings(page: Path) -> list[str]:
    names = [span for span in spans(page) if re.fullmatch(rf"({SECTIONS})(\.\w+)+", span)]
    return [name for name in names if name.rpartition(".")[2] not in ("py", "json", "yaml", "safetensors")]


@pytest.mark.parametrize("page, name", of_pages(names_of_settings))
def test_names_of_settings_are_known(page, name):
    section, *rest = name.split(".")
    value = getattr(Config(), section)
    if rest and not isinstance(value, dict):
        assert hasattr(value, rest[0]), f"no setting is called {name}"
        rest = rest[1:]
    if rest:
        registry = ZOOS[name.rpartition(".")[0]]
        assert any(rest == [setting] for part in registry.names() for setting in registry.parameters(part)), name


def paths(page: Path) -> list[str]:
    folders = "cssr|tests|shards|launch|configs|benchmarks|docs"
    return [span for span in spans(page) if re.fullmatch(rf"({folders})/[\w./-]*", span)]


@pytest.mark.parametrize("page, path", of_pages(paths))
def test_files_are_there(page, path):
    assert (ROOT / path).exists()


def places(page: Path) -> list[tuple[str, str]]:
    """`name` in `path`, and lists of names before it."""
    text = " ".join(page.read_text(encoding="utf-8").split())
    found = re.findall(r"((?:`[\w.]+`(?:, | and )?)+) in `([\w/]+\.py)`", text)
    return [(name, path) for names, path in found for name in re.findall(r"`([\w.]+)`", names)]


@pytest.mark.parametrize("page, name", of_pages(places))
def test_functions_are_where_they_are_said_to_be(page, name):
    function, path = name
    source = (ROOT / path).read_text(encoding="utf-8")
    assert all(re.search(rf"(def |class |^){part}\b", source, re.M) for part in function.split("."))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        file, _, anchor = target.partition("#")
        if "://" in target:
            continue
        other = (page.parent / file) if file else page
        assert other.exists(), target
        assert not anchor or anchor in anchors(other), f"no heading {target}"


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


# ---- tables ----


def column(page: str, heading: str) -> set[str]:
    """All names in the first column of the table below a heading, or beginning of a heading row."""
    rows = (ROOT / page).read_text(encoding="utf-8").split(heading, 1)[1].split("\n\n")[0].splitlines()
    return {name for row in rows for name in re.findall(r"`([^`]+)`", row.strip("|").split("|")[0])}


def test_every_recipe_is_in_the_table():
    assert column("docs/recipes.md", "| recipe |") == {path.stem for path in RECIPES}


def test_every_launch_file_is_in_the_table():
    folder = ROOT / "launch"
    files = [*folder.glob("*.yaml"), *folder.glob("*.sh"), *folder.glob("*/*.yaml")]
    shown = {str(path.relative_to(folder)).removesuffix(".yaml") for path in files if path.name != "demo.sh"}
    shown |= {path.name for path in ROOT.glob("Dockerfile")}
    assert {name.removesuffix(".yaml") for name in column("docs/training.md", "| launch file |")} == shown


@pytest.mark.parametrize("registry", [SR, SEG, LOSSES, DEGRADATIONS], ids=lambda registry: registry.kind)
def test_every_part_is_named(registry):
    text = {span for page in PAGES for span in spans(page)}
    assert shipped(registry) <= text
