"""The whole way from DICOM files to a report, on a synthetic cohort, in minutes on two cores."""

import shutil
import sys
from pathlib import Path

from medssl.commands.analyse.report import report
from medssl.commands.data.ingest import ingest
from medssl.commands.score.probe import probe
from medssl.commands.train.embed import embed
from medssl.commands.train.pretrain import pretrain
from medssl.errors import UserError
from medssl.synthetic.cohort import write_cohort

SIZE = 48  # pixels: a nodule is still several of them
WIDTHS = [16, 32, 64, 128]  # a quarter of the work of the default


def demo(
    out: str | Path = "demo",
    *,
    patients: int = 240,
    method: str = "simclr",
    encoder: str = "cnn",
    steps: int = 300,
    seed: int = 0,
) -> Path:
    """Write a cohort, ingest, pretrain, embed, probe and report under `out`; returns the path of report.html.

    The cohort is drawn, not photographed: its numbers say that the chain works, and nothing about any disease. Run again,
    it makes the cohort and the store anew and goes on with a pretraining that was stopped.
    """
    folder = Path(out)
    if folder.exists() and not (folder / "cohort").is_dir() and any(folder.iterdir()):
        raise UserError(f"{folder} holds something else than a demo; choose another out=")
    cohort, store, run = folder / "cohort", folder / "store", folder / "run"
    _step(1, f"writing a synthetic cohort of {patients} patients as DICOM files to {cohort}")
    shutil.rmtree(cohort, ignore_errors=True)
    write_cohort(cohort, patients=patients, seed=seed)
    _step(2, f"medssl ingest source={cohort / 'scans'} out={store} labels={cohort / 'labels.csv'}")
    ingest(
        cohort / "scans",
        store,
        labels=cohort / "labels.csv",
        site="synthetic",
        key=folder / "medssl.key",
        overwrite=store.exists(),
    )
    narrow = {"widths": WIDTHS} if encoder == "cnn" else {}
    words = f" encoder.widths={WIDTHS}".replace(" ", "").replace("encoder", " encoder") if narrow else ""
    _step(
        3, f"medssl pretrain store={store} out={run} method={method} encoder={encoder}{words} size={SIZE} steps={steps}"
    )
    pretrain(store, run, method=method, encoder=encoder, encoder_options=narrow, size=SIZE, steps=steps, seed=seed)
    _step(4, f"medssl embed run={run} store={store}")
    embed(run, store)
    _step(5, f"medssl probe run={run} store={store} target=lesion")
    probe(run, store, "lesion")
    _step(6, f"medssl report run={run}")
    return report(run)


def _step(number: int, words: str) -> None:
    print(f"\n[{number}/6] {words}", file=sys.stderr, flush=True)
