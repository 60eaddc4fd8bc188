"""Votes of the nearest training scans, which each type of task turns into predictions."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medssl.evals.metrics.weighted import Floats


@dataclass(frozen=True)
class Votes:
    """The k neighbours of M test scans among N training scans.

    Attributes:
        rows: (M, k) training rows, -1 where there is no neighbour.
        weights: (M, k), 0 where there is no neighbour.
        patient_train: (N,) str.
        patient_test: (M,) str.
    """

    rows: NDArray[np.int64]
    weights: Floats
    patient_train: NDArray[np.str_]
    patient_test: NDArray[np.str_]

    def shares(self, y: NDArray[Any], classes: int) -> Floats:
        """(M, classes): each class's share of the votes; all classes are equally probable where there is no neighbour."""
        p = np.zeros((len(self.rows), classes))
        for c in range(classes):
            p[:, c] = (self.weights * (y[self.rows] == c)).sum(1)
        total = p.sum(1, keepdims=True)
        return np.divide(p, total, out=np.full_like(p, 1 / classes), where=total > 0)

    def mean(self, y: Floats) -> Floats:
        """y (N, L) with nan for unknown -> (M, L): the weighted mean over neighbours with a known y.

        Where no neighbour's y is known, the mean over the training scans of all other patients; nan where there are none.
        """
        known, filled = ~np.isnan(y), np.nan_to_num(y)
        names, at = np.unique(self.patient_train, return_inverse=True)
        # the last row stands for patients without a training scan
        own = np.zeros((2, len(names) + 1, y.shape[1]))
        np.add.at(own[0], at, filled)
        np.add.at(own[1], at, known)
        place = {name: i for i, name in enumerate(names.tolist())}
        mine = [place.get(p, -1) for p in self.patient_test.tolist()]
        total, count = own.sum(1)[:, None] - own[:, mine]
        prior = np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)
        p = np.empty_like(prior)
        for i in range(y.shape[1]):
            w = self.weights * known[self.rows, i]
            weight, default = w.sum(1), prior[:, i].copy()
            p[:, i] = np.divide((w * filled[self.rows, i]).sum(1), weight, out=default, where=weight > 0)
        return p
