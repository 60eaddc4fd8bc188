"""Scores of saliency maps: energy in masks, and a check against random weights."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from medssl.evals.explain.saliency_checks import MaskEnergy, randomised, rank_correlation
from medssl.evals.metrics.metrics import MEAN
from medssl.evals.stats.bootstrap import difference, score
from medssl.evals.stats.score import Score
from medssl.evals.stats.text_table import Cell, text_table
from medssl.progress import Progress
from medssl.results import Result
from medssl.rng import generator
from medssl.runs.predictions import RUN, PredictedRow
from medssl.scoring.baselines import Baseline
from medssl.scoring.saliency_maps import Maps
from medssl.store.query import evenly_spaced

CHECKED, STAGES = 64, 5  # scans and depths in the check against random weights
NAMES = {RUN: "this run", Baseline.RANDOM_INIT.value: "random init"}
ENERGY, AREA, GAIN, HIT, DIFFERENCE = (
    "energy in mask",
    "area of mask",
    "energy minus area",
    "highest in mask",
    "energy minus random init",
)


def describe_masks(own: MaskEnergy, grid: Sequence[int]) -> list[str]:
    """Return warnings about maps that are too coarse for the masks or zero everywhere. grid: places of a map per axis."""
    flags = []
    if (covered := float(own.area.mean()) * math.prod(grid)) < 1:
        flags.append(
            f"a map has {' x '.join(map(str, grid))} places, and a mask covers {covered:.2f} of one on average: "
            "too coarse to point at it"
        )
    if empty := int(own.empty.sum()):
        flags.append(f"{empty} of {len(own.empty)} maps are zero everywhere and count as uniform")
    return flags


def score_in_masks(found: Mapping[str, MaskEnergy], patient: np.ndarray, seed: int) -> Result:
    """Return the mean energy of maps in masks, by the source of the maps, with intervals over patients."""
    lines: list[dict[str, Cell]] = []
    for source, f in found.items():
        baseline = found[Baseline.RANDOM_INIT].energy
        options: dict[str, Any] = {"seed": seed}
        line: dict[str, Cell] = {
            "maps of": NAMES[source],
            ENERGY: score(MEAN, f.area, f.energy, patient, **options),
            AREA: score(MEAN, f.area, f.area, patient, **options),
            GAIN: difference(MEAN, f.area, f.energy, f.area, patient, **options),
            HIT: score(MEAN, f.area, f.hit, patient, **options),
            DIFFERENCE: difference(MEAN, f.area, f.energy, baseline, patient, **options) if source == RUN else None,
        }
        lines.append(line)
    return _table("in_masks", lines)


def mask_rows(found: Mapping[str, MaskEnergy]) -> list[PredictedRow]:
    """Return the energy and the hit of every scan, to be compared with those of other runs."""
    return [
        PredictedRow(source, name, [values])
        for source, f in found.items()
        for name, values in ((ENERGY, f.energy), (HIT, f.hit))
    ]


def check_random_weights(
    maps: Maps,
    encoder: nn.Module,
    random: Sequence[nn.Module],
    head: np.ndarray | None,
    own: np.ndarray,
    patient: np.ndarray,
    seed: int,
) -> tuple[Score, Result]:
    """Return rank correlations of the maps `own` with those of encoders with more and more random layers.

    Layers are replaced from the output towards the input by those of each encoder in `random`, after the probe if there
    is a `head`. Scores are means over `random`; the first value is that of the last line.
    """
    at = evenly_spaced(len(own), CHECKED)
    groups = len(random[0].by_depth())  # type: ignore[operator]
    depths = sorted({round(d) for d in np.linspace(1, groups, min(groups, STAGES))})
    also = "" if head is None else "the probe and "
    names = ["the probe"] * (head is not None) + [f"{also}the last {d} of {groups} groups of layers" for d in depths]
    found = np.zeros((len(names), len(at)))
    with Progress("random weights", total=len(random) * len(names), unit="stage") as bar:
        for draw, other in enumerate(random):
            noise = None
            if head is not None:
                noise = torch.randn(head.shape, generator=generator(seed, draw)).numpy()  # ranks do not depend on scale
            for k, network in enumerate(_stages(encoder, other, depths, head is not None)):
                found[k] += rank_correlation(own[at], maps(network, noise, at)) / len(random)
                bar.update(1)
    scores = [score(MEAN, each, each, patient[at], seed=seed) for each in found]
    lines: list[dict[str, Cell]] = [{"random": n, "rank correlation": s} for n, s in zip(names, scores, strict=True)]
    return scores[-1], _table("check", lines)


def _stages(encoder: nn.Module, other: nn.Module, depths: list[int], probe: bool) -> Iterator[nn.Module]:
    """Yield the encoder itself if the probe is random, then copies with random last layers at each of `depths`."""
    if probe:
        yield encoder
    for depth, network in enumerate(randomised(encoder, other), start=1):
        if depth in depths:
            yield network


def _table(key: str, lines: list[dict[str, Cell]]) -> Result:
    rows = [{k: v.as_dict() if isinstance(v, Score) else v for k, v in line.items()} for line in lines]
    return Result({key: rows}, text_table(lines, list(lines[0])) if lines else "")
