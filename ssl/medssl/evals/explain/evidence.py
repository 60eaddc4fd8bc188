"""Evidence on whether a score depends on a possible confounder, a metadata field such as the scanner or the age.

Do features predict the field, is it associated with the label, and what remains of the score when it is controlled for?
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medssl.evals.explain.association import association
from medssl.evals.explain.shortcuts import ConfoundRegression, auroc_balanced, auroc_within, design, edges
from medssl.evals.metrics.metrics import AUROC, R2, SPEARMAN, Metric
from medssl.evals.probes.linear import linear_probes
from medssl.evals.stats.bootstrap import difference, score, scores
from medssl.evals.stats.score import Score
from medssl.evals.task_types.task_types import task_type

# metrics of the prediction of a field
PREDICTED: dict[str, tuple[Metric, ...]] = {"classification": (AUROC,), "regression": (SPEARMAN, R2)}
CHANCE = {"classification": 0.5, "regression": 0.0}
ASSOCIATION = {"classification": "Cramér's V", "regression": "correlation ratio"}
FINDINGS = PART, POSSIBLE, NONE = "part", "possible", "none"


@dataclass(frozen=True)
class ConfounderData:
    """The scans of one split where the field is known: features by name, the run's first; labels y, field and patient (N,)."""

    x: Mapping[str, ArrayLike]
    y: NDArray[Any]
    field: NDArray[Any]
    patient: NDArray[Any]

    def __len__(self) -> int:
        return len(self.field)


@dataclass(frozen=True)
class Evidence:
    """Evidence on one metadata field; scores are on the test scans where it is known, except `association_train`.

    Attributes:
        field: its name.
        kind: the task of predicting it, classification or regression.
        values: names of its classes.
        metric: the main metric of the target.
        predicted: scores of a linear probe of the field, by features, then by metric of PREDICTED; the run's features first.
        predicted_within_label: the same for the run's features among scans of one label, because features that show the label
            also predict what is associated with it.
        predicted_difference: the first metric for each of the other features minus the run's, paired.
        alone: the target's score of a model of the field alone, fitted on training scans.
        association_train, association_test: association of field and label.
        score: the target's score of the probe.
        regressed_out: the same of a probe on features with the field regressed out.
        within, balanced: see `shortcuts`.
        differences: regressed_out, within and balanced minus score, paired.
        notes: further remarks on the field.
    """

    field: str
    kind: str
    values: tuple[str, ...]
    metric: str
    predicted: dict[str, dict[str, Score]]
    predicted_within_label: Score
    predicted_difference: dict[str, Score]
    alone: Score
    association_train: Score
    association_test: Score
    score: Score
    regressed_out: Score
    within: Score
    balanced: Score
    differences: dict[str, Score]
    notes: tuple[str, ...] = ()

    @property
    def is_predicted(self) -> bool:
        """Return whether the run's features predict the field better than chance, with the whole interval."""
        return _above(self.prediction, CHANCE[self.kind]) is True

    @property
    def prediction(self) -> Score:
        """The first metric of predicting the field from the run's features."""
        return next(iter(next(iter(self.predicted.values())).values()))

    @property
    def finding(self) -> str:
        """PART, POSSIBLE or NONE.

        Part of the score comes from the field if the features predict it, it alone predicts the label of test scans, and the
        score is lower within equal values of the field, each with the whole 95 % interval. This is possible if the features
        predict it, it is associated with the label in training or in test, and a lower score within equal values is not
        excluded. In simulations of 400 cohorts with 80 test patients and features that predict a field independent of the
        label, none is PART and 7 % are POSSIBLE.

        A score without an interval shows nothing and excludes nothing: the finding is POSSIBLE unless one of the scores with
        an interval suffices for NONE.
        """
        predicted, alone = _above(self.prediction, CHANCE[self.kind]), _above(self.alone, 0.5)
        change = self.differences["within"]
        if predicted and alone and change.high < 0:
            return PART
        # each is None where it is undefined, which differs from False
        unassociated = alone is False and _above(self.association_train, 0.0) is False
        return NONE if predicted is False or unassociated or change.low >= 0 else POSSIBLE

    def sentence(self, target: str) -> str:
        """Return a summary that claims only what the intervals show."""
        parts = [self._prediction(), *self._association(target), self._within()]
        end = {
            PART: f": part of the score comes from the {self.field}",
            POSSIBLE: f": whether part of the score comes from the {self.field} is neither shown nor excluded",
            NONE: "",
        }[self.finding]
        return f"{self.field}: {'; '.join(parts)}{end}."

    def _prediction(self) -> str:
        said = (
            f"{PREDICTED[self.kind][0].name} {self.prediction}, {self.predicted_within_label} among scans of one label"
        )
        compared: dict[str, list[str]] = {}
        for name, d in self.predicted_difference.items():
            words = "better than" if d.high < 0 else "worse than" if d.low > 0 else "not shown to differ from"
            compared.setdefault(words, []).append(name)
        said += "".join(f", {words} {_listed(names)}" for words, names in compared.items())
        if _above(self.prediction, CHANCE[self.kind]) is None:
            return f"whether the features predict it is not known ({said}; {_why(self.prediction)})"
        return f"the features {'predict it' if self.is_predicted else 'are not shown to predict it'} ({said})"

    def _association(self, target: str) -> list[str]:
        out = []
        if self.association_train.low > 0:
            out.append(
                f"it is associated with {target} in training ({ASSOCIATION[self.kind]} {self.association_train})"
            )
        elif np.isnan(self.association_train.low):
            found = f"{ASSOCIATION[self.kind]} {self.association_train}; {_why(self.association_train)}"
            out.append(f"whether it is associated with {target} in training is not known ({found})")
        score = f"({self.metric} {self.alone})"
        if _above(self.alone, 0.5) is None:
            out.append(
                f"whether it alone predicts {target} on test scans is not known ({self.metric} {self.alone}; {_why(self.alone)})"
            )
        elif self.alone.low > 0.5:
            out.append(f"alone it predicts {target} on test scans {score}")
        elif self.alone.high < 0.5:
            out.append(f"its association with {target} is reversed on test scans {score}")
        else:
            out.append(f"alone it is not shown to predict {target} on test scans {score}")
        return out

    def _within(self) -> str:
        where = f"within one {self.field}" if self.kind == "classification" else f"within bands of {self.field}"
        change = self.differences["within"]
        if np.isnan(self.within.value):
            return f"scans of equal {self.field} have one label, so the two cannot be told apart"
        ends = f"from {self.score} to {self.within}, paired {change}"
        if np.isnan(change.low):
            return f"whether the score falls {where} is not known ({ends}; {_why(change)})"
        if change.high < 0:
            said = f"{where} the score falls {ends}"
            return said if self.within.low > 0.5 else f"{said}, where it is not shown to be above chance"
        return f"{where} the score {'rises' if change.low > 0 else 'is not shown to fall'} ({ends})"

    def as_dict(self, target: str) -> dict[str, Any]:
        """Return JSON values."""
        values: dict[str, Any] = {f.name: _plain(getattr(self, f.name)) for f in fields(self)}
        return values | {
            "association": ASSOCIATION[self.kind], "finding": self.finding, "sentence": self.sentence(target)
        }  # fmt: skip


def _above(found: Score, chance: float) -> bool | None:
    """Return whether the whole interval lies above chance; None if there is no interval."""
    return None if np.isnan(found.low) else found.low > chance


def _why(found: Score) -> str:
    return found.how if found.how.startswith("no interval") else f"no interval: {found.how}"


def _plain(value: Any) -> Any:
    if isinstance(value, Score):
        return value.as_dict()
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return list(value) if isinstance(value, tuple) else value


def audit_confounder(
    field: str,
    kind: str,
    values: Sequence[str],
    task: str,
    classes: int,
    train: ConfounderData,
    val: ConfounderData,
    test: ConfounderData,
    *,
    notes: Sequence[str] = (),
    seed: int = 0,
    device: str = "cpu",
) -> Evidence:
    """Return the evidence on one metadata field for a target with `classes` classes or findings.

    values: names of the field's codes, none for a number. Every model is fitted on `train`, its penalty selected on `val`
    (on held-out patients of `train` if that is empty), and scored on `test`; they share no patient. Raises UserError as
    `linear_probes` does.
    """
    main, y, patient = task_type(task).metrics[0], test.y, test.patient
    options: dict[str, Any] = {"patient": train.patient, "seed": seed, "device": device}

    def probed(x: ArrayLike, x_val: ArrayLike, x_test: ArrayLike, of_field: bool = False) -> NDArray[np.float64]:
        labels, val_labels = (s.field if of_field else s.y for s in (train, val))
        name, count = (kind, len(values) or None) if of_field else (task, classes)
        validation = (x_val, val_labels) if len(val) else None
        (probe,) = linear_probes((x, labels), validation, [x_test], task=name, classes=count, **options)
        return probe.predictions[0]

    guesses = {name: probed(train.x[name], val.x[name], test.x[name], of_field=True) for name in train.x}
    own, *others = guesses
    best = PREDICTED[kind][0]
    columns = design(kind, train.field)
    p_alone = probed(columns(train.field), columns(val.field), columns(test.field))
    x, x_val, x_test = train.x[own], val.x[own], test.x[own]
    p = probed(x, x_val, x_test)
    correct = ConfoundRegression.fit(x, train.field, kind)
    q = probed(correct(x, train.field), correct(x_val, val.field), correct(x_test, test.field))
    group = test.field if kind == "classification" else np.searchsorted(edges(train.field), test.field, side="right")
    within, balanced = auroc_within(task, group), auroc_balanced(task, group)
    within_change, balanced_change = auroc_within(task, group, change=True), auroc_balanced(task, group, change=True)
    found = scores([main, within, balanced, within_change, balanced_change], y, p, patient, seed=seed)
    return Evidence(
        field, kind, tuple(values), main.name,
        predicted={name: scores(PREDICTED[kind], test.field, guess, patient, seed=seed) for name, guess in guesses.items()},
        predicted_within_label=score(auroc_within(kind, np.nan_to_num(y, nan=-1)), test.field, guesses[own], patient, seed=seed),
        predicted_difference={
            name: difference(best, test.field, guesses[name], guesses[own], patient, seed=seed) for name in others
        },
        alone=score(main, y, p_alone, patient, seed=seed),
        association_train=association(kind, train.field, task, train.y, train.patient, seed=seed),
        association_test=association(kind, test.field, task, y, patient, seed=seed),
        score=found[main.name],
        regressed_out=score(main, y, q, patient, seed=seed),
        within=found[within.name],
        balanced=found[balanced.name],
        differences={
            "regressed_out": difference(main, y, q, p, patient, seed=seed),
            "within": found[within_change.name],
            "balanced": found[balanced_change.name],
        },
        notes=tuple(notes),
    )  # fmt: skip


def conclusion(found: Sequence[Evidence], target: str) -> str:
    """Return what all fields together show about the score of `target`."""
    by = {finding: [e.field for e in found if e.finding == finding] for finding in FINDINGS}
    lines = []
    if by[PART]:
        lines.append(f"Part of the score of {target} comes from {_listed([f'the {f}' for f in by[PART]])}.")
    if by[POSSIBLE]:
        which = _listed([f"the {f}" for f in by[POSSIBLE]], "or")
        lines.append(f"Whether part of the score of {target} comes from {which} is neither shown nor excluded.")
    if by[NONE]:
        lines.append(f"No shortcut was found in the metadata at hand: {_listed(by[NONE])}.")
    return " ".join(lines)


def _listed(words: Sequence[str], last: str = "and") -> str:
    return f" {last} ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))
