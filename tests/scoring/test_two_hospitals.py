"""Two hospitals with equal file names, no patient ids and labels written in two ways are scored as two hospitals."""

import numpy as np
import pytest
from PIL import Image

import medssl
import tiny
from medssl.errors import UserError


def hospital(folder, seed, words, n=40):
    """Pictures 0.png, 1.png, …, bright where the label is the second word."""
    rng = np.random.default_rng(seed)
    (folder / "scans").mkdir(parents=True)
    lines = ["file,sick\n"]
    for i in range(n):
        pixels = rng.normal(90 + 60 * (i % 2), 20, (24, 24)).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"scans/{i}.png")
        lines.append(f"{i}.png,{words[i % len(words)]}\n")
    (folder / "labels.csv").write_text("".join(lines), encoding="utf-8")
    key = tiny.secret(folder.parent / "key")
    return medssl.ingest(
        folder / "scans", folder / "store", labels=folder / "labels.csv", targets=["sick"], key=key, workers=1
    )


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hospitals")
    home = hospital(folder / "home", 0, ["0", "1"])
    away = hospital(folder / "away", 1, ["0.0", "1.0", "0.0", "1.0\u00a0", "0.0", "-1"])
    run = medssl.pretrain(home.path, folder / "run", encoder="cnn", size=16, steps=2, batch=8, monitor_every=0)
    return run, home.path, away.path


def test_transfer(stores):
    run, home, away = stores
    assert set(medssl.Store.open(home).column("patient")) == set(medssl.Store.open(away).column("patient"))
    found = medssl.probe(run, home, "sick", test_store=away, unknown=[-1], baselines=[])
    assert found["n_test"] == 34
    assert found["classes"] == ["0", "1"]
    text = str(found)
    assert "unknown=['-1']: 0 training and 6 test values left out" in text
    assert "sick: '0' and '0.0'; '1' and '1.0' count as one value each" in text
    by_one = medssl.probe(run, home, "sick", test_store=away, unknown=[-1], positive=["1.0"], baselines=[])
    assert by_one["n_test"] == 34
    assert found["rows"][0]["scores"]["AUROC"] == by_one["rows"][0]["scores"]["AUROC"]


def test_a_filter_takes_both_spellings(stores):
    _, home, away = stores
    for path, n in ((home, 20), (away, 14)):
        assert len(medssl.Store.open(path, 'sick == "1"')) == n
        assert len(medssl.Store.open(path, "sick >= 1")) == n


def test_without_unknown_the_third_class_is_named(stores):
    run, home, away = stores
    found = medssl.knn(run, home, "sick", test_store=away, baselines=[], k=3)
    assert "6 test values of sick are in no training scan and are not scored: '-1'" in str(found)
    with pytest.raises(UserError, match="no training scan has sick=-1"):
        medssl.knn(run, home, "sick", test_store=away, positive=["-1"], baselines=[])
    with pytest.raises(
        UserError, match=r"no test scan of .* has a known label 'sick'; 6 test values of sick are in no training"
    ):
        medssl.knn(run, home, "sick", test_store=away, test_where="sick == -1", baselines=[], k=3)
