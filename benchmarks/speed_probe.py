"""Time a whole table of linear probes (label fractions x draws x penalties) against scikit-learn in the same run.

    OMP_NUM_THREADS=2 python benchmarks/speed_probe.py --source pneumoniamnist.npz

Features are 512 random convolutions, rectified and pooled, of the images of a MedMNIST npz, or by default synthetic
features of the same shape (4,708 for training, 524 for validation, 624 for test). Both sides get the same draws,
standardise each separately, fit every penalty, choose one on the same validation scans and predict the test; neither fits
the same scans twice. The gap is between the objective and the lowest one found by any solver, including scikit-learn's
newton-cholesky at a tolerance of 1e-10. Rounds alternate, so that other load on the machine affects all equally; the best
round of each counts.
"""

import argparse
import os
import time
import warnings
from collections.abc import Callable

import numpy as np
import sklearn
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch.nn.functional import adaptive_avg_pool2d, conv2d

from medssl.evals.probes.linear import linear_probes
from medssl.evals.probes.linear_designs import standardiser
from medssl.evals.probes.linear_fit import LinearModels, fit_linear
from medssl.evals.probes.model_selection import Probe
from medssl.evals.stats.label_subsets import draw_label_subsets, parse_budget

Data = dict[str, tuple[np.ndarray, np.ndarray]]


def convolved(path: str) -> Data:
    """Return split -> (N, 512) features and (N,) classes."""
    g = torch.Generator().manual_seed(0)
    filters = torch.randn(128, 1, 6, 6, generator=g)
    filters -= filters.mean((1, 2, 3), keepdim=True)
    out = {}
    with np.load(path) as f:
        for split in ("train", "val", "test"):
            image = torch.from_numpy(f[f"{split}_images"]).float()
            image = image.mean(-1) if image.ndim == 4 else image
            image = (image - image.mean((1, 2), keepdim=True)) / image.std((1, 2), keepdim=True).clamp(min=1e-6)
            maps = torch.cat([conv2d(part[:, None], filters).relu() for part in image.split(256)])
            out[split] = (
                adaptive_avg_pool2d(maps, 2).flatten(1).numpy(),
                f[f"{split}_labels"].ravel().astype(np.int64),
            )
    return out


def synthetic() -> Data:
    """Return correlated features with a decaying spectrum and two overlapping classes."""
    r = np.random.default_rng(0)
    mix = r.normal(size=(512, 512)) * (np.arange(1, 513) ** -0.75)[:, None]
    truth = r.normal(size=512)
    out = {}
    for split, n in (("train", 4708), ("val", 524), ("test", 624)):
        z = r.normal(size=(n, 512))
        y = z @ truth / np.sqrt(512) + 0.3 * r.logistic(size=n) > -0.7
        out[split] = ((z @ mix).astype(np.float32), y.astype(np.int64))
    return out


def objective(z: np.ndarray, y: np.ndarray, w: np.ndarray, b: float, C: float) -> float:
    s = z @ w + b
    return float(np.logaddexp(0, s).mean() - (y * s).mean() + (w @ w) / (2 * C * len(y)))


def by_scikit(data: Data, sets: list[np.ndarray], judges: list[np.ndarray], penalties: list[float], **options) -> dict:
    """Return (set, C) -> (weights, intercept); also chooses a penalty and predicts, for the timing."""
    fitted: dict[tuple[bytes, float], tuple[np.ndarray, float]] = {}
    (x, y), (x_val, y_val), (x_test, _) = data["train"], data["val"], data["test"]
    for rows, judge in zip(sets, judges, strict=True):
        mean, scale = standardiser(x[rows].astype(np.float64))
        z, losses, models = (x[rows] - mean) * scale, [], []
        for C in penalties:
            if (rows.tobytes(), C) not in fitted:
                model = LogisticRegression(C=C, **options).fit(z, y[rows])
                fitted[rows.tobytes(), C] = (model.coef_[0], model.intercept_[0])
            w, b = fitted[rows.tobytes(), C]
            s = (x_val[judge] - mean) * scale @ w + b
            losses.append(np.logaddexp(0, s).mean() - (y_val[judge] * s).mean())
            models.append((w, b))
        w, b = models[int(np.argmin(losses))]
        _ = 1 / (1 + np.exp(-((x_test - mean) * scale @ w + b)))
    return fitted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", help="a MedMNIST npz with two classes")
    parser.add_argument("--fractions", nargs="+", default=["1 %", "5 %", "10 %", "50 %", "all"])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--penalties", type=float, nargs="+", default=[1e-4, 1e-3, 1e-2, 1e-1, 1.0])
    parser.add_argument("--rounds", type=int, default=1)
    args = parser.parse_args()
    data = convolved(args.source) if args.source else synthetic()
    (x, y), y_val = data["train"], data["val"][1]
    x = x.astype(np.float64)
    patient, val_patient = np.arange(len(y)), np.arange(len(y_val))
    drawn = draw_label_subsets(y, patient, [parse_budget(f) for f in args.fractions], range(args.seeds))
    sets = [d.rows for d in drawn]
    judges = [np.arange(min(len(rows), len(y_val))) for rows in sets]  # as many; which ones does not change the time

    def ours() -> list[Probe]:
        return linear_probes(
            data["train"], data["val"], [data["test"][0]], classes=2, subsets=sets, patient=patient,
            val_patient=val_patient, penalties=args.penalties,
        )  # fmt: skip

    contestants: dict[str, Callable[[], object]] = {
        "medssl": ours,
        "scikit-learn lbfgs, tol 1e-4": lambda: by_scikit(data, sets, judges, args.penalties, max_iter=1000),
        "scikit-learn newton-cholesky, tol 1e-4": lambda: by_scikit(
            data, sets, judges, args.penalties, solver="newton-cholesky"
        ),
    }
    wall, busy = dict.fromkeys(contestants, np.inf), dict.fromkeys(contestants, np.inf)
    results: dict[str, object] = {}
    warnings.simplefilter("ignore", ConvergenceWarning)
    for _ in range(args.rounds):
        for name, run in contestants.items():
            start, cpu = time.perf_counter(), time.process_time()
            results[name] = run()
            wall[name] = min(wall[name], time.perf_counter() - start)
            busy[name] = min(busy[name], time.process_time() - cpu)

    exact = by_scikit(data, sets, judges, args.penalties, solver="newton-cholesky", tol=1e-10, max_iter=1000)
    models: list[LinearModels] = fit_linear(x, y, sets, args.penalties, classes=2)
    gap, bound = dict.fromkeys(contestants, 0.0), max(float(m.gap.max()) for m in models)
    for rows, model in zip(sets, models, strict=True):
        z = (x[rows] - model.mean) * model.scale
        for i, C in enumerate(args.penalties):
            found = {"medssl": (model.weights[i, :, 0], float(model.bias[i, 0])), "exact": exact[rows.tobytes(), C]}
            found |= {n: r[rows.tobytes(), C] for n, r in results.items() if isinstance(r, dict)}
            value = {name: objective(z, y[rows], w, b, C) for name, (w, b) in found.items()}
            for name in gap:
                gap[name] = max(gap[name], value[name] / min(value.values()) - 1)
    distinct = len({rows.tobytes() for rows in sets})
    print(
        f"{len(args.fractions)} fractions x {args.seeds} draws x {len(args.penalties)} penalties of {x.shape[0]} x {x.shape[1]}: "
        f"{len(sets) * len(args.penalties)} fits, {distinct * len(args.penalties)} of them distinct; torch "
        f"{torch.__version__}, scikit-learn {sklearn.__version__}, OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', 'unset')}"
    )
    print(f"{'':40} {'seconds':>8} {'CPU s':>8} {'times ours':>10} {'largest relative gap':>21}")
    for name in contestants:
        ratio = wall[name] / wall["medssl"]
        print(f"{name:40} {wall[name]:8.1f} {busy[name]:8.1f} {ratio:10.1f} {gap[name]:21.1e}")
    print(f"medssl's own bound on its largest gap: {bound:.1e}")


if __name__ == "__main__":
    main()
