"""Run + store -> RUN/cam.png and RUN/cam.json: where in test scans a score or the features come from, and what that is worth."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from medssl.encoders.config import InputConfig
from medssl.encoders.export import load_encoder
from medssl.errors import UserError, nearest
from medssl.evals.embed import standardised
from medssl.evals.explain.saliency import map_resolution
from medssl.evals.explain.saliency_checks import (
    MaskEnergy,
    depends_on_weights,
    mask_energy,
    randomisation_check,
    randomised,
    rank_correlation,
)
from medssl.evals.stats.bootstrap import difference, score
from medssl.evals.stats.score import Score
from medssl.evals.stats.text_table import text_table
from medssl.evals.task_types.task_types import task_type
from medssl.files import atomic, write_json
from medssl.leakage.leak_check import check_leaks, read_pretrained_on, scan_set_from_store
from medssl.progress import Progress
from medssl.reporting.contact_sheet import evenly_spaced
from medssl.reporting.saliency_sheet import ScanWithMap, saliency_sheet, strongest_slice
from medssl.rng import generator, seed_from
from medssl.runs.config import PretrainConfig
from medssl.runs.predictions import Predictions, TableRow
from medssl.runs.run_folder import Run
from medssl.scoring import features
from medssl.scoring.eval_splits import EvalSplits, load_splits
from medssl.scoring.saliency_maps import METHODS, SaliencyMaker, head_of, masks_on_grid, outputs
from medssl.scoring.targets import values
from medssl.store.resampled import ResampledScans, resampled_for_encoder
from medssl.store.store import Store

MOST, SHOWN = 500, 8  # test scans that are looked at, and that are drawn, at even spacing
FOIL = 128  # training scans that a scan shall be unlike
CHECKED, STAGES, DRAWS = 64, 5, 3  # scans, depths and draws of random weights of the check
OURS, RIVAL = "this run", "random init"
ENERGY, AREA, GAIN, HIT, MINUS = (
    "energy in mask",
    "area of mask",
    "energy minus area",
    "highest in mask",
    "energy minus random init",
)
MEAN = task_type("per_case").metrics[0]
Line = dict[str, str | Score | None]
Maps = Callable[[nn.Module, np.ndarray | None, np.ndarray], np.ndarray]  # encoder, head, positions -> (n, *size)


@dataclass
class Scans:
    """Test scans and what is asked of them. label: words for the sheet. test: whose scans. flags: sentences over all numbers."""

    store: Store
    rows: np.ndarray
    patient: np.ndarray
    label: list[str]
    splits: EvalSplits | None
    test: str
    flags: list[str]


def cam(
    run: str | Path,
    store: str | Path | Store,
    target: str | list[str] | None = None,
    *,
    method: str = "gradcam",
    explain: str | None = None,
    part: int = 1,
    where: str | None = None,
    test_where: str | None = None,
    positive: Iterable[str] | None = None,
    test_store: str | Path | Store | None = None,
    allow_overlap: bool = False,
    seed: int = 0,
    device: str = "auto",
) -> dict[str, Any]:
    """Draw and measure where in the scans of test patients a score or the features come from; returns what RUN/cam.json holds.

    RUN/cam.png shows some scans, their maps, and both with the outline of the mask. Where scans have masks, the share of a map
    that lies inside is set against the mask's share of the scan and against the maps of the untrained encoder, paired. Whether
    maps change when weights are random is checked in any case, and said in words.

    Args:
        run: a finished run folder.
        store: the scans; for gradcam its training patients fit the probe that is explained.
        target: a label or fact: needed for gradcam, else for the captions alone.
        method: one of `medssl.scoring.saliency_maps.METHODS`; see `medssl.evals.explain.saliency`.
        explain: the class or finding that maps are of; None is the positive of two classes, each scan's own of several.
        part: the label in the masks.
        where, test_where, positive, test_store, allow_overlap: as for `medssl.probe`.

    Raises UserError as `medssl.probe` does, and for an encoder that the method cannot look into.
    """
    device, folder = features.device_of(device), Run(Path(run))
    config = folder.finished()
    encoder, exported = load_encoder(folder.path)
    wanted = exported.input
    if method not in METHODS:
        raise UserError(f"method is {method!r}.{nearest(method, METHODS)}")
    if method == "gradcam" and target is None:
        raise UserError("gradcam explains a score: give target=LABEL, or choose method=similarity or method=rollout")
    home = Store.open(store, where)
    away = Store.open(test_store, test_where) if test_store is not None else home
    for each in (home, away):
        features.must_fit(wanted, each)
    if target is None:
        scans = _unlabelled(folder, exported.key_id, home, away, test_store is not None, allow_overlap)
    else:
        asked: dict[str, Any] = {"positive": positive, "test_where": test_where, "test_store": test_store}
        scans = _labelled(load_splits(folder, exported, home, target, allow_overlap=allow_overlap, **asked))
    rival = features.fresh(config, wanted).eval()
    maps, heads, subject = _maps(method, explain, home, scans, [encoder, rival], config, wanted, seed, device)
    ours = maps(encoder, heads[0], np.arange(len(scans.rows)))
    grid = map_resolution(encoder, torch.zeros(1, wanted.channels, *wanted.size, device=device))
    at, masks, insides = masks_on_grid(scans.store, scans.rows, wanted, part)
    found: dict[str, MaskEnergy] = {}
    if len(at):
        theirs = maps(rival, heads[1], at)
        found = {OURS: mask_energy(ours[at], masks, insides), RIVAL: mask_energy(theirs, masks, insides)}
        if (covered := float(found[OURS].area.mean()) * math.prod(grid)) < 1:
            scans.flags.append(
                f"a map has {' x '.join(map(str, grid))} places, and a mask covers {covered:.2f} of one on average: "
                "too coarse to point at it"
            )
        if empty := int(found[OURS].empty.sum()):
            scans.flags.append(f"{empty} of {len(at)} maps are zero everywhere and count as the same everywhere")
    else:
        scans.flags.append(f"no test scan has a mask with the label {part}: whether maps lie right is not known")
    inside = _in_masks(found, scans.patient[at], seed)
    fresh = [features.fresh(replace(config, seed=seed_from(seed, draw)), wanted) for draw in range(DRAWS)]
    check, last = _check(maps, encoder, fresh, heads[0], ours, scans.patient, seed)
    what = f"{METHODS[method]}, for {subject}" if subject else METHODS[method]
    result = {
        "about": f"{what}: {len(scans.rows)} scans of {len(set(scans.patient))} patients ({scans.test}).",
        "method": method,
        "target": target,
        "explained": subject,
        "part": part,
        "train_store": home.fingerprint,
        "test_store": scans.store.fingerprint,
        "flags": scans.flags,
        "in_masks": [_plain(line) for line in inside],
        "check": [_plain(line) for line in check],
        "verdict": randomisation_check(last),
        "trusted": depends_on_weights(last),
    }
    resampled = resampled_for_encoder(scans.store, wanted)
    shown = [_picture(resampled, scans, i, ours[i], masks[at == i]) for i in _drawn(at, len(scans.rows))]
    with atomic(folder.path / "cam.png") as file:
        file.write_bytes(saliency_sheet(shown))
    write_json(folder.path / "cam.json", result)
    _keep(folder.path, result, scans, at, found)
    print("\n".join([str(result["about"]), *(f"! {flag}" for flag in scans.flags)]))
    for lines in filter(None, (inside, check)):
        print("\n" + text_table(lines, list(lines[0])))
    print(f"\n{result['verdict']}\nmaps: {folder.path / 'cam.png'}")
    return result


def _maps(
    method: str,
    explain: str | None,
    home: Store,
    scans: Scans,
    encoders: list[nn.Module],
    config: PretrainConfig,
    wanted: InputConfig,
    seed: int,
    device: str,
) -> tuple[Maps, list[np.ndarray | None], str]:
    """(what makes maps, of each encoder the weights of its probe or None, what is explained in words)."""
    foil = home.rows("train")
    grids = (
        resampled_for_encoder(scans.store, wanted),
        (resampled_for_encoder(home, wanted), foil[evenly_spaced(len(foil), FOIL)]),
    )
    maker = SaliencyMaker(method, *grids, config, seed, device)
    splits = scans.splits
    if splits is None or method != "gradcam":
        return lambda encoder, _, at: maker(encoder, scans.rows[at], None), [None] * len(encoders), ""
    subject, output, sign = outputs(splits.target, explain, splits.test.y)

    def maps(encoder: nn.Module, head: np.ndarray | None, at: np.ndarray) -> np.ndarray:
        assert head is not None
        return maker(encoder, scans.rows[at], (head[:, output[at]] * sign[at]).T.astype(np.float32))

    heads = [head_of(features.of_encoder(encoder, wanted, device), splits, seed) for encoder in encoders]
    return maps, [*heads], subject


def _labelled(splits: EvalSplits) -> Scans:
    """At most MOST of a question's test scans."""
    kept = evenly_spaced(len(splits.test), MOST)
    flags = list(splits.flags)
    if len(kept) < len(splits.test):
        flags.append(f"{len(kept)} of {len(splits.test)} test scans were looked at")
    splits.test = test = splits.test.take(kept)
    columns = [(name, values(test.store, name)[test.rows]) for name in splits.target.columns]
    words = [", ".join(f"{name}: {column[i]}" for name, column in columns) for i in range(len(test))]
    return Scans(test.store, test.rows, test.patient, words, splits, splits.test_name, flags)


def _unlabelled(folder: Run, key: str, home: Store, away: Store, other: bool, allow_overlap: bool) -> Scans:
    """The same of a store nobody has labelled. Raises UserError when pretraining has seen one of its test patients."""
    rows = away.rows(None if other else "test")
    if not len(rows):
        raise UserError(f"{away.path} has no test patients; ingest more scans, or give test_store=STORE")
    known = home if home.fingerprint == folder.config().fingerprint else None
    seen = read_pretrained_on(folder.path / "pretrained_on.parquet", key, known)
    train, val = (scan_set_from_store(what, home, rows[:0]) for what in ("training", "validation"))  # nothing is fitted
    report = check_leaks(
        seen, train, val, scan_set_from_store("test", away, rows), cache=away.path / "cache" / "alike.npz"
    )
    if report.refusal and not allow_overlap:
        raise UserError(f"{report.refusal}; look at other patients, or have every number marked: allow_overlap=true")
    flags = report.warnings()
    kept = evenly_spaced(len(rows), MOST)
    if len(kept) < len(rows):
        flags.append(f"{len(kept)} of {len(rows)} test scans were looked at")
    patient = away.column("patient")[rows[kept]].astype(str)
    test = f"all patients of {away.path.name}" if other else "held-out patients"
    return Scans(away, rows[kept], patient, [""] * len(kept), None, test, flags)


def _in_masks(found: dict[str, MaskEnergy], patient: np.ndarray, seed: int) -> list[Line]:
    """A line for each encoder's maps; their means over scans with intervals over patients."""
    lines: list[Line] = []
    for name, f in found.items():
        line: Line = {"maps of": name}
        line |= {k: score(MEAN, f.area, v, patient, seed=seed) for k, v in ((ENERGY, f.energy), (AREA, f.area))}
        line[GAIN] = difference(MEAN, f.area, f.energy, f.area, patient, seed=seed)
        line[HIT] = score(MEAN, f.area, f.hit, patient, seed=seed)
        rival = found[RIVAL].energy
        line[MINUS] = None if name == RIVAL else difference(MEAN, f.area, f.energy, rival, patient, seed=seed)
        lines.append(line)
    return lines


def _check(
    maps: Maps,
    encoder: nn.Module,
    fresh: list[nn.Module],
    head: np.ndarray | None,
    ours: np.ndarray,
    patient: np.ndarray,
    seed: int,
) -> tuple[list[Line], Score]:
    """Rank correlation of maps to those of ever more random layers, mean over draws: a line each, and the last score."""
    at = evenly_spaced(len(ours), CHECKED)
    groups = len(fresh[0].by_depth())  # type: ignore[operator]
    depths = sorted({round(d) for d in np.linspace(1, groups, min(groups, STAGES))})
    also = "" if head is None else "the probe and "
    names = ["the probe"] * (head is not None) + [f"{also}the last {d} of {groups} groups of layers" for d in depths]
    found = np.zeros((len(names), len(at)))
    with Progress("random weights", total=len(fresh) * len(names), unit="stage") as bar:
        for draw, other in enumerate(fresh):
            noise = None
            if head is not None:
                noise = torch.randn(head.shape, generator=generator(seed, draw)).numpy()  # ranks know no scale
            for k, network in enumerate(_networks(encoder, other, depths, head is not None)):
                found[k] += rank_correlation(ours[at], maps(network, noise, at)) / len(fresh)
                bar.update(1)
    scores = [score(MEAN, each, each, patient[at], seed=seed) for each in found]
    lines: list[Line] = [{"random": n, "rank correlation": s} for n, s in zip(names, scores, strict=True)]
    return lines, scores[-1]


def _networks(encoder: nn.Module, other: nn.Module, depths: list[int], probe: bool) -> Iterator[nn.Module]:
    """The encoder itself where the probe alone is random, then with its last layers random, at each of `depths`."""
    if probe:
        yield encoder
    for depth, network in enumerate(randomised(encoder, other), start=1):
        if depth in depths:
            yield network


def _drawn(at: np.ndarray, n: int) -> np.ndarray:
    """At most SHOWN of n scans: some of those with a mask, a quarter of others, where there are such."""
    others = np.setdiff1d(np.arange(n), at)
    most = min(len(others), max(SHOWN // 4, SHOWN - len(at)))
    return np.concatenate([at[evenly_spaced(len(at), SHOWN - most)], others[evenly_spaced(len(others), most)]])


def _picture(resampled: ResampledScans, scans: Scans, i: int, map_: np.ndarray, mask: np.ndarray) -> ScanWithMap:
    """Scan number `i` in its window with its map (*size) and its mask (1 or none, *size); of a volume one slice."""
    scan = standardised(resampled, scans.rows[i : i + 1])[0].numpy() * resampled.std + resampled.mean
    if map_.ndim == 3:
        z = strongest_slice(map_)
        scan, map_, mask = scan[:, z], map_[z], mask[:, z]
    flat = scan.transpose(1, 2, 0) if len(scan) == 3 else scan[0]
    return ScanWithMap(flat, map_, mask[0] if len(mask) else None, scans.label[i])


def _plain(line: Line) -> dict[str, Any]:
    """For JSON."""
    return {k: v.as_dict() if isinstance(v, Score) else v for k, v in line.items()}


def _keep(folder: Path, result: dict[str, Any], scans: Scans, at: np.ndarray, found: dict[str, MaskEnergy]) -> None:
    """The numbers per scan, so that runs can be compared on the same patients."""
    if not found:
        return
    about = {k: result[k] for k in ("train_store", "test_store")} | {"task": "per_case", "test": scans.test}
    about |= {"command": f"cam-{result['method']}", "target": result["explained"] or result["method"]}
    about |= {"classes": [f"mask {result['part']}"]}
    entries = [
        TableRow("run" if name == OURS else name, words, [v])
        for name, f in found.items()
        for words, v in ((ENERGY, f.energy), (HIT, f.hit))
    ]
    area = found[OURS].area
    Predictions(about, scans.store.column("scan")[scans.rows[at]], scans.patient[at], area, entries).write(folder)
