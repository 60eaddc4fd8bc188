"""Bounds on mutual information: against loops, closed forms and a library; CPC, DIM and AMDIM; the information of features."""

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pytorch_metric_learning.losses import NTXentLoss as PairsOfLabels
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler

import tiny
from medssl import catalog
from medssl.encoders.cnn import CNN
from medssl.errors import UserError
from medssl.evals.label_free.mutual_information import bounds, mutual_information
from medssl.losses import mutual_information as losses
from medssl.methods.base import METHOD_SLOT, Clock
from medssl.methods.parts.spatial_maps import pool_places
from medssl.rng import Key, generator, uniform

CLOCK = Clock(0, 10)
BOUNDS = {
    "infonce": losses.infonce,
    "dv": losses.donsker_varadhan,
    "jsd": losses.jensen_shannon,
}


def rows(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def softplus(x):
    return math.log1p(math.exp(x))


def by_loops(name, scores, clip=5.0):
    """Compute the bounds in losses/mutual_information.py, and NWJ and SMILE, for scores (N, N, L)."""
    N, _, L = scores.shape
    s = scores.tolist()
    joint = [x for i in range(N) for x in s[i][i]]
    product = [x for i in range(N) for j in range(N) if i != j for x in s[i][j]]
    mean = sum(joint) / len(joint)
    if name == "infonce":
        total = 0.0
        for i in range(N):
            others = sum(math.exp(x) for j in range(N) if j != i for x in s[i][j])
            total += sum(x - math.log(math.exp(x) + others) for x in s[i][i])
        return math.log(1 + (N - 1) * L) + total / (N * L)
    if name == "nwj":
        return 1 + mean - sum(map(math.exp, product)) / len(product)
    if name == "dv":
        return mean - math.log(sum(map(math.exp, product)) / len(product))
    if name == "smile":
        return mean - math.log(sum(math.exp(max(-clip, min(clip, x))) for x in product) / len(product))
    losses = [softplus(-x) for x in joint], [softplus(x) for x in product]
    return 2 * math.log(2) - sum(sum(x) / len(x) for x in losses)


@pytest.mark.parametrize("shape", [(5, 5), (2, 2), (4, 4, 3), (2, 2, 2)])
@pytest.mark.parametrize("name", BOUNDS)
def test_bounds_equal_their_definitions_and_gradients_equal_finite_differences(name, shape):
    scores = 2 * rows(*shape)
    expected = by_loops(name, scores.reshape(*shape[:2], -1))
    assert BOUNDS[name](scores).item() == pytest.approx(expected, rel=1e-12)
    assert torch.autograd.gradcheck(BOUNDS[name], scores.clone().requires_grad_())


@pytest.mark.parametrize("name", BOUNDS)
def test_bounds_are_0_for_constant_scores_and_one_scan_is_refused(name):
    assert BOUNDS[name](torch.zeros(6, 6)).item() == pytest.approx(0, abs=1e-6)
    with pytest.raises(UserError, match="raise batch"):
        BOUNDS[name](torch.zeros(1, 1))
    with pytest.raises(FloatingPointError, match="finite"):
        BOUNDS[name](torch.full((3, 3), float("nan")))


def test_bounds_are_invariant_where_their_optimum_is():
    s, x = rows(6, 6), rows(6, 1, seed=1)
    torch.testing.assert_close(losses.infonce(s + x), losses.infonce(s))
    torch.testing.assert_close(losses.donsker_varadhan(s + 3), losses.donsker_varadhan(s))


def test_no_bound_exceeds_its_maximum():
    perfect = 500 * torch.eye(8, dtype=torch.float64)
    assert losses.infonce(perfect).item() == pytest.approx(math.log(8))
    assert losses.jensen_shannon(perfect - 250).item() == pytest.approx(2 * math.log(2))
    assert torch.isfinite(losses.donsker_varadhan(1e4 * rows(5, 5)))


def test_infonce_equals_pytorch_metric_learning():
    """NT-Xent of one view against the other, with no pairs within a view: InfoNCE with the inner product for a critic."""
    a, b, labels = F.normalize(rows(6, 8), dim=1), F.normalize(rows(6, 8, seed=1), dim=1), torch.arange(6)
    library = PairsOfLabels(temperature=0.2)

    def ours(z):
        return math.log(6) - losses.infonce(F.normalize(z, dim=1) @ b.T / 0.2)

    def theirs(z):
        return library(z, labels, ref_emb=b, ref_labels=labels.clone())

    found = []
    for loss in (ours, theirs):
        z = a.clone().requires_grad_()
        value = loss(z)
        found += [(value.detach(), torch.autograd.grad(value, z)[0])]
    for x, y in zip(*found, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-6, atol=1e-12)


def gaussian(n, rho, D, seed=0):
    """Return views with correlation rho in D dimensions, their mutual information, and the log density ratio as scores."""
    a, noise = rows(n, D, seed=seed), rows(n, D, seed=seed + 1)
    b = rho * a + math.sqrt(1 - rho**2) * noise
    u, v = a[:, None], b[None]
    ratio = (2 * rho * u * v - rho**2 * (u**2 + v**2)) / (2 * (1 - rho**2)) - math.log(1 - rho**2) / 2
    return a, b, -D / 2 * math.log(1 - rho**2), ratio.sum(2)


@pytest.mark.parametrize(("rho", "D"), [(0.3, 1), (0.6, 2), (0.5, 4)])
def test_bounds_with_the_best_critic_are_near_the_information_of_gaussians(rho, D):
    *_, truth, scores = gaussian(600, rho, D)
    spread = 3 * float(scores.diagonal().std()) / math.sqrt(600)  # of the mean over the joint
    for name in ("infonce", "dv"):
        assert BOUNDS[name](scores).item() == pytest.approx(truth, abs=spread), name
    small = losses.infonce(scores[:64, :64]).item()
    assert small <= math.log(64)


def test_infonce_saturates_at_log_n():
    *_, truth, scores = gaussian(64, 0.9, 12)
    assert truth > 9
    assert math.log(64) - 0.1 < losses.infonce(scores).item() <= math.log(64)


def test_the_best_scores_are_where_the_bounds_are_largest():
    *_, scores = gaussian(500, 0.6, 1)
    for name in ("infonce", "dv", "jsd"):
        best, others = BOUNDS[name](scores), [BOUNDS[name](k * scores) for k in (0.6, 1.5)]
        assert all(best > other for other in others), name


def test_cpc_loss_equals_its_definition():
    B, P, D = 3, 4, 5
    prediction, code, at = rows(B, 2, D), rows(B, P, D, seed=1), torch.tensor([1, 3])
    total = 0.0
    for i, n in itertools.product(range(B), range(2)):
        s = [[float(prediction[i, n] @ code[j, p]) for p in range(P)] for j in range(B)]
        total += -s[i][int(at[n])] + math.log(sum(math.exp(x) for row in s for x in row))
    assert losses.cpc_loss(prediction, code, at).item() == pytest.approx(total / (B * 2), rel=1e-12)
    flat = losses.cpc_loss(prediction, torch.ones_like(code), at)
    assert flat.item() == pytest.approx(math.log(B * P))


def test_separable_scores_are_scaled_inner_products():
    a, b = rows(3, 6), rows(3, 4, 6, seed=1)
    scores = losses.separable_scores(a, b)
    for i, j, k in itertools.product(range(3), range(3), range(4)):
        assert scores[i, j, k].item() == pytest.approx(float(a[i] @ b[j, k]) / math.sqrt(6))


# CPC


@pytest.mark.parametrize(("dims", "encoder"), [(2, "cnn"), (3, "cnn"), (2, "vit"), (2, "mlp")])
def test_cpc_never_sees_what_it_predicts(dims, encoder):
    """Pixels of a target block change its code and not the context that predicts it."""
    method = tiny.method("cpc", dims, encoder=encoder).eval()
    (x,) = tiny.batch(1, n=2, dims=dims)["views"]
    codes = method.codes(x)
    before = method.contexts(codes)
    assert method.enlarge == (encoder != "cnn")
    for t, k in [(0, 2), (1, 2), (0, 4), (2, 2)]:
        moved = x.clone()
        target = (t + k) * method.grid ** (dims - 1)  # the first block of its row
        moved[(..., *method.cuts[target])] += 1
        after = method.codes(moved)
        assert not torch.allclose(after[:, target], codes[:, target])
        torch.testing.assert_close(method.contexts(after)[:, : t + 1], before[:, : t + 1], rtol=0, atol=0)
    moved = x.clone()
    moved[(..., *method.cuts[0])] += 1  # and the context does look at its own row
    assert not torch.allclose(method.contexts(method.codes(moved))[:, 0], before[:, 0])


@pytest.mark.parametrize("size", [16, 28, 29, 31, 64])
@pytest.mark.parametrize("grid", [3, 5, 7])
def test_blocks_cover_the_scan_and_do_not_overlap_two_rows_apart(size, grid):
    method = tiny.method("cpc", size=size, grid=grid, ahead=2)
    starts = [cut[0].start for cut in method.cuts[::grid]]
    ends = [cut[0].stop for cut in method.cuts[::grid]]
    assert starts[0] == 0
    assert ends[-1] == size
    assert all(a >= b for a, b in zip(starts[2:], ends, strict=False))
    assert all(a <= b for a, b in zip(starts[1:], ends, strict=False))


def test_cpc_predicts_the_same_column_further_down():
    method = tiny.method("cpc", ahead=2)
    (x,) = tiny.batch(1)["views"]
    seen, codes = [], method.codes(x)
    context, key = method.contexts(codes), method.key(codes)
    prediction = 0.1 * method.predict[0](context[:, :-2].flatten(1, 2))
    logits = torch.einsum("bnd,gpd->bngp", prediction, key)
    for b, row, column in itertools.product(range(8), range(3), range(5)):
        all_codes = logits[b, row * 5 + column]
        seen.append(all_codes.logsumexp((0, 1)) - all_codes[b, (row + 2) * 5 + column])
    loss = tiny.method("cpc", ahead=2)(tiny.batch(1), CLOCK)["loss"]
    torch.testing.assert_close(torch.stack(seen).mean(), loss)


# DIM and AMDIM


@pytest.mark.parametrize(("size", "blocks"), [((8, 5), (1, 1)), ((14, 9), (2, 2)), ((6, 20, 4), (1, 3, 1))])
def test_fine_maps_are_averaged_in_blocks(size, blocks):
    maps = rows(2, 3, *size)
    got = pool_places(maps)
    assert got.shape[2:] == tuple(-(-n // b) for n, b in zip(size, blocks, strict=True))
    assert max(got.shape[2:]) <= 8
    for place in itertools.product(*map(range, got.shape[2:])):
        block = maps[(..., *(slice(i * b, i * b + b) for i, b in zip(place, blocks, strict=True)))]
        torch.testing.assert_close(got[(..., *place)], block.flatten(2).mean(2))


def test_the_positives_of_dim_are_the_places_of_its_own_scan():
    method = tiny.method("dim")
    batch = tiny.batch(1)
    out = method(batch, CLOCK)
    fine, last = method.encoder.stages(batch["views"][0])
    y, h = method.speak["local"](last.flatten(2).mean(2)[..., None])[:, 0], method.local(F.avg_pool2d(fine, 2))
    s = torch.einsum("id,jld->ijl", y, h) / 4
    assert out["local"].item() == pytest.approx(by_loops("infonce", s.double()), abs=1e-4)
    assert out["loss"].item() == pytest.approx(math.log(1 + 7 * h.shape[1]) - out["local"].item(), rel=1e-5)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("estimator", ["infonce", "jsd", "dv"])
def test_dim_learns_with_every_estimator_and_both_terms(estimator, dims):
    method = tiny.method("dim", dims, estimator=estimator, global_=0.5)
    batch = tiny.batch(1, dims=dims)
    out = method(batch, CLOCK)
    assert out["loss"].item() == pytest.approx((out["chance"] - out["local"] - 0.5 * out["global"]).item(), rel=1e-5)
    out["loss"].backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in method.parameters())


def test_amdim_contrasts_across_views_only():
    method = tiny.method("amdim", penalty=0.0).eval()
    for embed in (method.whole, method.last, method.fine):
        embed.straight.weight.data.mul_(10)  # so that scores differ
    batch = tiny.batch(2)
    a, b = batch["views"]
    b.copy_(tiny.batch(1, seed=1)["views"][0])  # a view unlike the first
    fine, last = method.encoder.stages(torch.cat([a, b]))
    whole = method.whole(last.flatten(2).mean(2)[..., None])[:, 0]
    total = 0.0
    for mine, other in ((slice(0, 8), slice(8, 16)), (slice(8, 16), slice(0, 8))):
        five, seven = method.last(last), method.fine(F.avg_pool2d(fine, 2))
        at = (uniform(batch["key"], int(mine.start > 0), METHOD_SLOT)[:, 0] * five.shape[1]).long()
        spoken = five[mine][torch.arange(8), at]
        for says, places in ((whole[mine], five[other]), (whole[mine], seven[other]), (spoken, five[other])):
            s = 20 * torch.tanh(torch.einsum("id,jld->ijl", says, places) / 4 / 20)
            total += math.log(1 + 7 * places.shape[1]) - by_loops("infonce", s.double())
    assert method(batch, CLOCK)["loss"].item() == pytest.approx(total / 2, rel=1e-5)


def test_amdims_penalty_and_clip():
    batch = tiny.batch(2)
    plain, dear, tight = (
        tiny.method("amdim", **o)(batch, CLOCK)
        for o in ({"penalty": 0.0}, {"penalty": 2.0}, {"penalty": 0.0, "clip": 1e-4})
    )
    torch.testing.assert_close(dear["loss"], plain["loss"] + 2 * plain["square"])
    torch.testing.assert_close(
        tight["loss"], tight["chance"], rtol=1e-3, atol=0
    )  # scores that cannot differ tell nothing


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("cpc", {"ahead": 1}, "next rows overlap"),
        ("cpc", {"ahead": 5}, "ahead must lie in"),
        ("cpc", {"grid": 40}, "method.grid=40 leaves blocks"),
        ("cpc", {"encoder": "patch_bank"}, "no parameters; use encoder=cnn"),
        ("dim", {"estimator": "jds"}, "Did you mean 'jsd'"),
        ("dim", {"local": 0.0}, "one at least above 0"),
        ("dim", {"encoder": "mlp"}, "choose encoder=cnn, vit or resnet18"),
        ("amdim", {"encoder": "patch_bank"}, "choose encoder=cnn, vit or resnet18"),
        ("amdim", {"clip": 0.0}, "clip=0.0 must be positive"),
    ],
)
def test_impossible_options_are_refused_at_construction(name, options, words):
    with pytest.raises(UserError, match=words):
        tiny.method(name, **options)


def test_an_encoder_that_does_not_average_its_last_map_is_refused():
    encoder = catalog.build(catalog.spec("encoder", "cnn", widths=[8]), channels=1, size=(16, 16))
    with pytest.raises(UserError, match="2 stages"):
        catalog.build({**catalog.load("method", "amdim")}, encoder=encoder)
    other = CNN(1, (16, 16), widths=(8, 16))
    other.forward = lambda x: other.maps(x).amax((2, 3))
    with pytest.raises(UserError, match="averages its last map"):
        catalog.build({k: v for k, v in catalog.load("method", "dim").items() if k != "_run_"}, encoder=other)


# Of features


def test_bounds_of_scores_equal_their_definitions():
    *_, scores = gaussian(60, 0.7, 3)
    found = bounds(scores, np.arange(60), n=100)
    assert found.infonce.value == pytest.approx(losses.infonce(scores).item(), rel=1e-9)
    assert found.nwj.value == pytest.approx(by_loops("nwj", scores[..., None]), rel=1e-9)
    assert found.donsker_varadhan.value == pytest.approx(losses.donsker_varadhan(scores).item(), rel=1e-9)
    assert found.smile.value == pytest.approx(by_loops("smile", scores[..., None]), rel=1e-9)
    assert found.ceiling == pytest.approx(math.log(60))
    assert found.infonce.low < found.infonce.value < found.infonce.high


def test_pairs_of_one_patient_are_excluded():
    scores = rows(6, 6).numpy()
    patient = np.array(["a", "a", "b", "b", "c", "d"])
    found = bounds(scores, patient, n=100)
    pairs = [(i, j) for i in range(6) for j in range(6) if patient[i] != patient[j]]
    mean = sum(math.exp(scores[p]) for p in pairs) / len(pairs)
    assert found.nwj.value == pytest.approx(1 + scores.diagonal().mean() - mean)
    each = []
    for i in range(6):
        others = [math.exp(scores[i, j]) for j in range(6) if patient[i] != patient[j]]
        each.append(scores[i, i] - math.log((math.exp(scores[i, i]) + sum(others)) / (1 + len(others))))
    assert found.infonce.value == pytest.approx(sum(each) / 6)


@pytest.mark.parametrize(("rho", "D"), [(0.0, 4), (0.3, 4), (0.6, 4), (0.8, 1)])
def test_information_of_gaussian_features_is_the_closed_form(rho, D):
    a, b, truth, _ = gaussian(1600, rho, D)
    turned = (a @ rows(D, D, seed=9)).numpy() + 3  # information does not depend on how features are written
    found = mutual_information(turned, b.numpy(), np.arange(1600), n=200)
    for score in (found.infonce, found.nwj, found.donsker_varadhan, found.smile):
        assert score.value == pytest.approx(truth, abs=0.06)
        assert score.patients == score.n == 800
    shown = found.as_dict()
    assert list(shown) == ["InfoNCE", "NWJ", "Donsker-Varadhan", "SMILE", "ceiling"]
    assert shown["SMILE"] == found.smile.as_dict()
    if rho == 0:
        assert found.infonce.low < 0.005
        assert found.infonce.high < 0.01
    else:
        assert found.infonce.low > 0.01


def test_an_overfitted_critic_finds_no_information_in_noise():
    g = np.random.default_rng(0)
    found = mutual_information(g.normal(size=(120, 300)), g.normal(size=(120, 300)), np.arange(120), n=100)
    assert found.infonce.value < 0.05


def test_information_depends_on_the_seed_and_patients_stay_together():
    a, b, *_ = gaussian(200, 0.7, 2)
    patient = np.arange(200) // 2
    one, again, other = (mutual_information(a, b, patient, n=100, seed=s) for s in (0, 0, 1))
    assert one == again
    assert one != other
    assert one.infonce.patients == 50
    assert one.infonce.n == 100
    with pytest.raises(UserError, match="40 patients"):
        mutual_information(a[:30], b[:30], np.arange(30))
    with pytest.raises(UserError, match="same for all scans"):
        mutual_information(np.ones((100, 3)), b[:100], np.arange(100))
    with pytest.raises(ValueError, match="same scans"):
        mutual_information(a[:100], b[:90], np.arange(100))


# Real scans


@pytest.fixture(scope="module")
def pneumonia(shared):
    """Return training scans with 200 labelled rows, test scans, labels, and the mean and std of the pixels."""
    with np.load(shared / "medmnist" / "pneumoniamnist_rebuilt.npz", allow_pickle=False) as f:
        part = {k: f[k] for k in ("train_images", "train_labels", "test_images", "test_labels")}
    mean, std = part["train_images"].mean() / 255, part["train_images"].std() / 255
    x, x_test = (torch.from_numpy((part[f"{k}_images"] / 255).astype(np.float32))[:, None] for k in ("train", "test"))
    labelled = np.random.default_rng(0).permutation(len(x))[:200]
    return x, labelled, part["train_labels"].ravel(), x_test, part["test_labels"].ravel(), float(mean), float(std)


def probe(encoder, x, labelled, y, x_test, y_test, mean, std):
    """Return the test AUROC of logistic regression on frozen features of 200 labelled scans."""
    encoder.eval()
    with torch.no_grad():
        seen, test = (encoder((z - mean) / std).numpy() for z in (x[labelled], x_test))
    scale = StandardScaler().fit(seen)
    reader = LogisticRegression(max_iter=500).fit(scale.transform(seen), y[labelled])
    return roc_auc_score(y_test, reader.decision_function(scale.transform(test)))


def learn(seed, pneumonia, steps=40, batch=64):
    """Return the AUROC of the untrained encoder, and after `steps` of Deep InfoMax."""
    x, *_, mean, std = pneumonia
    torch.manual_seed(seed)
    encoder = CNN(1, (28, 28), widths=(8, 16, 32, 64))
    before = probe(encoder, *pneumonia)
    spec = {k: v for k, v in catalog.load("method", "dim").items() if k != "_run_"} | {"out": 64}
    method = catalog.build(spec, encoder=encoder)
    recipe = catalog.build(catalog.spec("augment", "crop"), size=(28, 28))
    optimizer = torch.optim.AdamW(method.parameters(), 1e-2)
    order = torch.randperm(len(x), generator=generator(seed))
    method.train()
    for step in range(steps):
        rows = order[step * batch : (step + 1) * batch]
        key = Key(seed, torch.zeros(batch, dtype=torch.int64), rows)
        loss = method({"views": [(recipe(x[rows], key, 0) - mean) / std], "key": key}, Clock(step, steps))["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return before, probe(encoder, *pneumonia)


def test_deep_infomax_learns_from_real_scans(pneumonia):
    """Seen at seeds 0, 1, 2: .892 to .920, .899 to .918, .867 to .920."""
    gains = np.subtract(*np.array([learn(seed, pneumonia) for seed in range(3)]).T[::-1])
    assert gains.min() > 0
    assert gains.mean() > 0.02
