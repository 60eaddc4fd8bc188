"""Features of a run: its output, the maps of its stages, and baselines beside them."""

import numpy as np
import pytest
import torch

import medssl
import tiny
from medssl.errors import UserError
from medssl.evals.embed import standardised
from medssl.runs.predictions import predictions_of
from medssl.scoring.baselines import Baseline, FeatureSources
from medssl.store.resampled import resampled_for_encoder
from medssl.store.store import Store
from medssl.synthetic.cohort import write_cohort


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("features")
    cohort = write_cohort(folder / "cohort", patients=40, size=32, seed=1)
    medssl.ingest(cohort / "scans", folder / "store", labels=cohort / "labels.csv", key=tiny.secret(folder / "key"))
    run = medssl.pretrain(
        folder / "store", folder / "run", encoder="small_resnet", encoder_options={"widths": [4, 6]}, size=24,
        steps=2, batch=8, monitor_every=0,
    )  # fmt: skip
    store = Store.open(folder / "store")
    return store, run, FeatureSources(run, store, "cpu")


def test_features_from_maps_are_their_definition(made):
    store, _, sources = made
    rows = store.rows("test")
    encoder = sources.pretrained()
    with torch.no_grad():
        maps = encoder.stages(standardised(resampled_for_encoder(store, sources.encoder.input), rows))
    means = np.concatenate([m.numpy().mean((2, 3)) for m in maps], 1)
    np.testing.assert_allclose(sources.of_run("stages")(store, rows), means, rtol=1e-4, atol=1e-6)
    last = maps[-1].numpy()  # 6 x 6, so that each of 3 x 3 cells has 2 x 2 positions
    assert last.shape[2:] == (6, 6)
    cells = last.reshape(len(last), 6, 3, 2, 3, 2).mean((3, 5)).reshape(len(last), -1)
    np.testing.assert_allclose(sources.of_run("grid")(store, rows), cells, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(sources.of_run("pooled")(store, rows), sources.of_run()(store, rows))


def test_side_by_side_keeps_the_order_and_its_own_cache(made):
    store, _, sources = made
    rows = store.rows("train")
    both = sources.side_by_side("pooled+pixels")
    parts = [sources.of_run()(store, rows), sources.frozen(Baseline.RAW_PIXELS)(store, rows)]
    np.testing.assert_array_equal(both(store, rows), np.concatenate(parts, 1))
    pyramid, bank = (sources.frozen(b)(store, rows) for b in (Baseline.PATCH_PYRAMID, Baseline.PATCH_BANK))
    assert pyramid.shape[1] == 2 * bank.shape[1]


def test_more_features_are_rows_of_the_table(made):
    store, run, _ = made
    wanted = ["stages", "pooled+bank"]
    table = medssl.probe(run, store, "lesion", features=wanted, baselines=["raw pixels"])
    assert [r["source"] for r in table["rows"]] == ["run", "run, stages", "run, pooled+bank", "raw pixels"]
    assert all(r["difference"] for r in table["rows"][1:])
    near = medssl.knn(run, store, "lesion", features=["pooled+bank"], baselines=[], k=3)
    assert [r["source"] for r in near["rows"]] == ["run", "run, pooled+bank"]
    found = medssl.compare([run], probe="linear", baselines=["run, pooled+bank", "raw pixels"])
    assert len(found["comparisons"][0]["pairs"]) == 3
    kept = next(p for p in predictions_of(run) if p.about["command"] == "probe")
    assert [row.source for row in kept.rows] == [r["source"] for r in table["rows"]]


def test_a_neighbour_beside_a_baseline_is_near_in_both(made):
    """The cosine similarity of features side by side is the mean of the cosines of the parts."""
    store, run, sources = made
    medssl.knn(run, store, "lesion", features=["pooled+pixels"], baselines=[], k=1, seed=1)
    train, test = store.rows("train"), store.rows("test")
    cosine = 0
    for source in sources.side_by_side("pooled+pixels").sources:
        a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (source(store, test), source(store, train)))
        cosine = cosine + a.astype(float) @ b.T.astype(float)
    kept = next(p for p in predictions_of(run) if p.about["command"] == "knn" and p.about["asked"]["k"] == 1)
    labels = store.column("label:lesion")[train][cosine.argmax(1)]
    row = next(row for row in kept.rows if row.source == "run, pooled+pixels")
    at = {scan: i for i, scan in enumerate(kept.scan.tolist())}
    order = [at[scan] for scan in store.column("scan")[test].tolist()]
    np.testing.assert_array_equal(row.p[0][order, 1] > 0.5, labels == kept.about["classes"][1])
    assert 0 < (row.p[0][:, 1] > 0.5).mean() < 1


def test_unknown_features_are_refused_in_one_line(made):
    store, run, _ = made
    with pytest.raises(UserError, match=r"'pooled\+pyramids'.*'pyramids'.*pyramid"):
        medssl.probe(run, store, "lesion", features=["pooled+pyramids"], baselines=[])


def test_features_without_the_linear_probe_are_refused_not_ignored(made):
    store, run, _ = made
    with pytest.raises(UserError, match="features= adds rows of the linear probe"):
        medssl.probe(run, store, "lesion", probes=["attentive"], features=["stages"], baselines=[])
