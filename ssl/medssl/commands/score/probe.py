"""`medssl probe`: score a frozen encoder by a linear model on its features, beside baselines."""

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

from medssl.commands.options import accepts
from medssl.errors import UserError
from medssl.results import Result
from medssl.runs.predictions import RUN, PredictedRow
from medssl.scoring import probes as probing
from medssl.scoring.attention_probes import READERS, select_readers
from medssl.scoring.baselines import DEFAULT_BASELINES, Baseline, FeatureSources, select_baselines
from medssl.scoring.clinical import clinical_use, subgroup_scores
from medssl.scoring.eval_splits import SplitOptions
from medssl.scoring.kept_probe import KeptProbe
from medssl.scoring.score_table import compute_scores, keep
from medssl.store.store import Store


@accepts(SplitOptions)
def probe(
    run: str | Path,
    store: str | Path | Store,
    target: str | list[str],
    *,
    label_budgets: Iterable[str | int | float] = (probing.ALL,),
    probes: Iterable[str] = ("linear",),
    draws: int = 5,
    balanced: bool = False,
    specificity: float = 0.9,
    prevalences: Iterable[float] = (0.01, 0.1),
    features: Iterable[str] = (),
    baselines: Iterable[str] = DEFAULT_BASELINES,
    options: SplitOptions,
) -> Result:
    """Score the frozen encoder of a run by linear and other probes; adds the table to RUN/scores.json and returns it.

    The linear probe of all labels is kept in RUN/probes, for `medssl.predict`.

    The probe is fitted on the store's training patients, validation patients choose its penalty, and it is scored on test
    patients. Intervals are 95 % intervals over patients, and over draws where labels are drawn. "Δ vs run" is
    the paired difference of the first metric to the run's row. Below the table are the operating point and calibration of
    the run, and its scores in subgroups (`medssl.scoring.clinical`).

    Args:
        run: a finished run folder.
        store: a labelled store.
        target: the name of a label or of acquisition metadata; several names are findings, each present or absent.
        label_budgets: labelled training scans, as "all", "10 %" or 50. Each is drawn `draws` times, the smaller ones
            within the larger, and as few validation scans choose the penalty. The supervised baselines use all.
        probes: linear; attentive, which pools the positions of the last feature map or the tokens by learned attention
            (rows of encoders alone); mil, which pools the scans of a patient (`medssl.evals.probes.attention_pooling`). The
            first one is analysed below the table.
        draws: how often each budget is drawn.
        balanced: draw equal numbers of scans of each class.
        specificity: the threshold for two classes has this specificity on validation patients.
        prevalences: prevalences at which PPV and NPV are computed.
        features: more features of the run for the linear probe, a row each: "stages" (means of the maps of all stages), "grid"
            (the last map in 3 x 3 or 2 x 2 x 2 cells) or "pooled", also beside baselines: "pooled+pyramid" (the k-means patch
            pyramid), "+bank", "+pixels".
        baselines: the members of `medssl.scoring.baselines.BASELINES` to include.
        options: keyword arguments; see `medssl.scoring.eval_splits.SplitOptions`.

    Raises UserError if pretraining has seen a test patient or test image, and for labels that cannot be scored.
    """
    names, seed = select_baselines(baselines), options.seed
    chosen = select_readers(probes)
    if features and "linear" not in chosen:
        raise UserError("features= adds rows of the linear probe; add linear to probes, or leave features out")
    sources, splits = FeatureSources.load(run, store, target, options)
    subsets = probing.draw_subsets(splits, label_budgets, draws, seed, balanced)
    labelled = probing.describe_draws(splits, subsets, seed)
    tests = splits.predicted
    rows, own_probe = [], None
    for kind in chosen:
        more = features if kind == "linear" else ()
        for name, source in sources.positions(names) if kind == "attentive" else sources.all(names, more):
            fitted = READERS[kind](source, splits, tests, subsets=subsets, seed=seed, device=sources.device)
            if (name, kind) == (RUN, "linear") and probing.ALL in fitted:
                own_probe = KeptProbe.of(splits.target, fitted[probing.ALL][0], splits.train.y, sources.encoder.weights)
            rows += [
                probing.predicted_row(name, kind, drawn, budget, labelled[budget], val=len(tests) - 1 or None)
                for budget, drawn in fitted.items()
            ]
    for trained, supervised in sources.supervised(names, splits) if probing.ALL in subsets else ():
        p, *val = (supervised(part.store, part.rows) for part in tests)
        rows.append(PredictedRow(Baseline.SUPERVISED.value, trained, [p], probing.ALL, labelled[probing.ALL], val))
    scans = probing.count_scans(subsets)
    scores = compute_scores("probe", splits, rows, sources.name, seed, label_budgets=scans)
    sections: list[Callable[[], Result]] = []
    if probing.ALL in subsets:
        own = next(row for row in rows if row.key == (RUN, chosen[0], probing.ALL))
        if splits.target.has_classes and splits.target.width == 2:
            p_val = own.val[0] if own.val else own.p[0][:0]
            sections.append(partial(clinical_use, splits, p_val, own.p[0], specificity, list(prevalences), seed))
        sections.append(partial(subgroup_scores, splits, own.p[0], seed))
    if own_probe is not None:
        own_probe.write(sources.path)
    return keep(sources.path, scores, *sections)
