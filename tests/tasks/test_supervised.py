"""Training on labels: losses against their definitions, predictions as the metrics take them, and learning."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning_fabric import Fabric

import tiny
from medssl import catalog
from medssl.encoders.cnn import CNN
from medssl.evals.embed import embed
from medssl.evals.task_types.task_types import task_type
from medssl.losses import target_losses
from medssl.losses.supervised import continuation, continuation_probabilities, cox, huber, masked_binary_cross_entropy
from medssl.tasks import supervised
from medssl.train.log import Log
from medssl.train.loop import train
from medssl.train.optim import Optim
from medssl.train.options import TrainingData, TrainOptions


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def test_labels_are_averaged_over_known_ones():
    g = torch.Generator().manual_seed(0)
    scores = torch.randn(6, 4, generator=g).requires_grad_()
    there, known = torch.randn(6, 4, generator=g) > 0, torch.rand(6, 4, generator=g) > 0.4
    known[:, 2] = False
    want = []
    for j in range(4):
        terms = [
            -math.log(sigmoid(float(scores[i, j].detach()) * (1 if there[i, j] else -1)))
            for i in range(6)
            if known[i, j]
        ]
        want += [sum(terms) / len(terms)] if terms else []
    loss = masked_binary_cross_entropy(scores, there, known)
    assert loss.item() == pytest.approx(sum(want) / len(want), rel=1e-5)
    loss.backward()
    assert (scores.grad[~known] == 0).all()
    assert (scores.grad[known] != 0).all()
    assert masked_binary_cross_entropy(scores, there, torch.zeros_like(known)) == 0


def test_unknown_labels_are_nan_in_a_batch():
    scores = torch.tensor([[2.0, -1.0], [0.5, 3.0]])
    target = torch.tensor([[1.0, torch.nan], [0.0, 1.0]])
    want = (-math.log(sigmoid(2.0)) - math.log(sigmoid(-0.5))) / 2 - math.log(sigmoid(3.0))
    assert target_losses.multilabel(2).loss(scores, target).item() == pytest.approx(want / 2, rel=1e-5)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.floats(-6, 6), min_size=3, max_size=3), min_size=1, max_size=5), st.integers(0, 3))
def test_levels_are_reached_one_by_one(rows, level):
    scores = torch.tensor(rows, dtype=torch.float64)
    p = continuation_probabilities(scores)
    for s, got in zip(rows, p.tolist(), strict=True):
        up = [sigmoid(v) for v in s]
        want = [1 - up[0], up[0] * (1 - up[1]), up[0] * up[1] * (1 - up[2]), up[0] * up[1] * up[2]]
        assert got == pytest.approx(want, rel=1e-9, abs=1e-12)
        assert sum(got) == pytest.approx(1)
    loss = continuation(scores, torch.full((len(rows),), level))
    assert loss.item() == pytest.approx(-p[:, level].log().mean().item(), rel=1e-9, abs=1e-12)


def test_huber_is_its_closed_form_in_standard_deviations_of_the_target():
    d = torch.tensor([0.0, 0.5, -0.5, 1.0, -3.0])
    assert huber(d, torch.zeros(5)).item() == pytest.approx((0.125 + 0.125 + 0.5 + 2.5) / 5)
    kind = target_losses.regression(50.0, 10.0)
    assert kind.loss(torch.tensor([[0.5]]), torch.tensor([60.0])).item() == pytest.approx(0.125)
    assert kind.predict(torch.tensor([[0.5], [-1.0]])).tolist() == [55.0, 40.0]


def naive_cox(risk, time, event):
    """Breslow's partial likelihood, event by event."""
    terms = [
        math.log(sum(math.exp(risk[j]) for j in range(len(risk)) if time[j] >= time[i])) - risk[i]
        for i in range(len(risk))
        if event[i]
    ]
    return sum(terms) / max(len(terms), 1)


def test_cox_is_its_definition_in_loops_with_ties():
    g = torch.Generator().manual_seed(1)
    risk, time = torch.randn(12, generator=g), torch.randint(1, 6, (12,), generator=g).float()
    event = torch.randint(0, 2, (12,), generator=g).float()
    assert len(time.unique()) < 12 > event.sum() > 1
    want = naive_cox(risk.tolist(), time.tolist(), event.tolist())
    assert cox(risk, time, event).item() == pytest.approx(want, rel=1e-5)
    assert cox(risk + 7, time, event).item() == pytest.approx(want, rel=1e-4)  # a hazard is relative
    assert cox(risk * 40, time, event).isfinite()


def test_a_batch_without_events_gives_no_gradient():
    risk = torch.randn(5, requires_grad=True)
    loss = cox(risk, torch.arange(5.0), torch.zeros(5))
    loss.backward()
    assert loss == 0
    assert (risk.grad == 0).all()


LARGE = (np.arange(48) % 2).astype(np.int64)  # of tiny.canvas: discs of two sizes
THIRDS = np.where(np.arange(48) % 4 == 3, 2, LARGE)  # the third level looks like the second
KINDS = {
    "classification": (target_losses.classification(2), 1 - LARGE),
    "multilabel": (target_losses.multilabel(2), np.stack([LARGE, np.where(np.arange(48) < 8, np.nan, 1 - LARGE)], 1)),
    "ordinal": (target_losses.ordinal(3), THIRDS),
    "regression": (target_losses.regression(31.0, 20.0), LARGE * 40.0 + 11),
    "survival": (target_losses.survival(), np.stack([5.0 + 3 * LARGE, (np.arange(48) % 5 > 0)], 1)),
}


@pytest.mark.parametrize("task", KINDS)
def test_every_task_learns_and_predicts_as_its_metric_expects(task, tmp_path):
    """Also the signs: high risk for early events, the second class is positive, numbers are in their own unit."""
    kind, y = KINDS[task]
    resampled = tiny.resampled()
    torch.manual_seed(0)
    method = supervised.Supervised(CNN(1, (16, 16), widths=(8, 16)), kind)
    recipe = catalog.build(catalog.spec("augment", "plain"), size=resampled.size)
    train(
        Fabric(accelerator="cpu"), method, TrainingData(resampled, np.arange(48), recipe, y),
        TrainOptions(60, 24, 0, Optim(lr=1e-2)), tmp_path / "c", Log(tmp_path, "jsonl", {}), quiet=True,
    )  # fmt: skip
    scores = embed(torch.nn.Sequential(method.encoder, method.head), resampled, np.arange(48), quiet=True)
    p = kind.predict(torch.from_numpy(scores).double()).numpy()
    assert p.dtype == np.float64
    metric = task_type(task).metrics[0]
    if task == "regression":
        assert metric(y, p) < 4
    else:
        assert metric(y, p) > {"ordinal": 0.7}.get(task, 0.95)
    if task == "ordinal":
        assert p.argmax(1).tolist() != THIRDS.tolist()  # nobody could tell the third level
        at = p[LARGE == 1]
        np.testing.assert_allclose(at.mean(0), [0, 0.5, 0.5], atol=0.15)


def test_a_head_alone_uses_standardised_features():
    """Scale and offset of frozen features make no difference, and the exported head takes raw features."""
    torch.manual_seed(0)
    method = supervised.Supervised(CNN(1, (16, 16), widths=(8,)), target_losses.classification(2), blocks=0)
    x = torch.randn(64, 8, generator=torch.Generator().manual_seed(2)) * torch.logspace(-1, 1, 8) + 5
    method.train()
    for _ in range(200):
        seen = method.norm(x)
    torch.testing.assert_close(seen.mean(0), torch.zeros(8), atol=1e-4, rtol=0)
    torch.testing.assert_close(seen.var(0), torch.ones(8), atol=2e-2, rtol=0)
    weight, bias = method.eval().linear()
    torch.testing.assert_close(x @ weight.T + bias, method.head(method.norm(x)), atol=1e-4, rtol=1e-4)
    whole = supervised.Supervised(CNN(1, (16, 16), widths=(8,)), target_losses.classification(2))
    weight, bias = whole.linear()
    assert torch.equal(weight, whole.head.weight)
    assert torch.equal(bias, whole.head.bias)
