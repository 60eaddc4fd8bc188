"""A warning above every score of a label that goes with the site: such a score may come from the site, not the scans."""

import numpy as np

from medssl.errors import UserError
from medssl.evals.explain.association import association
from medssl.evals.metrics.metrics import AUROC, MACRO_AUROC, Metric
from medssl.evals.stats.bootstrap import FEW, score
from medssl.evals.stats.score import Score
from medssl.evals.stats.subgroups import UNKNOWN
from medssl.scoring.acquisition_metadata import CATEGORICAL, CONTINUOUS, OTHERS, words
from medssl.scoring.targets import Subset, Target

SITE = "site"
WEAK = 0.1  # association in training up to which a site that does not predict the test labels is not reported
RESAMPLES = 1000
CHANCE = 0.5  # AUROC


def describe_site_confounding(target: Target, train: Subset, test: Subset, seed: int) -> list[str]:
    """Return one line if the site goes with the target, else none.

    It does if the 95 % interval of the association among training scans (`medssl.evals.explain.association`) lies above
    WEAK, or above 0 while the site alone predicts the labels of test scans better than chance. Sites of fewer than FEW
    training patients are pooled; scans without a site do not count. Nothing is known with fewer than two sites in training.
    """
    if SITE in (name.rpartition(":")[2] for name in target.columns):
        return []
    home = _sites(train)
    known = np.flatnonzero(home != UNKNOWN)
    patients = {s: len(set(train.patient[known][home[known] == s])) for s in sorted(set(home[known]))}
    rare = {s for s, n in patients.items() if n < FEW}
    pooled = np.array([OTHERS if s in rare else s for s in home[known]], object)
    names = sorted(set(pooled))
    if len(names) < 2:
        return []
    code = np.array([names.index(s) for s in pooled], np.int64)
    name, found = _association(target, train.y[known], code, train.patient[known], seed)
    away = np.array([OTHERS if s in rare else s for s in _sites(test)], object)
    alone = _alone(target, train.y[known], code, test, away, names, seed)
    if not (found.low > WEAK or (found.low > 0 and alone is not None and alone.low > CHANCE)):
        return []
    line = f"{target} goes with the site: {name} {found} among the {len(known)} training scans of {len(names)} sites"
    if alone is not None and not np.isnan(alone.value):
        line += f", and the site alone has AUROC {alone} on the {alone.n} test scans of these sites"
    return [f"{line}; the score may come from the site (medssl audit looks into it)"]


def _sites(subset: Subset) -> np.ndarray:
    """Return the site of each scan, (N,) object; UNKNOWN where there is none."""
    try:
        return words(subset, SITE)
    except UserError:
        return np.full(len(subset), UNKNOWN, object)


def _association(target: Target, y: np.ndarray, code: np.ndarray, patient: np.ndarray, seed: int) -> tuple[str, Score]:
    """Return the name and the value of the association of the sites (N,) with the targets y."""
    if _auroc(target) is not None:
        return "Cramér's V", association(CATEGORICAL, code, target.task, y, patient, n=RESAMPLES, seed=seed)
    if target.kind.least_squares:  # a number: how much of its variance lies between sites
        return "correlation ratio", association(CONTINUOUS, y, CATEGORICAL, code, patient, n=RESAMPLES, seed=seed)
    event = y[:, 1].astype(np.int64)
    return "Cramér's V of the event", association(
        CATEGORICAL, code, CATEGORICAL, event, patient, n=RESAMPLES, seed=seed
    )


def _auroc(target: Target) -> Metric | None:
    """Return the AUROC among the metrics of the task; None if it has none."""
    return next((metric for metric in target.kind.metrics if metric in (AUROC, MACRO_AUROC)), None)


def _alone(
    target: Target, y: np.ndarray, code: np.ndarray, test: Subset, away: np.ndarray, names: list[str], seed: int
) -> Score | None:
    """Return the AUROC on test scans of a model that knows the site only: the shares of classes at the scan's site in training.

    None for targets without classes, and if the test scans come from fewer than two of these sites.
    """
    here, metric = np.isin(away, names), _auroc(target)
    if metric is None or len(set(away[here])) < 2:
        return None
    there = np.eye(target.width)[y] if target.kind.ndim == 1 else y
    prior = np.nanmean(there, axis=0)
    # one more scan with the overall shares at every site, so that no share is 0 or 1
    share = np.stack(
        [
            (np.nansum(there[code == k], axis=0) + prior) / ((~np.isnan(there[code == k])).sum(0) + 1)
            for k in range(len(names))
        ]
    )
    p = share[[names.index(s) for s in away[here]]]
    return score(metric, test.y[here], p, test.patient[here], n=RESAMPLES, seed=seed)
