"""Strata of patients, from which label subsets and held-out patients are drawn."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Strata:
    """Strata of P patients.

    stratum (P,): each patient's. shows (P, C) bool: which of C cells a patient's scans contain; a subset should contain all of
    them. cells: their names, such as "class 1".
    """

    stratum: NDArray[np.int64]
    shows: NDArray[np.bool_]
    cells: list[str]


def by_rarest(shows: NDArray[np.bool_], at: NDArray[np.int64], cells: Sequence[str], marks: int) -> Strata:
    """Put each patient into the stratum of the rarest mark of their scans (fewest patients, then lowest column).

    shows (N, C): which cells a scan contains; the first `marks` of them define the strata, and patients with none of these have
    a stratum of their own. at (N,): each scan's patient, from 0. Cells that no scan contains are dropped.
    """
    of_patient = np.zeros((int(at.max()) + 1, shows.shape[1]), np.bool_)
    np.logical_or.at(of_patient, at, shows)
    rare_first = np.argsort(of_patient[:, :marks].sum(0), kind="stable")
    none = np.ones((len(of_patient), 1), np.bool_)
    place = np.concatenate([of_patient[:, rare_first], none], axis=1).argmax(1)
    there = np.flatnonzero(of_patient.any(0))
    return Strata(np.append(rare_first, marks)[place], of_patient[:, there], [cells[i] for i in there.tolist()])
