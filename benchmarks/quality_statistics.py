"""Coverage of intervals and level of tests with several scans per patient, and with overlapping train/test splits.

    python benchmarks/quality_statistics.py --reps 2000 --sizes 156 400 624

Cohorts: n scans of patients with 1 to 8 scans each, some with scans of both classes. Scores are binormal with an effect of
the patient common to all of a patient's scans; two equally good models are correlated in both. Target for methods by
patient: 95 % intervals of the AUROC cover 93 to 97 %, and tests at 5 % find a difference of the two in at most 6 % of
cohorts. Methods that treat scans as independent are shown for comparison and should fail.

Splits: ridge regression on two equally good sets of features, over train/test splits of n patients with one scan each, with
Student's t-test and the corrected one. Brackets are 95 % Clopper-Pearson intervals over the repetitions.
"""

import argparse
import multiprocessing
import os
import time
from collections.abc import Iterator
from functools import partial
from itertools import product

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the processes share the cores

import numpy as np
from reference_statistics import auroc_paired, auroc_score, bca_score, corrected_t
from scipy.stats import binomtest, norm, rankdata, ttest_1samp

from medssl.evals.metrics.metrics import AUROC
from medssl.evals.stats import bootstrap
from medssl.rng import seed_from

BOTH = 0.25  # share of patients with scans of both classes
ALIKE = 0.6  # correlation of the two models
SPLITS = ((10, 0.8), (15, 0.9), (30, 2 / 3))  # how many, and the share of patients in training
FEATURES = (5, 20)  # in each set of the splits; with more of them the models depend more on who is in training

INTERVALS = {
    "percentile bootstrap": True,
    "BCa bootstrap": True,
    "Obuchowski": True,
    "DeLong, scans as patients": False,
}
TESTS = {"paired bootstrap": True, "Obuchowski": True, "bootstrap, scans as patients": False, "DeLong": False}


def generator(*keys: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(seed_from(*keys)))


def cohort(r: np.random.Generator, n: int, given: argparse.Namespace) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return y (n,), scores (2, n) of two models with the same AUROC, and patient (n,)."""
    low, high = given.images
    size = r.integers(low, high + 1, n)
    size = size[: np.searchsorted(np.cumsum(size), n) + 1]  # as many patients as n scans take
    at = np.repeat(np.arange(len(size)), size)[:n]
    own, both = r.random((2, len(size)))
    y = np.where((both < BOTH)[at], r.random(n), own[at]) < given.prevalence

    def two(k: int) -> np.ndarray:
        common, single = r.normal(size=(1, k)), r.normal(size=(2, k))
        return np.sqrt(ALIKE) * common + np.sqrt(1 - ALIKE) * single

    noise = np.sqrt(given.shared) * two(len(size))[:, at] + np.sqrt(1 - given.shared) * two(n)
    return y.astype(np.int64), np.sqrt(2) * norm.ppf(given.auroc) * y + noise, at


def one(rep: int, n: int, given: argparse.Namespace) -> tuple[list[bool], list[bool], int]:
    """Return for each of INTERVALS whether it contains the truth, for each of TESTS whether it finds a difference; patients."""
    y, s, patient = cohort(generator(n, rep), n, given)
    scans = np.arange(n)
    p, q = (np.stack([norm.cdf(-x), norm.cdf(x)], 1) for x in s)
    draws = {"n": given.resamples, "seed": rep}
    intervals = [
        bootstrap.score(AUROC, y, p, patient, **draws),
        bca_score(AUROC, y, p, patient, **draws),
        auroc_score(y, s[0], patient),
        auroc_score(y, s[0], scans),
    ]
    tests = [
        bootstrap.paired(AUROC, y, [p], [q], patient, **draws),
        auroc_paired(y, *s, patient),
        bootstrap.paired(AUROC, y, [p], [q], scans, **draws),
        auroc_paired(y, *s, scans),
    ]
    return (
        [bool(i.low <= given.auroc <= i.high) for i in intervals],
        [t.p < 0.05 for t in tests],
        int(patient.max()) + 1,
    )


def auroc(y: np.ndarray, s: np.ndarray) -> np.ndarray:
    """Return the AUROC of labels and scores (..., n), by ranks."""
    pos = y.sum(-1)
    return ((rankdata(s, axis=-1) * y).sum(-1) - pos * (pos + 1) / 2) / (pos * (y.shape[-1] - pos))


def splits(rep: int, n: int) -> list[tuple[bool, bool]]:
    """Return for each of FEATURES and SPLITS (n patients, stratified) whether Student's and the corrected t find a difference."""
    r, half = generator(0, n, rep), n // 2
    y = np.arange(2 * half) % 2
    out = []
    for features, (many, share) in product(FEATURES, SPLITS):
        x = r.normal(size=(2, 1, 2 * half, features)) + np.sqrt(0.45 / features) * (2 * y - 1)[:, None]
        order = 2 * np.argsort(r.random((many, 2, half)), axis=2) + np.arange(2)[:, None]
        parts = np.split(order, [round(share * half)], axis=2)
        train, test = (part.reshape(many, -1) for part in parts)
        a, b = (np.take_along_axis(x, part[None, ..., None], axis=2) for part in (train, test))
        w = np.linalg.solve(a.mT @ a + np.eye(features), a.mT @ (2.0 * y[train] - 1)[..., None])
        d = np.subtract(*auroc(np.broadcast_to(y[test], (2, *test.shape)), (b @ w)[..., 0]))
        corrected = corrected_t(d, train.shape[1], test.shape[1], scans=2 * half)
        out.append((bool(ttest_1samp(d, 0).pvalue < 0.05), corrected.p < 0.05))
    return out


def line(name: str, hits: np.ndarray, wanted: tuple[float, float]) -> str:
    k, n = int(hits.sum()), len(hits)
    ends = binomtest(k, n).proportion_ci()
    low, high = wanted
    verdict = "within target" if low <= k / n <= high else "OUTSIDE TARGET"
    return f"  {name:49s} {k / n:.3f} [{ends.low:.3f}, {ends.high:.3f}]   {low:.2f} to {high:.2f}   {verdict}"


def report(n: int, given: argparse.Namespace, found: list[tuple[list[bool], list[bool], int]]) -> Iterator[str]:
    alone = given.images == [1, 1]  # scans are patients
    covers, finds = (np.array([f[i] for f in found]) for i in (0, 1))
    yield f"\nn = {n} scans, {np.mean([f[2] for f in found]):.0f} patients on average, {len(found)} cohorts"
    yield "  coverage of 95 % intervals"
    for (name, patients), hits in zip(INTERVALS.items(), covers.T, strict=True):
        yield line(name, hits, (0.93, 0.97) if patients or alone else (0.0, 0.93))
    yield "  false differences found, at 5 %"
    for (name, patients), hits in zip(TESTS.items(), finds.T, strict=True):
        yield line(name, hits, (0.0, 0.06) if patients or alone else (0.15, 1.0))


def main() -> None:
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--reps", type=int, default=2000)
    args.add_argument(
        "--sizes", type=int, nargs="*", default=[156, 400, 624], help="scans of a cohort, and patients of the splits"
    )
    args.add_argument("--resamples", type=int, default=400, help="of each bootstrap")
    args.add_argument("--images", type=int, nargs=2, default=[1, 8], help="fewest and most scans of a patient")
    args.add_argument("--auroc", type=float, default=0.8)
    args.add_argument("--prevalence", type=float, default=0.5)
    args.add_argument("--shared", type=float, default=0.5, help="share of the variance that is the patient's")
    args.add_argument("--workers", type=int, default=2)
    given = args.parse_args()
    print(
        f"AUROC {given.auroc:g}, {100 * given.prevalence:g} % positive, {given.images[0]} to {given.images[1]} scans a patient, "
        f"{100 * given.shared:g} % of the variance is the patient's, {given.resamples} resamples"
    )
    start = time.perf_counter()
    with multiprocessing.get_context("spawn").Pool(given.workers) as pool:
        for n in given.sizes:
            found = pool.map(partial(one, n=n, given=given), range(given.reps), chunksize=20)
            print("\n".join(report(n, given, found)), flush=True)
            tested = np.array(pool.map(partial(splits, n=n), range(given.reps), chunksize=20))
            print(f"  false differences found, at 5 %, over splits of {n // 2 * 2} patients")
            for (k, (many, share)), hits in zip(product(FEATURES, SPLITS), tested.transpose(1, 2, 0), strict=True):
                name = f"{k} features, {many} splits, {share:.0%} to train"
                print(line(f"Student, {name}", hits[0], (0.15, 1.0)))
                print(line(f"corrected, {name}", hits[1], (0.0, 0.06)), flush=True)
    print(f"\n{time.perf_counter() - start:.0f} s on {given.workers} processes")


if __name__ == "__main__":
    main()
