"""Self-supervised representation learning for medical scans, scored with intervals.

Every command of the command line is a function with plain arguments:

    store = medssl.ingest("scans/", "store/", labels="labels.csv")
    medssl.inspect("store/", sheet="sheet.png")
    run = medssl.pretrain("store/", "run/", method="simclr", encoder="resnet18")
    medssl.embed(run, "store/")
    scores = medssl.probe(run, "store/", "label")
    medssl.report(run)

What they return shows itself in a notebook: a store as a contact sheet, a run as its curves, scores as a table with intervals
(`medssl.reporting.notebook`). A run is the path of its folder; `run.embeddings(store)` is a pandas DataFrame, and
`store.dataset()` a torch Dataset.

`medssl.Encoder(run).transform(["new.png"])` embeds files and arrays without a store.

`medssl.maps(run, "store/").by("label", "scanner")` draws maps of embeddings, with how faithful each is under it.

`medssl.list_runs("folder/")` lists runs.

`medssl.load_encoder(run)` returns the encoder, `medssl.Store.open(path)` the scans, `medssl.recipe(name)` the settings of a
recipe: `medssl.pretrain("store/", "run/", **medssl.recipe("chest_xray_28"))`. Nothing is imported before it is used.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_OBJECTS = {
    "load_encoder": "medssl.encoders.export",
    "recipe": "medssl.catalog",
    "Store": "medssl.reporting.notebook",
    "Run": "medssl.reporting.notebook",
    "Encoder": "medssl.scoring.new_scans",
    "maps": "medssl.reporting.map_grid",
    "list_runs": "medssl.runs.listing",  # medssl.runs is the package of that name
}


def _commands() -> dict[str, Any]:
    # `from medssl import catalog` would call __getattr__ again
    return import_module("medssl.catalog").entries("command")


def __getattr__(name: str) -> Any:
    if name.startswith("_") or name == "catalog" or (name not in _OBJECTS and name not in _commands()):
        raise AttributeError(f"module 'medssl' has no attribute {name!r}")
    if name in _OBJECTS:
        return getattr(import_module(_OBJECTS[name]), name)
    command = getattr(import_module(_commands()[name].target.rpartition(".")[0]), name)
    return import_module("medssl.reporting.notebook").showing(command)


def __dir__() -> list[str]:
    return sorted([*globals(), *_OBJECTS, *_commands()])
