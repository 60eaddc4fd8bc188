"""The confounder audit of a linear probe: metadata fields that its score may depend on, as tables and sentences."""

from collections.abc import Iterable, Mapping, Sequence

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
from medssl.evals.stats.resampling import FEW
from medssl.evals.stats.text_table import Cell, text_table
from medssl.results import Result
from medssl.scoring.acquisition_metadata import (
    CATEGORICAL,
    CONTINUOUS,
    MetadataField,
    equivalent_field,
    field_names,
    load_field,
)
from medssl.scoring.eval_splits import EvalSplits
from medssl.scoring.features import FeatureSource
from medssl.scoring.leave_one_site_out import fewest_patients

LIMITS = (
    "Regressing out is linear and does not use the label: a nonlinear trace of the field remains, and signal of the disease that "
    "is associated with the field is removed. So a fall does not prove a shortcut, and no fall does not rule one out.",
    "Within and balanced hold only this field constant: the patients of two views may differ in other ways.",
    "Fields that are not in the store, such as tubes and wards, cannot be audited.",
)
Features = Mapping[str, Sequence[np.ndarray]]
"""Name -> features of the training, validation and test scans; the run's come first."""


def check_auditable(splits: EvalSplits) -> None:
    """Raise UserError unless the target is scored by AUROC and has FEW patients of each class in training and test."""
    target = splits.target
    if not target.kind.scored_by_class:
        raise UserError(
            f"an audit needs classes or findings, and {target} is scored as {target.task}; "
            "use task=classification, or give the positive values: positive=[…]"
        )
    for subset, what in ((splits.train, "training"), (splits.test, "test")):
        if (fewest := fewest_patients(subset, target)) < FEW:
            raise UserError(
                f"{fewest} {what} patients in the smallest class of {target}: too few, an audit needs at least {FEW}"
            )


def load_fields(splits: EvalSplits, wanted: Iterable[str] | str | None) -> tuple[list[MetadataField], dict[str, str]]:
    """Return the fields that vary enough to be audited, and the reasons for excluding the others."""
    train, test = splits.train, splits.test
    fields: list[MetadataField] = []
    left_out: dict[str, str] = {}
    for name in field_names(train.store, splits.target, wanted):
        try:
            field = load_field(name, train, test)
        except UserError as e:
            left_out[name] = str(e)
            continue
        if same := equivalent_field(field, fields, [train, test]):
            left_out[name] = f"the same as {same} in every scan"
        else:
            fields.append(field)
    return fields, left_out


def features_of_splits(source: FeatureSource, splits: EvalSplits) -> list[np.ndarray]:
    """Return features of training, validation (no rows if there is none) and test scans."""
    train, test = (source(s.store, s.rows) for s in (splits.train, splits.test))
    return [train, source(splits.val.store, splits.val.rows) if len(splits.val) else train[:0], test]


def audit_fields(
    fields: Iterable[MetadataField], splits: EvalSplits, x: Features, seed: int, device: str
) -> tuple[list[Evidence], dict[str, str]]:
    """Return the evidence of each field, the strongest finding first, and the reasons for excluding others."""
    target, subsets = splits.target, (splits.train, splits.val, splits.test)
    found: list[Evidence] = []
    left_out: dict[str, str] = {}
    for field in fields:
        data = []
        for i, subset in enumerate(subsets):
            value, known = field.read(subset)
            features = {name: each[i][known] for name, each in x.items()}
            data.append(ConfounderData(features, subset.y[known], value[known], subset.patient[known]))
        described = (field.name, field.kind, field.names, target.task, target.width)
        try:
            found.append(audit_confounder(*described, *data, notes=field.notes, seed=seed, device=device))
        except UserError as e:
            left_out[field.name] = str(e)
    return sorted(found, key=lambda e: FINDINGS.index(e.finding)), left_out


def describe_reasons(left_out: Mapping[str, str]) -> str:
    """Return "name (reason), …"."""
    return ", ".join(f"{name} ({why})" for name, why in left_out.items()) or "it has none"


def evidence_tables(found: Sequence[Evidence], target: str) -> Result:
    """Return the evidence as three tables with a line for each field."""
    if not found:
        return Result({"metadata": []})
    titles = (
        f"how well features predict each field; chance is {CHANCE[CATEGORICAL]} for AUROC and {CHANCE[CONTINUOUS]} for "
        "Spearman and R2",
        f"association of each field with {target}; alone is a model of the field only",
        f"the {found[0].metric} without the field; differences are paired",
    )
    tables = (_predicted(found), _associated(found), _controlled(found))
    texts = [f"{title}\n{table}" for title, table in zip(titles, tables, strict=True)]
    return Result({"metadata": [e.as_dict(target) for e in found]}, "\n\n".join(texts))


def evidence_sentences(found: Sequence[Evidence], target: str, left_out: dict[str, str]) -> Result:
    """Return a sentence for each field, the limits of the audit, and its conclusion."""
    outcome = (
        conclusion(found, target)
        or "No metadata could be audited, so only what is listed from the pictures was looked for."
    )
    lines = [e.sentence(target) for e in found] + [f"{e.field}: {note}." for e in found for note in e.notes]
    lines += [f"Not audited: {describe_reasons(left_out)}."] if left_out else []
    data = {"not_audited": left_out, "limits": list(LIMITS), "verdict": outcome}
    return Result(data, "\n".join([*lines, *LIMITS, "", outcome]))


def _predicted(found: Sequence[Evidence]) -> str:
    lines: list[dict[str, Cell]] = []
    own, *others = found[0].predicted
    for e in found:
        for i, metric in enumerate(e.predicted[own]):
            lines.append({"field": e.field, "by": metric, **{name: each[metric] for name, each in e.predicted.items()}})
            if i == 0:
                lines[-1] |= {
                    "in one label": e.predicted_within_label,
                    **{f"Δ {name} vs run": s for name, s in e.predicted_difference.items()},
                }
    return text_table(
        lines, ["field", "by", own, "in one label", *(c for name in others for c in (name, f"Δ {name} vs run"))]
    )


def _associated(found: Sequence[Evidence]) -> str:
    alone = f"{found[0].metric} alone"
    lines: list[dict[str, Cell]] = [
        {
            "field": e.field,
            alone: e.alone,
            "association": ASSOCIATION[e.kind],
            "in training": e.association_train,
            "in test": e.association_test,
        }
        for e in found
    ]
    return text_table(lines, list(lines[0]))


def _controlled(found: Sequence[Evidence]) -> str:
    lines: list[dict[str, Cell]] = []
    for e in found:
        line: dict[str, Cell] = {"field": e.field, "with the field": e.score}
        for key, name in (("regressed_out", "regressed out"), ("within", "within"), ("balanced", "balanced")):
            line |= {name: getattr(e, key), f"Δ {name}": e.differences[key]}
        lines.append(line)
    return text_table(lines, list(lines[0]))
