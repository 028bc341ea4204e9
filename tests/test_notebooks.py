"""The notebooks run from top to bottom, and what is kept in them is worth looking at."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
NOTEBOOKS = sorted((EXAMPLES / "notebooks").glob("*.ipynb"))
#: Kept small, so that clones stay small.
MOST_BYTES = 400_000

slow = pytest.mark.slow


def outputs(notebook: Any, kind: str) -> list[str]:
    """What cells show as one kind of content."""
    shown = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return [output.data[kind] for output in shown if kind in output.get("data", {})]


@pytest.mark.parametrize(
    "name", ["quickstart", pytest.param("dropin", marks=slow), pytest.param("finetune", marks=slow)]
)
def test_it_runs(name, tmp_path, monkeypatch):
    for file in ("shapes.png", "shapes.mp4"):
        shutil.copy(EXAMPLES / file, tmp_path)
    (tmp_path / "notebooks").mkdir()
    monkeypatch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    kept: Any = nbformat.read(EXAMPLES / "notebooks" / f"{name}.ipynb", as_version=4)
    run: Any = nbformat.from_dict(kept)
    for cell in run.cells:
        cell.pop("outputs", None)
        if cell.cell_type == "code":
            cell.outputs = []
    resources = {"metadata": {"path": str(tmp_path / "notebooks")}}
    NotebookClient(run, timeout=600, kernel_name="python3", resources=resources).execute()
    for kind in ("text/html", "image/png"):
        assert len(outputs(run, kind)) == len(outputs(kept, kind))
    if name == "quickstart":
        assert any("<video" in shown for shown in outputs(run, "text/html"))


def test_all_of_them_are_tried():
    assert [path.stem for path in NOTEBOOKS] == ["dropin", "finetune", "quickstart"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_is_kept(path):
    notebook: Any = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert path.stat().st_size < MOST_BYTES
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1)), "run it from top to bottom"
    kinds = {output.output_type for cell in code for output in cell.outputs}
    assert "error" not in kinds
    assert all(output.get("name") != "stderr" for cell in code for output in cell.outputs)
    assert outputs(notebook, "text/html") and "/tmp/" not in path.read_text(encoding="utf-8")
