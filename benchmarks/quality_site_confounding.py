"""How often a label that is associated with the site gets its line above a score, and how often a label that does not.

    python benchmarks/quality_site_confounding.py --reps 200

Cohorts: patients with 1 to 4 scans each at sites of equal size, split 70 to 30 into training and test. In a planted cohort, the
share of patients with the label is higher at half of the sites by `gap`; in a clean one (gap 0) it is the same everywhere.
Target: at most 5 % of clean cohorts get a line, and at least 90 % of those with a gap of .5 and 200 patients or more.
Brackets are 95 % Clopper-Pearson intervals over the repetitions.
"""

import argparse
import os
import time
from itertools import product

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from scipy.stats import binomtest

from medssl.rng import seed_from
from medssl.scoring.site_confounding import Sites, describe_sites
from medssl.scoring.targets import Target

TARGET = Target(("label",), "classification", ("no", "yes"))


def cohort(r: np.random.Generator, patients: int, sites: int, prevalence: float, gap: float) -> Sites:
    """Return the scans of `patients`, all of one patient at one site and with one label."""
    site = np.arange(patients) % sites
    share = np.clip(prevalence + gap * np.where(site < sites / 2, 0.5, -0.5), 0, 1)
    label = (r.random(patients) < share).astype(np.int64)
    label[:2] = 0, 1
    at = np.repeat(np.arange(patients), r.integers(1, 5, patients))
    names = np.array([f"site {k}" for k in site], object)
    return Sites(label[at], names[at], np.array([f"p{k}" for k in at]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reps", type=int, default=200)
    given = parser.parse_args()
    start = time.monotonic()
    print("| patients | sites | prevalence | gap | cohorts with a line |")
    print("| --- | --- | --- | --- | --- |")
    for patients, sites, prevalence, gap in product((60, 200, 1000), (2, 6), (0.15, 0.5), (0.0, 0.25, 0.5)):
        if gap / 2 > prevalence:
            continue
        found = 0
        for rep in range(given.reps):
            r = np.random.Generator(np.random.Philox(seed_from(rep, patients, sites)))
            train, test = (cohort(r, n, sites, prevalence, gap) for n in (patients * 7 // 10, patients * 3 // 10))
            found += bool(describe_sites(TARGET, train, test, rep))
        low, high = binomtest(found, given.reps).proportion_ci()
        print(
            f"| {patients} | {sites} | {prevalence} | {gap} | {found / given.reps:.3f} [{low:.3f}, {high:.3f}] |",
            flush=True,
        )
    print(f"\n{given.reps} cohorts a line, {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()
