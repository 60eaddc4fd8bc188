"""Labels and self-supervision on one encoder, and the targets of pretraining: labels and groups."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import medssl
import tiny
from medssl.errors import UserError
from medssl.losses.supervised import confident_cross_entropy
from medssl.losses.target_losses import classification, multilabel, ordinal, regression, survival
from medssl.methods.base import Clock
from medssl.pretraining.pretrain_targets import PretrainTargets
from medssl.store.store import Store
from medssl.synthetic.cohort import write_cohort

CLOCK = Clock(0, 10)


def test_multitask_is_the_sum_of_both_losses():
    method = tiny.method("multitask", weight=0.5)
    batch = tiny.batch_for(method, n=10)
    known = batch["target"] >= 0
    assert 0 < known.sum() < 10
    out = method(batch, CLOCK)
    scores = method.head(method.encoder(batch["views"][0]))
    supervised = F.cross_entropy(scores[known], batch["target"][known])
    told = method.other(batch, CLOCK)["loss"]
    assert type(method.other).__name__ == "SimCLR"
    assert out["loss"].item() == pytest.approx((supervised + 0.5 * told).item(), rel=1e-5)


@pytest.mark.parametrize("other", ["byol", "greedy_ae", "rotation", "contrastive"])
def test_multitask_takes_other_methods(other):
    method = tiny.method("multitask", encoder="cnn", method=other, options=None)
    out = method(tiny.batch_for(method), CLOCK)
    out["loss"].backward()
    assert (method.views, method.parts) == (method.other.views, method.other.parts)


def test_multitask_keeps_the_state_of_the_other_method():
    method = tiny.method("multitask", encoder="cnn", method="byol", options=None)
    with torch.no_grad():
        for p in method.encoder.parameters():
            p.add_(0.1)
    teacher = next(method.other.teacher.parameters())
    before = teacher.clone()
    method.after_step(CLOCK)
    assert not torch.equal(teacher, before)


def test_scans_without_a_label_train_the_other_method_alone():
    method = tiny.method("multitask")
    batch = tiny.batch_for(method) | {"target": torch.full((8,), -1)}
    out = method(batch, CLOCK)
    out["loss"].backward()
    assert out["labels"].item() == 0
    assert method.head.weight.grad.abs().sum() == 0
    assert next(method.encoder.parameters()).grad.abs().sum() > 0


def test_confident_cross_entropy_is_fixmatchs_equation():
    scores, guess = (
        torch.randn(7, 3, generator=torch.Generator().manual_seed(i), dtype=torch.float64) * 2 for i in (0, 1)
    )
    total, used = 0.0, 0
    for i in range(7):
        p = guess[i].exp() / guess[i].exp().sum()
        if p.max() >= 0.6:
            total -= torch.log_softmax(scores[i], 0)[p.argmax()].item()
            used += 1
    assert 0 < used < 7
    assert confident_cross_entropy(scores, guess, 0.6).item() == pytest.approx(total / 7, rel=1e-12)
    guess.requires_grad_()
    scores.requires_grad_()
    confident_cross_entropy(scores, guess, 0.6).backward()
    assert guess.grad is None


def test_pseudo_labels_use_the_other_view_and_the_threshold():
    method = tiny.method("pseudo_labels", threshold=0.5, weight=2.0)
    batch = tiny.batch_for(method, n=10)
    out = method(batch, CLOCK)
    guess, scores = method.head(method.encoder(torch.cat(batch["views"]))).chunk(2)
    known = batch["target"] >= 0
    expected = F.cross_entropy(scores[known], batch["target"][known]) + 2 * F.cross_entropy(scores, guess.argmax(1))
    assert out["sure"].item() == 1.0  # of two classes one always has a half
    assert out["loss"].item() == pytest.approx(expected.item(), rel=1e-5)
    with pytest.raises(UserError, match="task=classification"):
        tiny.method("pseudo_labels", target_loss=multilabel(2))


@pytest.mark.parametrize(
    ("kind", "target", "unknown"),
    [
        (classification(3), torch.tensor([0, 2, 1, 1]), -1),
        (ordinal(3), torch.tensor([0, 2, 1, 1]), -1),
        (regression(2.0, 1.5), torch.tensor([0.0, 2.0, 5.0, 1.0]), torch.nan),
        (multilabel(2), torch.tensor([[0.0, 1.0], [1.0, torch.nan], [1, 1], [0, 0]]), torch.nan),
        (survival(), torch.tensor([[3.0, 1.0], [2, 0], [5, 1], [1, 1]]), torch.nan),
    ],
)
def test_unknown_targets_do_not_count(kind, target, unknown):
    scores = torch.randn(4, kind.outputs, generator=torch.Generator().manual_seed(0)).requires_grad_()
    alone = kind.loss(scores[1:], target[1:])
    some = target.clone()
    some[0] = unknown
    assert kind.known(some).tolist() == [False, True, True, True]
    loss = kind.loss_of_known(scores, some)
    torch.testing.assert_close(loss, alone)
    (grad,) = torch.autograd.grad(loss, scores)
    assert not grad[0].any()
    assert torch.isfinite(grad).all()
    nobody = kind.loss_of_known(scores, torch.full_like(target, unknown))
    assert nobody.item() == 0
    torch.testing.assert_close(kind.loss_of_known(scores, target), kind.loss(scores, target))


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Return the store of a cohort without labels after the thirtieth patient."""
    folder = tmp_path_factory.mktemp("labelled")
    cohort = write_cohort(folder / "cohort", patients=50, size=32, seed=3)
    lines = (cohort / "labels.csv").read_text().splitlines()
    (folder / "labels.csv").write_text("\n".join(lines[: len(lines) * 3 // 5]) + "\n")
    medssl.ingest(cohort / "scans", folder / "store", labels=folder / "labels.csv", key=tiny.secret(folder / "key"))
    return folder / "store"


def pretrain(store, out, method, **more):
    small = {
        "encoder": "cnn",
        "encoder_options": {"widths": [8]},
        "size": 16,
        "steps": 2,
        "batch": 24,
        "monitor_every": 0,
    }
    return medssl.pretrain(store, out, method=method, **small | more)


@pytest.mark.parametrize("method", ["supervised", "multitask", "pseudo_labels", "greedy_supervised"])
def test_labels_are_those_of_the_target_and_some_are_missing(store, tmp_path, method):
    run = pretrain(store, tmp_path / "run", method, target="lesion", log_every=1)
    assert (run / "encoder.safetensors").exists()
    assert "lesion" in (run / "resolved.yaml").read_text()


def test_a_run_does_not_resume_with_other_labels(store, tmp_path):
    pretrain(store, tmp_path / "run", "supervised", target="lesion", positive=["yes"])
    with pytest.raises(UserError, match="target"):
        pretrain(store, tmp_path / "run", "supervised", target="lesion", positive=["no"])


def test_targets_of_a_method_are_those_of_the_store(store):
    scans = Store.open(store)
    rows = scans.rows("train")
    spec = medssl.catalog.spec("method", "supervised")
    truth = PretrainTargets.of(scans, rows, "supervised", spec, "lesion", "auto", None)
    told = truth.rows_of(tiny.method("supervised"))
    column = scans.column("label:lesion").tolist()
    assert any(column[r] in (None, "") for r in rows)
    for r in rows:
        expected = -1 if column[r] in (None, "") else truth.target.names.index(str(column[r]))
        assert told[r] == expected
    by_patient = PretrainTargets(scans, rows, None, {}).rows_of(type("Groups", (), {"target": "patient"})())
    patient = scans.column("patient").astype(str)
    assert len(set(zip(by_patient.tolist(), patient, strict=True))) == len(set(patient)) == len(np.unique(by_patient))


@pytest.mark.parametrize(
    ("method", "more", "words"),
    [
        ("supervised", {}, "learns from labels; name the column with target=…"),
        ("supervised", {"target": "leson"}, "Did you mean 'lesion'"),
        ("simclr", {"target": "lesion"}, "does not learn from labels"),
        ("greedy_ae", {"target": "lesion"}, "with these options does not learn from labels"),
        ("multitask", {"target": "lesion", "method_options": {"method": "kmeans_bank"}}, "patch_bank"),
        ("multitask", {"target": "lesion", "method_options": {"method": "supervised"}}, "learns from labels itself"),
        ("multitask", {"target": "lesion", "method_options": {"weight": -1.0}}, "weight"),
        ("pseudo_labels", {"target": "lesion", "method_options": {"threshold": 1.0}}, "threshold"),
    ],
)
def test_labels_that_do_not_fit_the_method_are_refused(store, tmp_path, method, more, words):
    with pytest.raises(UserError, match=words):
        pretrain(store, tmp_path / "run", method, **more)
