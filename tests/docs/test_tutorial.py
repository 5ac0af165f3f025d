"""The notebook runs from its first cell to its last; what is stored in it is clean and small."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

NOTEBOOK = REPOSITORY / "docs" / "tutorial.ipynb"
LARGEST = 1_500_000


def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BACKBONE", "handcrafted")
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=":")
    # no setting of whoever runs the tests reaches the kernel
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    (stages,) = (cell for cell in notebook.cells if "--epochs 15" in cell.source)
    stages.source = stages.source.replace("--epochs 15", "--epochs 2")
    folder = tmp_path / "work"
    folder.mkdir()
    resources = {"metadata": {"path": str(folder)}}
    nbclient.NotebookClient(notebook, timeout=600, resources=resources).execute()
    assert (folder / "tutorial" / "run" / "report" / "index.html").is_file()
    assert len(list((folder / "tutorial" / "predicted").rglob("*.png"))) == 1
    assert pictures(notebook) == pictures(nbformat.read(NOTEBOOK, as_version=4))


def test_the_stored_outputs_are_there_clean_and_small() -> None:
    assert NOTEBOOK.stat().st_size < LARGEST
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    # executed once, in order
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert sum(pictures(notebook)) == 3
    outputs = "".join(str(cell.outputs) for cell in cells)
    assert "accuracy" in outputs
    assert not re.search(r"/(home|root|tmp|work|Users)/", outputs)
    assert not re.search(r"Traceback|Warning\b", outputs)


def pictures(notebook: nbformat.NotebookNode) -> list[int]:
    """Count the pictures of every code cell."""
    return [
        sum("image/png" in output.get("data", {}) for output in cell.outputs)
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]
