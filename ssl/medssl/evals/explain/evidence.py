"""What speaks for a score living off a fact of the scan: do features tell it, does it go with the label, what is left."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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

TOLD: dict[str, tuple[Metric, ...]] = {
    "classification": (AUROC,),
    "regression": (SPEARMAN, R2),
}  # how well a fact is told
CHANCE = {"classification": 0.5, "regression": 0.0}
ASSOCIATION = {"classification": "Cramér's V", "regression": "correlation ratio"}
FINDINGS = PART, POSSIBLE, NONE = "part", "possible", "none"


@dataclass(frozen=True)
class ConfounderData:
    """ConfounderData of one split that have the fact: features by name, the run's first; truth, fact (N,) and patient (N,)."""

    x: Mapping[str, ArrayLike]
    y: NDArray[Any]
    fact: NDArray[Any]
    patient: NDArray[Any]

    def __len__(self) -> int:
        return len(self.fact)


@dataclass(frozen=True)
class Evidence:
    """Of one fact; every number on the test scans that have it, but for `trained`.

    Attributes:
        fact, kind: its name; classification or regression. values: their names. metric: of the task.
        told: how well a linear probe tells it, by features and then by metric of TOLD; the first features are the run's.
        still: the same of the run's features among scans of one label: encoders tell what goes with a disease from the disease.
        beyond: the first metric of each other features, minus that of the run, paired.
        alone: the task's AUROC of a model of the fact alone, fitted on training scans.
        trained, tested: association of fact and label in training and in test.
        whole: the task's AUROC of the probe. without: of a probe on features with the fact regressed out. within, balanced: see
            `shortcuts`. changes: of the last three to the first, by name, paired.
        notes: what else to know of the fact.
    """

    fact: str
    kind: str
    values: tuple[str, ...]
    metric: str
    told: dict[str, dict[str, Score]]
    still: Score
    beyond: dict[str, Score]
    alone: Score
    trained: Score
    tested: Score
    whole: Score
    without: Score
    within: Score
    balanced: Score
    changes: dict[str, Score]
    notes: tuple[str, ...] = field(default=())

    @property
    def is_told(self) -> bool:
        """Whether the run's features tell the fact better than chance, with all of the interval."""
        return self.best.low > CHANCE[self.kind]

    @property
    def best(self) -> Score:
        """How well the run's features tell the fact."""
        return next(iter(next(iter(self.told.values())).values()))

    @property
    def finding(self) -> str:
        """PART, POSSIBLE or NONE.

        A part of the score is the fact where the features tell it, it alone predicts the label of test scans, and the score
        is lower within the fact, each with all of its 95 % interval. It is possible where they tell it and it goes with the
        label, in training or in test, and a lower score within is not excluded. Simulated, of 400 cohorts with 80 test
        patients whose features tell a fact that does not go with the label, none is PART and 7 % are POSSIBLE.
        """
        if not self.is_told:
            return NONE
        if self.alone.low > 0.5 and self.changes["within"].high < 0:
            return PART
        goes = self.alone.low > 0.5 or self.trained.low > 0
        return POSSIBLE if goes and not self.changes["within"].low >= 0 else NONE  # undefined excludes nothing

    def sentence(self, target: str) -> str:
        """All of it, claiming only what intervals show."""
        parts = [self._told(), *self._goes(target), self._falls()]
        end = {
            PART: f": part of the score is the {self.fact}",
            POSSIBLE: f": that part of the score is the {self.fact} is neither shown nor excluded",
            NONE: "",
        }[self.finding]
        return f"{self.fact}: {'; '.join(parts)}{end}."

    def _told(self) -> str:
        said = f"{TOLD[self.kind][0].name} {self.best}, {self.still} among scans of one label"
        said += "".join(f", {word} {_listed(names)}" for word, names in self._beside().items())
        return f"the encoder {'tells it' if self.is_told else 'is not shown to tell it'} ({said})"

    def _beside(self) -> dict[str, list[str]]:
        """Words for how the run stands to other features -> which."""
        out: dict[str, list[str]] = {}
        for name, d in self.beyond.items():
            word = "more than" if d.high < 0 else "less than" if d.low > 0 else "not shown to differ from"
            out.setdefault(word, []).append(name)
        return out

    def _goes(self, target: str) -> list[str]:
        out = []
        if self.trained.low > 0:
            out.append(f"it goes with {target} in training ({ASSOCIATION[self.kind]} {self.trained})")
        if self.alone.low > 0.5:
            out.append(f"alone it predicts {target} of test scans ({self.metric} {self.alone})")
        elif self.alone.high < 0.5:
            out.append(
                f"what it says of {target} in training is the wrong way round in test ({self.metric} {self.alone})"
            )
        else:
            out.append(f"alone it is not shown to predict {target} of test scans ({self.metric} {self.alone})")
        return out

    def _falls(self) -> str:
        where = f"within one {self.fact}" if self.kind == "classification" else f"within bands of {self.fact}"
        change = self.changes["within"]
        if np.isnan(self.within.value) or np.isnan(change.low):
            return f"scans of equal {self.fact} do not differ in the label, so the two cannot be told apart"
        ends = f"from {self.whole} to {self.within}, paired {change}"
        if change.high < 0:
            said = f"{where} the score falls {ends}"
            return said if self.within.low > 0.5 else f"{said}, where it is not shown to be above chance"
        return f"{where} the score {'rises' if change.low > 0 else 'is not shown to fall'} ({ends})"

    def as_dict(self, target: str) -> dict[str, Any]:
        """Return JSON values."""
        scores = {
            "predicted_within_label": self.still, "alone": self.alone, "association_train": self.trained,
            "association_test": self.tested, "score": self.whole, "regressed_out": self.without,
            "within": self.within, "balanced": self.balanced,
        }  # fmt: skip
        differences = {"regressed_out" if k == "without" else k: s.as_dict() for k, s in self.changes.items()}
        return {
            "field": self.fact, "kind": self.kind, "values": list(self.values), "metric": self.metric,
            "association": ASSOCIATION[self.kind],
            "predicted": {name: {k: s.as_dict() for k, s in each.items()} for name, each in self.told.items()},
            "predicted_difference": {name: s.as_dict() for name, s in self.beyond.items()},
            **{name: s.as_dict() for name, s in scores.items()},
            "differences": differences,
            "notes": list(self.notes), "finding": self.finding, "sentence": self.sentence(target),
        }  # fmt: skip


def audit_confounder(
    fact: str,
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
    """The evidence of one fact, `values` naming its codes (none for a number), for a target with that many classes or labels.

    Every model is fitted on `train`, its penalty chosen on `val` (on held-out patients of `train` where that is empty), and
    judged on `test`; the three share no patient. Raises UserError as `linear_probes` does.
    """
    main, y, patient = task_type(task).metrics[0], test.y, test.patient
    options: dict[str, Any] = {"patient": train.patient, "seed": seed, "device": device}

    def probed(x: ArrayLike, x_val: ArrayLike, x_test: ArrayLike, of_fact: bool = False) -> NDArray[np.float64]:
        truth, check = (s.fact if of_fact else s.y for s in (train, val))
        asked = (kind, len(values) or None) if of_fact else (task, classes)
        chooses = (x_val, check) if len(val) else None
        return linear_probes((x, truth), chooses, [x_test], task=asked[0], classes=asked[1], **options)[0].predictions[
            0
        ]

    found = {name: probed(train.x[name], val.x[name], test.x[name], of_fact=True) for name in train.x}
    own, *others = found
    best = TOLD[kind][0]
    columns = design(kind, train.fact)
    lone = probed(columns(train.fact), columns(val.fact), columns(test.fact))
    x, x_val, x_test = train.x[own], val.x[own], test.x[own]
    p = probed(x, x_val, x_test)
    less = ConfoundRegression.fit(x, train.fact, kind)
    q = probed(less(x, train.fact), less(x_val, val.fact), less(x_test, test.fact))
    same = test.fact if kind == "classification" else np.searchsorted(edges(train.fact), test.fact, side="right")
    inside, even = auroc_within(task, same), auroc_balanced(task, same)
    falls, tilts = auroc_within(task, same, change=True), auroc_balanced(task, same, change=True)
    judged = scores([main, inside, even, falls, tilts], y, p, patient, seed=seed)
    return Evidence(
        fact, kind, tuple(values), main.name,
        told={name: scores(TOLD[kind], test.fact, guess, patient, seed=seed) for name, guess in found.items()},
        still=score(auroc_within(kind, np.nan_to_num(y, nan=-1)), test.fact, found[own], patient, seed=seed),
        beyond={name: difference(best, test.fact, found[name], found[own], patient, seed=seed) for name in others},
        alone=score(main, y, lone, patient, seed=seed),
        trained=association(kind, train.fact, task, train.y, train.patient, seed=seed),
        tested=association(kind, test.fact, task, y, patient, seed=seed),
        whole=judged[main.name],
        without=score(main, y, q, patient, seed=seed),
        within=judged[inside.name],
        balanced=judged[even.name],
        changes={
            "without": difference(main, y, q, p, patient, seed=seed),
            "within": judged[falls.name],
            "balanced": judged[tilts.name],
        },
        notes=tuple(notes),
    )  # fmt: skip


def conclusion(found: Sequence[Evidence], target: str) -> str:
    """What all facts together say of the score of `target`."""
    by = {kind: [e.fact for e in found if e.finding == kind] for kind in FINDINGS}
    lines = []
    if by[PART]:
        lines.append(f"Part of the score of {target} is {_listed([f'the {f}' for f in by[PART]])}.")
    if by[POSSIBLE]:
        which = _listed([f"the {f}" for f in by[POSSIBLE]], "or")
        lines.append(f"That part of the score of {target} is {which} is neither shown nor excluded.")
    if by[NONE]:
        lines.append(f"No shortcut was found {'in' if len(by[NONE]) == 1 else 'among'} {_listed(by[NONE])}.")
    return " ".join(lines)


def _listed(words: Sequence[str], last: str = "and") -> str:
    return f" {last} ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))
