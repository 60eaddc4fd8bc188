"""Attention probes: pooling as a loop, the linear probe where there is nothing to pool, and what only attention can find."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from medssl.errors import UserError
from medssl.evals.probes.attention_pooling import attention_probes, initial_weights, pool
from medssl.evals.probes.linear import linear_probes
from medssl.losses.target_losses import classification

POOLINGS = ("attentive", "mil")


def weights(pooling: str, columns: int) -> dict[str, torch.Tensor]:
    """Random weights in place of the zeros that training starts from."""
    g = torch.Generator().manual_seed(3)
    return {k: torch.randn(v.shape, generator=g).double() for k, v in initial_weights(pooling, columns, 2, 0).items()}


def by_loop(pooling: str, z: list[list[float]], w: dict[str, torch.Tensor]) -> list[float]:
    """Pool the vectors of one scan with plain numbers."""
    D = len(z[0])

    def softmax(logits: list[float]) -> list[float]:
        e = [math.exp(v - max(logits)) for v in logits]
        return [v / sum(e) for v in e]

    if pooling == "mil":
        logits = []
        for v in z:
            total = 0.0
            for a, t, g in zip(w["attention"].tolist(), w["tanh"].tolist(), w["gate"].tolist(), strict=True):
                along, gate = (sum(p * q for p, q in zip(m, v, strict=True)) for m in (t, g))
                total += a * math.tanh(along) / (1 + math.exp(-gate))
            logits.append(total)
        attention = softmax(logits)
        return [sum(a * v[d] for a, v in zip(attention, z, strict=True)) for d in range(D)]
    columns = np.array_split(range(D), len(w["query"]))
    out = [0.0] * D
    for query, mine in zip(w["query"].tolist(), columns, strict=True):
        attention = softmax([sum(p * q for p, q in zip(query, v, strict=True)) / D**0.5 for v in z])
        for d in mine:
            out[d] = sum(a * v[d] for a, v in zip(attention, z, strict=True))
    return out


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("columns", [5, 12])
def test_pooling_is_its_definition_and_vectors_that_are_not_there_count_for_nothing(pooling, columns):
    z = torch.randn(3, 4, columns, generator=torch.Generator().manual_seed(1)).double()
    there = torch.tensor([[1, 1, 1, 1], [1, 0, 1, 0], [0, 0, 1, 0]]).bool()
    w = weights(pooling, columns)
    found = pool(z, there, w)
    for i in range(3):
        expected = by_loop(pooling, z[i][there[i]].tolist(), w)
        assert found[i].tolist() == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_training_starts_from_the_mean(pooling):
    z = torch.randn(3, 4, 6).double()
    start = initial_weights(pooling, 6, 2, 0)
    torch.testing.assert_close(pool(z, torch.ones(3, 4).bool(), start), z.mean(1))


@pytest.mark.parametrize("pooling", POOLINGS)
def test_one_vector_per_scan_gives_the_linear_probe(pooling):
    """Softmax regression of three classes, solved by another algorithm to its proven minimum."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 120)
    x = (rng.normal(size=(120, 5)) + np.eye(3, 5)[y]).astype(np.float32)
    split, options = (slice(0, 80), slice(80, 100), slice(100, 120)), {"penalties": [0.01, 0.1, 1.0]}
    train, val, test = ((x[s], y[s]) for s in split)
    (linear,) = linear_probes(train, val, [test[0]], classes=3, **options)
    one = ((train[0][:, None], train[1]), (val[0][:, None], val[1]), [test[0][:, None]])
    (found,) = attention_probes(pooling, *one, task="classification", width=3, **options)
    assert found.C == linear.C
    np.testing.assert_allclose(found.predictions[0], linear.predictions[0], atol=2e-3)
    assert found.converged
    unit = "patients" if pooling == "mil" else "scans"
    assert found.how.endswith(f"cross-entropy on 20 validation {unit}")


def hidden_sign(n: int, rng: np.random.Generator, most: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """Scans of 4 to 8 vectors, of which the one with a mark in column 0 shows the class in column 1; the others are noise."""
    y = rng.integers(0, 2, n)
    x = np.full((n, most, 6), np.nan, np.float32)
    for i in range(n):
        T = rng.integers(4, most + 1)
        x[i, :T] = rng.normal(size=(T, 6))
        x[i, :T, 0] = rng.normal(size=T) * 0.3
        at = rng.integers(0, T)
        x[i, at, :2] = 3, 2.0 * (2 * y[i] - 1)
    return x, y


@pytest.fixture(scope="module")
def sign():
    rng = np.random.default_rng(1)
    return [hidden_sign(n, rng) for n in (300, 100, 300)]


@pytest.mark.parametrize("pooling", POOLINGS)
def test_attention_finds_the_vector_that_matters(pooling, sign):
    train, val, (x, y) = sign
    (found,) = attention_probes(pooling, train, val, [x], task="classification", width=2)
    means = [(np.nanmean(a, 1), b) for a, b in (train, val)]
    (linear,) = linear_probes(*means, [np.nanmean(x, 1)], classes=2)
    with_attention, without = (roc_auc_score(y, p.predictions[0][:, 1]) for p in (found, linear))
    assert without < 0.9
    assert with_attention > 0.97
    assert min(found.path, key=lambda tried: tried[1])[0] == found.C
    assert found.loss == pytest.approx(min(loss for _, loss in found.path))


@pytest.mark.parametrize("pooling", POOLINGS)
def test_order_padding_and_other_scans_change_nothing_and_bits_repeat(pooling, sign):
    train, val, (x, _) = sign
    padded = np.concatenate([x, np.full_like(x, np.nan)], 1)
    tests, options = [x, padded, x[:7]], {"task": "classification", "width": 2, "penalties": [0.1], "seed": 4}
    (one,) = attention_probes(pooling, train, val, tests, **options)
    (two,) = attention_probes(pooling, train, val, tests, **options)
    for a, b in zip(one.predictions, two.predictions, strict=True):
        assert np.array_equal(a, b)
    np.testing.assert_allclose(one.predictions[1], one.predictions[0], atol=1e-5)
    np.testing.assert_allclose(one.predictions[2], one.predictions[0][:7], atol=1e-5)
    full = ~np.isnan(x[:, :, 0]).any(1)
    (turned,) = attention_probes(pooling, train, val, [x[full][:, ::-1].copy()], **options)
    np.testing.assert_allclose(turned.predictions[0], one.predictions[0][full], atol=1e-5)


@pytest.mark.parametrize(
    ("task", "width"), [("classification", 2), ("multilabel", 2), ("ordinal", 3), ("regression", 1)]
)
def test_every_task_with_a_linear_model_and_label_budgets(task, width):
    rng = np.random.default_rng(2)
    x = rng.normal(size=(90, 3, 4)).astype(np.float32)
    signal = x.mean(1)[:, 0] * 3
    y = {
        "classification": (signal > 0).astype(np.int64),
        "multilabel": np.stack([signal > 0, signal > 1], 1).astype(float),
        "ordinal": np.digitize(signal, [-1, 1]).astype(np.int64),
        "regression": 10 + signal,
    }[task]
    if task == "multilabel":
        y[::7, 1] = np.nan
    who = np.arange(90).astype(str)
    subsets = [np.arange(60), np.arange(30)]
    options = {"task": task, "width": width, "subsets": subsets, "patient": who[:60], "val_patient": who[60:]}
    found = attention_probes("attentive", (x[:60], y[:60]), (x[60:], y[60:]), [x[60:]], **options)
    assert len(found) == 2
    for probe in found:
        p = probe.predictions[0]
        assert p.shape == ((30,) if task == "regression" else (30, width))
        score = p if task == "regression" else p[:, 1] if task != "ordinal" else p @ np.arange(3)
        if task == "multilabel":
            score = p[:, 0]
        assert np.corrcoef(score, signal[60:])[0, 1] > 0.8
    without = attention_probes("attentive", (x[:60], y[:60]), None, [x[60:]], **options | {"val_patient": None})
    assert "held-out training patients" in without[0].how


def test_what_cannot_be_fitted_is_refused():
    x, y = np.zeros((8, 2, 3), np.float32), np.arange(8) % 2
    options = {"task": "classification", "width": 2}
    broken = x.copy()
    broken[3, 0] = np.inf
    with pytest.raises(UserError, match="training features are not finite"):
        attention_probes("attentive", (broken, y), (x, y), [x], **options)
    with pytest.raises(UserError, match="test features are not finite"):
        attention_probes("attentive", (x, y), (x, y), [broken], **options)
    with pytest.raises(UserError, match="all 8 training rows have one class"):
        attention_probes("attentive", (x, y * 0), (x, y), [x], **options)


def test_the_loss_is_that_of_a_trained_head():
    """At the strongest penalty tried, the probe knows the shares of the classes and no more."""
    rng = np.random.default_rng(5)
    x, y = rng.normal(size=(40, 3, 4)).astype(np.float32), (np.arange(40) % 4 == 0).astype(np.int64)
    (found,) = attention_probes("attentive", (x, y), (x, y), [x], task="classification", width=2, penalties=[1e-6])
    np.testing.assert_allclose(found.predictions[0], [[0.75, 0.25]] * 40, atol=1e-3)
    expected = classification(2).loss(torch.tensor([[0.75, 0.25]]).log().expand(40, -1), torch.from_numpy(y))
    assert found.loss == pytest.approx(float(expected), abs=1e-3)
