"""Notebooks are stored without outputs and run from the first cell to the last."""

import ast
import os

import nbformat
import pytest
from nbconvert.preprocessors import ExecutePreprocessor

from conftest import ROOT
from reporting.test_report import make_run, make_store

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("notebooks")
    make_run(path / "run", make_store(path / "store"))
    return path


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_is_stripped_and_holds_no_logic(path):
    notebook = nbformat.read(path, 4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None
            defined = (ast.FunctionDef, ast.ClassDef, ast.Lambda, ast.If, ast.While, ast.Try)
            assert not [node for node in ast.walk(ast.parse(cell.source)) if isinstance(node, defined)]


@pytest.mark.parametrize(
    ("name", "pictures", "says"),
    [("look_at_an_embedding", 4, "60 scans, trustworthiness 0."), ("look_at_views", 7, "xray")],
)
def test_notebook_runs(name, pictures, says, folder, monkeypatch):
    monkeypatch.setenv("MEDSSL_RUN", str(folder / "run"))
    monkeypatch.setenv("MEDSSL_STORE", str(folder / "store"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT / "ssl"), os.environ.get("PYTHONPATH", "")]))
    notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", 4)
    ExecutePreprocessor(timeout=300, kernel_name="python3").preprocess(notebook, {"metadata": {"path": str(folder)}})
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert len([o for o in outputs if "image/png" in o.get("data", {})]) == pictures
    assert says in "".join(o.get("text", "") + o.get("data", {}).get("text/markdown", "") for o in outputs)


def test_every_notebook_is_run_above():
    assert [p.stem for p in NOTEBOOKS] == ["look_at_an_embedding", "look_at_views"]
