"""DeepCluster: k-means against its definition and another library, and which scan has which cluster when."""

import math

import pytest
import torch
import torch.nn.functional as F
from sklearn.cluster import KMeans

import tiny
from medssl.errors import UserError
from medssl.methods.base import Clock
from medssl.methods.parts import spherical_kmeans as kmeans
from medssl.methods.parts.spherical_kmeans import nearest, spherical_kmeans


def unit(*shape, seed=0):
    g = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(*shape, generator=g, dtype=torch.float64), dim=-1)


def test_an_iteration_is_its_definition_and_that_of_sklearn():
    """On unit vectors the nearest centroid has the largest cosine; sklearn's means have the direction of ours."""
    rows, start = unit(200, 5), unit(6, 5, seed=1)
    found, assigned = spherical_kmeans(rows, start, 1)
    first = [max(range(6), key=lambda k, row=row: float(row @ start[k])) for row in rows]
    for k in range(6):
        mine = [row for row, at in zip(rows, first, strict=True) if at == k]
        torch.testing.assert_close(found[k], sum(mine) / sum(mine).norm())
    reference = KMeans(6, init=start.numpy(), n_init=1, max_iter=1).fit(rows.numpy())
    torch.testing.assert_close(found, F.normalize(torch.from_numpy(reference.cluster_centers_), dim=1))
    assert assigned.tolist() == [max(range(6), key=lambda k, row=row: float(row @ found[k])) for row in rows]


def test_more_iterations_bring_rows_nearer_to_their_centroids():
    rows, start = unit(300, 4), unit(5, 4, seed=1)
    products = [nearest(rows, spherical_kmeans(rows, start, n)[0])[1].mean() for n in range(8)]
    assert products == sorted(products)
    assert products[-1] > products[0] + 0.01


def test_blocks_of_rows_change_nothing(monkeypatch):
    rows, start = unit(50, 4), unit(5, 4, seed=1)
    whole = nearest(rows, start)
    monkeypatch.setattr(kmeans, "BLOCK", 7)
    assert all(torch.equal(a, b) for a, b in zip(whole, nearest(rows, start), strict=True))


def test_an_empty_cluster_splits_the_largest_at_its_farthest_row():
    rows = F.normalize(torch.tensor([[1, 0], [1, 0.1], [1, 0.7], [1, 0.6], [-1, 0], [-1, 0.9]]), dim=1)
    start = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, -1.0]])  # nothing is nearest to the third
    found, assigned = spherical_kmeans(rows, start, 0)
    assert assigned.tolist() == [0, 0, 2, 2, 1, 1], "the last row is farther, but its cluster is smaller"
    assert torch.equal(found[2], rows[2])


@pytest.mark.parametrize("clusters", [10, 40])
def test_no_cluster_is_empty_even_with_one_start_for_all(clusters):
    rows = unit(40, 3)
    found, assigned = spherical_kmeans(rows, rows[:1].expand(clusters, -1), 5)
    assert set(assigned.tolist()) == set(range(clusters))
    torch.testing.assert_close(found.norm(dim=1), torch.ones(clusters, dtype=torch.float64))


def test_features_wait_for_the_step_and_belong_to_the_row_in_the_store():
    """Training scans are rows 10, 20, … of the store; a batch comes in any order."""
    method, clock = tiny.method("deepcluster", rows=torch.arange(10, 650, 10), rounds=1), Clock(0, 10)
    batch = tiny.batch(2, n=3)
    batch["key"] = batch["key"]._replace(scan=torch.tensor([640, 10, 330]))
    method(batch, clock)
    assert not method.features.any()
    z = F.normalize(method.projector(method.encoder(torch.cat(batch["views"]))), dim=1)
    expected = F.normalize(z[:3] + z[3:], dim=1)
    method.after_step(clock)
    torch.testing.assert_close(method.features[[63, 0, 32]], expected, rtol=1e-3, atol=1e-4)
    assert method.features.any(1).sum() == 3
    assert (method.cluster == -1).all(), "no round of k-means is due"


def trained(rounds=4, steps=16, **options):
    method, changed = tiny.method("deepcluster", rounds=rounds, **options), []
    for step in range(steps):
        before = method.centroids.clone()
        batch = {**tiny.batch(2, n=16, seed=step), "key": tiny.key(16, start=16 * (step % 4))}
        method(batch, Clock(step, steps))
        method.after_step(Clock(step, steps))
        if not torch.equal(before, method.centroids):
            changed.append(step)
    return method, changed


def test_clusters_are_found_at_the_end_of_each_round_from_the_features_kept():
    method, changed = trained()
    assert changed == [3, 7, 11, 15]
    assert set(method.cluster.tolist()) == set(range(8))
    assert torch.equal(method.cluster, nearest(method.features, method.centroids)[0])


def test_a_round_starts_from_the_last_centroids_so_that_clusters_keep_their_numbers():
    method = trained(rounds=16, steps=16)[0]
    before = method.centroids.clone()
    batch = {**tiny.batch(2, n=16, seed=99), "key": tiny.key(16)}
    method(batch, Clock(7, 16))
    method.after_step(Clock(7, 16))
    expected, clusters = spherical_kmeans(method.features, before, method.iterations)
    torch.testing.assert_close(method.centroids, expected)
    assert torch.equal(method.cluster, clusters)


def test_a_round_with_fewer_scans_seen_than_clusters_waits():
    assert trained(clusters=20)[1] == [3, 7, 11, 15]
    assert trained(clusters=20, rounds=16)[1] == list(range(1, 16)), "16 scans are seen after the first step"


def test_the_loss_is_its_definition():
    """In loops over scans and views, with clusters of unequal size and a scan that has none."""
    method = trained()[0].double().eval()
    method.cluster[2] = -1
    batch = tiny.batch(2, n=6)
    batch["views"] = [v.double() for v in batch["views"]]
    known = [c for c in method.cluster.tolist() if c >= 0]
    total = []
    for i in range(6):
        z = [method.projector(method.encoder(v[i : i + 1]))[0] for v in batch["views"]]
        z = [v / v.norm() for v in z]
        mean = (z[0] + z[1]) / (z[0] + z[1]).norm()
        cluster = (
            int(method.cluster[i]) if i != 2 else max(range(8), key=lambda k, m=mean: float(m @ method.centroids[k]))
        )
        weight = len(known) / (8 * known.count(cluster))
        for v in z:
            scores = [math.exp(float(v @ c) / 0.1) for c in method.centroids]
            total.append(-weight * math.log(scores[cluster] / sum(scores)))
    assert method(batch, Clock(0, 10))["loss"].item() == pytest.approx(sum(total) / 12, rel=1e-6)


def test_all_clusters_have_the_same_weight():
    method = trained()[0]
    each = method.weights()[method.cluster]
    assert each.mean().item() == pytest.approx(1.0)
    per_cluster = torch.zeros(8).index_add_(0, method.cluster, each)
    torch.testing.assert_close(per_cluster, torch.full((8,), 64 / 8))
    assert each.std() > 0, "clusters differ in size, so that the test sees it"


def test_constant_features_have_the_loss_of_chance():
    method = trained()[0]
    method.projector[0][-1].weight.data.zero_()
    out = method(tiny.batch(2), Clock(0, 10))
    assert out["loss"].item() == pytest.approx(out["chance"].item(), rel=1e-5)
    assert out["chance"].item() == pytest.approx(
        method.weights()[method.cluster[:8]].mean().item() * math.log(8), rel=1e-5
    )


def test_more_clusters_than_scans_are_refused():
    with pytest.raises(UserError, match=r"method\.clusters=65 must be at least 2 and at most the 64 training scans"):
        tiny.method("deepcluster", clusters=65)
