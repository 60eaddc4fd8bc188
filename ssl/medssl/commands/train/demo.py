"""`medssl demo`: the whole workflow on a synthetic cohort, from DICOM files to a report, in minutes on two cores."""

import shutil
from pathlib import Path

from medssl.commands.analyse.report import report
from medssl.commands.data.ingest import ingest
from medssl.commands.score.probe import probe
from medssl.commands.train.embed import embed
from medssl.commands.train.pretrain import pretrain
from medssl.errors import UserError
from medssl.progress import say
from medssl.results import Result
from medssl.scoring.baselines import DEFAULT_FROZEN, Baseline
from medssl.synthetic.cohort import write_cohort

SIZE = 48  # pixels, so that a nodule covers several of them
WIDTHS = [16, 32, 64, 128]  # a quarter of the default encoder's work


def demo(
    out: str | Path = "demo",
    *,
    patients: int = 240,
    method: str = "simclr",
    encoder: str = "cnn",
    steps: int = 300,
    seed: int = 0,
) -> Result:
    """Write a synthetic cohort, then ingest, pretrain, embed, probe and report under `out`.

    The images are synthetic, so their scores show that the steps work together, and nothing about any disease. Run again,
    it makes the cohort and the store again and continues a stopped pretraining.

    Args:
        out: folder for everything.
        patients: number of synthetic patients.
        method, encoder, steps, seed: as for `medssl.pretrain`.

    Returns the probe's score table and the path of the report. Raises UserError if `out` holds something else.
    """
    folder = Path(out)
    if folder.exists() and not (folder / "cohort").is_dir() and any(folder.iterdir()):
        raise UserError(f"{folder} holds something other than a demo; choose another out=")
    cohort, store, run = folder / "cohort", folder / "store", folder / "run"
    _announce(1, f"writing a synthetic cohort of {patients} patients as DICOM files to {cohort}")
    shutil.rmtree(cohort, ignore_errors=True)
    write_cohort(cohort, patients=patients, seed=seed)
    labels = cohort / "labels.csv"
    _announce(2, f"medssl ingest source={cohort / 'scans'} out={store} labels={labels}")
    key = folder / "medssl.key"
    made = ingest(cohort / "scans", store, labels=labels, site="synthetic", key=key, overwrite=store.exists())
    say(made.summary)
    widths = {"widths": WIDTHS} if encoder == "cnn" else {}
    option = f" encoder.widths={WIDTHS}".replace(", ", ",") if widths else ""
    what = f"method={method} encoder={encoder}{option} size={SIZE} steps={steps}"
    _announce(3, f"medssl pretrain store={store} out={run} {what}")
    pretrain(store, run, method=method, encoder=encoder, encoder_options=widths, size=SIZE, steps=steps, seed=seed)
    _announce(4, f"medssl embed run={run} store={store}")
    embed(run, store)
    short = f'baselines="[{", ".join([*DEFAULT_FROZEN, Baseline.SUPERVISED])}]"'
    _announce(5, f"medssl probe run={run} store={store} target=lesion {short}")
    scores = probe(run, store, "lesion", baselines=[*DEFAULT_FROZEN, Baseline.SUPERVISED])
    _announce(6, f"medssl report run={run}")
    path = report(run)
    return Result({"scores": dict(scores), "report": str(path)}, f"{scores}\n\nreport: {path}")


def _announce(number: int, what: str) -> None:
    say(f"\n[{number}/6] {what}")
