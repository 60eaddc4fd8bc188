"""`medssl watch`: are new scans still like those of the hospital that a run was trained on?"""

from pathlib import Path
from typing import Any

import numpy as np

from medssl.errors import UserError
from medssl.evals.label_free.drift import Drift, drift
from medssl.evals.stats.text_table import Cell, text_table
from medssl.files import atomic, write_json
from medssl.reporting.contact_sheet import contact_sheet
from medssl.results import Result
from medssl.scoring.baselines import FeatureSources
from medssl.scoring.changed_facts import Change, changed_facts, known_in_one
from medssl.scoring.features import from_encoder
from medssl.scoring.watched_scans import WatchedScans, watched_scans
from medssl.store.store import Store

FILE = "watch.json"
ALPHA = 0.05
SHOWN = 8  # facts in the table
UNUSUAL = 10  # scans


def watch(
    run: str | Path,
    store: str | Path | Store,
    *,
    where: str | None = None,
    reference: str | Path | Store | None = None,
    reference_where: str | None = None,
    scans: int = 1000,
    sheet: str | Path | None = None,
    seed: int = 0,
    device: str = "auto",
) -> Result:
    """Test whether the features of new scans have drifted, say what has changed, and name the most unusual new scans.

    The test compares the distributions of the encoder's features with a kernel, on a random scan of each patient, and permutes
    patients, never scans (`medssl.evals.label_free.drift`); without drift it rejects in 5 % of looks. The size of the drift is
    the AUROC, with an interval over patients, of telling new patients from the reference by their features, 0.5 without drift.
    Facts that changed most come from metadata, geometry, intensities and properties of the pictures. Labels are not read: drift
    does not say that scores have fallen, nor its absence that they have not. Writes RUN/watch.json and returns it.

    Args:
        run: a finished run folder.
        store: the new scans.
        where: filter expression selecting new scans; see `medssl.store.query`.
        reference: a store of scans to compare with. None: the validation scans of the run's training store, which the encoder
            has not seen.
        reference_where: filter expression selecting reference scans.
        scans: at most this many of each group, of as many patients as possible.
        sheet: a PNG file for pictures of the most unusual new scans, captioned with their rows in Store.open(store, where).
            It shows patients: keep it where scans may be kept.
        seed: for the samples, the permutations, the halves and the resamples.
        device: auto, cpu or cuda.

    Raises UserError if the scans cannot be compared (`medssl.scoring.watched_scans`), and for features that are not finite.
    """
    watched = Store.open(store, where)
    sources = FeatureSources(run, watched, device)
    sources.run.check_writable()
    chosen = watched_scans(sources.run, sources.encoder, watched, reference, reference_where, scans, seed)
    features = from_encoder(sources.pretrained(), sources.encoder.input, sources.device)
    subsets = chosen.reference, chosen.new
    x = np.concatenate([features(s.store, s.rows) for s in subsets])
    if not np.isfinite(x).all():
        raise UserError(f"the encoder of {sources.path} gives features that are not finite; pretrain with a lower lr")
    new = np.repeat([False, True], [len(s) for s in subsets])
    patient = np.concatenate([[f"{k} {p}" for p in s.patient] for k, s in enumerate(subsets)])
    found = drift(x, new, patient, seed=seed)
    changes = changed_facts(*subsets, seed)
    order = chosen.new.rows[np.argsort(-found.distance, kind="stable")][:UNUSUAL]
    result = _result(sources, chosen, found, changes, order)
    if sheet:
        path = Path(sheet).expanduser()
        picture = contact_sheet(watched, order)
        with atomic(path) as part:
            picture.save(part, "PNG")
        result.text += f"\nsheet    {path}"
    write_json(sources.path / FILE, result)
    return result


def _result(
    sources: FeatureSources, chosen: WatchedScans, found: Drift, changes: list[Change], order: np.ndarray
) -> Result:
    """Return the data and the text of the comparison; order: rows of the most unusual new scans."""
    groups = {"reference": chosen.reference, "new": chosen.new}
    unusual = chosen.new.store.column("scan")[order].tolist()
    verdict = _verdict(found)
    data: dict[str, Any] = {
        "weights": sources.encoder.weights,
        "stores": {name: s.store.fingerprint for name, s in groups.items()},
        "scans": {name: len(s) for name, s in groups.items()},
        "patients": {name: len(set(s.patient)) for name, s in groups.items()},
        "flags": chosen.flags,
        "p": found.p,
        "permutations": found.permutations,
        "told_apart": found.told_apart.as_dict(),
        "verdict": verdict,
        "changes": [
            {"fact": c.fact, "reference": c.before, "new": c.after} | {"association": c.association.as_dict()}
            for c in changes
        ],
        "known in one group": known_in_one(*groups.values()),
        "unusual": unusual,
    }
    counts = [f"{data['scans'][name]} scans of {data['patients'][name]} patients" for name in ("new", "reference")]
    table: list[dict[str, Cell]] = [{"new patients": "told from the reference", "AUROC": found.told_apart}]
    lines = [
        f"{sources.name}: {counts[0]} in {chosen.new.store.path.name} against {counts[1]}, {chosen.name}",
        *(f"! {flag}" for flag in chosen.flags),
        verdict,
        "",
        text_table(table, list(table[0])),
        "",
        *_changes(changes),
        *(
            [f"known in one of the groups only: {', '.join(data['known in one group'])}"]
            if data["known in one group"]
            else []
        ),
        "",
        f"most unusual new scans, the most unusual first: {', '.join(unusual)}",
    ]
    return Result(data, "\n".join(lines))


def _verdict(found: Drift) -> str:
    """Return what the test says, in a sentence."""
    p = f"p = {found.p:.3f}, kernel test with {found.permutations} permutations of patients"
    if found.p > ALPHA:
        return f"No drift is shown ({p}); a drift too small for this many patients may be there."
    return (
        f"The new scans differ from the reference ({p}): scores measured before may not hold for them; score labelled new scans "
        "with test_store=."
    )


def _changes(changes: list[Change]) -> list[str]:
    """Return the table of the facts that changed most, and a line about all others."""
    shown = [c for c in changes if c.shown][:SHOWN]
    rest = [c.fact for c in changes if c not in shown]
    lines = []
    if shown:
        rows: list[dict[str, Cell]] = [
            {"changed": c.fact, "association": c.association, "reference": c.before, "new": c.after} for c in shown
        ]
        lines = [
            "facts that changed most; 0 is no change, 1 tells the groups apart; intervals hold for all facts together"
        ]
        lines.append(text_table(rows, list(rows[0])))
    if rest:
        lines.append(f"{'smaller or not shown' if shown else 'no fact is shown to have changed'}: {', '.join(rest)}")
    return lines
