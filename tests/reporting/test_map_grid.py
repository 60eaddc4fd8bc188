"""Maps side by side: aligned, measured over all scans, coloured by columns; new points do not move a finished map."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from sklearn.manifold import trustworthiness

import medssl
from medssl.errors import UserError
from medssl.reporting.faithfulness import faithfulness
from medssl.reporting.maps import align, lay_out
from medssl.reporting.tsne import place, tsne
from medssl.store.store import Store
from reporting.test_report import N, make_run, make_store


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("grid")
    store = make_store(folder / "store")
    return store, make_run(folder / "run", store)


def shuffled(run, store, folder, seed):
    """A run whose embeddings are those of `run`, turned and in another order of scans."""
    table = pq.read_table(run / "embeddings.parquet")
    x = table["embedding"].combine_chunks().flatten().to_numpy().reshape(N, -1)
    turned = x @ np.linalg.qr(np.random.default_rng(seed).normal(size=(x.shape[1],) * 2))[0]
    turned = pa.FixedSizeListArray.from_arrays(pa.array(turned.astype(np.float32).ravel()), x.shape[1])
    table = table.set_column(table.column_names.index("embedding"), "embedding", turned)
    make_run(folder, store)
    pq.write_table(table.take(np.random.default_rng(seed).permutation(N)), folder / "embeddings.parquet")
    return folder


def test_each_map_is_laid_over_the_first_and_measured_over_all_scans(made, tmp_path):
    store, run = made
    other = shuffled(run, store, tmp_path / "other", 3)
    grid = medssl.maps([run, other], store, kinds=["pca", "tsne"], seeds=[0, 1])
    assert [m.name for m in grid.maps][:3] == ["PCA, run, seed 0", "PCA, run, seed 1", "t-SNE, run, seed 0"]
    assert len(grid.maps) == 8
    # turning the features turns their principal components, which the alignment undoes
    np.testing.assert_allclose(grid.maps[4].xy, grid.maps[0].xy, atol=1e-4)
    x = medssl.Run(run).embeddings(store).filter(regex=r"^f\d").to_numpy()
    laid = lay_out("tsne", x, 0)
    np.testing.assert_array_equal(grid.maps[2].xy, align(laid, grid.maps[0].xy))
    assert grid.maps[2].faithful.trustworthiness == faithfulness(x, [grid.maps[2].xy])[0].trustworthiness
    assert grid.maps[2].faithful.continuity == pytest.approx(trustworthiness(laid, x, n_neighbors=10), abs=1e-9)
    np.testing.assert_array_equal(grid.columns["site"], store.column("site"))


def test_the_picture_has_the_colours_of_its_column(made):
    grid = medssl.maps(made[1], made[0], kinds=["pca"])
    picture = grid.by("site", "patient")
    assert picture._repr_png_() == bytes(picture)
    pixels = np.asarray(Image.open(io.BytesIO(picture)).convert("RGB")).reshape(-1, 3).astype(int)
    for colour in ((0, 0x72, 0xB2), (0xD5, 0x5E, 0)):  # north, south
        assert (np.abs(pixels - colour).max(1) < 12).sum() > 20
    flat = np.asarray(Image.open(io.BytesIO(grid.by("split"))).convert("RGB"))
    assert len(flat) < 0.7 * len(np.asarray(Image.open(io.BytesIO(picture))))


def test_new_points_are_placed_among_their_like_and_do_not_move_the_map():
    rng = np.random.default_rng(0)
    centres, which = 6 * rng.normal(size=(3, 20)), np.arange(90) % 3
    x, new = (centres[which] + rng.normal(size=(90, 20)) for _ in range(2))
    xy, at = place(x, new, seed=4)
    np.testing.assert_array_equal(xy, tsne(x, seed=4)[0])
    nearest = ((at[:, None] - xy) ** 2).sum(2).argmin(1)
    assert (which[nearest] == which).mean() == 1
    np.testing.assert_array_equal(place(x, new[:40], seed=4)[1].shape, (40, 2))


def test_scans_outside_fit_are_placed(made):
    store, run = made
    grid = medssl.maps(run, store, fit="site == 'north'")
    north = store.column("site") == "north"
    np.testing.assert_array_equal(grid.columns["place"] == "in the map", north)
    x = medssl.Run(run).embeddings(store).filter(regex=r"^f\d").to_numpy()
    np.testing.assert_array_equal(grid.maps[0].xy[north], tsne(x[north])[0])


def test_what_cannot_be_drawn_is_refused(made, tmp_path):
    store, run = made
    with pytest.raises(UserError, match=r"placed into maps of kind tsne only"):
        medssl.maps(run, store, kinds=["pca"], fit="site == 'north'")
    with pytest.raises(UserError, match=r"no column 'sit'.*mean 'site'"):
        medssl.maps(run, store, kinds=["pca"]).by("sit")
    few = make_run(tmp_path / "few", store)
    pq.write_table(pq.read_table(run / "embeddings.parquet").slice(3), few / "embeddings.parquet")
    with pytest.raises(UserError, match=r"no embedding of 3 of 60 scans; embed them"):
        medssl.maps(few, Store.open(store.path))
    with pytest.raises(UserError, match=r"cannot take 5 of 4; it needs 10 or more"):
        place(np.eye(12, 6), np.eye(5, 4))
    with pytest.raises(UserError, match="NaN or infinity"):
        place(np.eye(12), np.full((2, 12), np.nan))


def test_umap_leaves_the_number_of_threads_as_it_was():
    threads = torch.get_num_threads()
    assert lay_out("umap", np.random.default_rng(0).normal(size=(30, 5)), 0).shape == (30, 2)
    assert torch.get_num_threads() == threads
