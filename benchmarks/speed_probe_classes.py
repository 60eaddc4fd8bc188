"""Time a linear probe of ten classes on 1,024 features against scikit-learn in the same run.

    OMP_NUM_THREADS=2 python benchmarks/speed_probe_classes.py --source MNIST_FOLDER

Features are 256 random convolutions of MNIST digits, rectified and pooled to 2 x 2. Both sides standardise, fit the
penalties of medssl, choose one on the same 1,000 validation digits and predict 2,000 test digits. scikit-learn fits every
penalty with lbfgs at its default tolerance. Rounds alternate; CPU seconds count, since other work may share the cores.
"""

import argparse
import os
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from mnist import part
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch.nn.functional import adaptive_avg_pool2d, conv2d

from medssl.evals.probes.linear import linear_probes
from medssl.evals.probes.linear_designs import standardiser
from medssl.evals.probes.model_selection import PENALTIES

FILTERS, VALIDATION, TEST = 256, 1000, 2000


def features(images: np.ndarray) -> np.ndarray:
    """Return features (N, 1024) of digits (N, 28, 28)."""
    filters = torch.randn(FILTERS, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    x = torch.from_numpy(images.copy()).float().view(-1, 1, 28, 28) / 255
    maps = (conv2d(part, filters).relu() for part in x.split(256))
    return torch.cat([adaptive_avg_pool2d(m, 2).flatten(1) for m in maps]).numpy().astype(np.float64)


def by_scikit(x: np.ndarray, y: np.ndarray, train: slice, val: slice, test: slice) -> tuple[float, np.ndarray]:
    """Return the penalty chosen and the probabilities (N, 10) of the test digits."""
    mean, scale = standardiser(x[train])
    z = (x - mean) * scale
    found = []
    for C in PENALTIES:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            model = LogisticRegression(C=C, max_iter=1000).fit(z[train], y[train])
        found.append((-model.predict_log_proba(z[val])[np.arange(VALIDATION), y[val]].mean(), C, model))
    _, C, model = min(found, key=lambda f: f[0])
    return C, model.predict_proba(z[test])


def by_medssl(x: np.ndarray, y: np.ndarray, train: slice, val: slice, test: slice) -> tuple[float, np.ndarray]:
    """Return the penalty chosen and the probabilities (N, 10) of the test digits."""
    [probe] = linear_probes((x[train], y[train]), (x[val], y[val]), [x[test]], classes=10)
    return probe.C, probe.predictions[0]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--source", type=Path, required=True)
    parser.add_argument("--scans", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    N = given.scans
    train, val, test = slice(0, N), slice(N, N + VALIDATION), slice(N + VALIDATION, N + VALIDATION + TEST)
    images, labels = part(given.source, "train")
    x, y = features(images[: test.stop]), labels[: test.stop]
    for _ in range(given.rounds):
        for name, solve in (("medssl", by_medssl), ("scikit-learn", by_scikit)):
            start = time.process_time()
            C, p = solve(x, y, train, val, test)
            seconds = time.process_time() - start
            loss = -np.log(p[np.arange(TEST), y[test]]).mean()
            print(f"{name:<14} {seconds:6.1f} CPU s   C = {C:g}   test cross-entropy {loss:.5f}")


if __name__ == "__main__":
    main()
