"""Floors import downwards only, siblings leave each other alone, and Hydra stays on the top floor."""

import ast
import subprocess
import sys

import pytest

import medssl
from conftest import ROOT

PACKAGE = ROOT / "ssl" / "medssl"
FLOORS = [
    {"errors", "rng", "schedule", "progress", "files", "resample", "catalog", "results"},
    {"readers", "synthetic", "losses", "encoders"},
    {"store"},
    {"leakage", "augmentations"},
    {"ingestion", "methods"},
    {"tasks"},
    {"train", "evals"},
    {"runs"},
    {"scoring"},
    {"pretraining", "reporting"},
    {"commands"},
    {"cli"},
]
FLOOR = {name: i for i, names in enumerate(FLOORS) for name in names}
FILES = sorted(p for p in PACKAGE.rglob("*.py") if p != PACKAGE / "__init__.py")


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{a.name}" for a in node.names)
        elif isinstance(node, ast.Import):
            yield from (a.name for a in node.names)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_down(path):
    here = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    for name in imported(path):
        top, _, rest = name.partition(".")
        if top == "medssl" and rest.partition(".")[0] in FLOOR:
            there = rest.partition(".")[0]
            ground = FLOOR[here] == FLOOR[there] == 0
            assert there == here or FLOOR[there] < FLOOR[here] or ground, f"{here} imports {name}"
        if top in {"hydra", "omegaconf"}:
            assert here == "cli", f"{here} imports {name}; only cli may know about configs"


def test_every_file_stands_on_a_floor():
    assert {p.relative_to(PACKAGE).parts[0].removesuffix(".py") for p in FILES} == set(FLOOR)


@pytest.mark.parametrize("code", ["import medssl", "import medssl.cli.main as m; m.overview(); m.help_of('pretrain')"])
def test_help_imports_nothing_heavy(code):
    heavy = {"torch", "timm", "hydra", "numpy", "faiss", "matplotlib", "sklearn", "pydicom", "yaml"}
    code += f"; import sys; sys.exit(', '.join(sorted({heavy} & set(sys.modules))) or 0)"
    done = subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"imported: {done.stderr}"


def test_no_folder_has_the_name_of_a_command():
    """`medssl.NAME` would be the function until the folder is first imported, and the folder after that."""
    assert not {p.relative_to(PACKAGE).parts[0].removesuffix(".py") for p in FILES} & set(medssl.__all__)
