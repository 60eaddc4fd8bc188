"""`medssl demo`: the whole workflow on a synthetic cohort, from DICOM files to a report, in minutes on two cores."""

import shutil
from pathlib import Path

from medssl import catalog
from medssl.commands.analyse.report import report
from medssl.commands.data.ingest import ingest
from medssl.commands.score.probe import probe
from medssl.commands.train.embed import embed
from medssl.commands.train.pretrain import pretrain
from medssl.errors import UserError
from medssl.progress import say
from medssl.results import Result
from medssl.scoring.baselines import DEFAULT_FROZEN, Baseline
from medssl.synthetic.lesion_cohort import write_lesion_cohort

RECIPE = "lesions_28"
BASELINES = [*DEFAULT_FROZEN, Baseline.SUPERVISED, Baseline.SUPERVISED_LONGER]


def demo(
    out: str | Path = "demo",
    *,
    patients: int = 1300,
    labelled: int = 40,
    method: str = "simclr",
    encoder: str = "small_resnet",
    steps: int = 600,
    seed: int = 0,
) -> Result:
    """Write a synthetic cohort, then ingest, pretrain, embed, probe and report under `out`.

    The images are synthetic, so their scores show what pretraining can gain where labels are few, and nothing about any disease;
    `medssl.synthetic.lesion` says how they are drawn. Run again, it makes the cohort and the store again and continues a
    stopped pretraining.

    Args:
        out: folder for everything.
        patients: number of synthetic patients.
        labelled: number of them with a label for training, half as many for validation; all test patients have one.
        method, encoder, steps, seed: as for `medssl.pretrain`. Only method=simclr takes the rest of the recipe.

    Returns the probe's score table and the path of the report. Raises UserError if `out` holds something else.
    """
    folder = Path(out)
    if folder.exists() and not (folder / "cohort").is_dir() and any(folder.iterdir()):
        raise UserError(f"{folder} holds something other than a demo; choose another out=")
    cohort, store, run = folder / "cohort", folder / "store", folder / "run"
    _announce(1, f"writing a synthetic cohort of {patients} patients, {labelled} labelled, as DICOM files to {cohort}")
    shutil.rmtree(cohort, ignore_errors=True)
    write_lesion_cohort(cohort, patients=patients, labelled=labelled, seed=seed)
    labels = cohort / "labels.csv"
    _announce(2, f"medssl ingest source={cohort / 'scans'} out={store} labels={labels} targets=malignant")
    key = folder / "medssl.key"
    made = ingest(
        cohort / "scans",
        store,
        labels=labels,
        targets="malignant",
        site="synthetic",
        key=key,
        overwrite=store.exists(),
    )
    say(made.summary)
    settings = catalog.recipe(RECIPE)
    given = {"method": method, "encoder": encoder, "steps": steps, "seed": seed}
    changed = " ".join(f"{k}={v}" for k, v in given.items() if v != settings.get(k, 0))
    if method != settings["method"]:
        settings = {"size": settings["size"]}
    start = f"recipe={RECIPE}" if "method" in settings else f"size={settings['size']}"
    _announce(3, f"medssl pretrain store={store} out={run} {start} {changed}".rstrip())
    pretrain(store, run, **settings | given)
    _announce(4, f"medssl embed run={run} store={store}")
    embed(run, store)
    _announce(5, f'medssl probe run={run} store={store} target=malignant baselines="[{", ".join(BASELINES)}]"')
    scores = probe(run, store, "malignant", baselines=BASELINES)
    _announce(6, f"medssl report run={run}")
    path = report(run)
    return Result({"scores": dict(scores), "report": str(path)}, f"{scores}\n\nreport: {path}")


def _announce(number: int, what: str) -> None:
    say(f"\n[{number}/6] {what}")
