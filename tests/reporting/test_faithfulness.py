"""Trustworthiness, continuity and kept neighbours equal their definitions written as loops."""

import numpy as np
import pytest
from sklearn.manifold import trustworthiness

from medssl.reporting import faithfulness as module
from medssl.reporting.faithfulness import faithfulness
from medssl.reporting.maps import align


def points(n: int = 60) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    x = rng.normal(size=(n, 7)).astype(np.float32)
    return x, x[:, :2] + 0.4 * rng.normal(size=(n, 2))


def ranked(x: np.ndarray) -> np.ndarray:
    """(N, N - 1): the other points of each, nearest first."""
    far = ((x[:, None].astype(float) - x[None]) ** 2).sum(2)
    np.fill_diagonal(far, -1)
    return np.argsort(far, axis=1, kind="stable")[:, 1:]


@pytest.mark.parametrize("block", [1 << 24, 60 * 7])
def test_the_three_measures_equal_loops_and_scikit_learn(block, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", block)  # the same in one block and in many
    x, xy = points()
    n, k = len(x), 10
    (found,) = faithfulness(x, [xy], k)
    assert found.trustworthiness == pytest.approx(trustworthiness(x, xy, n_neighbors=k), abs=1e-12)
    assert found.continuity == pytest.approx(trustworthiness(xy, x, n_neighbors=k), abs=1e-12)
    a, b = ranked(x), ranked(xy)
    assert found.kept == pytest.approx(np.mean([len(set(a[i, :k]) & set(b[i, :k])) / k for i in range(n)]))
    for i in range(n):
        strangers = sum(max(0, list(a[i]).index(j) + 1 - k) for j in b[i, :k])
        torn = sum(max(0, list(b[i]).index(j) + 1 - k) for j in a[i, :k])
        assert found.placed[i] == pytest.approx(1 - 2 / (k * (2 * n - 3 * k - 1)) * max(strangers, torn), abs=1e-6)


def test_a_perfect_map_scores_one_and_few_points_lower_k():
    x = np.random.default_rng(0).normal(size=(9, 2))
    (found,) = faithfulness(x, [3 * x + 5])
    assert (found.trustworthiness, found.continuity, found.kept, found.k) == (1, 1, 1, 4)


def test_alignment_undoes_a_turn_a_mirror_a_move_and_a_scale_and_keeps_the_shape():
    rng = np.random.default_rng(1)
    xy, noise = rng.normal(size=(40, 2)), 0.1 * rng.normal(size=(40, 2))
    turn = np.array([[0.6, 0.8], [0.8, -0.6]])  # with a mirror
    np.testing.assert_allclose(align(7 * xy @ turn + [3, -9], xy), xy, atol=1e-12)
    moved = 7 * (xy + noise) @ turn + [3, -9]
    aligned = align(moved, xy)

    def distances(p: np.ndarray) -> np.ndarray:
        return np.linalg.norm(p[:, None] - p[None], axis=2)[np.triu_indices(40, 1)]

    ratio = distances(aligned) / distances(moved)
    assert np.ptp(ratio) < 1e-12
    best = ((aligned - xy) ** 2).sum()
    for change in (0.999, 1.001):
        assert ((xy.mean(0) + change * (aligned - aligned.mean(0)) - xy) ** 2).sum() > best
