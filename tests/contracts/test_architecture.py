"""The rules of the package: imports point down, no circles, nothing private is shared, commands and their yaml agree."""

import ast
import inspect
import subprocess
import sys
from collections import defaultdict
from importlib import import_module
from pathlib import Path

import pytest

from conftest import ROOT
from medssl import catalog

PACKAGE = ROOT / "ssl" / "medssl"
FLOORS = [
    {"errors", "rng", "schedule", "progress", "files", "resample", "catalog", "results", "ray_cluster"},
    {"readers", "synthetic", "losses", "encoders"},
    {"store"},
    {"leakage", "augmentations"},
    {"ingestion", "methods"},
    {"tasks"},
    {"train", "evals"},
    {"runs"},
    {"scoring"},
    {"pretraining", "reporting", "exporting"},
    {"tuning"},
    {"commands"},
    {"cli"},
]
"""Folders and files of the package, from the ground up: each imports from lower floors only."""
SUBFLOORS = {
    "readers": [{""}, {"dicom"}],
    "evals": [{""}, {"metrics"}, {"task_types"}, {"stats"}, {"probes", "label_free"}, {"explain"}],
    "methods": [
        {""},
        {"parts"},
        {p.name for p in (PACKAGE / "methods").iterdir() if p.is_dir()} - {"parts", "__pycache__"},
    ],
    "commands": [{""}, {"data", "train", "score", "analyse"}],
}
"""The same for the subfolders of a folder; "" is its own files."""
CALLERS = {"commands.train.demo", "commands.train.forecast", "commands.train.tune"}
TOPS = CALLERS | {"readers.formats"}
"""Files that stand above the subfolders of their folder: the callers call other commands, the table of formats names readers."""
FILES = sorted(p for p in PACKAGE.rglob("*.py") if p != PACKAGE / "__init__.py")


def module(path: Path) -> str:
    """ "store.chunks" for ssl/medssl/store/chunks.py."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module(p): p for p in FILES}


def imported(path: Path) -> set[str]:
    """Full names of everything a file imports, wherever in it: "medssl.store.chunks.pack"."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{a.name}" for a in node.names}
        elif isinstance(node, ast.Import):
            names |= {a.name for a in node.names}
    return names


def own(path: Path) -> set[str]:
    """Modules of the package that a file imports: "store.chunks"."""
    found = set()
    for name in imported(path):
        if name.startswith("medssl."):
            inside = name.removeprefix("medssl.")
            found.add(inside if inside in MODULES else inside.rpartition(".")[0])
    return found & set(MODULES)


IMPORTS = {m: own(p) for m, p in MODULES.items()}


def level(floors: list[set[str]], name: str) -> int:
    return next(i for i, names in enumerate(floors) if name in names)


def test_every_file_stands_on_a_floor():
    assert {m.split(".")[0] for m in MODULES} == set().union(*FLOORS)


@pytest.mark.parametrize("name", sorted(MODULES))
def test_imports_point_down(name):
    here = name.split(".")
    for other in sorted(IMPORTS[name]):
        there = other.split(".")
        if here[0] != there[0]:
            a, b = level(FLOORS, here[0]), level(FLOORS, there[0])
            assert b < a or a == b == 0, f"{name} imports {other}"
        elif here[0] in SUBFLOORS:
            mine, its = (m[1] if len(m) > 2 else "" for m in (here, there))
            if mine != its and name not in TOPS:
                a, b = (level(SUBFLOORS[here[0]], folder) for folder in (mine, its))
                assert b < a, f"{name} imports {other}"
    if here[0] != "cli":
        assert not {n.split(".")[0] for n in imported(MODULES[name])} & {"hydra", "omegaconf"}, f"{name} knows Hydra"


def test_no_circle_of_files():
    done, path = set(), []

    def visit(name: str) -> None:
        assert name not in path, " -> ".join([*path[path.index(name) :], name])
        if name in done:
            return
        path.append(name)
        for other in sorted(IMPORTS[name]):
            visit(other)
        done.add(path.pop())

    for name in sorted(MODULES):
        visit(name)


def test_nothing_private_is_imported():
    """A leading underscore means: of this file."""
    private = {
        (name, one)
        for name, path in MODULES.items()
        for one in imported(path)
        if one.startswith("medssl.") and one.rpartition(".")[2].startswith("_") and not one.endswith("__")
    }
    assert private == set()


def test_commands_import_no_command():
    """Only the demo, the forecast and the search call others."""
    commands = {m for m in MODULES if m.startswith("commands.") and m.count(".") == 2}
    found = {m: IMPORTS[m] & commands for m in commands - CALLERS}
    assert {m: c for m, c in found.items() if c} == {}


def test_nothing_prints_below_the_command_line():
    """Commands return text, and notices go through progress.say."""
    printing = defaultdict(list)
    for name, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
                printing[name].append(node.lineno)
    assert {n: lines for n, lines in printing.items() if not n.startswith("cli.")} == {}


def test_a_file_of_a_command_holds_that_command():
    entries = catalog.entries("command")
    assert {e.target.removeprefix("medssl.").rpartition(".")[0] for e in entries.values()} == {
        m for m in MODULES if m.startswith("commands.") and m.count(".") == 2
    }
    for name, entry in entries.items():
        module_name, _, function = entry.target.rpartition(".")
        assert function == name == module_name.rpartition(".")[2]


@pytest.mark.parametrize("command", catalog.entries("command"))
def test_yaml_and_signature_agree(command):
    """The keys of a command's yaml are the arguments of its function, with the same defaults."""
    options = {k: v for k, v in catalog.load("command", command).items() if not k.startswith("_")}
    groups = [next(iter(g)) for g in options.pop("defaults", []) if isinstance(g, dict)]
    where, _, name = catalog.entries("command")[command].target.rpartition(".")
    parameters = inspect.signature(getattr(import_module(where), name)).parameters
    expected = {k: p.default for k, p in parameters.items() if k not in groups and not k.endswith("_options")}
    assert set(groups) <= set(parameters)
    assert list(options) == list(expected) or set(options) == set(expected)
    for key, default in expected.items():
        given = options[key]
        if default is inspect.Parameter.empty:
            assert given == "???", f"{key} has no default in the function and {given!r} in the yaml"
        else:
            assert given == (list(default) if isinstance(default, tuple) else default), key


@pytest.mark.parametrize("name", ["data", "train", "score", "analyse"])
def test_every_command_folder_has_a_heading_in_help(name):
    from medssl.cli.help import COMMAND_GROUPS, overview

    assert f"\n{COMMAND_GROUPS[name]}\n" in overview()


def test_the_loop_fits_on_a_page():
    assert len((PACKAGE / "train/loop.py").read_text().splitlines()) <= 150


def test_a_method_fits_on_a_page():
    lengths = {p: len(p.read_text().splitlines()) for p in (PACKAGE / "methods").rglob("*.py")}
    assert {p.name: n for p, n in lengths.items() if n > 110} == {}


def test_a_file_fits_in_ones_head():
    lengths = {m: len(p.read_text().splitlines()) for m, p in MODULES.items()}
    assert {m: n for m, n in lengths.items() if n > 350} == {}


@pytest.mark.parametrize(
    "code",
    ["import medssl", "import medssl.cli.help as h; h.overview(); [h.command_help(c) for c in ('pretrain', 'probe')]"],
)
def test_help_imports_nothing_heavy(code):
    heavy = {"torch", "timm", "hydra", "numpy", "faiss", "matplotlib", "sklearn", "pydicom", "yaml"}
    code += f"; import sys; sys.exit(', '.join(sorted({heavy} & set(sys.modules))) or 0)"
    done = subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"imported: {done.stderr}"
