"""The notebooks run from end to end, keep their outputs, hold no logic, and have a Korean twin of the same code."""

import ast
import os
import re

import execute
import nbformat
import pytest

from conftest import ROOT

FOLDER = ROOT / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
MOST = 400_000  # bytes of a notebook


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """One folder for all, as a reader has: later notebooks find the store and the runs of earlier ones."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT / "ssl"), os.environ.get("PYTHONPATH", "")]))
        patch.setenv("OMP_NUM_THREADS", "1")
        with execute.kernel(tmp_path_factory.mktemp("notebooks")) as run:
            yield run


def code_of(notebook):
    return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


def outputs_of(notebook):
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def test_they_are_numbered_and_each_has_a_twin():
    numbers = [p.name[:3] for p in NOTEBOOKS]
    assert sorted(set(numbers)) == numbers
    assert all(re.fullmatch(r"\d\d_", number) for number in numbers)
    assert [p.name for p in sorted((FOLDER / "ko").glob("*.ipynb"))] == [p.name for p in NOTEBOOKS]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_it_holds_no_logic_and_keeps_its_outputs(path):
    assert path.stat().st_size <= MOST
    notebook = nbformat.read(path, 4)
    nbformat.validate(notebook)
    for source in code_of(notebook):
        defined = (ast.FunctionDef, ast.ClassDef, ast.Lambda, ast.If, ast.While, ast.Try)
        assert not [node for node in ast.walk(ast.parse(source)) if isinstance(node, defined)]
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == [i + 1 for i in range(len(cells))]
    outputs = outputs_of(notebook)
    assert len(outputs) >= 2
    assert not [o for o in outputs if o.output_type == "error"]
    shown = "".join(o.get("text", "") + "".join(map(str, o.get("data", {}).values())) for o in outputs)
    assert not re.search(r"(?<![\w/])/(home|root|tmp|work|Users)/", shown)  # paths of whoever ran it


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_the_korean_twin_has_the_same_code_and_outputs(path):
    notebook, twin = nbformat.read(path, 4), nbformat.read(FOLDER / "ko" / path.name, 4)
    nbformat.validate(twin)
    assert code_of(twin) == code_of(notebook)
    assert outputs_of(twin) == outputs_of(notebook)
    assert [c.cell_type for c in twin.cells] == [c.cell_type for c in notebook.cells]
    for cell, other in zip(twin.cells, notebook.cells, strict=True):
        if cell.cell_type == "markdown":
            assert re.search("[가-힣]", cell.source)
            assert not re.search("[가-힣]", other.source)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_it_runs_and_shows_as_much_as_it_keeps(path, run):
    kinds = [
        [(o.output_type, sorted(o.get("data", {}))) for o in outputs_of(notebook)]
        for notebook in (nbformat.read(path, 4), run(path))
    ]
    assert kinds[0] == kinds[1]


def test_kept_outputs_go_into_the_twin_too(tmp_path):
    path = tmp_path / "01_a.ipynb"
    (tmp_path / "ko").mkdir()
    for file, text in ((path, "one"), (tmp_path / "ko" / path.name, "하나")):
        cells = [nbformat.v4.new_markdown_cell(text), nbformat.v4.new_code_cell("print(1)")]
        nbformat.write(nbformat.v4.new_notebook(cells=cells), file)
    done = nbformat.read(path, 4)
    done.cells[1].outputs = [nbformat.v4.new_output("stream", text=f"{tmp_path}/store")]
    execute.tidy(done, tmp_path)
    execute.keep(done, path)
    for file, text in ((path, "one"), (tmp_path / "ko" / path.name, "하나")):
        kept = nbformat.read(file, 4)
        assert [kept.cells[0].source, kept.cells[1].outputs[0].text] == [text, "store"]
