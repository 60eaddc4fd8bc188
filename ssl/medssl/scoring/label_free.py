"""Label-free measures of an encoder on held-out scans, and their agreement with the probe scores of runs."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medssl import catalog
from medssl.errors import UserError
from medssl.evals.embed import embed_views
from medssl.evals.label_free.agreement import Agreement, agreement, trusted
from medssl.evals.label_free.metric_axioms import metric_axioms
from medssl.evals.label_free.mutual_information import mutual_information
from medssl.evals.label_free.quality import MEASURES
from medssl.evals.label_free.quality import quality as measures
from medssl.evals.label_free.rank import alpha_req
from medssl.evals.stats.score import Score
from medssl.evals.stats.text_table import Cell, text_table
from medssl.evals.task_types.task_types import task_type
from medssl.files import write_json
from medssl.leakage.leak_check import read_pretrained_on
from medssl.losses.distances import DISTANCES
from medssl.results import Result
from medssl.runs.predictions import RUN, describe_differences
from medssl.runs.run_folder import Run
from medssl.scoring.baselines import FeatureSources
from medssl.scoring.features import from_encoder
from medssl.scoring.probes import ALL
from medssl.scoring.score_table import read_tables
from medssl.scoring.targets import Subset
from medssl.store.resampled import resampled_for_encoder
from medssl.store.store import Store

FILE = "quality.json"
VERSION = 2
LEAST = 8  # scans
DIRECTION = {1: "higher", -1: "lower", 0: ""}


@dataclass(frozen=True)
class MeasureOptions:
    """The maximum number of scans, the number of views of each, and the seed of everything random."""

    scans: int
    views: int
    seed: int

    def __post_init__(self) -> None:
        if self.scans < LEAST or self.views < 2:
            raise UserError(f"scans must be at least {LEAST} and views at least 2, got {self.scans} and {self.views}")

    def described(self, store: Store) -> dict[str, Any]:
        """Return the JSON values that must be equal for two runs to be compared."""
        return {"store": store.fingerprint, "asked": self.scans, "views": self.views, "seed": self.seed}


def measure(
    sources: FeatureSources, rows: np.ndarray, split: str, options: MeasureOptions, views_seed: int
) -> dict[str, Any]:
    """Measure an encoder on the scans `rows` of a split, and write RUN/quality.json.

    Raises UserError for too few scans, and for features that are not finite.
    """
    store, encoder, config = sources.store, sources.pretrained(), sources.config
    n, views, seed = len(rows), options.views, options.seed
    if n < LEAST:
        raise UserError(f"{store.path} has {n} {split} scans to measure, and {LEAST} are needed; ingest more scans")
    subset = Subset(store, rows, np.zeros(n), 0, 0)
    patient = subset.patient
    x = from_encoder(encoder, sources.encoder.input, sources.device)(store, rows)
    resampled = resampled_for_encoder(store, sources.encoder.input)
    recipe = catalog.build(config.augment.spec("augment"), size=resampled.size)
    of_views = embed_views(encoder, resampled, rows, recipe, views, views_seed, device=sources.device)
    if not (np.isfinite(x).all() and np.isfinite(of_views).all()):
        raise UserError(
            f"the encoder of {sources.path} gives features that are not finite; pretrain again with a lower lr"
        )
    half = np.isin(patient, np.unique(patient)[::2])
    fit = alpha_req(x)
    flags = [f"there are fewer than 16 validation scans, so {split} scans are measured"] if split != "val" else []
    flags += _overlap(sources, subset)
    if not np.ptp(of_views, axis=1).any():
        flags.append("all views of a scan are the same, so measures of views are meaningless")
    if half.sum() <= views:
        flags.append(
            f"LiDAR needs more scans than views ({views} of each), on half of the patients too: ask for fewer views"
        )
    result = {
        "version": VERSION,
        "name": config.name,
        "weights": sources.encoder.weights,
        "subset": {"split": split, "scans": n, "patients": subset.patients, "recipe": config.augment.as_dict()}
        | options.described(store),
        "dim": x.shape[1],
        "fit": [int(fit["first"]), int(fit["last"])],
        "flags": flags,
        "measures": {k: s.as_dict() for k, s in measures(x, of_views, patient, seed=seed).items()},
        "half": {k: s.as_dict() for k, s in _on_half(x[half], of_views[half], patient[half], seed).items()},
        "mutual_information": _mutual_information(of_views, patient, seed),
        "distances": {name: metric_axioms(DISTANCES[name], x).as_dict() for name in ("euclidean", "cosine")},
    }
    write_json(sources.path / FILE, result)
    return result


def _on_half(x: np.ndarray, of_views: np.ndarray, patient: np.ndarray, seed: int) -> dict[str, Score]:
    """Return the measures of half of the patients, undefined if they have a single scan."""
    if len(x) > 1:
        return measures(x, of_views, patient, seed=seed)
    nothing = Score(math.nan, math.nan, math.nan, len(x), len(x), "half of the patients have a single scan")
    return dict.fromkeys(MEASURES, nothing)


def read_measures(run: Run) -> dict[str, Any] | None:
    """Return quality.json if it is about the run's present encoder.

    Raises UserError for a file that is damaged or was written by an earlier version.
    """
    path = run.path / FILE
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_text("utf-8"))
        current = json.loads((run.path / "encoder.json").read_text("utf-8"))["weights"]
        earlier, same = found["version"] != VERSION, found["weights"] == current
    except (ValueError, KeyError, TypeError, OSError) as e:
        raise UserError(f"{path} is damaged; delete it and measure again") from e
    if earlier:
        raise UserError(f"{path} was written by an earlier medssl; delete it and measure again")
    return found if same else None


def describe_measures(found: Mapping[str, Any]) -> str:
    """Return the measures of one encoder as text."""
    subset, (first, last) = found["subset"], found["fit"]
    every, half = ({k: Score.from_dict(d) for k, d in found[w].items()} for w in ("measures", "half"))
    columns = ["measure", "value", "on half", "better", ""]
    lines: list[dict[str, Cell]] = [
        dict(zip(columns, (k, every[k], half[k], DIRECTION[m.better], m.about), strict=True))
        for k, m in MEASURES.items()
    ]
    text = [
        f"{found['name']}, {found['dim']} features: {subset['scans']} {subset['split']} scans of {subset['patients']} "
        f"patients, {subset['views']} views of each by {subset['recipe']['name']}; alpha-ReQ from eigenvalue {first} to {last}",
        *(f"! {flag}" for flag in found["flags"]),
        text_table(lines, columns),
        "Compare runs on the same number of scans only: where the two columns differ, the value depends on that number.",
        "",
    ]
    shared = found["mutual_information"]
    if "why" in shared:
        text.append(f"No mutual information of two views: {shared['why']}.")
    else:
        scores: list[dict[str, Cell]] = [
            {"estimate": k, "nats": Score.from_dict(d)} for k, d in shared.items() if k != "ceiling"
        ]
        title = "mutual information of the features of two views, in nats"
        text += [f"{title}; InfoNCE cannot exceed {shared['ceiling']:.2f}", text_table(scores, ["estimate", "nats"])]
    distances = [f"{name} distance of the features: {d['text']}" for name, d in found["distances"].items()]
    return "\n".join([*text, "", *distances])


def rank_measures(runs: Sequence[Run], found: Sequence[dict[str, Any]], target: str | None, seed: int) -> Result:
    """Return the rank correlation over runs of each measure with the probe score, and which measure to trust."""
    subsets = {json.dumps({k: v for k, v in m["subset"].items() if k != "recipe"}, sort_keys=True) for m in found}
    if len(subsets) > 1:
        raise UserError("the runs were measured on different scans; add store=STORE to measure all on the same")
    names = [m["name"] for m in found]
    scores = load_probe_scores(runs, target)
    flags = [*sorted({flag for m in found for flag in m["flags"]}), *scores.flags]
    if len({json.dumps(m["subset"]["recipe"], sort_keys=True) for m in found}) > 1:
        flags.append("runs have different augmentation recipes: LiDAR and alignment then compare recipes as well")
    values = {name: [m["measures"][name]["value"] for m in found] for name in MEASURES}
    defined = {name: [_defined(v) for v in each] for name, each in values.items() if None not in each}
    flags += [f"{name} is undefined for some run and left out" for name in values if name not in defined]
    agreed = agreement(defined, [scores.sign * v for v in scores.values], names, seed=seed)
    trust = trusted(agreed, {k: m.better for k, m in MEASURES.items()}, len(runs))
    table = [_agreement_table(agreed)] if agreed else []
    return Result(
        {
            "runs": [str(run.path.name) for run in runs],
            "score": scores.title,
            "values": scores.values,
            "flags": flags,
            "agreement": {k: a.as_dict() for k, a in agreed.items()},
            "trust": trust,
        },
        "\n".join([f"{len(runs)} runs, {scores.title}", *(f"! {flag}" for flag in flags), *table, trust]),
    )


@dataclass(frozen=True)
class ProbeScores:
    """The probe score of each run; sign is +1 if higher is better, else -1. flags: warnings of the score tables."""

    values: list[float]
    sign: int
    title: str
    flags: list[str]


def load_probe_scores(runs: Sequence[Run], target: str | None) -> ProbeScores:
    """Return the scores of the linear probes that all runs have for the same question, with all labels and the first metric.

    Raises UserError if there are none, and for several of them.
    """
    by_question: dict[str, dict[Path, dict[str, Any]]] = {}
    for run in runs:
        path = run.path / "scores.json"
        try:
            for t in (t for t in read_tables(path) if t["command"] == "probe" and target in (None, t["target"])):
                own = [r for r in t["rows"] if (r["source"], r["probe"], r["label_budget"]) == (RUN, "linear", ALL)]
                if own:
                    asked = {"target": t["target"]} | t["asked"] | {"labelled scans": own[0]["drawn"]}
                    value = own[0]["scores"][task_type(t["task"]).metrics[0].name]["value"]
                    found = by_question.setdefault(json.dumps(asked, sort_keys=True), {})
                    found[run.path] = {"value": value, "task": t["task"], "flags": t["flags"]}
        except (KeyError, TypeError) as e:
            raise UserError(f"{path} is damaged; delete it and score again") from e
    common = {json.loads(asked)["target"]: found for asked, found in by_question.items() if len(found) == len(runs)}
    questions = [json.loads(asked) for asked, found in by_question.items() if len(found) == len(runs)]
    if not questions:
        what = f"for target={target} " if target else ""
        asked = [json.loads(asked) for asked in by_question]
        differs = next(
            (describe_differences(asked[0], other) for other in asked[1:] if other["target"] == asked[0]["target"]), ""
        )
        raise UserError(
            f"not all {len(runs)} runs have a linear probe {what}on the same test set; "
            "run medssl probe with the same target and store for each of them" + (f" ({differs})" if differs else "")
        )
    if len(common) > 1:
        raise UserError(f"the runs have several probes ({', '.join(sorted(common))}); choose one: target=NAME")
    if len(questions) > 1:
        raise UserError(
            f"the runs have several probes of {questions[0]['target']}: {describe_differences(*questions[:2])}; "
            "score them into runs of their own, or delete scores.json and score again"
        )
    ((name, by_run),) = common.items()
    each = [by_run[run.path] for run in runs]
    metric = task_type(each[0]["task"]).metrics[0]
    flags = [
        flag if all(flag in found["flags"] for found in each) else f"{run.path.name}: {flag}"
        for run, found in zip(runs, each, strict=True)
        for flag in found["flags"]
    ]
    values = [_defined(found["value"]) for found in each]
    return ProbeScores(values, metric.sign, f"linear probe of {name}, {metric.name}", list(dict.fromkeys(flags)))


def _mutual_information(of_views: np.ndarray, patient: np.ndarray, seed: int) -> dict[str, Any]:
    """Return bounds on the mutual information of the features of two views, or the reason why there are none."""
    try:
        return mutual_information(of_views[:, 0], of_views[:, 1], patient, seed=seed).as_dict()
    except UserError as e:
        return {"why": str(e)}


def _overlap(sources: FeatureSources, subset: Subset) -> list[str]:
    """Return a warning if pretraining has seen some of the scans."""
    seen = read_pretrained_on(sources.path / "pretrained_on.parquet", sources.encoder.key_id)
    patients, images = (len({*getattr(seen, k)} & {*subset.column(k)}) for k in ("patient", "hash"))
    words = f"pretraining has seen {patients} of the patients and {images} of the images measured"
    return [f"{words}: the values are too good"] if patients or images else []


def _agreement_table(found: Mapping[str, Agreement]) -> str:
    """Return the table of correlations, the strongest first."""
    lines: list[dict[str, Cell]] = []
    for name, a in sorted(found.items(), key=lambda pair: -abs(pair[1].spearman.value)):
        p = "p < 0.001" if a.p < 0.001 else f"p = {a.p:.3f}"
        lines.append({"measure": name, "paper": DIRECTION[MEASURES[name].better], "Spearman": a.spearman,
                      "Kendall": a.kendall, "within methods": a.within, "after Holm": p})  # fmt: skip
    within = ["within methods"] if any(a.within for a in found.values()) else []
    return text_table(lines, ["measure", "paper", "Spearman", "Kendall", *within, "after Holm"])


def _defined(value: float | None) -> float:
    if value is None or math.isnan(value):
        raise UserError("a score of a run is undefined; score it on a test set with every class")
    return float(value)
