"""The notebook in docs, run from top to bottom in a kernel of its own."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from parity_tests.results import ROOT

FILE = ROOT / "docs" / "quickstart.ipynb"


@pytest.fixture(scope="module")
def notebook() -> Any:
    return nbformat.read(FILE, as_version=4)


def first_code(notebook: Any) -> str:
    """The cell that finds the repository, without the lines that are IPython's."""
    [source, *_] = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    return "\n".join(line for line in source.splitlines() if not line.startswith("%"))


def test_it_is_kept_without_outputs(notebook: Any) -> None:
    """Numbers that a machine printed once would only go stale; and its form is Jupyter's own."""
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert len(code) > 5
    assert all(not cell.outputs and cell.execution_count is None and not cell.metadata for cell in code)
    assert max(len(cell.source.splitlines()) for cell in code) <= 30
    assert nbformat.writes(notebook) == FILE.read_text("utf-8").removesuffix("\n")


@pytest.mark.parametrize("folder", [".", "docs", "docs/.."])
def test_it_finds_the_repository(folder: str, notebook: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(ROOT / folder)
    found: dict[str, Any] = {}
    exec(first_code(notebook), found)
    assert found["root"] == ROOT
    assert sys.path[0] == str(ROOT)
    found["runs"].rmdir()


def test_elsewhere_it_says_where_to_start(notebook: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="is not in the repository: start the notebook in its docs folder"):
        exec(first_code(notebook), {})


def test_it_runs_from_top_to_bottom(notebook: Any) -> None:
    """In docs, as Jupyter starts it: pictures are drawn, losses fall, and the frameworks agree as it says they do."""
    place = {"metadata": {"path": str(FILE.parent)}}
    client = NotebookClient(notebook, timeout=900, kernel_name="python3", resources=place)
    done = client.execute()
    outputs = [output for cell in done.cells if cell.cell_type == "code" for output in cell.outputs]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 3
    assert sum("text/html" in output.get("data", {}) for output in outputs) == 2  # sources beside each other
    printed = "".join(output.text for output in outputs if output.output_type == "stream" and output.name == "stdout")
    fell = re.findall(r"^(torch|flax): test loss ([\d.]+) -> ([\d.]+), accuracy ([\d.]+)%$", printed, re.MULTILINE)
    assert [name for name, *_ in fell] == ["torch", "flax"]
    for _, before, after, accuracy in fell:
        assert float(after) < float(before) / 2
        assert float(accuracy) > 80
    [apart] = re.findall(r"the logits of 64 images differ by at most (\S+) of the largest", printed)
    assert 0 < float(apart) < 1e-5  # of float32: two networks, not one that was asked twice
    assert len(re.findall(r"^step \d: loss", printed, re.MULTILINE)) == 5
    exact = dict(re.findall(r"^(\w+) +differs by at most (\S+), in", printed, re.MULTILINE))
    assert exact.keys() >= {"activation", "loss", "gradient", "optimizer", "parameter"}
    assert float(exact["batch"]) == 0
    assert max(map(float, exact.values())) < 1e-11
