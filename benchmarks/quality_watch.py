"""How often `medssl watch` reports drift where there is none, and how often it finds drift that was planted.

    python benchmarks/quality_watch.py --data ../shared/data

DATA is a folder with cxr_guangzhou/ and cxr_nih/ (images and manifest.csv with patients). Target: without drift at most 5 % of
looks reject, and of the intervals of the AUROC at most 5 % exclude 0.5, up to the error of the simulation.

1. Drawn features, without drift: 64 normal features of which half of the variance lies between patients, 1 to 8 scans a patient.
   Beside the test, two that look alike and are not valid: permuting scans, and principal components of the reference alone.
2. X-rays: SimCLR is trained on the training patients of Guangzhou; looks compare disjoint samples of patients. Without drift
   both are held out, or the reference is from the training patients. Drift is planted into all new scans, or into those of a
   fifth of the new patients, on the pictures as the encoder takes them; adults of the NIH are another hospital.

Brackets are 95 % Clopper-Pearson intervals over the looks. With --work, stores and run are kept there and used again.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("CI", "1")  # quiet

import numpy as np
import torch
from scipy.stats import binomtest
from torch import Tensor

import medssl
from medssl.augmentations.geometry import gaussian_matrix
from medssl.evals.embed import evaluating, standardised
from medssl.evals.label_free.drift import Drift, drift, gaussian_kernel, mmd_test
from medssl.rng import seed_from
from medssl.scoring.baselines import FeatureSources
from medssl.store.resampled import resampled_for_encoder
from medssl.store.store import Store

ALPHA = 0.05
Scans = tuple[np.ndarray, np.ndarray]  # features (N, D), patients (N,)
Look = tuple[np.ndarray, np.ndarray, np.ndarray]  # features, new, patients


def drawn(r: np.random.Generator, patients: int, most: int) -> Scans:
    """Return scans of patients with 1 to `most` each."""
    at = np.repeat(np.arange(patients), r.integers(1, most + 1, patients))
    scale = np.arange(1, 65) ** -0.5
    return scale * (r.normal(size=(patients, 64))[at] + r.normal(size=(len(at), 64))), at


def look(reference: Scans, new: Scans) -> Look:
    x = np.concatenate([reference[0], new[0]]).astype(np.float64)
    patient = [f"{k} {p}" for k, group in enumerate((reference, new)) for p in group[1]]
    return x, np.repeat([False, True], [len(reference[0]), len(new[0])]), np.array(patient)


def by_scan(found: Look, seed: int) -> float:
    """Return the p-value of a test that permutes scans."""
    x, new, _ = found
    return mmd_test(gaussian_kernel((x - x.mean(0)) / x.std(0)), new, 199, seed)


def by_reference(found: Look, seed: int) -> float:
    """Return the p-value of a test on the whitened principal components of the reference alone."""
    x, new, patient = found
    one = np.unique(patient, return_index=True)[1]
    x, new = x[one] - x[~new].mean(0), new[one]
    values, vectors = np.linalg.eigh(np.cov(x[~new].T))
    z = x @ vectors[:, -32:] / np.sqrt(values[-32:].clip(min=1e-9))
    return mmd_test(gaussian_kernel(z), new, 199, seed)


def rate(hits: Iterable[bool]) -> str:
    hits = list(hits)
    low, high = binomtest(sum(hits), len(hits)).proportion_ci()
    return f"{np.mean(hits):.3f} [{low:.3f}, {high:.3f}]"


def line(words: str, found: list[Drift], *more: str) -> None:
    apart = [not d.told_apart.low <= 0.5 <= d.told_apart.high for d in found]
    auroc = f"{np.mean([d.told_apart.value for d in found]):.2f}"
    cells = [words, str(len(found)), rate(d.p <= ALPHA for d in found), rate(apart), auroc, *more]
    print(f"| {' | '.join(cells)} |", flush=True)


def simulated(reps: int) -> None:
    print(
        "| patients in each group | looks | test rejects | AUROC's interval excludes .5 | mean AUROC | permuting scans rejects |",
        end="",
    )
    print(" components of the reference reject |\n| --- | --- | --- | --- | --- | --- | --- |")
    for patients, most in ((20, 8), (60, 8), (60, 1), (150, 4)):
        looks = []
        for rep in range(reps):
            r = np.random.Generator(np.random.Philox(seed_from(rep, patients, most)))
            looks.append(look(drawn(r, patients, 8), drawn(r, patients, most)))
        found = [drift(*each, seed=rep) for rep, each in enumerate(looks)]
        others = [
            rate(f(each, rep) <= ALPHA for rep, each in enumerate(looks[: reps // 2])) for f in (by_scan, by_reference)
        ]
        line(f"{patients}, 1 to 8 scans; new 1 to {most}", found, *others)


def blur(sigma: float) -> Callable[[Tensor], Tensor]:
    def change(x: Tensor) -> Tensor:
        m = gaussian_matrix(torch.tensor([sigma]), x.shape[-1], 4)[0]
        return m @ x @ m.T

    return change


def noise(std: float) -> Callable[[Tensor], Tensor]:
    return lambda x: x + std * torch.randn(x.shape, generator=torch.Generator().manual_seed(len(x)))


PLANTED: dict[str, Callable[[Tensor], Tensor]] = {
    "gamma 1.05": lambda x: x**1.05,
    "gamma 1.1": lambda x: x**1.1,
    "gamma 1.25": lambda x: x**1.25,
    "blur of .5 pixels": blur(0.5),
    "blur of .7 pixels": blur(0.7),
    "noise of 2 %": noise(0.02),
}


def features(sources: FeatureSources, store: Store, rows: np.ndarray, change: Callable[[Tensor], Tensor]) -> np.ndarray:
    """Return the features of scans whose pictures in [0, 1], as the encoder takes them, are changed."""
    scans, out = resampled_for_encoder(store, sources.encoder.input), []
    with evaluating(sources.pretrained()) as encoder:
        for start in range(0, len(rows), 256):
            x = standardised(scans, rows[start : start + 256]) * scans.std + scans.mean
            out.append(encoder((change(x).clamp(0, 1) - scans.mean) / scans.std).numpy())
    return np.concatenate(out)


def prepared(data: Path, work: Path) -> tuple[FeatureSources, Store, Store]:
    for name in ("cxr_guangzhou", "cxr_nih"):
        folder = data / name
        if not (work / name).exists():
            labels = folder / "manifest.csv"
            medssl.ingest(folder / "images", work / name, labels=labels, site=name, key=work / "key", intensity="xray")
    settings = {"method": "simclr", "encoder": "small_resnet", "size": 64, "steps": 150, "batch": 64}
    medssl.pretrain(work / "cxr_guangzhou", work / "run", monitor_every=0, **settings)
    home, away = (Store.open(work / name) for name in ("cxr_guangzhou", "cxr_nih"))
    return FeatureSources(work / "run", home, "cpu"), home, away


def xrays(data: Path, work: Path, reps: int) -> None:
    sources, home, away = prepared(data, work)
    train, held = home.rows("train"), np.flatnonzero(home.column("split") != "train")
    names = home.column("patient").astype(str)

    def plain(x: Tensor) -> Tensor:
        return x

    clean = features(sources, home, held, plain)
    trained = features(sources, home, train, plain)
    other = features(sources, away, away.rows(), plain)
    print(
        "| new scans | looks | test rejects | AUROC's interval excludes .5 | mean AUROC |\n| --- | --- | --- | --- | --- |"
    )

    def looks(
        words: str, n: int, reps: int, new: np.ndarray, share: float = 1.0, reference: np.ndarray | None = None
    ) -> None:
        """new: features of the held-out scans after a change. reference: of training scans, in place of held-out ones."""
        found = []
        for rep in range(reps):
            r = np.random.Generator(np.random.Philox(seed_from(rep, n)))
            order = r.permutation(np.unique(names[held]))
            first = np.isin(names[held], order[:n])
            second = np.isin(names[held], order[n : 2 * n])
            hit = np.isin(names[held], order[n : n + round(share * n)])
            old = (clean[first], names[held][first])
            if reference is not None:
                some = np.isin(names[train], r.permutation(np.unique(names[train]))[:n])
                old = (reference[some], names[train][some])
            x = np.where(hit[:, None], new, clean)[second]
            found.append(drift(*look(old, (x, names[held][second])), seed=rep))
        line(f"{n} patients, {words}", found)

    for n in (20, 100, 250):
        looks("no drift", n, reps, clean)
    looks("no drift, reference from the training patients", 100, reps, clean, reference=trained)
    looks("no drift, reference from the training patients", 250, reps, clean, reference=trained)
    few = max(20, reps // 10)
    for name, change in PLANTED.items():
        new = features(sources, home, held, change)
        for n, share in ((20, 1.0), (100, 1.0), (250, 1.0), (100, 0.2), (250, 0.2)):
            looks(name + (f" in {share:.0%} of them" if share < 1 else ""), n, few, new, share)
    patients = away.column("patient").astype(str)
    for n in (10, 20):
        found = []
        for rep in range(few):
            r = np.random.Generator(np.random.Philox(seed_from(rep, n, 1)))
            first = np.isin(names[held], r.permutation(np.unique(names[held]))[:n])
            second = np.isin(patients, r.permutation(np.unique(patients))[:n])
            found.append(drift(*look((clean[first], names[held][first]), (other[second], patients[second])), seed=rep))
        line(f"{n} patients, adults of the NIH", found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--reps", type=int, default=400)
    given = parser.parse_args()
    torch.set_num_threads(1)
    start = time.process_time()
    simulated(given.reps)
    print(f"\n{time.process_time() - start:.0f} s of one core\n")
    if given.data:
        with tempfile.TemporaryDirectory() as scratch:
            xrays(given.data, given.work or Path(scratch), given.reps)
        print(f"\n{time.process_time() - start:.0f} s of one core")


if __name__ == "__main__":
    main()
