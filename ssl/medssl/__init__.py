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
    "ingest": "medssl.store.ingest",
    "inspect": "medssl.steps.inspect",
    "rejects": "medssl.steps.rejects",
    "release": "medssl.steps.release",
    "nifti": "medssl.steps.nifti",
    "png": "medssl.steps.png",
    "shard": "medssl.steps.shard",
    "pretrain": "medssl.steps.pretrain",
    "embed": "medssl.steps.embed",
    "probe": "medssl.steps.probe",
    "knn": "medssl.steps.knn",
    "retrieve": "medssl.steps.retrieve",
    "survive": "medssl.steps.survive",
    "finetune": "medssl.steps.finetune",
    "segment": "medssl.steps.segment",
    "transfer": "medssl.steps.transfer",
    "compare": "medssl.steps.compare",
    "audit": "medssl.steps.audit",
    "quality": "medssl.steps.quality",
    "cam": "medssl.steps.cam",
    "report": "medssl.steps.report",
    "demo": "medssl.steps.demo",
    "load_encoder": "medssl.encoders.handover",
    "Store": "medssl.store.store",
}
__all__ = [*_WHERE]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'medssl' has no attribute {name!r}")
    return getattr(import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
