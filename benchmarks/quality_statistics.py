"""Coverage of intervals and level of tests with several scans per patient, and with overlapping train/test splits.

    python benchmarks/quality_statistics.py --reps 2000 --sizes 156 400 624
    python benchmarks/quality_statistics.py --grid 400 --workers 1

--grid: cohorts of AUROC .6 to .995, 2 to 400 patients a class and 1 to 20 scans each instead; how often the intervals of
`medssl.evals.stats.bootstrap` hold the true AUROC, how often they are exact bounds (all patients agree), how often there is none;
for comparison the percentile bootstrap; the share of false differences of two equally good models; other metrics at the ends
of their range; and false differences of methods that are equally good but whose seeds scatter. The target is 93 to 97 %.

Cohorts: n scans of patients with 1 to 8 scans each, some with scans of both classes. Scores are binormal with an effect of
the patient common to all of a patient's scans; two equally good models are correlated in both. Target for methods by
patient: 95 % intervals of the AUROC cover 93 to 97 %, and tests at 5 % find a difference of the two in at most 6 % of
cohorts. Methods that treat scans as independent are shown for comparison and should fail.

Splits: ridge regression on two equally good sets of features, over train/test splits of n patients with one scan each, with
Student's t-test and the corrected one. Brackets are 95 % Clopper-Pearson intervals over the repetitions.
"""

import argparse
import multiprocessing
import multiprocessing.pool
import os
import time
from collections.abc import Iterator
from functools import partial
from itertools import product

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the processes share the cores

import numpy as np
from reference_statistics import auroc_paired, auroc_score, bca_score, corrected_t, percentile_score
from scipy.stats import binomtest, norm, rankdata, ttest_1samp

from medssl.evals.metrics.metrics import ACCURACY, AUPRC, AUROC, BALANCED_ACCURACY, CONCORDANCE, ECE, Metric
from medssl.evals.stats import bootstrap
from medssl.rng import seed_from

BOTH = 0.25  # share of patients with scans of both classes
ALIKE = 0.6  # correlation of the two models
TRUE_AUPRC = 0.971  # of 30 + 30 patients as in `ends`, the mean of 4,000 cohorts
SPLITS = ((10, 0.8), (15, 0.9), (30, 2 / 3))  # how many, and the share of patients in training
FEATURES = (5, 20)  # in each set of the splits; with more of them the models depend more on who is in training

AUROCS = (0.6, 0.8, 0.9, 0.95, 0.98, 0.995)
SHAPES = (
    (1, 0.0),
    (4, 0.5),
    (20, 0.2),
    (20, 0.5),
    (20, 0.8),
)  # most scans of a patient, and the share of variance that is its
CLASSES = ((2, 2), (4, 4), (7, 7), (10, 10), (20, 20), (50, 50), (10, 400), (400, 400))  # patients of each class
SEED_SCATTER, SEEDS = (0.0, 0.1, 0.3), (1, 2, 3, 5, 10)

INTERVALS = {
    "Wilson, jackknife over patients": True,
    "percentile bootstrap": True,
    "BCa bootstrap": True,
    "Obuchowski": True,
    "DeLong, scans as patients": False,
}
TESTS = {"paired jackknife": True, "Obuchowski": True, "jackknife, scans as patients": False, "DeLong": False}


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
        percentile_score(AUROC, y, p, patient, **draws),
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


def by_class(
    r: np.random.Generator, patients: tuple[int, int], most: int, auroc: float, shared: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return y (n,), scores (2, n) of two models, and patient (n,); a patient has one class and 1 to `most` scans."""
    label = np.repeat([1, 0], patients)
    at = np.repeat(np.arange(len(label)), r.integers(1, most + 1, len(label)))

    def two(k: int) -> np.ndarray:
        common, single = r.normal(size=(1, k)), r.normal(size=(2, k))
        return np.sqrt(ALIKE) * common + np.sqrt(1 - ALIKE) * single

    noise = np.sqrt(shared) * two(len(label))[:, at] + np.sqrt(1 - shared) * two(len(at))
    return label[at], np.sqrt(2) * norm.ppf(auroc) * label[at] + noise, at


def cell(rep: int, patients: tuple[int, int], most: int, auroc: float, shared: float) -> list[float]:
    """Return covered, exact bound, no interval, width; covered by percentiles; whether two equal models are told apart."""
    y, s, at = by_class(generator(7, *patients, most, round(1000 * auroc), rep), patients, most, auroc, shared)
    p, q = (np.stack([norm.cdf(-x), norm.cdf(x)], 1) for x in s)
    found, apart = bootstrap.score(AUROC, y, p, at, n=400), bootstrap.paired(AUROC, y, [p], [q], at, n=400)
    plain = percentile_score(AUROC, y, p, at, n=400)
    inside, old = found.low <= auroc <= found.high, plain.low <= auroc <= plain.high
    width = found.high - found.low
    return [inside, found.how.startswith("exact"), np.isnan(found.low), width, old, apart.p < 0.05]


def ends(rep: int) -> list[tuple[str, bool]]:
    """Return whether intervals of other metrics cover a truth near an end: 30 patients of 1 to 4 scans each."""
    r = generator(8, rep)
    at = np.repeat(np.arange(30), r.integers(1, 5, 30))
    own, alone = r.random(30)[at], r.random(len(at))
    out = []
    for share in (0.9, 0.98):
        right = np.where(r.random(len(at)) < 0.5, own, alone) < share  # half of the scans as their patient, half alone
        p = np.where(right[:, None], [0.4, 0.6], [0.6, 0.4])
        found = bootstrap.score(ACCURACY, np.ones(len(at), np.int64), p, at)
        out.append((f"accuracy {share:g}", found.low <= share <= found.high))
    y, s, at = by_class(r, (30, 30), 2, 0.97, 0.5)
    p = np.stack([norm.cdf(-s[0]), norm.cdf(s[0])], 1)
    time = np.where(y == 1, 1.0, 2.0)
    for metric, truth, given, true in (
        (CONCORDANCE, np.stack([time, y], 1), s[0], 0.97),
        (BALANCED_ACCURACY, y, np.stack([norm.cdf(-s[0] + 1.33), norm.cdf(s[0] - 1.33)], 1), norm.cdf(1.33)),
        (AUPRC, y, p, TRUE_AUPRC),
    ):
        found = bootstrap.score(metric, truth, given, at)
        out.append((f"{metric.name} {true:.3f}", bool(found.low <= true <= found.high)))
    sure = r.uniform(0.5, 0.85, 200)
    event = (r.random(200) < sure).astype(np.int64)
    for wrong in (0.0, 0.05, 0.1):
        found = bootstrap.score(ECE, event, np.stack([1 - sure - wrong, sure + wrong], 1), np.arange(200))
        out.append((f"ECE {wrong:g}", bool(found.low <= wrong <= found.high)))
    return out


def scattered(rep: int, sd: float, seeds: int, metric: Metric = AUROC) -> bool:
    """Return whether two methods are told apart whose seeds come from one distribution; 200 patients a class, one scan each."""
    r = generator(10, round(10 * sd), seeds, rep)
    y = np.repeat([1, 0], 200)
    base = r.normal(size=400)
    arms = [[r.normal(1.5, sd) * y + base + 0.6 * r.normal(size=400) for _ in range(seeds)] for _ in range(2)]
    a, b = ([np.stack([norm.cdf(-s), norm.cdf(s)], 1) for s in arm] for arm in arms)
    return bootstrap.paired(metric, y, a, b, np.arange(400)).p < 0.05


def grid(given: argparse.Namespace, pool: multiprocessing.pool.Pool) -> None:
    """Print the tables of --grid."""
    print("patients  scans  shared  AUROC  covered              exact  none   width  percentiles  false differences")
    for patients, (most, shared), auroc in product(CLASSES, SHAPES, AUROCS):
        scans = sum(patients) * (most + 1) / 2
        if scans > 5000:
            continue
        reps = given.grid if scans < 1000 else max(given.grid // 4, 50)
        run = partial(cell, patients=patients, most=most, auroc=auroc, shared=shared)
        found = np.array(pool.map(run, range(reps), 10), float)
        covered, exact, none, width, old, apart = np.nanmean(found, 0)
        held = binomtest(int(found[:, 0].sum()), reps).proportion_ci()
        print(
            f"{patients[0]:3d}+{patients[1]:3d}  {most:5d}  {shared:6.1f}  {auroc:5.3f}  "
            f"{covered:.3f} [{held.low:.3f}, {held.high:.3f}]  {exact:.2f}   {none:.2f}   {width:.3f}  {old:.3f}"
            f"        {apart:.3f}",
            flush=True,
        )
    names = [name for name, _ in ends(0)]
    hits = np.array([[hit for _, hit in each] for each in pool.map(ends, range(4 * given.grid), 20)])
    for name, hit in zip(names, hits.T, strict=True):
        print(line(name, hit, (0.93, 0.97)), flush=True)
    for sd, seeds in product(SEED_SCATTER, SEEDS):
        if sd and seeds == 1:
            continue
        told = np.array(pool.map(partial(scattered, sd=sd, seeds=seeds), range(given.grid), 10))
        print(
            line(f"false differences, seeds scatter by {sd * 0.18:.3f} of AUROC, {seeds} seeds", told, (0.0, 0.06)),
            flush=True,
        )


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
    args.add_argument(
        "--grid", type=int, help="cohorts of each setting of the grid, which is then all that is simulated"
    )
    given = args.parse_args()
    start = time.perf_counter()
    if given.grid:
        with multiprocessing.get_context("spawn").Pool(given.workers) as pool:
            grid(given, pool)
        print(f"\n{time.perf_counter() - start:.0f} s on {given.workers} processes")
        return
    print(
        f"AUROC {given.auroc:g}, {100 * given.prevalence:g} % positive, {given.images[0]} to {given.images[1]} scans a patient, "
        f"{100 * given.shared:g} % of the variance is the patient's, {given.resamples} resamples"
    )
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
