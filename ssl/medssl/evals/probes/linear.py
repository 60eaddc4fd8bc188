"""The linear probe: a linear model on frozen features, fitted with every penalty, the penalty chosen on validation scans."""

from collections.abc import Sequence

from numpy.typing import ArrayLike

from medssl.evals.probes.linear_fit import fit_linear
from medssl.evals.probes.linear_targets import checked, finite
from medssl.evals.probes.model_selection import PENALTIES, PenalisedModel, Probe, probes
from medssl.evals.task_types.task_types import task_type


def linear_probes(
    train: tuple[ArrayLike, ArrayLike],
    val: tuple[ArrayLike, ArrayLike] | None,
    tests: Sequence[ArrayLike],
    *,
    task: str = "classification",
    classes: int | None = None,
    subsets: Sequence[ArrayLike] | None = None,
    patient: ArrayLike | None = None,
    val_patient: ArrayLike | None = None,
    penalties: Sequence[float] = PENALTIES,
    seed: int = 0,
    device: str = "cpu",
) -> list[Probe]:
    """A probe for each of `subsets`: fits (`linear_fit`), chooses C (`choose`), predicts `tests`.

    C has the lowest mean cross-entropy in nats (mean squared error for values; the mean over labels for labels, which share
    it). Not AUROC: on an easy validation set that is 1 for every penalty.

    Args:
        train, val: x (N, D), and y as the metrics of `task` take it; val may be None or empty.
        tests: x of each test set.
        task: classification, multilabel, ordinal or regression.
        classes: how many classes or levels there are.
        subsets: rows of `train` for each probe, as of `draws`; None is one probe with all.
        patient, val_patient: (N,) of the scans of train and val; both for subsets, and `patient` without validation scans.
        penalties: C of scikit-learn.
        seed: of draws among patients.
        device: cpu or cuda.

    Raises UserError for features that are constant or not finite, for labels that are missing or all of one class, and for
    too few patients to hold any out.
    """
    of = task_type(task)
    x, y, classes = checked(train, "training", of, classes)
    chooses = None
    if val is not None and len(val[1]):  # type: ignore[arg-type]
        chooses = checked(val, "validation", of, classes)[:2]
    kind = PenalisedModel(
        of.linear_model,
        "squared error" if of.least_squares else "cross-entropy",
        task,
        lambda sets, C: fit_linear(x, y, sets, C, task=task, classes=classes, device=device),
        lambda y_some, p, _: of.validation_loss(y_some, p),
    )
    seen = [finite(t, "test") for t in tests]
    return probes(kind, (x, y), chooses, seen, subsets, patient, val_patient, penalties, seed)
