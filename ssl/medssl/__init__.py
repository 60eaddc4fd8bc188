"""Self-supervised representation learning for medical scans, scored with intervals.

The steps of the command line, as functions with plain arguments:

    store = medssl.ingest("scans/", "store/", labels="labels.csv")
    medssl.inspect("store/", sheet="sheet.png")
    run = medssl.pretrain("store/", "run/", method="simclr", encoder="resnet18")
    medssl.embed(run, "store/")
    medssl.probe(run, "store/", "label")
    medssl.report(run)

`medssl.load_encoder(run)` gives the encoder, `medssl.Store.open(path)` the scans. Nothing is imported before it is used.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_WHERE = {
    "ingest": "medssl.commands.data.ingest",
    "inspect": "medssl.commands.data.inspect",
    "rejects": "medssl.commands.data.rejects",
    "release": "medssl.commands.data.release",
    "nifti": "medssl.commands.data.nifti",
    "png": "medssl.commands.data.png",
    "shard": "medssl.commands.data.shard",
    "pretrain": "medssl.commands.train.pretrain",
    "embed": "medssl.commands.train.embed",
    "probe": "medssl.commands.score.probe",
    "knn": "medssl.commands.score.knn",
    "retrieve": "medssl.commands.score.retrieve",
    "survive": "medssl.commands.score.survive",
    "finetune": "medssl.commands.score.finetune",
    "segment": "medssl.commands.score.segment",
    "transfer": "medssl.commands.score.transfer",
    "compare": "medssl.commands.analyse.compare",
    "audit": "medssl.commands.analyse.audit",
    "quality": "medssl.commands.analyse.quality",
    "cam": "medssl.commands.analyse.cam",
    "report": "medssl.commands.analyse.report",
    "demo": "medssl.commands.train.demo",
    "load_encoder": "medssl.encoders.export",
    "Store": "medssl.store.store",
}
__all__ = [*_WHERE]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'medssl' has no attribute {name!r}")
    return getattr(import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
