"""medssl explore: the page holds what was computed, nothing that identifies, no address, and bad input is one line."""

import base64
import io
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from explored import EVIL, data_of, write_embeddings, write_store
from medssl.commands.analyse.explore import explore
from medssl.commands.train.pretrain import pretrain
from medssl.errors import UserError
from medssl.reporting import thumbnails as thumbnails_module
from medssl.reporting.explorer import columns_of, nearest_scans
from medssl.reporting.faithfulness import faithfulness
from medssl.reporting.maps import align, lay_out
from medssl.reporting.thumbnails import thumbnails


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A store, and a run on it: two steps of training."""
    folder = tmp_path_factory.mktemp("explore")
    store = write_store(folder / "store")
    options = {"widths": [4]}
    run = pretrain(
        store,
        folder / "run",
        method="vicreg",
        encoder="cnn",
        encoder_options=options,
        steps=2,
        batch=4,
        monitor_every=0,
    )
    return store, run


@pytest.fixture
def run(made, tmp_path):
    """A copy of the run, without embeddings."""
    return shutil.copytree(made[1], tmp_path / "run")


def unpacked(text: str, kind: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), kind)


def test_the_page_holds_the_numbers_computed_and_the_maps_of_other_runs_laid_over(made, run, tmp_path, capfd):
    store = made[0]
    x = write_embeddings(run, store)
    other = shutil.copytree(made[1], tmp_path / "again")
    y = write_embeddings(other, store, seed=1)
    page = explore(run, store, runs=[str(other)], maps=["pca", "tsne"])
    assert page == run / "explore.html"
    data = data_of(page.read_text("utf-8"))
    first = lay_out("pca", x, 0)
    laid = [first, lay_out("tsne", x, 0), align(lay_out("pca", y, 0), first)]
    assert [m["name"] for m in data["maps"]] == ["PCA", "t-SNE", "PCA of again (vicreg cnn, seed 0)"]
    for found, xy, of in zip(data["maps"], laid, (x, x, y), strict=True):
        np.testing.assert_array_equal(unpacked(found["x"], "<f4"), xy[:, 0].astype(np.float32))
        np.testing.assert_array_equal(unpacked(found["y"], "<f4"), xy[:, 1].astype(np.float32))
        (wanted,) = faithfulness(of, [xy])
        assert (found["trustworthiness"], found["continuity"]) == (wanted.trustworthiness, wanted.continuity)
        assert found["kept"] == wanted.kept
        np.testing.assert_array_equal(unpacked(found["placed"], "<f4"), wanted.placed)
    columns = {c["name"]: c for c in data["columns"]}
    assert list(columns)[:2] == ["finding", "score"]
    assert "note" not in columns, "words of which nearly every scan has its own may name a person"
    assert any("note" in note for note in data["notes"])
    np.testing.assert_array_equal(
        unpacked(columns["score"]["numbers"], "<f4"), store.column("label:score").astype(float)
    )
    codes = unpacked(columns["finding"]["codes"], "<u4")
    assert [columns["finding"]["values"][c] for c in codes] == store.column("label:finding").tolist()
    assert data["scan"] == store.column("scan").tolist()
    assert "open it in a browser" in capfd.readouterr().err


def test_neighbours_are_by_cosine_and_never_of_the_same_patient_unless_asked():
    rng = np.random.default_rng(0)
    x, patient = rng.normal(size=(30, 4)), np.array([f"p{i // 3}" for i in range(30)])
    others, every = nearest_scans(x, patient, k=5)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    for i in range(30):
        distance = 1 - unit @ unit[i]
        for found, allowed in ((others, patient != patient[i]), (every, np.arange(30) != i)):
            wanted = sorted(np.flatnonzero(allowed), key=lambda j: distance[j])[:5]
            assert found.rows[i].tolist() == wanted
            np.testing.assert_allclose(found.distances[i], distance[wanted], atol=1e-6)
    alone, _ = nearest_scans(x, np.full(30, "p"), k=5)
    assert (alone.rows == -1).all()


def test_the_page_has_no_address_no_path_and_no_identifier_and_loads_nothing(made, run):
    from plotly.offline import get_plotlyjs

    store = made[0]
    write_embeddings(run, store)
    page = explore(run, store, maps=["pca"]).read_text("utf-8")
    own = page.replace(get_plotlyjs(), "")
    assert len(page) - len(own) == len(get_plotlyjs())
    assert not re.search(r"(https?:)?//[\w-]+\.\w", own)
    assert "default-src 'none'" in own
    assert "connect-src" not in own
    for word in (str(run.parent), str(store.path), "secret", "file1", "ward", "free words"):
        assert word not in own, word
    assert EVIL not in own
    assert {EVIL, "normal"} == set(next(c for c in data_of(page)["columns"] if c["name"] == "finding")["values"])
    assert "<iframe srcdoc=" in explore(run, store, maps=["pca"], thumbnails=False)._repr_html_()


def test_thumbnails_off_means_no_pixel_in_the_file(made, run):
    store = made[0]
    write_embeddings(run, store)
    page = explore(run, store, maps=["pca"], thumbnails=False).read_text("utf-8")
    data = data_of(page)
    assert data["pictures"] is None
    (sheet,) = thumbnails(store, store.rows()).sheets
    assert sheet not in page
    data = data_of(explore(run, store, maps=["pca"]).read_text("utf-8"))
    assert data["pictures"]["sheets"] == [sheet]


@pytest.mark.parametrize("dims", [2, 3])
def test_a_thumbnail_is_the_scan_in_its_window_and_of_a_volume_three_planes(dims, tmp_path, monkeypatch):
    monkeypatch.setattr(thumbnails_module, "QUALITY", 100)
    store = write_store(tmp_path / "store", n=3, dims=dims)
    made = thumbnails(store, np.array([2, 0]))
    sheet = np.asarray(Image.open(io.BytesIO(base64.b64decode(made.sheets[0]))).convert("L"), float)
    low, high = (float(store.column(name)[2]) for name in ("low", "high"))
    scan = store[2][0]
    planes = [scan] if dims == 2 else [scan[3], scan[::-1, 6], scan[::-1, :, 5]]
    side = 16 if dims == 2 else 12
    assert (made.height, made.width) == (side, side if dims == 2 else 3 * side + 2)
    for p, plane in enumerate(planes):
        wanted = np.zeros((side, side))
        y, x = ((side - n) // 2 for n in plane.shape)
        wanted[y : y + plane.shape[0], x : x + plane.shape[1]] = 255 * np.clip((plane - low) / (high - low), 0, 1)
        got = sheet[:side, p * (side + 1) : p * (side + 1) + side]
        assert np.abs(got - wanted)[wanted > 0].mean() < 12, p  # WebP is lossy


def test_a_sample_is_keyed_and_said(made, run):
    store = made[0]
    write_embeddings(run, store)
    first, again = (data_of(explore(run, store, maps=["pca"], points=15).read_text("utf-8")) for _ in range(2))
    assert first["n"] == 15
    assert first["scan"] == again["scan"] == sorted(first["scan"], key=store.column("scan").tolist().index)
    assert "A random sample of 15 of 40 scans is shown (seed 0)." in first["notes"]
    assert data_of(explore(run, store, maps=["pca"], points=15, seed=1).read_text("utf-8"))["scan"] != first["scan"]


def test_without_labels_and_with_one_patient_the_page_says_so(made, run, tmp_path):
    store = write_store(tmp_path / "store", n=12, patients=1, labels=False)
    write_embeddings(run, store)
    notes = data_of(explore(run, store, maps=["pca"]).read_text("utf-8"))["notes"]
    assert any("one patient" in note for note in notes)
    assert any("no labels" in note for note in notes)


def test_bad_input_is_one_line_with_what_to_do(made, run, tmp_path):
    store = made[0]

    def refused(*wanted: str, **options):
        given = {"run": run, "store": store, "maps": ["pca"]} | options
        with pytest.raises(UserError) as e:
            explore(**given)
        message = str(e.value)
        assert "\n" not in message
        assert all(w in message for w in wanted), message

    refused("medssl embed run=")
    x = write_embeddings(run, store)
    refused("no embedding in", "medssl embed", store=write_store(tmp_path / "other", start=100))
    refused("'tsna'", "Did you mean 'tsne'", maps=["tsna"])
    refused("maps is empty", maps=[])
    refused("points must be at least 10", points=1)
    refused("is not a run folder", run=tmp_path)
    other = shutil.copytree(run, tmp_path / "again")
    write_embeddings(other, write_store(tmp_path / "part", n=30))
    refused("no embedding of 10 of the 40 scans shown", "medssl embed", runs=[str(other)])
    few = write_store(tmp_path / "few", n=1)
    write_embeddings(run, few)
    refused("a map needs 10 or more embeddings", "got 1 of 5", store=few)
    bad = x.copy()
    bad[3, 1] = np.nan
    write_embeddings(run, store, x=bad)
    refused("1 of 40 embeddings hold NaN", "embed again")
    write_embeddings(run, store, x=np.ones_like(x))
    refused("collapsed")
    lost = write_store(tmp_path / "lost")
    write_embeddings(run, lost)
    shutil.rmtree(lost.path / "packs")
    refused("is missing", "thumbnails=false", store=lost)
    assert explore(run, lost, maps=["pca"], thumbnails=False).exists()


def test_what_is_not_installed_is_named(made, run, monkeypatch):
    from medssl.reporting import explorer, maps

    write_embeddings(run, made[0])
    monkeypatch.setattr(maps, "find_spec", lambda name: None)
    assert maps.choose_maps(None) == ["tsne", "pca"]
    with pytest.raises(UserError, match=r"pip install 'medssl\[umap\]'"):
        explore(run, made[0], maps=["umap"])
    monkeypatch.setattr(explorer, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'medssl\[explore\]'"):
        explore(run, made[0])


def test_columns_are_labels_then_metadata_with_numbers_as_numbers(tmp_path):
    store = write_store(tmp_path / "store")
    columns, left_out = columns_of(store, np.arange(40))
    assert list(columns)[:3] == ["finding", "score", "age"]
    assert left_out == ["note"]
    assert (columns["age"] == 30 + columns["score"]).all()
    assert sorted(columns["score"]) == [*range(40)]
