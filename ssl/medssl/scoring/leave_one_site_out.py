"""Scores at each site of a probe that was trained without it."""

from collections.abc import Sequence

import numpy as np

from medssl.errors import UserError
from medssl.evals.probes.linear import linear_probes
from medssl.evals.stats.bootstrap import difference, score
from medssl.evals.stats.resampling import FEW
from medssl.evals.stats.score import Score
from medssl.evals.stats.subgroups import UNKNOWN
from medssl.evals.stats.text_table import Cell, text_table
from medssl.results import Result
from medssl.scoring.acquisition_metadata import words
from medssl.scoring.eval_splits import EvalSplits
from medssl.scoring.targets import Subset, Target

COLUMNS = ("site", "scans", "trained on all sites", "trained without it", "difference")


def leave_one_site_out(
    x: Sequence[np.ndarray], splits: EvalSplits, seed: int, device: str
) -> tuple[np.ndarray, Result]:
    """Return the predictions of a probe trained on all sites, and each site's scores with and without it in training.

    x: features of the training, validation and test scans. `sites` is empty if there are fewer than two.
    """
    target, metric = splits.target, splits.target.kind.metrics[0]
    subsets = (splits.train, splits.val, splits.test)
    train, val, test = (words(subset, "site").astype(str) for subset in subsets)

    def predict(site: str | None) -> np.ndarray:
        """Return predictions for the test scans of a site, without it in training; None: for all scans, trained on all."""
        rows = [train != site, val != site, (test == site) | (site is None)]
        (a, y_train), (b, y_val), (c, _) = ((f[r], s.y[r]) for f, s, r in zip(x, subsets, rows, strict=True))
        return linear_probes(
            (a, y_train), (b, y_val) if len(b) else None, [c], task=target.task, classes=target.width,
            patient=splits.train.patient[rows[0]], seed=seed, device=device,
        )[0].predictions[0]  # fmt: skip

    whole = predict(None)
    sites = sorted({*train, *test} - {UNKNOWN})
    if len(sites) < 2:
        text = "Fewer than two sites are recorded, so transfer between sites is not known; see medssl transfer."
        return whole, Result({"sites": {}}, text)
    lines: dict[str, dict[str, Cell]] = {}
    for site in sites:
        here = test == site
        y, patient = splits.test.y[here], splits.test.patient[here]
        line = lines[site] = {"scans": f"{here.sum()} test scans of {len(set(patient))} patients"}
        try:
            _check(site, train, splits.test.take(here), target)
            p, q = whole[here], predict(site)
            scores = (
                score(metric, y, p, patient, seed=seed),
                score(metric, y, q, patient, seed=seed),
                difference(metric, y, q, p, patient, seed=seed),
            )
            line |= dict(zip(COLUMNS[2:], scores, strict=True))
        except UserError as e:
            line["why"] = str(e)
    columns = [*COLUMNS, *(["why"] if any("why" in line for line in lines.values()) else [])]
    table = text_table([{"site": site} | line for site, line in lines.items()], columns)
    found = {
        site: {k: v.as_dict() if isinstance(v, Score) else v for k, v in line.items()} for site, line in lines.items()
    }
    return whole, Result({"sites": found}, f"{metric.name} at each site, by a probe trained without it\n{table}")


def fewest_patients(subset: Subset, target: Target) -> int:
    """Return the number of patients in the smallest class; for findings, the largest such number among them."""

    def patients(rows: np.ndarray) -> int:
        return len(set(subset.patient[rows]))

    if target.kind.ndim == 2:
        return max(min(patients(column == there) for there in (0, 1)) for column in subset.y.T)
    return min(patients(subset.y == k) for k in range(target.width))


def _check(site: str, train: np.ndarray, test: Subset, target: Target) -> None:
    """Raise UserError, with the reason, for a site that cannot be scored."""
    if site not in train:
        raise UserError("not in training")
    if (fewest := fewest_patients(test, target)) < FEW:
        raise UserError(f"{fewest} patients in the smallest class, fewer than {FEW}")
