"""Every notebook runs from top to bottom, and is stored without outputs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parents[2] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


def test_there_is_a_first_notebook() -> None:
    assert "01_first_slide.ipynb" in [path.name for path in NOTEBOOKS]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_are_cleared(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    assert [cell.id for cell in notebook.cells if cell.get("outputs") or cell.get("execution_count")] == []


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the kernel's own libraries warn about event loops
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs_and_shows_a_verdict(
    path: Path, shared: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if path.stem == "02_fine_tuning":  # it learns from annotated blood smears that are not part of the project
        monkeypatch.setenv("WSI_CHAT_PBC", str(shared("data/pbc")))
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(notebook, timeout=240, kernel_name="python3", resources={"metadata": {"path": tmp_path}})
    client.execute()
    shown = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert [output for output in shown if output["output_type"] == "error"] == []
    if path.stem == "01_first_slide":
        html = [output["data"]["text/html"] for output in shown if "text/html" in output.get("data", {})]
        assert len(html) == 1
        assert "data:image/png;base64," in html[0]
        assert any("report.pdf" in str(output.get("data", {})) for output in shown)
    if path.stem == "02_fine_tuning":
        printed = "".join(output.get("text", "") for output in shown)
        assert "10 pictures" in printed
        assert "4 steps, the best by ground_f1" in printed
        (scores,) = (output["data"]["text/plain"] for output in shown if "'after'" in str(output.get("data", {})))
        assert "'before'" in scores
