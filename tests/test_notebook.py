"""The notebook is executed from a fresh folder, with fewer rollouts and problems."""

from __future__ import annotations

import ast
import json
import re

import pytest

from harness.files import ROOT

PATH = ROOT / "examples" / "quickstart.ipynb"


def test_it_holds_no_output_and_says_what_the_script_says():
    cells = json.loads(PATH.read_text())["cells"]
    codes = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert not any(cell.get("outputs") for cell in cells)
    script = (ROOT / "examples" / "quickstart.py").read_text()
    for part in (r"terms = .*\n", r"sums = .*\n", r" +policy=.*\n +rewards=.*\n +sampling=.*\n"):
        [found] = re.findall(part, script)
        assert " ".join(found.split()) in " ".join(" ".join(codes).split())
    for code in codes:
        ast.parse(code)


@pytest.mark.full  # test_python_use.py runs the same calls as a script
@pytest.mark.filterwarnings("ignore")  # of the Jupyter packages
def test_it_runs(tmp_path, monkeypatch):
    nbformat = pytest.importorskip("nbformat", reason="the extra dev has nbclient and ipykernel")
    nbclient = pytest.importorskip("nbclient", reason="the extra dev has nbclient and ipykernel")
    notebook = nbformat.read(PATH, as_version=4)
    for cell in notebook.cells:
        cell.source = cell.source.replace("rollouts = 10", "rollouts = 2")
        cell.source = cell.source.replace("test_size=50", "test_size=10")
    monkeypatch.chdir(tmp_path)
    client = nbclient.NotebookClient(
        notebook, timeout=3600, startup_timeout=600, resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    assert (tmp_path / "runs" / "notebook" / "model" / "model.safetensors").exists()
    shown = [
        output["data"]["text/plain"]
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if output["output_type"] == "execute_result"
    ]
    assert "val/accuracy" in "".join(shown)
