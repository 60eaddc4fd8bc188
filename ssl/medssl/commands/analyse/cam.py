"""`medssl cam`: saliency maps of test scans, with a check of whether they can be trusted."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medssl.commands.options import accepts
from medssl.errors import UserError, nearest
from medssl.evals.embed import standardised
from medssl.evals.explain.saliency import map_resolution
from medssl.evals.explain.saliency_checks import MaskEnergy, depends_on_weights, mask_energy, randomisation_check
from medssl.files import atomic, write_json
from medssl.reporting.saliency_sheet import ScanWithMap, saliency_sheet, strongest_slice
from medssl.reporting.scan_overlay import on_stored_scan, write_pictures
from medssl.results import Result
from medssl.rng import seed_from
from medssl.runs.predictions import RUN, Predictions
from medssl.scoring.baselines import Baseline, FeatureSources
from medssl.scoring.eval_splits import EvalSplits, SplitOptions, Stores, load_splits, load_unlabelled_splits
from medssl.scoring.features import check_input, initial_encoder
from medssl.scoring.saliency_maps import GRADCAM, METHODS, make_maps, masks_on_grid
from medssl.scoring.saliency_scores import check_random_weights, describe_masks, mask_rows, score_in_masks
from medssl.scoring.shown_scans import OTHER, ShownScan, choose_by_answer, choose_shown
from medssl.scoring.targets import values
from medssl.store.query import evenly_spaced
from medssl.store.resampled import ResampledScans, resampled_for_encoder
from medssl.store.store import Store

MOST = 500  # maximum of test scans scored
DRAWS = 3  # encoders with random weights


@accepts(SplitOptions)
def cam(
    run: str | Path,
    store: str | Path | Store,
    target: str | list[str] | None = None,
    *,
    method: str = GRADCAM,
    explain: str | None = None,
    part: int = 1,
    options: SplitOptions,
) -> Result:
    """Draw and score saliency maps of test scans; writes RUN/cam.png, RUN/cam.npz and RUN/cam.json and returns the latter.

    cam.png shows some scans on the encoder's grid, their maps, and both with the outline of the mask: the surest hits and
    misses of the probe and the doubtful scans, if the target has classes. cam.npz has the same scans as they are stored, with
    the maps over them, for the report. If scans have masks, the share of a map
    inside the mask is compared with the mask's share of the scan and with the maps of the untrained encoder, paired. The
    maps are always checked against maps of random weights.

    Args:
        run: a finished run folder.
        store: the scans. For gradcam, a probe is fitted on its training patients.
        target: see `medssl.probe`; needed for gradcam, otherwise used for captions only.
        method: a key of `medssl.scoring.saliency_maps.METHODS`; see `medssl.evals.explain.saliency`.
        explain: the class or finding to explain; None: the positive one of two classes, each scan's own of several.
        part: the label in the masks.
        options: keyword arguments; see `medssl.scoring.eval_splits.SplitOptions`.

    Raises UserError as `medssl.probe` does, and for an encoder that the method does not work for.
    """
    if method not in METHODS:
        raise UserError(f"method is {method!r}.{nearest(method, METHODS)}")
    if method == GRADCAM and target is None:
        raise UserError("gradcam explains a score: give target=LABEL, or choose method=similarity or method=rollout")
    home, away, *_ = Stores.open(store, options)
    sources, seed = FeatureSources(run, home, options.device), options.seed
    wanted, config = sources.encoder.input, sources.config
    for each in (home, away):
        check_input(wanted, each)
    loaded = (sources.run, sources.encoder, home)
    splits = load_unlabelled_splits(*loaded, options) if target is None else load_splits(*loaded, target, options)
    kept = evenly_spaced(len(splits.test), MOST)
    if len(kept) < len(splits.test):
        splits.flags.append(f"{len(kept)} of {len(splits.test)} test scans were used")
    test = splits.test = splits.test.take(kept)
    encoder, baseline = sources.pretrained(), sources.initial().eval()
    maps, heads, subject, p = make_maps(method, explain, sources, splits, [encoder, baseline], seed)
    own = maps(encoder, heads[0], np.arange(len(test)))
    at, masks, insides = masks_on_grid(test.store, test.rows, wanted, part)
    found: dict[str, MaskEnergy] = {}
    if len(at):
        found[RUN] = mask_energy(own[at], masks, insides)
        found[Baseline.RANDOM_INIT.value] = mask_energy(maps(baseline, heads[1], at), masks, insides)
        grid = map_resolution(encoder, torch.zeros(1, wanted.channels, *wanted.size, device=sources.device))
        splits.flags += describe_masks(found[RUN], grid)
    else:
        splits.flags.append(f"no test scan has a mask with the label {part}, so maps cannot be compared with masks")
    random = [initial_encoder(replace(config, seed=seed_from(seed, draw)), wanted) for draw in range(DRAWS)]
    last, check = check_random_weights(maps, encoder, random, heads[0], own, test.patient, seed)
    described = _described(method, target, subject, part, splits)
    picture = sources.path / "cam.png"
    result = (
        Result(described, "\n".join([described["about"], *(f"! {flag}" for flag in splits.flags)]))
        + score_in_masks(found, test.patient[at], seed)
        + check
        + Result(
            {"verdict": randomisation_check(last), "trusted": depends_on_weights(last)},
            f"{randomisation_check(last)}\nmaps: {picture}",
        )
    )
    if p is not None and splits.target.has_classes:
        chosen = choose_by_answer(splits, p)
    else:
        chosen = [ShownScan(int(i), OTHER) for i in choose_shown(at, len(test))]
    resampled = resampled_for_encoder(test.store, wanted)
    shown = [_picture(resampled, splits, scan.at, own[scan.at], masks[at == scan.at]) for scan in chosen]
    with atomic(picture) as file:
        file.write_bytes(saliency_sheet(shown))
    result["shown"] = [
        {"kind": c.kind, "label": c.label, "called": c.called, "p": c.p, "caption": s.caption}
        for c, s in zip(chosen, shown, strict=True)
    ]
    on_scans = [on_stored_scan(test.store, int(test.rows[c.at]), own[c.at], wanted, part) for c in chosen]
    write_pictures(sources.path / "cam.npz", on_scans)
    write_json(sources.path / "cam.json", result)
    if found:
        masked = test.take(at)
        about = {k: described[k] for k in ("train_store", "test_store", "flags")}
        about |= {"task": "per_case", "test": splits.test_name, "overlap": splits.overlap}
        about |= {"command": f"cam-{method}", "target": subject or method, "classes": [f"mask {part}"]}
        about["asked"] = splits.asked(masked) | {"task": "per_case", "mask": part}
        Predictions(about, masked.column("scan"), masked.patient, found[RUN].area, mask_rows(found)).write(sources.path)
    return result


def _described(
    method: str, target: str | list[str] | None, subject: str, part: int, splits: EvalSplits
) -> dict[str, Any]:
    """Return JSON values about the maps and the scans."""
    name = f"{METHODS[method]}, for {subject}" if subject else METHODS[method]
    test = splits.test
    return {
        "about": f"{name}: {len(test)} scans of {test.patients} patients ({splits.test_name}).",
        "method": method,
        "target": target,
        "explained": subject,
        "part": part,
        "train_store": splits.train.store.fingerprint,
        "test_store": test.store.fingerprint,
        "flags": splits.flags,
    }


def _picture(resampled: ResampledScans, splits: EvalSplits, i: int, map_: np.ndarray, mask: np.ndarray) -> ScanWithMap:
    """Return test scan `i` in its intensity window with its map (*size) and mask (0 or 1, *size); a slice of a volume."""
    test = splits.test
    scan = standardised(resampled, test.rows[i : i + 1])[0].numpy() * resampled.std + resampled.mean
    if map_.ndim == 3:
        z = strongest_slice(map_)
        scan, map_, mask = scan[:, z], map_[z], mask[:, z]
    flat = scan.transpose(1, 2, 0) if len(scan) == 3 else scan[0]
    caption = ", ".join(f"{name}: {values(test.store, name)[test.rows[i]]}" for name in splits.target.columns)
    return ScanWithMap(flat, map_, mask[0] if len(mask) else None, caption)
