"""A warning above every score of a label associated with the site: such a score may come from the site, not the scans."""

from typing import NamedTuple

import numpy as np

from medssl.errors import UserError
from medssl.evals.explain.association import association
from medssl.evals.metrics.metrics import AUROC, MACRO_AUROC, Metric
from medssl.evals.stats.bootstrap import score
from medssl.evals.stats.resampling import FEW
from medssl.evals.stats.score import Score
from medssl.evals.stats.subgroups import UNKNOWN
from medssl.scoring.acquisition_metadata import CATEGORICAL, CONTINUOUS, OTHERS, words
from medssl.scoring.targets import Subset, Target

SITE = "site"
WEAK = 0.1  # association in training up to which a site that does not predict the test labels is not reported
RESAMPLES = 1000
CHANCE = 0.5  # AUROC


class Sites(NamedTuple):
    """Scans with a known target: y (N, …) as the metrics take it, site (N,) object, patient (N,); UNKNOWN without a site."""

    y: np.ndarray
    site: np.ndarray
    patient: np.ndarray

    @classmethod
    def of(cls, subset: Subset) -> "Sites":
        """Return those of a split."""
        try:
            site = words(subset, SITE)
        except UserError:
            site = np.full(len(subset), UNKNOWN, object)
        return cls(subset.y, site, subset.patient)

    def take(self, at: np.ndarray) -> "Sites":
        """Return the scans at the mask `at`."""
        return Sites(self.y[at], self.site[at], self.patient[at])


def describe_site_confounding(target: Target, train: Subset, test: Subset, seed: int) -> list[str]:
    """Return one line if the site is associated with the target among the scans of a split, else none; see `describe_sites`."""
    return describe_sites(target, Sites.of(train), Sites.of(test), seed)


def describe_sites(target: Target, train: Sites, test: Sites, seed: int) -> list[str]:
    """Return one line if the site is associated with the target, else none.

    It does if the 95 % interval of the association among training scans (`medssl.evals.explain.association`) lies above
    WEAK, or above 0 while the site alone predicts the labels of test scans better than chance. Sites of fewer than FEW
    training patients are pooled; scans without a site do not count. Nothing is known with fewer than two sites in training.
    """
    if SITE in (name.rpartition(":")[2] for name in target.columns):
        return []
    train = train.take(train.site != UNKNOWN)
    rare = [s for s in set(train.site) if len(set(train.patient[train.site == s])) < FEW]
    train, test = (each._replace(site=np.where(np.isin(each.site, rare), OTHERS, each.site)) for each in (train, test))
    names = sorted(set(train.site))
    if len(names) < 2:
        return []
    code = np.array([names.index(s) for s in train.site], np.int64)
    name, found = _association(target, train.y, code, train.patient, seed)
    alone = _alone(target, train.y, code, test.take(np.isin(test.site, names)), names, seed)
    if not (found.low > WEAK or (found.low > 0 and alone is not None and alone.low > CHANCE)):
        return []
    line = f"{target} is associated with the site: {name} {found} among the {len(code)} training scans of {len(names)} sites"
    if alone is not None and not np.isnan(alone.value):
        line += f", and the site alone has AUROC {alone} on the {alone.n} test scans of these sites"
    return [f"{line}; the score may come from the site (medssl audit looks into it)"]


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


def _alone(target: Target, y: np.ndarray, code: np.ndarray, test: Sites, names: list[str], seed: int) -> Score | None:
    """Return the AUROC on test scans of a model that knows the site only: the shares of classes at the scan's site in training.

    None for targets without classes, and if the test scans come from fewer than two of the sites.
    """
    metric = _auroc(target)
    if metric is None or len(set(test.site)) < 2:
        return None
    there = np.eye(target.width)[y] if y.ndim == 1 else y
    prior = np.nanmean(there, axis=0)
    # one more scan with the overall shares at every site, so that no share is 0 or 1
    here = [there[code == k] for k in range(len(names))]
    share = np.stack([(np.nansum(x, axis=0) + prior) / ((~np.isnan(x)).sum(0) + 1) for x in here])
    p = share[[names.index(s) for s in test.site]]
    return score(metric, test.y, p, test.patient, n=RESAMPLES, seed=seed)
