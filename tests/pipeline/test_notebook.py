"""The notebook runs top to bottom, as anybody runs it, on a smaller log."""

from __future__ import annotations

from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat", reason="notebooks cannot be run here: dti-pipeline[notebook]")
nbclient = pytest.importorskip("nbclient", reason="notebooks cannot be run here: dti-pipeline[notebook]")

NOTEBOOK = Path(__file__).resolve().parents[2] / "examples" / "first_look.ipynb"
#: What takes its two minutes, and what takes seconds.
SMALLER = {
    '"users": 160, "items": 200, "interactions_per_user": 60': '"users": 40, "interactions_per_user": 35',
    '"epochs": 4': '"epochs": 0.3',
}


@pytest.mark.slow
def test_the_notebook_runs_top_to_bottom(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(NOTEBOOK.parents[1]))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    source = notebook.cells[1].source
    for usual, smaller in SMALLER.items():
        assert usual in source
        source = source.replace(usual, smaller)
    notebook.cells[1].source = source
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    printed = "".join(
        output.get("text", "") for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs
    )
    for expected in ("tokens a target", "ΔAUC", "clicked: "):
        assert expected in printed


def test_the_notebook_has_its_outputs_and_names_no_folder_of_a_person() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert "/tmp/" not in NOTEBOOK.read_text(encoding="utf-8")
    assert "Traceback" not in NOTEBOOK.read_text(encoding="utf-8")
