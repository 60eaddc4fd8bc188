"""What commands return shows itself in a notebook, is still a path, and gives DataFrames and datasets."""

import base64
import io
import pickle
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

import medssl
from conftest import ROOT
from explored import ALIAS, write_store
from medssl import progress
from medssl.errors import UserError
from medssl.ingestion.writer import StoreWriter
from medssl.readers.scan import Scan
from medssl.reporting import notebook
from medssl.reporting.contact_sheet import contact_sheet
from medssl.scoring import data_frame


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("notebook")
    write_store(folder / "store", n=160)
    store = medssl.Store.open(folder / "store")
    options = {"widths": [4]}
    run = medssl.pretrain(
        store,
        folder / "run",
        method="vicreg",
        encoder="cnn",
        encoder_options=options,
        steps=2,
        batch=4,
        monitor_every=0,
        log_every=1,
    )
    return store, run


def picture(html: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(re.search(r"base64,([^\"]+)", html)[1]))))


def test_a_run_is_a_path_and_shows_its_curves(made):
    run = made[1]
    assert isinstance(run, medssl.Run)
    assert isinstance(run, Path)
    assert run == Path(str(run))
    assert (run / "encoder.json").exists()
    assert type(run / "encoder.json") is type(run.parent) is type(Path())
    assert pickle.loads(pickle.dumps(run)) == run
    html = run._repr_html_()
    assert "vicreg cnn, seed 0: finished, step 2 of 2" in html
    assert picture(html).std() > 0
    assert medssl.Run(run.parent)._repr_html_() == f"<p>{run.parent}</p>"
    assert run.config.steps == 2


def test_a_store_shows_its_scans_and_is_a_store(made):
    store = made[0]
    html = store._repr_html_()
    assert f"{len(store):,} scans of 80 patients" in html
    assert "labels: finding, note, score" in html
    sheet = np.asarray(contact_sheet(store, store.rows()[:: 160 // 24][:24]), np.float64)
    assert np.abs(picture(html) - sheet).mean() < 4  # of 255: it is compressed with loss
    assert notebook.shown(medssl.store.store.Store.open(store.path)).fingerprint == store.fingerprint


def test_a_store_of_noise_does_not_swell_a_notebook(tmp_path):
    rng = np.random.default_rng(0)
    with StoreWriter(tmp_path / "store", ALIAS) as writer:
        for i in range(30):
            ids = {name: ALIAS.of(name, str(i)) for name in ("scan", "patient", "study", "series")}
            noise = rng.integers(0, 255, (1, 200, 200)).astype(np.uint8)
            writer.add(Scan(array=noise, modality="US", spacing=(1.0, 1.0), **ids), f"{i}.png")
        store = notebook.shown(writer.finish())
    html = store._repr_html_()
    assert len(html) < 150_000
    assert picture(html).std() > 20


def test_embeddings_are_a_data_frame_by_scan(made, tmp_path):
    store, run = made
    file = medssl.embed(run, store)
    assert isinstance(file, Path)
    assert (
        file._repr_html_()
        == f"<p>{len(store)} scans x 4 features, with scan, patient, split, site, scanner, finding, note, score</p>"
    )
    frame = run.embeddings(store, where="score < 10")
    assert sorted(frame["score"].astype(int)) == [*range(10)]
    whole = file.frame()
    assert whole.index.tolist() == store.column("scan").tolist()
    assert whole["patient"].tolist() == store.column("patient").tolist()
    assert whole["finding"].tolist() == store.column("label:finding").tolist()
    features = ["f0", "f1", "f2", "f3"]
    assert [c for c in whole if re.fullmatch(r"f\d+", c)] == features
    encoder, config = medssl.load_encoder(run)
    from medssl.scoring.features import from_encoder

    np.testing.assert_array_equal(
        whole[features].to_numpy(), from_encoder(encoder, config.input, "cpu")(store, store.rows())
    )
    np.testing.assert_array_equal(frame[features], whole.loc[frame.index, features])
    assert frame["patient"].tolist() == whole.loc[frame.index, "patient"].tolist()
    with pytest.raises(UserError, match=r"no embedding in .* medssl embed run="):
        run.embeddings(write_store(tmp_path / "other", start=200))


def test_without_pandas_one_line_says_what_to_install(made, monkeypatch):
    monkeypatch.setattr(data_frame, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'medssl\[pandas\]'"):
        data_frame.data_frame({"scan": ["a"]}, np.zeros((1, 2)))


def test_scores_show_their_intervals(made):
    store, run = made
    scores = medssl.knn(run, store, "site", k=3, baselines=[])
    score = scores["rows"][0]["scores"]["AUROC"]
    for html in (scores._repr_html_(), run.scores[0]._repr_html_()):
        assert "<table" in html
        assert f"{score['value']:.3f}" in html
        assert f"[{score['low']:.3f}, {score['high']:.3f}]" in html
    assert "site" in run._repr_html_()
    assert str(scores).startswith("site (")
    quality = medssl.quality(run, store, scans=20, views=2)
    assert quality._repr_html_().startswith("<pre>")


@pytest.mark.parametrize("dims", [2, 3])
def test_a_dataset_gives_dicts_that_can_be_collated_and_transformed(dims, tmp_path):
    write_store(tmp_path / "store", n=6, dims=dims)
    store = medssl.Store.open(tmp_path / "store")
    data = store.dataset()
    batch = next(iter(DataLoader(data, batch_size=6)))
    assert torch.equal(batch["image"], torch.stack([torch.from_numpy(store[i].astype(np.float32)) for i in range(6)]))
    assert batch["scan"] == store.column("scan").tolist()
    assert batch["labels"]["finding"] == store.column("label:finding").tolist()
    np.testing.assert_array_equal(batch["window"][:, 1], store.column("high").astype(np.float32))
    assert not {"mask", "affine"} & set(batch)
    write_store(tmp_path / "more", n=40, dims=dims)
    store = medssl.Store.open(tmp_path / "more")
    train = store.dataset("train", transform=lambda item: item["image"].mean())
    assert len(train) == len(store.rows("train")) < 40
    assert train[0] == store[int(store.rows("train")[0])].mean(dtype=np.float32)


def test_dicts_go_through_a_transform_of_monai(tmp_path):
    transforms = pytest.importorskip("monai.transforms", reason="needs monai")
    write_store(tmp_path / "store", n=3, dims=3)
    resize = transforms.Resized(keys=["image"], spatial_size=(4, 5, 6))
    data = medssl.Store.open(tmp_path / "store").dataset(transform=resize)
    assert data[1]["image"].shape == (1, 4, 5, 6)


def test_a_bar_is_shown_in_a_notebook_with_widgets_only(monkeypatch):
    assert not progress.in_notebook()
    kernel = SimpleNamespace(get_ipython=lambda: SimpleNamespace(kernel=object()))
    monkeypatch.setitem(sys.modules, "IPython", kernel)
    monkeypatch.setattr(progress, "find_spec", lambda name: object())
    assert progress.in_notebook()
    monkeypatch.setattr(progress, "find_spec", lambda name: None)
    assert not progress.in_notebook()


def test_type_checkers_read_the_package():
    assert (ROOT / "ssl/medssl/py.typed").exists()
