"""The linear probe: a linear model on frozen features with the penalty selected on validation scans."""

from collections.abc import Sequence

from numpy.typing import ArrayLike

from medssl.evals.probes.linear_fit import LinearPath, checked, finite
from medssl.evals.probes.model_selection import PENALTIES, PenalisedModel, Probe, fit_probes
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
    blocks: Sequence[int] = (),
) -> list[Probe]:
    """Fit a probe for each of `subsets` (`linear_fit`), select C (`model_selection`), and predict `tests`.

    C has the lowest mean cross-entropy in nats (for regression the lowest mean squared error; findings of a multilabel target
    share C, by the mean over them). Not AUROC: on an easy validation set that is 1 for every penalty.

    Args:
        train, val: x (N, D), and y as the metrics of `task` take it; val may be None or empty.
        tests: x of each test set.
        task: classification, multilabel, ordinal or regression.
        classes: number of classes or levels.
        subsets: rows of `train` for each probe; None for one probe of all scans.
        patient, val_patient: (N,) of train and val; subsets need both, and without validation scans `patient` is needed.
        penalties: C as in scikit-learn, tried from the strongest penalty on until two in a row are worse.
        seed: for drawing patients.
        device: cpu or cuda.
        blocks: widths of features that stand side by side in x, each given the same total variance.

    Raises UserError for features that are constant or not finite, for labels that are missing or all of one class, and if
    there are too few patients to hold any out.
    """
    of = task_type(task)
    x, y, classes = checked(train, "training", of, classes)
    validation = None
    if val is not None and len(val[1]):  # type: ignore[arg-type]
        validation = checked(val, "validation", of, classes)[:2]
    model = PenalisedModel(
        of.linear_model,
        "squared error" if of.least_squares else "cross-entropy",
        task,
        lambda sets: LinearPath(x, y, sets, task=task, classes=classes, device=device, blocks=blocks),
        lambda y_some, p, _: of.validation_loss(y_some, p),
    )
    test_x = [finite(t, "test") for t in tests]
    return fit_probes(model, (x, y), validation, test_x, subsets, patient, val_patient, penalties, seed)
