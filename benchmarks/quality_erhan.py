"""Pretraining as a regulariser: test errors and their spread over initial weights, by depth. Erhan et al., 2010.

    python benchmarks/quality_erhan.py --mnist FOLDER [--seeds 8 --depths 1 2 3]

Networks of 500 sigmoids per layer on 10,000 images of MNIST, with and without pretraining by denoising autoencoders, each from
`--seeds` initial weights, trained together; training is that of quality_greedy_mnist.py. Prints median and spread of the
test errors of every cell, and per depth the paired test of the errors (Wilcoxon) and the test of the variances (Brown &
Forsythe, 1974), each family adjusted by Holm. The paper has 400 initial weights per cell; a few show large differences only.
"""

import argparse
import time

import numpy as np
import torch
from quality_greedy_mnist import ARMS, digits, options, run, wrong
from scipy import stats

from medssl.evals.metrics.metrics import MEAN
from medssl.evals.stats.bootstrap import score
from medssl.evals.stats.score import Score
from medssl.evals.stats.significance import holm
from medssl.evals.stats.text_table import text_table

PAIR = {"none": "none", "pretrained": "denoising autoencoders"}


def median(errors: np.ndarray) -> Score:
    """Return the median, between the order statistics that cover it in at least 95 % (binomial), or the ends."""
    n, e = len(errors), np.sort(errors)
    k = int(stats.binom.ppf(0.025, n, 0.5))  # P(fewer than k below) <= 0.025
    cover = 1 - 2 * stats.binom.cdf(max(k, 1) - 1, n, 0.5)
    return Score(
        float(np.median(e)), float(e[max(k, 1) - 1]), float(e[n - max(k, 1)]), n, n, f"order statistics, {cover:.1%}"
    )


def spread(errors: np.ndarray) -> Score:
    """Return the standard deviation, with the interval that is exact for normal errors."""
    n = len(errors)
    sd = float(errors.std(ddof=1))
    low, high = sd * np.sqrt((n - 1) / stats.chi2.ppf([0.975, 0.025], n - 1))
    return Score(sd, float(low), float(high), n, n, "95 % chi-square interval over initial weights")


def main() -> None:
    args = options(argparse.ArgumentParser(description=__doc__), 10000, 8)
    args.add_argument("--depths", type=int, nargs="+", default=[1, 2, 3])
    args.add_argument("--width", type=int, default=500)
    given = args.parse_args()
    torch.set_num_threads(given.threads)
    data, seeds = digits(given.mnist, given.train, given.val), list(range(given.seeds))
    x, began = data.standardised(data.test), time.perf_counter()
    found, lines, tests = {}, [], []
    for depth in given.depths:
        for name, arm in PAIR.items():
            start = time.perf_counter()
            heads, epochs = run(ARMS[arm], data, [given.width] * depth, seeds, given)
            errors = found[depth, name] = np.array([100 * wrong(head, x, data.y_test).mean() for head in heads])
            print(
                f"depth {depth}, {name}: {errors.round(2)} % at epochs {epochs}, {time.perf_counter() - start:.0f} s",
                flush=True,
            )
            lines.append(
                {"depth": f"{depth} layers", "net": name, "median error %": median(errors), "SD %": spread(errors)}
            )
        none, pre = found[depth, "none"], found[depth, "pretrained"]
        tests.append((stats.wilcoxon(pre, none).pvalue, stats.levene(pre, none, center="median").pvalue))
    print(
        f"\nMNIST, {given.train} images, {given.width} a layer, {given.seeds} seeds, {time.perf_counter() - began:.0f} s"
    )
    print(text_table(lines, ["depth", "net", "median error %", "SD %"]))
    print("\nPaired differences, pretrained minus none, over seeds; p-values after Holm over depths")
    better, steadier = (holm([t[i] for t in tests]) for i in (0, 1))
    for depth, p, q in zip(given.depths, better, steadier, strict=True):
        gain = found[depth, "pretrained"] - found[depth, "none"]
        ratio = found[depth, "pretrained"].std(ddof=1) / found[depth, "none"].std(ddof=1)
        mean = score(MEAN, gain, gain, np.arange(len(gain)))
        print(f"depth {depth}: {mean} %, Wilcoxon p = {p:.4f}; SD ratio {ratio:.2f}, Brown-Forsythe p = {q:.4f}")
    print("\nReading")
    for depth, p, q in zip(given.depths, better, steadier, strict=True):
        pre, none = found[depth, "pretrained"], found[depth, "none"]
        error = (
            "no difference of errors is shown"
            if p >= 0.05
            else f"errors are {'lower' if (pre - none).mean() < 0 else 'higher'}"
        )
        sd = (
            "no difference of spread is shown"
            if q >= 0.05
            else f"spread is {'less' if pre.std() < none.std() else 'more'}"
        )
        print(f"depth {depth}: with pretraining {error}; {sd}.")


if __name__ == "__main__":
    main()
