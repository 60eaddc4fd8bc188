"""What reads frozen features: the linear probe and kNN, of every kind of task, behind one signature."""

from collections.abc import Callable, Sequence

import numpy as np

from medssl.errors import UserError
from medssl.evals.knn import knn_probe
from medssl.evals.linear import linear_probe
from medssl.steps.features import Source
from medssl.steps.question import Question
from medssl.steps.truth import Part

Reader = Callable[[Source, Question, Sequence[Part]], list[np.ndarray]]


def linear(source: Source, question: Question, tests: Sequence[Part], seed: int = 0) -> list[np.ndarray]:
    """Fitted on the training patients, the penalty chosen on the validation patients; predictions for each of `tests`."""
    train, val = question.train, question.val
    x = source(train.store, train.rows)
    chooses = (source(val.store, val.rows), val.y) if len(val) else None
    fitted = linear_probe(
        (x, train.y), chooses, [source(t.store, t.rows) for t in tests], classes=question.target.width,
        patient=train.patient, seed=seed,
    )  # fmt: skip
    return fitted.probabilities


def nearest(source: Source, question: Question, tests: Sequence[Part], k: int = 20) -> list[np.ndarray]:
    """Votes of the k most similar training scans, never of the same patient; predictions for each of `tests`."""
    if k < 1:
        raise UserError(f"k must be at least 1, got {k}")
    train = question.train
    x = source(train.store, train.rows)
    return [
        knn_probe(
            x, train.y, train.patient, source(t.store, t.rows), t.patient, question.target.width, k=min(k, len(x))
        )
        for t in tests
    ]
