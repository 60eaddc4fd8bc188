"""t-SNE is deterministic for a seed, keeps clusters together, and refuses embeddings that cannot be laid out."""

import numpy as np
import pytest

from medssl.errors import UserError
from medssl.reporting.tsne import trustworthiness, tsne


def clusters(n: int, k: int = 3, dim: int = 64) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    which = np.arange(n) % k
    return (rng.normal(size=(n, dim)) + 4 * rng.normal(size=(k, dim))[which]).astype(np.float32), which


@pytest.fixture(scope="module")
def layout():
    x, which = clusters(90)
    xy, rows = tsne(x)
    return x, which, xy, rows


def test_same_seed_same_bits(layout):
    x, _, xy, rows = layout
    again, rows_again = tsne(x)
    np.testing.assert_array_equal(xy, again)
    np.testing.assert_array_equal(rows, rows_again)


def test_the_nearest_neighbour_of_every_point_is_of_its_cluster(layout):
    _, which, xy, rows = layout
    distance = np.linalg.norm(xy[:, None] - xy[None], axis=-1)
    np.fill_diagonal(distance, np.inf)
    np.testing.assert_array_equal(which[rows], which[rows][distance.argmin(1)])


def test_the_sample_depends_on_the_seed_and_its_rows_are_returned():
    x, _ = clusters(80)
    xy, rows = tsne(x, max_points=30, seed=1)
    _, again = tsne(x, max_points=30, seed=1)
    _, other = tsne(x, max_points=30, seed=2)
    assert xy.shape == (30, 2)
    assert sorted(set(rows.tolist())) == rows.tolist()
    assert 0 <= rows.min() < rows.max() < 80
    np.testing.assert_array_equal(rows, again)
    assert set(rows) != set(other)


@pytest.mark.parametrize(("n", "dim"), [(10, 64), (11, 2), (25, 3)])
def test_few_points_and_few_dimensions_are_enough(n, dim, caplog):
    xy, rows = tsne(clusters(n, dim=dim)[0])
    assert xy.shape == (n, 2)
    assert np.isfinite(xy).all()
    assert rows.tolist() == list(range(n))
    assert caplog.records == []  # openTSNE warns if the perplexity is too high for n points


def broken(value: float) -> np.ndarray:
    x = clusters(20)[0]
    x[3, 5] = value
    return x


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (clusters(9)[0], "10 or more"),
        (clusters(20)[0][:, :1], "2 or more numbers"),
        (broken(np.nan), "NaN"),
        (broken(np.inf), "NaN or infinity"),
        (np.ones((20, 8), np.float32), "collapsed"),
    ],
)
def test_unusable_embeddings_are_an_error(x, words):
    with pytest.raises(UserError, match=words):
        tsne(x)


def by_definition(x: np.ndarray, xy: np.ndarray, k: int) -> float:
    """Venna and Kaski 2001, equation 1."""
    n = len(x)
    total = 0
    for i in range(n):
        near = sorted((j for j in range(n) if j != i), key=lambda j: np.linalg.norm(x[i] - x[j]))
        shown = sorted((j for j in range(n) if j != i), key=lambda j: np.linalg.norm(xy[i] - xy[j]))[:k]
        total += sum(near.index(j) + 1 - k for j in shown if near.index(j) >= k)
    return 1 - total * 2 / (n * k * (2 * n - 3 * k - 1))


@pytest.mark.parametrize(("n", "asked", "used"), [(40, 10, 10), (12, 10, 5)])
def test_trustworthiness_equals_its_definition_with_a_lower_k_for_few_points(n, asked, used):
    x = clusters(n)[0].astype(np.float64)
    xy = np.random.default_rng(1).normal(size=(n, 2))
    assert trustworthiness(x, xy, k=asked) == pytest.approx(by_definition(x, xy, used), abs=1e-12)


def test_trustworthiness_separates_a_layout_from_noise(layout):
    x, _, xy, rows = layout
    noise = np.random.default_rng(1).normal(size=xy.shape)
    assert trustworthiness(x[rows], xy) > 0.9 > 0.6 > trustworthiness(x[rows], noise)
