"""`medssl audit`: check whether a score depends on scanner, view or age instead of the disease."""

from pathlib import Path

from medssl.commands.options import accepts
from medssl.errors import UserError
from medssl.results import Result
from medssl.runs.predictions import RUN
from medssl.scoring.acquisition_metadata import CATEGORICAL
from medssl.scoring.baselines import Baseline, FeatureSources
from medssl.scoring.clinical import subgroup_scores
from medssl.scoring.confounders import (
    audit_fields,
    check_auditable,
    describe_reasons,
    evidence_sentences,
    evidence_tables,
    features_of_splits,
    load_fields,
)
from medssl.scoring.eval_splits import SplitOptions
from medssl.scoring.leave_one_site_out import leave_one_site_out
from medssl.scoring.picture_audit import audit_pictures
from medssl.scoring.score_table import describe_table, heading, save_table
from medssl.store.store import Store

BASELINES = (Baseline.RAW_PIXELS, Baseline.RANDOM_INIT)


@accepts(SplitOptions)
def audit(
    run: str | Path,
    store: str | Path | Store,
    target: str | list[str],
    *,
    metadata: str | list[str] | None = None,
    options: SplitOptions,
) -> Result:
    """Look for shortcuts in the linear probe's score of `target`; adds the result to RUN/audit.json and returns it.

    For every metadata field: its prediction from the frozen features, raw pixels and the untrained encoder; its
    association with the target; and the score with the field regressed out, within the field, and balanced
    (`medssl.evals.explain.shortcuts`). A sentence for each field claims only what intervals over patients show. Fields
    that cannot be audited are listed with the reason. What is in no metadata, such as markers and borders, is looked for in
    the pictures (`medssl.scoring.picture_audit`). If there are several sites, each is also scored by a probe trained without
    it.

    Args:
        run: a finished run folder.
        store: a labelled store.
        target: a label with classes, or several findings, each present or absent.
        metadata: metadata fields, or other labels; None: site, scanner, modality, all acquisition metadata, and the number
            and type of the pixels.
        options: keyword arguments; see `medssl.scoring.eval_splits.SplitOptions`. Only classification and multilabel
            tasks can be audited.

    Raises UserError as `medssl.probe` does, if no field of `metadata` can be audited, and for too few patients of a class.
    """
    sources, splits = FeatureSources.load(run, store, target, options)
    check_auditable(splits)
    fields, left_out = load_fields(splits, metadata)
    if not fields and metadata is not None:
        raise UserError(
            f"{splits.train.store.path} has no metadata that could be audited ({describe_reasons(left_out)}); "
            "name another field, or leave metadata out"
        )
    x = {
        sources.name if name == RUN else name: features_of_splits(source, splits)
        for name, source in sources.all(BASELINES)
    }
    found, failed = audit_fields(fields, splits, x, options.seed, sources.device)
    left_out |= failed
    if not found and metadata is not None:
        raise UserError(f"no metadata of {splits.train.store.path} could be audited ({describe_reasons(left_out)})")
    p, sites = leave_one_site_out(x[sources.name], splits, options.seed, sources.device)
    groups = [e.field for e in found if e.kind == CATEGORICAL or e.field == "age"]
    about = describe_table("audit", splits)
    result = (
        Result(about, heading(about))
        + evidence_tables(found, str(splits.target))
        + audit_pictures(splits, options.seed, sources.device)
        + sites
        + subgroup_scores(splits, p, options.seed, groups)
        + evidence_sentences(found, str(splits.target), left_out)
    )
    save_table(sources.path / "audit.json", result)
    return result
