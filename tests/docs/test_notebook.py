"""docs/first_steps.ipynb runs from top to bottom."""

import ast

import nbformat
import pytest
from nbclient import NotebookClient
from paths import ROOT
from running import environment

NOTEBOOK = ROOT / "docs/first_steps.ipynb"


@pytest.fixture(scope="module")
def executed():
    """The notebook after all of its cells ran in a process of its own; a cell that fails ends the fixture."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    notebook.metadata.kernelspec.name = "python3"
    client = NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(NOTEBOOK.parent)}})
    client.execute(env=environment())
    return notebook


def pictured(output):
    return bool({"image/png", "image/jpeg"} & set(output.get("data", {})))


def outputs(notebook):
    """What each cell of code printed, and how many pictures it drew."""
    for cell in notebook.cells:
        if cell.cell_type == "code":
            text = "".join(output.text for output in cell.outputs if output.output_type == "stream")
            yield cell.source, text, sum(pictured(output) for output in cell.outputs)


@pytest.mark.thorough
@pytest.mark.slow
def test_the_notebook_finds_cracks_trains_and_evaluates(executed):
    cells = {source.splitlines()[0]: (text, pictures) for source, text, pictures in outputs(executed)}
    text = "\n".join(text for text, _ in cells.values())
    assert "(256, 256) -> (1024, 1024, 3)" in text
    assert "px long" in text and "finished:" in text and "iou_max" in text
    assert sum(pictures for _, pictures in cells.values()) >= 5
    assert "Traceback" not in text and "error" not in text.lower()


def test_what_it_imports_is_there():
    cells = [cell.source for cell in nbformat.read(NOTEBOOK, as_version=4).cells if cell.cell_type == "code"]
    statements = [node for source in cells for node in ast.parse(source).body if isinstance(node, ast.ImportFrom)]
    ours = [node for node in statements if node.module.split(".")[0] == "cssr"]
    assert len(ours) >= 5
    for node in ours:
        exec(ast.unparse(node), {})


def test_the_committed_notebook_shows_its_outputs():
    """A reader sees them without running it; they are small, and name no place of the machine that made them."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    shown = list(outputs(notebook))
    assert sum(pictures for _, _, pictures in shown) >= 5
    assert NOTEBOOK.stat().st_size < 2**20
    assert not [text for _, text, _ in shown if "/home/" in text or "/root/" in text or "site-packages" in text]
