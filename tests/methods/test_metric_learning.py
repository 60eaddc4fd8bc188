"""Metric learning: losses against loops and pytorch-metric-learning, groups of positives, and the axioms of distances."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pytorch_metric_learning import distances as pml_distances
from pytorch_metric_learning import losses, miners
from scipy.spatial.distance import cdist

import tiny
from medssl.errors import UserError
from medssl.evals.label_free.metric_axioms import metric_axioms
from medssl.losses import target_losses
from medssl.losses.distances import DISTANCES, EUCLIDEAN, Mahalanobis
from medssl.losses.infonce import nt_xent
from medssl.losses.pairs import contrastive, lifted_structure, lmnn, triplet
from medssl.losses.proxies import proxy_loss
from medssl.losses.similarity import (
    multi_similarity,
    n_pairs,
    similarity_classification,
    similarity_regression,
    sup_con,
)
from medssl.methods.base import Clock
from medssl.methods.parts.heads import groups_of

CLOCK = Clock(0, 10)
GROUPED = ["contrastive", "triplet", "lifted", "npairs", "multi_similarity", "supcon", "mahalanobis", "similarity"]


def rows(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def random_groups(n, most, seed):
    return torch.randint(most, (n,), generator=torch.Generator().manual_seed(seed))


BATCHES = {f"random {i}": (rows(12, 5, seed=i), random_groups(12, 4, i)) for i in range(10)} | {
    "no positive": (rows(6, 5), torch.arange(6)),
    "one class": (rows(6, 5), torch.zeros(6, dtype=torch.int64)),
    "duplicate points": (rows(3, 5).repeat(4, 1), torch.arange(12) % 2),
    "two alike": (rows(2, 5), torch.tensor([3, 3])),
    "two apart": (rows(2, 5), torch.tensor([3, 1])),
}
PAIRS = {name: (z, torch.arange(len(z)) // 2) for name, (z, _) in BATCHES.items()}  # what N-pairs expects


def gradients(f, *tensors):
    leaves = [t.detach().clone().requires_grad_() for t in tensors]
    loss = f(*leaves)
    loss.backward()
    return [loss.detach(), *(t.grad for t in leaves)]


def same(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)


def mined(z, g):
    return losses.MultiSimilarityLoss()(z, g, miners.MultiSimilarityMiner()(z, g))


LIKE_THEIRS = {  # ours with the defaults of pytorch-metric-learning, and theirs
    "triplet": (lambda z, g: triplet(z, g, 0.05, "all"), losses.TripletMarginLoss()),
    "lifted": (lambda z, g: lifted_structure(z, g, 1.0), losses.LiftedStructureLoss()),
    "multi_similarity": (lambda z, g: multi_similarity(z, g, 2.0, 50.0, 0.5), losses.MultiSimilarityLoss()),
    "multi_similarity mined": (lambda z, g: multi_similarity(z, g, 2.0, 50.0, 0.5, 0.1), mined),
    "sup_con": (lambda z, g: sup_con(z, g, 0.1), losses.SupConLoss()),
}


@pytest.mark.parametrize("name", LIKE_THEIRS)
@pytest.mark.parametrize("batch", BATCHES)
def test_pair_losses_equal_pytorch_metric_learning_in_value_and_gradient(name, batch):
    ours, theirs = LIKE_THEIRS[name]
    z, g = BATCHES[batch]
    same(gradients(lambda z: ours(z, g), z), gradients(lambda z: theirs(z, g), z))


@pytest.mark.parametrize("batch", PAIRS)
def test_n_pairs_equals_pytorch_metric_learning_on_pairs(batch):
    z, g = PAIRS[batch]
    same(gradients(lambda z: n_pairs(z, g, "cosine"), z), gradients(lambda z: losses.NPairsLoss()(z, g), z))


def vectors(loss):
    """Return the learned vectors of the classes: (D, K), or (K, D) for proxies."""
    (found,) = loss.parameters()
    return found


OF_CLASSES = {  # a method's loss for two classes in 16 dimensions, as in its yaml, and theirs
    "arcface": ({}, lambda: losses.ArcFaceLoss(2, 16)),
    "cosface": ({}, lambda: losses.CosFaceLoss(2, 16)),
    "cosface as normalised softmax": ({"margin": 0.0, "scale": 20.0}, lambda: losses.NormalizedSoftmaxLoss(2, 16)),
    "proxy_anchor": ({}, lambda: losses.ProxyAnchorLoss(2, 16)),
}


@pytest.mark.parametrize("name", OF_CLASSES)
def test_class_losses_equal_pytorch_metric_learning_without_unknown_classes(name):
    options, make = OF_CLASSES[name]
    ours, theirs = tiny.method(name.split()[0], **options).loss.double(), make().double()
    for batch, (_, g) in BATCHES.items():
        z, c = rows(len(g), 16, seed=len(batch)), g % 2
        with torch.no_grad():
            vectors(theirs).copy_(vectors(ours).copy_(rows(*vectors(ours).shape, seed=7)))
        ours.zero_grad()
        theirs.zero_grad()
        more, unknown = torch.cat([z, rows(2, 16)]), torch.cat([c, torch.tensor([-1, -1])])
        value, grad = gradients(lambda z, c=unknown: proxy_loss(z, c, ours), more)
        same([value, grad[:-2]], gradients(lambda z, c=c: theirs(z, c), z))
        same([vectors(ours).grad], [vectors(theirs).grad])
        assert grad[-2:].abs().sum() == 0


def test_class_losses_are_zero_without_known_classes():
    loss = losses.ArcFaceLoss(4, 5).double()
    value = proxy_loss(rows(3, 5).requires_grad_(), torch.full((3,), -1), loss)
    value.backward()
    assert value.item() == 0
    assert loss.W.grad.abs().sum() == 0


def test_arcface_has_a_gradient_on_top_of_a_class():
    """The arc cosine has no gradient there."""
    loss = losses.ArcFaceLoss(2, 2, scale=4)
    loss.W = torch.nn.Parameter(torch.eye(2))
    z = torch.tensor([[1.0, 0.0], [0.0, -1.0]], requires_grad=True)
    proxy_loss(z, torch.tensor([0, 1]), loss).backward()
    assert torch.isfinite(z.grad).all()
    assert torch.isfinite(loss.W.grad).all()


# ---------------------------------------------------------------- definitions


def definition_lifted(z, g, d):
    terms = []
    for i in range(len(z)):
        for j in range(i + 1, len(z)):
            if g[i] == g[j]:
                push = [math.exp(1 - d[r, k]) for r in (i, j) for k in range(len(z)) if g[k] != g[r]]
                if not push:
                    return 0.0
                terms.append(max(0.0, math.log(sum(push)) + d[i, j]) ** 2 / 2)
    return sum(terms) / max(1, len(terms))


def definition_lmnn(z, g, push, margin):
    d = torch.cdist(z, z).square()
    terms = []
    for i in range(len(z)):
        for j in range(len(z)):
            if i != j and g[i] == g[j]:
                impostors = sum(max(0.0, margin + d[i, j] - d[i, k]) for k in range(len(z)) if g[k] != g[i])
                terms.append((1 - push) * d[i, j] + push * impostors)
    return float(sum(terms)) / max(1, len(terms))


def definition_sup_con(z, g, t):
    s = F.normalize(z, dim=1) @ F.normalize(z, dim=1).T / t
    each = []
    for i in range(len(z)):
        others = [a for a in range(len(z)) if a != i]
        positives = [p for p in others if g[p] == g[i]]
        if positives:
            total = math.log(sum(math.exp(s[i, a]) for a in others))
            each.append(sum(total - s[i, p].item() for p in positives) / len(positives))
    return sum(each) / len(each) if each and len(set(g.tolist())) > 1 else 0.0


def definition_multi_similarity(z, g, alpha, beta, base, epsilon):
    s = (F.normalize(z, dim=1) @ F.normalize(z, dim=1).T).tolist()
    total, kept = 0.0, [0, 0]
    for i in range(len(z)):
        pos = [s[i][j] for j in range(len(z)) if j != i and g[j] == g[i]]
        neg = [s[i][j] for j in range(len(z)) if g[j] != g[i]]
        if epsilon is not None:
            hardest, easiest = max(neg, default=-math.inf), min(pos, default=math.inf)
            pos, neg = [p for p in pos if p - epsilon < hardest], [n for n in neg if n + epsilon > easiest]
        kept = [kept[0] + len(pos), kept[1] + len(neg)]
        total += math.log(1 + sum(math.exp(-alpha * (p - base)) for p in pos)) / alpha
        total += math.log(1 + sum(math.exp(beta * (n - base)) for n in neg)) / beta
    return total / len(z) if max(kept) > 1 else 0.0


def definition_n_pairs(z, g, weight):
    pairs = []
    for group in sorted(set(g.tolist())):
        at = [i for i in range(len(z)) if g[i] == group]
        if len(at) > 1:
            pairs.append((at[0], at[-1]))
    if not pairs:
        return 0.0
    s = (z @ z.T).tolist()
    each = [math.log(sum(math.exp(s[a][p] - s[a][own]) for _, p in pairs)) for a, own in pairs]
    return sum(each) / len(each) + weight * z.square().sum(1).mean().item()


@pytest.mark.parametrize("batch", BATCHES)
def test_pair_losses_are_their_definitions(batch):
    z, g = BATCHES[batch]
    d = torch.cdist(F.normalize(z, dim=1), F.normalize(z, dim=1)).tolist()
    d = np.array(d)
    close = {"rel": 1e-9, "abs": 1e-12}
    assert lifted_structure(z, g, 1.0).item() == pytest.approx(definition_lifted(z, g, d), **close)
    assert lmnn(z, g, 0.3, 1.0, Mahalanobis(torch.eye(5).double())).item() == pytest.approx(
        definition_lmnn(z, g, 0.3, 1.0), **close
    )
    assert sup_con(z, g, 0.2).item() == pytest.approx(definition_sup_con(z, g, 0.2), **close)
    assert n_pairs(z, g, "dot", 0.01).item() == pytest.approx(definition_n_pairs(z, g, 0.01), **close)


@pytest.mark.parametrize("epsilon", [None, 0.1])
@pytest.mark.parametrize("batch", [b for b in BATCHES if b not in ("no positive", "one class", "two alike")])
def test_multi_similarity_is_its_definition(batch, epsilon):
    z, g = BATCHES[batch]
    if batch == "duplicate points" and epsilon:
        pytest.skip("equal similarities: rounding decides who is mined")
    expected = definition_multi_similarity(z, g, 3.0, 20.0, 0.4, epsilon)
    if batch == "two apart" and epsilon:
        expected = 0.0
    assert multi_similarity(z, g, 3.0, 20.0, 0.4, epsilon).item() == pytest.approx(expected, rel=1e-9)


def test_sup_con_with_one_positive_each_is_nt_xent():
    a, b = rows(5, 6), rows(5, 6, seed=1)
    found = sup_con(torch.cat([a, b]), torch.arange(5).repeat(2), 0.3)
    assert found.item() == pytest.approx(nt_xent(a, b, 0.3).item(), rel=1e-12)


def test_class_losses_are_their_definitions():
    z, c, w = rows(6, 5), torch.tensor([0, 1, 1, 3, 0, 3]), rows(4, 5, seed=1)
    cos = (F.normalize(z, dim=1) @ F.normalize(w, dim=1).T).tolist()

    def softmax(right, scale):
        total = 0.0
        for i, y in enumerate(c.tolist()):
            logits = [scale * (right(cos[i][k]) if k == y else cos[i][k]) for k in range(4)]
            total += math.log(sum(math.exp(v) for v in logits)) - logits[y]
        return total / 6

    arc, face = losses.ArcFaceLoss(4, 5, margin=20, scale=8), losses.CosFaceLoss(4, 5, margin=0.2, scale=8)
    anchor = losses.ProxyAnchorLoss(4, 5, margin=0.2, alpha=8)
    arc.W = face.W = torch.nn.Parameter(w.T.contiguous())
    anchor.proxies = torch.nn.Parameter(w)
    bend = math.radians(20)
    assert proxy_loss(z, c, arc).item() == pytest.approx(softmax(lambda v: math.cos(math.acos(v) + bend), 8), rel=1e-9)
    assert proxy_loss(z, c, face).item() == pytest.approx(softmax(lambda v: v - 0.2, 8), rel=1e-9)
    own = [[cos[i][k] for i in range(6) if c[i] == k] for k in range(4)]
    rest = [[cos[i][k] for i in range(6) if c[i] != k] for k in range(4)]
    pull = [math.log(1 + sum(math.exp(-8 * (v - 0.2)) for v in vs)) for vs in own]
    push = [math.log(1 + sum(math.exp(8 * (v + 0.2)) for v in vs)) for vs in rest]
    assert proxy_loss(z, c, anchor).item() == pytest.approx(sum(pull) / 3 + sum(push) / 4, rel=1e-9)


@pytest.mark.parametrize("name", DISTANCES)
def test_margins_work_in_every_distance(name):
    (z, g), p = BATCHES["random 0"], {"manhattan": 1}.get(name, 2)
    unit = F.normalize(z, p=p, dim=1)
    near = cdist(unit, unit, {"euclidean": "euclidean", "manhattan": "cityblock", "cosine": "cosine"}[name])
    assert near.max() <= 2
    i, j = np.triu_indices(len(z), 1)
    alike = (g[i] == g[j]).numpy()
    pull, push = np.maximum(near[i, j] - 0.1, 0)[alike] ** 2, np.maximum(0.9 - near[i, j], 0)[~alike] ** 2
    expected = pull.sum() / (pull > 0).sum() + push.sum() / (push > 0).sum()
    assert contrastive(z, g, 0.1, 0.9, DISTANCES[name]).item() == pytest.approx(expected, rel=1e-9)
    assert lifted_structure(z, g, 1.0, DISTANCES[name]).item() == pytest.approx(definition_lifted(z, g, near), rel=1e-9)
    gap = [near[a, p] - near[a, n] + 0.3 for a in range(12) for p in range(12) for n in range(12)
           if a != p and g[a] == g[p] and g[a] != g[n]]  # fmt: skip
    expected = np.mean([v for v in gap if v >= 0])
    assert triplet(z, g, 0.3, "all", DISTANCES[name]).item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("known", ["all", "some", "none"])
def test_similarities_of_pairs_are_their_definitions(known):
    z, wanted = rows(6, 4), torch.rand(6, 6, generator=torch.Generator().manual_seed(0))
    wanted = (wanted + wanted.T) / 2
    counted = {"all": wanted >= 0, "some": wanted > 0.5, "none": wanted > 1}[known]
    cos = F.normalize(z, dim=1) @ F.normalize(z, dim=1).T
    squares, logs = [], []
    for i in range(6):
        for j in range(6):
            if i != j and counted[i, j]:
                squares.append((cos[i, j] - wanted[i, j]).item() ** 2)
                p = 1 / (1 + math.exp(-(3 * cos[i, j] - 1)))
                logs.append(-math.log(p if wanted[i, j] > 0.6 else 1 - p))
    n = max(1, len(squares))
    assert similarity_regression(z, wanted, counted).item() == pytest.approx(sum(squares) / n, rel=1e-6, abs=1e-12)
    found = similarity_classification(z, wanted > 0.6, counted, 3.0, -1.0)
    assert found.item() == pytest.approx(sum(logs) / n, rel=1e-6, abs=1e-12)


EVERYBODY = torch.ones(12, 12, dtype=torch.bool)
SMOOTH = {
    "lifted": lambda z, g: lifted_structure(z, g, 1.0),
    "lmnn": lambda z, g: lmnn(z, g, 0.3, 1.0, Mahalanobis(rows(3, 5))),
    "n_pairs": lambda z, g: n_pairs(z, g, "dot", 0.01),
    "multi_similarity": lambda z, g: multi_similarity(z, g, 2.0, 50.0, 0.5, 0.1),
    "sup_con": lambda z, g: sup_con(z, g, 0.1),
    "regression": lambda z, g: similarity_regression(z, g[:, None] == g, EVERYBODY),
    "classification": lambda z, g: similarity_classification(z, g[:, None] == g, EVERYBODY, 3.0, -1.0),
    "manhattan": lambda z, g: contrastive(z, g, 0.0, 1.0, DISTANCES["manhattan"]),
    "cosine": lambda z, g: contrastive(z, g, 0.0, 1.0, DISTANCES["cosine"]),
}


@pytest.mark.parametrize("name", SMOOTH)
def test_gradients_equal_finite_differences_and_non_finite_values_are_refused(name):
    z, g = BATCHES["random 0"]
    assert torch.autograd.gradcheck(lambda z: SMOOTH[name](z, g), z.clone().requires_grad_(), fast_mode=True)
    with pytest.raises(FloatingPointError, match="not finite"):
        SMOOTH[name](z / torch.zeros(()), g)


# ---------------------------------------------------------------- who attracts whom


def test_groups_are_scans_patients_or_classes_and_unlabelled_scans_are_alone():
    batch = {"views": [None, None], "key": tiny.key(4, start=3), "target": torch.tensor([7, -1, 7, -1])}
    assert groups_of(batch, "scan").tolist() == [3, 4, 5, 6, 3, 4, 5, 6]
    for positives in ("patient", "label"):
        first = groups_of(batch, positives)
        assert first[:4].tolist() == first[4:].tolist()
        assert first[0] == first[2] == 7
        assert len(set(first.tolist())) == 3


def angled(name, positives, angle):
    """Return the loss for three orthogonal patients, with two scans each `angle` apart and two views .02 apart."""
    method = tiny.method(name, positives=positives)
    method.encoder, method.projector = torch.nn.Flatten(), torch.nn.Identity()
    z = torch.zeros(2, 6, 16)
    for scan in range(6):
        for view in range(2):
            side, turn = angle * (scan % 2), 0.02 * view
            z[view, scan, scan // 2] = math.cos(side) * math.cos(turn)
            z[view, scan, 3 + scan // 2] = math.sin(side) * math.cos(turn)
            z[view, scan, 6 + scan] = math.sin(turn)
    return method({"views": list(z), "key": tiny.key(6), "target": torch.arange(6) // 2}, CLOCK)["loss"].item()


@pytest.mark.parametrize("name", GROUPED)
def test_scans_of_one_patient_are_never_negatives(name):
    """With positives=scan the loss falls when a patient's scans move apart, with positives=patient it does not."""
    assert angled(name, "scan", 0.19) < angled(name, "scan", 0.15) - 1e-6
    assert angled(name, "patient", 0.19) >= angled(name, "patient", 0.15) - 1e-7


@pytest.mark.parametrize("name", GROUPED)
@pytest.mark.parametrize("positives", ["patient", "study", "label"])
def test_with_groups_of_one_scan_all_positives_are_the_same_and_one_group_has_no_negatives(name, positives):
    batch = tiny.batch(2)
    plain = tiny.method(name, positives="scan")(batch, CLOCK)["loss"]
    own = tiny.method(name, positives=positives)(batch | {"target": torch.arange(8) + 50}, CLOCK)["loss"]
    torch.testing.assert_close(own, plain)
    if name in ("lifted", "triplet", "supcon", "multi_similarity"):  # softmaxes and hinges over negatives
        assert tiny.method(name, positives=positives)(batch | {"target": torch.zeros(8).long()}, CLOCK)["loss"] == 0


def test_n_pairs_takes_two_scans_of_a_patient_in_the_order_of_scans():
    """The first view of the first and the last view of the last scan, on any number of ranks."""
    method = tiny.method("npairs", positives="patient", norm_weight=0.0).eval()
    batch = tiny.batch(2, n=4) | {"target": torch.tensor([1, 0, 1, 0])}
    z = method.projector(method.encoder(torch.cat(batch["views"])))
    expected = F.cross_entropy(z[[1, 0]] @ z[[4 + 3, 4 + 2]].T, torch.arange(2))
    torch.testing.assert_close(method(batch, CLOCK)["loss"], expected)


def test_similarity_of_levels_and_numbers():
    unknown, key = -1, tiny.key(4)
    batch = {"views": [None], "key": key, "target": torch.tensor([0, 1, 3, unknown])}
    method = tiny.method("similarity", learn="regression", positives="label", target_loss=target_losses.ordinal(4))
    alike, counted = method.pairs(batch)
    torch.testing.assert_close(alike[:3, :3], torch.tensor([[1, 2 / 3, 0], [2 / 3, 1, 1 / 3], [0, 1 / 3, 1]]))
    assert counted.tolist() == [[True] * 3 + [False]] * 3 + [[False] * 3 + [True]]
    batch["target"] = torch.tensor([10.0, 13.0, 30.0, torch.nan])
    method = tiny.method(
        "similarity", learn="regression", positives="label", target_loss=target_losses.regression(12.0, 3.0), reach=2.0
    )
    alike, counted = method.pairs(batch)
    torch.testing.assert_close(alike[:3, :3], torch.tensor([[1, 0.5, 0], [0.5, 1, 0], [0, 0, 1]]), rtol=1e-5, atol=1e-6)
    assert torch.isfinite(alike).all()
    batch["views"] = tiny.batch(2, n=4)["views"]
    assert torch.isfinite(method(batch, CLOCK)["loss"])
    batch["target"] = torch.tensor([0, 1, 1, unknown])
    alike, counted = tiny.method("similarity", positives="label").pairs({"views": [None], "key": key} | batch)
    assert alike[:4, :4].tolist() == [[1, 0, 0, 0], [0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 1]]
    assert counted[:4, :4].tolist() == [[True] * 3 + [False]] * 3 + [[False] * 3 + [True]]


@pytest.mark.parametrize("learn", ["regression", "classification"])
def test_similarity_learns_to_tell_classes(learn):
    method = tiny.method("similarity", learn=learn, positives="label")
    optimizer = torch.optim.Adam(method.parameters(), 3e-3)
    batch = tiny.batch(2) | {"target": torch.arange(8) % 2}
    for _ in range(15):
        optimizer.zero_grad()
        method(batch, CLOCK)["loss"].backward()
        optimizer.step()
    with torch.no_grad():
        z = F.normalize(method.projector(method.encoder(batch["views"][0])), dim=1)
    alike = batch["target"][:, None] == batch["target"]
    assert (z @ z.T)[alike].min() > (z @ z.T)[~alike].max()


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("supcon", {"target_loss": None}, "name the label column with target=…"),
        (
            "triplet",
            {"positives": "label", "target_loss": target_losses.regression(0.0, 1.0)},
            "gives regression; use a class",
        ),
        ("contrastive", {"positives": "patients"}, "Did you mean 'patient'"),
        ("lifted", {"distance": "manhatten"}, "Did you mean 'manhattan'"),
        ("lifted", {"margin": 0.0}, "margin must be positive"),
        ("npairs", {"similarity": "cos"}, "method.similarity"),
        ("npairs", {"norm_weight": -1.0}, "norm_weight"),
        ("multi_similarity", {"beta": 0.0}, "beta must be positive"),
        ("supcon", {"temperature": 0.0}, "temperature must be positive"),
        ("arcface", {"target_loss": target_losses.multilabel(3)}, "gives multilabel; use a class"),
        ("arcface", {"margin": 95.0}, "degrees"),
        ("cosface", {"scale": 0.0}, "scale be positive"),
        ("proxy_anchor", {"alpha": -1.0}, "alpha be positive"),
        ("mahalanobis", {"push": 2.0}, "push"),
        ("similarity", {"learn": "ranking"}, "method.learn"),
        ("similarity", {"reach": 0.0}, "reach"),
        ("similarity", {"positives": "label", "target_loss": target_losses.ordinal(3)}, "gives ordinal"),
    ],
)
def test_impossible_options_are_refused_at_construction(name, options, words):
    with pytest.raises(UserError, match=words):
        tiny.method(name, **options)


# ---------------------------------------------------------------- distances and their axioms


def test_mahalanobis_is_scipys_and_learns():
    x, y = rows(7, 4), rows(5, 4, seed=1)
    inverse = torch.linalg.inv(torch.cov(rows(30, 4, seed=2).T))
    given = Mahalanobis(torch.linalg.cholesky(inverse).T)
    torch.testing.assert_close(given(x, y).detach(), torch.tensor(cdist(x, y, "mahalanobis", VI=inverse)))
    learned = Mahalanobis.learned(4, 4).double()
    torch.testing.assert_close(learned(x, y), torch.cdist(x, y))
    learned(x, y).sum().backward()
    assert learned.factor.grad.abs().sum() > 0


def test_axioms_of_known_distances():
    x = rows(20, 4)
    x = torch.cat([x, 3 * x[:2]])  # two on the ray of others
    euclidean = metric_axioms(torch.cdist, x)
    assert euclidean.metric
    assert euclidean.identity
    assert str(euclidean) == "on these points it is a metric"
    squared = metric_axioms(lambda a, b: torch.cdist(a, b).square(), x)
    assert not squared.triangle.holds
    assert squared.identity
    assert not squared.metric
    assert "no metric" in str(squared)
    cosine = metric_axioms(DISTANCES["cosine"], x)
    assert not cosine.identity
    assert not cosine.triangle.holds
    assert cosine.tells_apart.violations == 4  # ordered pairs
    assert cosine.symmetric.holds
    sphere = metric_axioms(EUCLIDEAN, x[:20])
    assert sphere.metric
    full = metric_axioms(Mahalanobis(rows(4, 4, seed=5)), x)
    assert full.metric
    flat = torch.cat([x, x[:1] + torch.tensor([0, 0, 5.0, 0])])
    low = metric_axioms(Mahalanobis(torch.eye(2, 4).double()), flat)
    assert low.pseudometric
    assert not low.metric
    assert low.tells_apart.violations == 2
    assert low.tells_apart.worst == pytest.approx(5)
    assert set(low.tells_apart.at) == {0, 22}
    dot = metric_axioms(pml_distances.DotProductSimilarity(normalize_embeddings=False), x)
    assert not dot.non_negative.holds
    assert not dot.zero_to_itself.holds


def test_axioms_equal_counts_by_loops():
    x = np.arange(7.0)[:, None]
    d = np.random.default_rng(0).uniform(-0.2, 1, (7, 7))
    d[2, 4] = 0
    found = metric_axioms(lambda a, b: d, x)
    n = range(7)
    triangle = [d[i, k] - d[i, j] - d[j, k] for i in n for j in n for k in n if len({i, j, k}) == 3]
    slack = 1e-6 * np.abs(d).max()
    assert found.triangle.violations == sum(t > slack for t in triangle)
    assert found.triangle.checked == len(triangle)
    assert found.triangle.worst == pytest.approx(max(triangle))
    i, j, k = found.triangle.at
    assert d[i, k] - d[i, j] - d[j, k] == pytest.approx(max(triangle))
    assert found.non_negative.violations == (d < -slack).sum()
    assert found.non_negative.worst == pytest.approx(-d.min())
    assert found.symmetric.violations == sum(abs(d[i, j] - d[j, i]) > slack for i in n for j in n)
    assert found.symmetric.worst == pytest.approx(np.abs(d - d.T).max())
    assert found.zero_to_itself.violations == sum(abs(d[i, i]) > slack for i in n)
    assert found.tells_apart.violations == sum(d[i, j] <= slack for i in n for j in n if i != j)
    with pytest.raises(UserError, match="finite"):
        metric_axioms(lambda a, b: d * np.nan, x)
