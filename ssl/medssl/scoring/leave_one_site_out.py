"""What a probe is worth at a site that it was not fitted on."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from medssl.errors import UserError
from medssl.evals.probes.linear import linear_probes
from medssl.evals.stats.bootstrap import FEW, difference, score
from medssl.evals.stats.score import Score
from medssl.evals.stats.subgroups import UNKNOWN
from medssl.evals.stats.text_table import text_table
from medssl.scoring.acquisition_metadata import words
from medssl.scoring.eval_splits import EvalSplits
from medssl.scoring.targets import Subset, Target

Line = dict[str, str | Score | None]


def without_each_site(
    x: Sequence[np.ndarray], splits: EvalSplits, seed: int, device: str
) -> tuple[np.ndarray, dict[str, Any]]:
    """Prints and returns, by site, how its test patients fare under a probe fitted without it; {} where there is one site.

    x: features of the training, validation and test scans. Before it come the predictions, for all test scans, of a probe that
    was fitted on all sites.
    """
    target, metric, parts = (
        splits.target,
        splits.target.kind.metrics[0],
        (splits.train, splits.val, splits.test),
    )
    train, val, test = (words(part, "site").astype(str) for part in parts)

    def probed(site: str | None) -> np.ndarray:
        """Predictions for the test scans of the site, without it in training; None: for all, with all."""
        rows = [train != site, val != site, (test == site) | (site is None)]
        (a, y_train), (b, y_val), (c, _) = ((f[r], p.y[r]) for f, p, r in zip(x, parts, rows, strict=True))
        return linear_probes(
            (a, y_train), (b, y_val) if len(b) else None, [c], task=target.task, classes=target.width,
            patient=splits.train.patient[rows[0]], seed=seed, device=device,
        )[0].predictions[0]  # fmt: skip

    whole = probed(None)
    sites = sorted({*train, *test} - {UNKNOWN})
    if len(sites) < 2:
        print("\nSites are not recorded, or there is one: how the score travels is not known (medssl transfer).")
        return whole, {}
    lines: list[Line] = []
    for site in sites:
        here = test == site
        y, patient = splits.test.y[here], splits.test.patient[here]
        line: Line = {"site": site, "scans": f"{here.sum()} test scans of {len(set(patient))} patients"}
        lines.append(line)
        try:
            _check(site, train, splits.test.take(here), target)
            p, q = whole[here], probed(site)
            line |= {
                "trained on all sites": score(metric, y, p, patient, seed=seed),
                "trained without it": score(metric, y, q, patient, seed=seed),
                "difference": difference(metric, y, q, p, patient, seed=seed),
            }
        except UserError as e:
            line["why"] = str(e)
    print(f"\n{metric.name} at each site, of a probe fitted without it")
    columns = [
        "site",
        "scans",
        "trained on all sites",
        "trained without it",
        "difference",
        *(["why"] if any("why" in v for v in lines) else []),
    ]
    print(text_table(lines, columns))
    found = [{k: v.as_dict() if isinstance(v, Score) else v for k, v in line.items()} for line in lines]
    return whole, {str(line.pop("site")): line for line in found}


def fewest_patients(part: Subset, target: Target) -> int:
    """How many patients the class has that has fewest; of labels, that of the label which has most of both."""

    def patients(rows: np.ndarray) -> int:
        return len(set(part.patient[rows]))

    if target.kind.ndim == 2:
        return max(min(patients(column == there) for there in (0, 1)) for column in part.y.T)
    return min(patients(part.y == k) for k in range(target.width))


def _check(site: str, train: np.ndarray, test: Subset, target: Target) -> None:
    """UserError with the reason why a site cannot be tested."""
    if site not in train:
        raise UserError("not in training")
    if (fewest := fewest_patients(test, target)) < FEW:
        raise UserError(f"{fewest} patients of a class, fewer than {FEW}")
