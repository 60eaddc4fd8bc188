"""Run + unlabelled store -> how good the encoder is without labels; runs -> which of the measures to trust on this data."""

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from medssl import catalog
from medssl.encoders.export import load_encoder
from medssl.errors import UserError
from medssl.evals.embed import embed_views
from medssl.evals.label_free.agreement import Agreement, agreement, trusted
from medssl.evals.label_free.metric_axioms import metric_axioms
from medssl.evals.label_free.mutual_information import mutual_information
from medssl.evals.label_free.quality import MEASURES
from medssl.evals.label_free.quality import quality as measured
from medssl.evals.label_free.rank import alpha_req
from medssl.evals.stats.score import Score
from medssl.evals.stats.text_table import text_table
from medssl.evals.task_types.task_types import task_type
from medssl.files import write_json
from medssl.losses.distances import DISTANCES
from medssl.pretraining.held_out_subset import VIEWS_SEED, held_out_subset
from medssl.runs.run_folder import Run
from medssl.runs.runs_by_seed import find_runs
from medssl.scoring.features import device_of, of_encoder
from medssl.store.resampled import resampled_for_encoder
from medssl.store.splits import count_overlap
from medssl.store.store import Store

FILE = "quality.json"
VERSION = 2
DIRECTION = {1: "higher", -1: "lower", 0: ""}


def quality(
    run: str | Path | None = None,
    store: str | Path | Store | None = None,
    *,
    runs: str | list[str] | None = None,
    where: str | None = None,
    target: str | None = None,
    scans: int = 512,
    views: int = 10,
    seed: int = 0,
    device: str = "auto",
) -> dict[str, Any]:
    """Measure encoders without labels, and say which measure orders runs as their probe scores do.

    With `run`: prints every measure of `evals.label_free.quality` of its encoder on a fixed panel of held-out scans and
    views of them,
    each with its interval over patients, and on half of the patients (what that changes is what the number of scans does);
    writes RUN/quality.json and returns it; then bounds on the mutual information of two views, and whether the Euclidean and the
    cosine distance of the features satisfy the axioms of a metric. With `runs`: measures those that are not measured on this panel yet (`store` is
    needed for that alone) and prints the rank correlation over runs of each measure with the runs' own probe scores, as they
    stand in RUN/scores.json: linear reader, all labels, the task's first metric. Returns {"runs": …, "agreement": …, "trust":
    a sentence}.

    Args:
        run: a finished run folder.
        store: whose validation scans are the panel (training scans where fewer than 16 validate); its labels are not read.
        runs: run folders, or folders of them.
        where: which scans of the store.
        target: whose probe scores count, where runs have those of several.
        scans: at most so many in the panel, of as many patients as possible.
        views: of each scan, by the run's own recipe; at least 2, and fewer than scans.
        seed: of the panel, the groups of patients and the directions of SIGReg: the same for all that is to be compared.
        device: auto, cpu or cuda.

    Raises UserError for what cannot be measured or compared.
    """
    if (run is None) == (runs is None):
        raise UserError("give run=RUN store=STORE to measure one encoder, or runs=FOLDER to compare several")
    if scans < 8 or views < 2:
        raise UserError(f"scans must be at least 8 and views at least 2, got {scans} and {views}")
    device = device_of(device)
    if run is not None:
        if store is None:
            raise UserError("store= is needed: the scans that the encoder is measured on")
        result = _measure(Run(Path(run)), Store.open(store, where), scans, views, seed, device)
        _show(result)
        return result
    folders = find_runs(runs)  # type: ignore[arg-type]
    scan_store = None if store is None else Store.open(store, where)
    results = []
    for folder in folders:
        found = _found(folder)
        if scan_store is not None and (found is None or not _same(found, scan_store, scans, views, seed)):
            print(f"measuring {folder.path.name}", file=sys.stderr)
            found = _measure(folder, scan_store, scans, views, seed, device)
        if found is None:
            raise UserError(f"{folder.path} has no {FILE} of its present encoder; add store=STORE to measure it")
        results.append(found)
    return _compare(folders, results, target, seed)


def _measure(folder: Run, store: Store, scans: int, views: int, seed: int, device: str) -> dict[str, Any]:
    """Measure one run and write its quality.json."""
    config = folder.finished()
    encoder, exported = load_encoder(folder.path)
    chosen = held_out_subset(store, scans, seed)
    n = len(chosen.rows)
    if n < max(8, views + 1):
        raise UserError(f"{store.path} has {n} scans for the panel; it needs at least 8, and more than views={views}")
    patient = store.column("patient")[chosen.rows].astype(str)
    x = of_encoder(encoder, exported.input, device)(store, chosen.rows)
    resampled = resampled_for_encoder(store, exported.input)
    recipe = catalog.build(config.augment.spec("augment"), size=resampled.size)
    of_views = embed_views(encoder, resampled, chosen.rows, recipe, views, VIEWS_SEED, device=device)
    if not (np.isfinite(x).all() and np.isfinite(of_views).all()):
        raise UserError(
            f"the encoder of {folder.path} gives features that are not finite; pretrain again with a lower lr"
        )
    half = np.isin(patient, np.unique(patient)[::2])
    law = alpha_req(x)
    flags = _flags(folder, store, chosen.rows, chosen.split)
    if not np.ptp(of_views, axis=1).any():
        flags.append("all views of a scan are the same, so nothing can be said of what is about views")
    result = {
        "version": VERSION,
        "name": config.name,
        "weights": exported.weights,
        "subset": {"store": store.fingerprint, "split": chosen.split, "scans": n, "patients": len(set(patient)),
                  "asked": scans, "views": views, "seed": seed, "recipe": config.augment.as_dict()},
        "dim": x.shape[1],
        "fit": [int(law["first"]), int(law["last"])],
        "flags": flags,
        "measures": {k: s.as_dict() for k, s in measured(x, of_views, patient, seed=seed).items()},
        "half": {k: s.as_dict() for k, s in measured(x[half], of_views[half], patient[half], seed=seed).items()},
        "mutual_information": _mutual_information(of_views, patient, seed),
        "distances": {name: metric_axioms(DISTANCES[name], x).as_dict() for name in ("euclidean", "cosine")},
    }  # fmt: skip
    write_json(folder.path / FILE, result)
    return result


def _mutual_information(of_views: np.ndarray, patient: np.ndarray, seed: int) -> dict[str, Any]:
    """Bounds on what the features of two views of a scan have in common, or why there are none."""
    try:
        return mutual_information(of_views[:, 0], of_views[:, 1], patient, seed=seed).as_dict()
    except UserError as e:
        return {"why": str(e)}


def _flags(folder: Run, store: Store, rows: np.ndarray, split: str) -> list[str]:
    try:
        seen = pq.read_table(folder.path / "pretrained_on.parquet")
    except (OSError, pa.ArrowException) as e:
        raise UserError(f"{folder.path / 'pretrained_on.parquet'} is missing or damaged; pretrain again") from e
    mine = [store.column(k)[rows].astype(str).tolist() for k in ("patient", "hash")]
    overlap = count_overlap(seen["patient"].to_pylist(), seen["hash"].to_pylist(), *mine)
    flags = [f"fewer than 16 scans validate, so the panel is of {split} scans"] if split != "val" else []
    if overlap:
        flags.append(
            f"pretraining has seen {overlap.patients} patients and {overlap.scans} images of the panel: measures flatter them"
        )
    return flags


def _found(folder: Run) -> dict[str, Any] | None:
    """quality.json of the encoder that is there now, if there is one."""
    path = folder.path / FILE
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_text())
        current = json.loads((folder.path / "encoder.json").read_text())["weights"]
        return found if found["version"] == VERSION and found["weights"] == current else None
    except (ValueError, KeyError, TypeError, OSError) as e:
        raise UserError(f"{path} is damaged; delete it and measure again") from e


def _same(found: dict[str, Any], store: Store, scans: int, views: int, seed: int) -> bool:
    asked = {"store": store.fingerprint, "asked": scans, "views": views, "seed": seed}
    return all(found["subset"][k] == v for k, v in asked.items())


def _show(result: dict[str, Any]) -> None:
    of = result["subset"]
    print(
        f"{result['name']}, {result['dim']} features: {of['scans']} {of['split']} scans of {of['patients']} patients, "
        f"{of['views']} views of each by {of['recipe']['name']}; alpha-ReQ from eigenvalue {result['fit'][0]} to "
        f"{result['fit'][1]}"
    )
    for flag in result["flags"]:
        print(f"! {flag}")
    every, half = ({k: Score.from_dict(d) for k, d in result[w].items()} for w in ("measures", "half"))
    lines: list[dict[str, str | Score | None]] = [
        {"measure": k, "value": every[k], "on half": half[k], "better": DIRECTION[m.better], "": m.about}
        for k, m in MEASURES.items()
    ]
    print(text_table(lines, ["measure", "value", "on half", "better", ""]))
    print("Compare at one number of scans only; where the halves differ, that number decides the value.")
    shared = result["mutual_information"]
    if "why" in shared:
        print(f"\nNo mutual information of two views: {shared['why']}.")
    else:
        print(
            f"\nmutual information of the features of two views, in nats; InfoNCE cannot exceed {shared['ceiling']:.2f}"
        )
        lines = [{"estimate": k, "nats": Score.from_dict(d)} for k, d in shared.items() if k != "ceiling"]
        print(text_table(lines, ["estimate", "nats"]))
    print("\n" + "\n".join(f"{name} distance of the features: {d['text']}" for name, d in result["distances"].items()))


def _compare(folders: list[Run], results: list[dict[str, Any]], target: str | None, seed: int) -> dict[str, Any]:
    panels = {json.dumps({k: v for k, v in r["subset"].items() if k != "recipe"}, sort_keys=True) for r in results}
    if len(panels) > 1:
        raise UserError("the runs were measured on different panels; add store=STORE to measure all on one")
    names = [r["name"] for r in results]
    values, sign, title = _scores(folders, names, target)
    flags = sorted({flag for r in results for flag in r["flags"]})
    if len({json.dumps(r["subset"]["recipe"], sort_keys=True) for r in results}) > 1:
        flags.append("views are by different recipes: LiDAR and alignment of two methods compare recipes as well")
    columns = {
        name: [_number(r["measures"][name]["value"]) for r in results]
        for name in MEASURES
        if all(r["measures"][name]["value"] is not None for r in results)
    }
    for name in MEASURES:
        if name not in columns:
            flags.append(f"{name} is undefined for some run and left out")
    found = agreement(columns, [sign * v for v in values], names, seed=seed)
    trust = trusted(found, {k: m.better for k, m in MEASURES.items()}, len(folders))
    print(f"{len(folders)} runs, {title}")
    for flag in flags:
        print(f"! {flag}")
    if found:
        print(text_table(*_lines(found)))
    print(trust)
    return {
        "runs": [str(f.path.name) for f in folders],
        "score": title,
        "values": values,
        "flags": flags,
        "agreement": {k: a.as_dict() for k, a in found.items()},
        "trust": trust,
    }


def _lines(found: dict[str, Agreement]) -> tuple[list[dict[str, str | Score | None]], list[str]]:
    lines: list[dict[str, str | Score | None]] = []
    for name, a in sorted(found.items(), key=lambda pair: -abs(pair[1].spearman.value)):
        p = "p < 0.001" if a.p < 0.001 else f"p = {a.p:.3f}"
        lines.append({"measure": name, "paper": DIRECTION[MEASURES[name].better], "Spearman": a.spearman,
                      "Kendall": a.kendall, "within methods": a.within, "after Holm": p})  # fmt: skip
    within = ["within methods"] if any(a.within for a in found.values()) else []
    return lines, ["measure", "paper", "Spearman", "Kendall", *within, "after Holm"]


def _scores(folders: list[Run], names: list[str], target: str | None) -> tuple[list[float], int, str]:
    """The probe score of each run, +1 or -1 for whether higher is better, and what it is."""
    answers: dict[tuple[str, str, str], dict[Path, float]] = {}
    for folder, name in zip(folders, names, strict=True):
        path = folder.path / "scores.json"
        try:
            tables = json.loads(path.read_text())["tables"] if path.exists() else []
            for t in (t for t in tables if t["command"] == "probe" and target in (None, t["target"])):
                own = [r for r in t["rows"] if (r["features"], r["reader"], r["labels"]) == (name, "linear", "all")]
                if own:
                    value = own[0]["scores"][task_type(t["task"]).metrics[0].name]["value"]
                    answers.setdefault((t["target"], t["task"], t["test_store"]), {})[folder.path] = _number(value)
        except (ValueError, KeyError, TypeError) as e:
            raise UserError(f"{path} is damaged; delete it and score again") from e
    whole = {k: v for k, v in answers.items() if len(v) == len(folders)}
    if not whole:
        what = f"of target={target} " if target else ""
        raise UserError(
            f"no linear probe {what}has scored all {len(folders)} runs on one test; "
            "run medssl probe with the same target and store for each of them"
        )
    if len(whole) > 1:
        raise UserError(
            f"the runs have several probes ({', '.join(sorted(k[0] for k in whole))}); choose one: target=NAME"
        )
    (about, task, _), by_run = next(iter(whole.items()))
    main = task_type(task).metrics[0]
    return [by_run[f.path] for f in folders], main.sign, f"linear probe of {about}, {main.name}"


def _number(value: float | None) -> float:
    if value is None or math.isnan(value):
        raise UserError("a score of a run is undefined; score it on a test with every class")
    return float(value)
