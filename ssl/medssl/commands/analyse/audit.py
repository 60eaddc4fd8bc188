"""Run + labelled store -> RUN/audit.json: does the score live off the scanner, the view or the age instead of the disease?"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from medssl.errors import UserError
from medssl.evals.explain.evidence import (
    ASSOCIATION,
    CHANCE,
    FINDINGS,
    ConfounderData,
    Evidence,
    audit_confounder,
    conclusion,
)
from medssl.evals.stats.bootstrap import FEW
from medssl.evals.stats.score import Score
from medssl.evals.stats.text_table import text_table
from medssl.scoring import clinical
from medssl.scoring.acquisition_metadata import AcquisitionField, chosen, fact_of, twin
from medssl.scoring.baselines import FeatureSources
from medssl.scoring.eval_splits import EvalSplits
from medssl.scoring.features import FeatureSource
from medssl.scoring.leave_one_site_out import fewest_patients, without_each_site
from medssl.scoring.score_table import ScoreTable, headline, save_table
from medssl.store.store import Store

RIVALS = ("raw pixels", "random init")
LIMITS = (
    "Regressed out is linear and knows no label: a trace that no straight line shows stays in, and disease that goes with the "
    "fact goes out, so a fall is no proof of a shortcut, and none is no proof of its absence.",
    "Within and balanced hold the fact equal, not what goes with it: the patients of two views differ in more than the view.",
    "Facts that the store does not know, such as tubes, markers and wards, cannot be audited.",
)
Line = dict[str, str | Score | None]


def audit(
    run: str | Path,
    store: str | Path | Store,
    target: str | list[str],
    *,
    facts: str | list[str] | None = None,
    task: str = "auto",
    where: str | None = None,
    test_where: str | None = None,
    positive: Iterable[str] | None = None,
    test_store: str | Path | Store | None = None,
    allow_overlap: bool = False,
    seed: int = 0,
    device: str = "auto",
) -> dict[str, Any]:
    """Look for shortcuts in the linear probe's score of `target`; prints tables and sentences, and returns what was found.

    For every fact: how well the frozen features tell it, beside raw pixels and the untrained encoder; how it goes with the
    target; and what is left of the score with the fact regressed out, within the fact, and balanced (`evals.explain.shortcuts`).
    A sentence of each claims what intervals over patients show. Facts that cannot be audited are listed with the reason. Where
    there are several sites, each is also tested by a probe that was fitted without it. Added to RUN/audit.json.

    Args:
        run: a finished run folder.
        store: a labelled store.
        target: a label with classes, or several that are each there or not.
        facts: which facts, or other labels; None is site, scanner, modality, all facts of headers and tables, and the pixels'
            number and type.
        task: auto, classification or multilabel; numbers, ordinal levels and survival have no AUROC to take a fact out of.
        where, test_where, positive, test_store, allow_overlap, seed, device: as for `medssl.probe`.

    Raises UserError as `medssl.probe` does, when no fact can be audited, and for too few patients of a class.
    """
    sources, splits = FeatureSources.of(
        run, store, target, device, task=task, positive=positive, where=where, test_where=test_where, test_store=test_store,
        allow_overlap=allow_overlap,
    )  # fmt: skip
    _check(splits)
    wanted, left = _facts(splits, facts)
    if not wanted:
        raise UserError(
            f"{splits.train.store.path} knows no fact that could be audited ({_reasons(left)}); "
            "ingest with a table that has site, view, sex or age"
        )
    about = ScoreTable("audit", splits, sources.name, seed=seed).about
    print(headline(about))
    x = {sources.name if n == "run" else n: _features(s, splits) for n, s in sources.all(RIVALS)}
    found: list[Evidence] = []
    for fact in wanted:
        try:
            found.append(_examined(fact, splits, x, seed, sources.device))
        except UserError as e:
            left[fact.name] = str(e)
    if not found:
        raise UserError(f"no fact of {splits.train.store.path} could be audited ({_reasons(left)})")
    found.sort(key=lambda e: FINDINGS.index(e.finding))
    _print(found, str(splits.target))
    p, sites = without_each_site(x[sources.name], splits, seed, sources.device)
    groups = clinical.for_whom(
        splits, p, seed, [e.field for e in found if e.kind == "classification" or e.field == "age"]
    )
    said = [e.sentence(str(splits.target)) for e in found]
    outcome = conclusion(found, str(splits.target))
    print("\n" + "\n".join([*said, *(f"{e.field}: {note}." for e in found for note in e.notes)]))
    if left:
        print(f"Not audited: {_reasons(left)}.")
    print("\n".join([*LIMITS, "", outcome]))
    result = about | {
        "metadata": [e.as_dict(str(splits.target)) for e in found],
        "not_audited": left, "sites": sites, "subgroups": groups, "limits": list(LIMITS), "verdict": outcome,
    }  # fmt: skip
    save_table(sources.folder.path / "audit.json", result)
    return result


def _check(splits: EvalSplits) -> None:
    """An audit is of scores by AUROC, of some patients of each class."""
    target = splits.target
    if not target.kind.scored_by_class:
        raise UserError(
            f"an audit is of classes or labels, and {target} is scored as {target.task}; "
            "use task=classification, or say which values count with positive=[…]"
        )
    for part, what in ((splits.train, "training"), (splits.test, "test")):
        if (fewest := fewest_patients(part, target)) < FEW:
            raise UserError(f"{fewest} {what} patients of a class of {target}: too few to audit, it takes {FEW}")


def _facts(splits: EvalSplits, wanted: str | list[str] | None) -> tuple[list[AcquisitionField], dict[str, str]]:
    """Those that vary, and why the others are left out."""
    train, test = splits.train, splits.test
    out: list[AcquisitionField] = []
    left: dict[str, str] = {}
    for name in chosen(train.store, splits.target, wanted):
        try:
            fact = fact_of(name, train, test)
        except UserError as e:
            left[name] = str(e)
            continue
        if same := twin(fact, out, [train, test]):
            left[name] = f"says the same as {same} of every scan"
        else:
            out.append(fact)
    return out, left


def _features(source: FeatureSource, splits: EvalSplits) -> list[np.ndarray]:
    """Of training, validation (where there is none, no rows) and test."""
    train, test = (source(p.store, p.rows) for p in (splits.train, splits.test))
    return [train, source(splits.val.store, splits.val.rows) if len(splits.val) else train[:0], test]


def _reasons(left: dict[str, str]) -> str:
    return ", ".join(f"{name} ({why})" for name, why in left.items()) or "it has none"


def _examined(
    fact: AcquisitionField, splits: EvalSplits, x: dict[str, list[np.ndarray]], seed: int, device: str
) -> Evidence:
    """The evidence of one fact, on the scans that have it."""
    sets = []
    for i, part in enumerate((splits.train, splits.val, splits.test)):
        read, there = fact.read(part)
        sets.append(
            ConfounderData({n: v[i][there] for n, v in x.items()}, part.y[there], read[there], part.patient[there])
        )
    target = splits.target
    return audit_confounder(
        fact.name, fact.kind, fact.names, target.task, target.width, *sets, notes=fact.notes, seed=seed, device=device
    )


def _print(found: list[Evidence], target: str) -> None:
    """Three tables with a line for each fact."""
    told: list[Line] = []
    for e in found:
        for metric in next(iter(e.predicted.values())):
            line: Line = {"fact": e.field, "by": metric, **{name: each[metric] for name, each in e.predicted.items()}}
            main = metric == next(iter(next(iter(e.predicted.values()))))
            if main:
                line |= {
                    "in one label": e.predicted_within_label,
                    **{f"{name} minus run": s for name, s in e.predicted_difference.items()},
                }
            told.append(line)
    own, *others = found[0].predicted
    columns = [own, "in one label", *(c for name in others for c in (name, f"{name} minus run"))]
    print(
        f"\nhow well features tell the fact; chance is {CHANCE['classification']} for AUROC and {CHANCE['regression']} for Spearman and R2"
    )
    print(text_table(told, ["fact", "by", *columns]))
    print(f"\nhow the fact goes with {target}; alone is a model of the fact and nothing else")
    goes: list[Line] = [
        {"fact": e.field, f"{e.metric} alone": e.alone, "association": ASSOCIATION[e.kind], "in training": e.association_train,
         "in test": e.association_test}
        for e in found
    ]  # fmt: skip
    print(text_table(goes, ["fact", f"{found[0].metric} alone", "association", "in training", "in test"]))
    print(f"\nwhat is left of the {found[0].metric} without the fact; changes are paired")
    left: list[Line] = []
    for e in found:
        line = {"fact": e.field, "as it is": e.score}
        for key, name in (("regressed_out", "regressed out"), ("within", "within"), ("balanced", "balanced")):
            line |= {name: getattr(e, key), f"change {name}": e.differences[key]}
        left.append(line)
    print(text_table(left, list(left[0])))
