"""Label-free quality: intervals over patients, the held-out subset, the command, and the most reliable measure over runs."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy import stats

import medssl
import tiny
from medssl.errors import UserError
from medssl.evals.label_free.agreement import agreement, trusted
from medssl.evals.label_free.quality import MEASURES, jackknife, measures, quality
from medssl.leakage.leak_check import PRETRAINED_ON_COLUMNS
from medssl.pretraining.held_out_subset import held_out_subset
from medssl.synthetic.cohort import write_cohort


def features(N=40, V=3, D=12, seed=0, patients=40):
    r = np.random.default_rng(seed)
    lam = np.arange(1, D + 1.0) ** -0.5
    patient = np.arange(N) % patients
    z = r.normal(size=(patients, D))[patient] * lam + 0.3 * r.normal(size=(N, D)) * lam + 0.2
    return z, z[:, None] + 0.3 * r.normal(size=(N, V, D)) * lam, patient


def test_every_measure_has_a_value_and_the_shares_are_of_what_can_be():
    x, views, _ = features(D=32)
    got = measures(x, views)
    assert list(got) == list(MEASURES)
    assert got["RankMe share"] == pytest.approx(got["RankMe centred"] / 32)
    assert got["LiDAR share"] == pytest.approx(got["LiDAR"] / 32)
    assert measures(x[:20], views[:20])["RankMe share"] == pytest.approx(
        measures(x[:20], views[:20])["RankMe centred"] / 19
    )
    with pytest.raises(ValueError, match="N >= 2, V, D"):
        measures(x, views[:, 0])
    with pytest.raises(ValueError, match="views"):
        measures(x, views.transpose(1, 0, 2))
    with pytest.raises(ValueError, match="views"):
        measures(x, views[1:])


def test_views_that_never_differ_are_no_perfect_alignment():
    x, views, _ = features()
    got = measures(x, np.repeat(views[:, :1], 3, axis=1))
    undefined = {k for k, v in got.items() if np.isnan(v)}
    assert undefined == {"LiDAR", "LiDAR share", "alignment", "alignment / chance", "alpha-ReQ", "alpha-ReQ R2"}


def test_the_jackknife_is_its_formula():
    """One scan a patient and 12 patients: leave one out. The interval of a mean is then Student's."""
    values = np.random.default_rng(0).normal(size=12)
    got = jackknife(lambda rows: {"mean": float(values[rows].mean())}, np.arange(12), seed=0)["mean"]
    half = stats.t.ppf(0.975, 11) * values.std(ddof=1) / np.sqrt(12)
    assert (got.low, got.high) == pytest.approx((values.mean() - half, values.mean() + half))
    assert "12 groups of 12 patients" in got.how


def test_scans_of_a_patient_leave_together():
    """Each scan four times is no more evidence than once: the interval does not shrink."""
    values = np.random.default_rng(0).normal(size=30)
    once = jackknife(lambda rows: {"mean": float(values[rows].mean())}, np.arange(30), seed=0)["mean"]
    copies = np.repeat(values, 4)
    four = jackknife(lambda rows: {"mean": float(copies[rows].mean())}, np.repeat(np.arange(30), 4), seed=0)["mean"]
    assert (four.low, four.high) == pytest.approx((once.low, once.high))
    assert (four.n, four.patients) == (120, 30)


def test_the_order_of_scans_changes_nothing_not_even_the_interval():
    x, views, patient = features(patients=20)
    order = np.random.default_rng(1).permutation(len(x))
    a, b = quality(x, views, patient), quality(x[order], views[order], patient[order])
    for name in MEASURES:
        if np.isfinite(a[name].value):
            assert (b[name].value, b[name].low, b[name].high) == pytest.approx(
                (a[name].value, a[name].low, a[name].high), rel=1e-6
            ), name


def test_two_draws_of_one_domain_do_not_read_as_a_shift():
    """MONAI's domain shift is .378 at n = 50 for the same domain. Here the two intervals have to meet."""
    a, b = (quality(*features(N=60, patients=60, seed=s)) for s in (1, 2))
    apart = [k for k in MEASURES if a[k].high < b[k].low or b[k].high < a[k].low]
    assert apart == []


def test_intervals_cover_the_value_of_other_patients():
    """The mean over 40 subsets of the same size is covered by nearly all of their 95 % intervals."""
    every = [quality(*features(seed=s)) for s in range(40)]
    for name in ("RankMe centred", "LiDAR", "alignment", "uniformity", "SIGReg"):
        truth = np.mean([q[name].value for q in every])
        assert np.mean([q[name].low <= truth <= q[name].high for q in every]) >= 0.85, name


def test_few_patients_have_no_interval():
    got = quality(*features(patients=2))["RankMe"]
    assert np.isnan(got.low)
    assert "no interval from 2 patients" in got.how


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quality")
    cohort = write_cohort(folder / "cohort", patients=60, size=32, seed=3)
    store = medssl.ingest(
        cohort / "scans", folder / "store", labels=cohort / "labels.csv", key=tiny.secret(folder / "key")
    )
    settings = {"encoder": "cnn", "encoder_options": {"widths": [8, 16]}, "size": 16, "steps": 6, "batch": 32}
    run = medssl.pretrain(store, folder / "runs" / "a", monitor_every=0, **settings)
    return folder, store, run


def test_the_subset_takes_patients_before_scans(made):
    store = made[1]
    patient = store.column("patient")
    val = store.rows("val")
    everyone = set(patient[val])
    assert len(everyone) < len(val)
    few = held_out_subset(store, len(everyone))
    assert set(patient[few.rows]) == everyone
    assert few.split == "val"
    assert set(few.rows) <= set(held_out_subset(store, 10_000).rows) == set(val)
    assert (held_out_subset(store, 5).rows == held_out_subset(store, 5).rows).all()
    assert set(held_out_subset(store, 5, seed=1).rows) != set(held_out_subset(store, 5).rows)


def test_one_encoder_is_measured_and_written_down(made):
    _, store, run = made
    result = medssl.quality(run, store, views=3)
    assert json.loads((run / "quality.json").read_text()) == json.loads(json.dumps(result))
    assert set(result["measures"]) == set(result["half"]) == set(MEASURES)
    assert result["subset"]["scans"] == len(store.rows("val"))
    assert result["flags"] == []
    for score in result["measures"].values():
        assert score["value"] is None or score["low"] <= score["value"] <= score["high"]
    assert result["half"]["RankMe"]["n"] < result["measures"]["RankMe"]["n"]
    assert "needs 40 patients" in result["mutual_information"]["why"]
    n = len(store.rows("val"))
    assert result["distances"]["euclidean"]["metric"] is True
    assert result["distances"]["cosine"]["triangle"]["checked"] == n * (n - 1) * (n - 2)
    shown = str(result)
    assert "jackknife over" in shown
    assert "euclidean distance of the features: on these points it is a metric" in shown
    for name in MEASURES:
        assert name in shown
    again = medssl.quality(run, store, views=3)
    assert again == result


@pytest.mark.parametrize("scans", [8, 10, 11, 16, 20, 21, 22])
def test_few_scans_are_measured_without_lidar(made, tmp_path, scans):
    """LiDAR needs more scans than views; with the default of 10 views, half of fewer than 22 scans has too few."""
    _, store, run = made
    copy = shutil.copytree(run, tmp_path / "run")
    result = medssl.quality(copy, store, scans=scans)
    assert result["subset"]["scans"] == scans
    assert (result["measures"]["LiDAR"]["value"] is None) == (scans <= 10)
    half = result["half"]["LiDAR"]
    assert (half["value"] is None) == (half["n"] <= 10)
    assert result["flags"] == [f for f in result["flags"] if "LiDAR needs more scans than views (10 of each)" in f]
    assert bool(result["flags"]) == (half["n"] <= 10)
    assert result["measures"]["uniformity"]["value"] < 0
    assert "LiDAR" in str(result)


def test_any_number_of_scans_of_any_number_of_patients_is_measured():
    """No split of a few scans among patients crashes: what cannot be measured is undefined."""
    r = np.random.default_rng(0)
    for _ in range(60):
        N, V, D = r.integers(2, 24), r.integers(2, 12), r.integers(1, 20)
        patient = r.integers(0, r.integers(1, N + 1), N)
        got = quality(r.normal(size=(N, D)), r.normal(size=(N, V, D)), patient)
        assert set(got) == set(MEASURES)
        assert np.isnan(got["LiDAR"].value) == (V >= N or N * (V - 1) < D)


def test_scans_of_pretraining_are_flagged(made, tmp_path):
    _, store, run = made
    copy = shutil.copytree(run, tmp_path / "run")
    (copy / "quality.json").unlink(missing_ok=True)
    rows = store.rows("val")[:3]
    seen = {name: store.column(name)[rows].tolist() for name in PRETRAINED_ON_COLUMNS}
    pq.write_table(pa.table(seen), copy / "pretrained_on.parquet")
    patients, images = (len(set(seen[name])) for name in ("patient", "hash"))
    (flag,) = medssl.quality(copy, store, views=3)["flags"]
    assert f"{patients} of the patients and {images} of the images" in flag


def test_features_come_from_the_exported_encoder(made):
    _, store, run = made
    encoder, config = medssl.load_encoder(run)
    from medssl.scoring.features import from_encoder

    rows = held_out_subset(store, 512).rows
    x = from_encoder(encoder, config.input, "cpu")(store, rows).astype(float)
    s = np.linalg.svd(x - x.mean(0), compute_uv=False)
    p = s / s.sum() + 1e-7
    got = medssl.quality(run, store, views=2)["measures"]["RankMe centred"]["value"]
    assert got == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-9)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "give run=RUN store=STORE"),
        ({"run": "x", "runs": "y"}, "give run=RUN store=STORE"),
        ({"run": "x"}, "give store=, the scans"),
        ({"run": "x", "store": "s", "views": 1}, "views at least 2"),
    ],
)
def test_impossible_arguments_are_refused(given, words):
    with pytest.raises(UserError, match=words):
        medssl.quality(**given)


def folders(made, tmp_path, n, order=1.0):
    """n copies of a run, whose measured ranks rise (or fall) with the scores that their probes had."""
    _, store, run = made
    result = medssl.quality(run, store, views=2)
    r = np.random.default_rng(0)
    for i in range(n):
        copy = tmp_path / "runs" / f"r{i}"
        shutil.copytree(run, copy)
        mine = json.loads(json.dumps(result))
        mine["name"] = "simclr cnn"
        for name, score in mine["measures"].items():
            if score["value"] is not None:
                score["value"] = order * i if name == "LiDAR" else float(r.normal())
        (copy / "quality.json").write_text(json.dumps(mine))
        row = {
            "features": "simclr cnn",
            "source": "run",
            "probe": "linear",
            "label_budget": "all",
            "drawn": "40 scans",
            "scores": {"AUROC": {"value": 0.5 + i / 50}},
        }
        other = {
            "features": "PCA",
            "source": "PCA",
            "probe": "linear",
            "label_budget": "all",
            "drawn": "40 scans",
            "scores": {"AUROC": {"value": 0.9}},
        }
        table = {
            "command": "probe",
            "target": "lesion",
            "task": "classification",
            "asked": {"test scans": "20 scans"},
            "flags": [],
            "rows": [other, row],
        }
        (copy / "scores.json").write_text(json.dumps({"tables": [table]}))
    return tmp_path / "runs"


def test_the_measure_that_orders_runs_is_named(made, tmp_path):
    got = medssl.quality(runs=str(folders(made, tmp_path, 10)))
    assert got["values"] == [0.5 + i / 50 for i in range(10)]
    assert got["agreement"]["LiDAR"]["spearman"]["value"] == 1
    assert got["trust"].startswith("trust LiDAR here: higher is better, Spearman 1.000")
    out = str(got)
    assert "linear probe of lesion, AUROC" in out
    assert "bootstrap over 10 runs" in out


def test_a_measure_that_orders_runs_the_wrong_way_is_said_to(made, tmp_path):
    assert "opposite of what its paper says" in medssl.quality(runs=str(folders(made, tmp_path, 10, -1.0)))["trust"]


def test_few_runs_have_no_correlation(made, tmp_path):
    got = medssl.quality(runs=str(folders(made, tmp_path, 3)))
    assert got["agreement"] == {}
    assert "3 runs are too few" in got["trust"]
    assert "Spearman" not in str(got)


def test_runs_measured_on_other_scans_are_not_compared(made, tmp_path):
    where = folders(made, tmp_path, 8)
    path = where / "r0" / "quality.json"
    found = json.loads(path.read_text())
    found["subset"]["store"] = "another"
    path.write_text(json.dumps(found))
    with pytest.raises(UserError, match="different scans; add store=STORE"):
        medssl.quality(runs=str(where))
    path.write_text(json.dumps(found | {"weights": "of another encoder"}))
    with pytest.raises(UserError, match=r"r0 has no quality\.json for its present encoder"):
        medssl.quality(runs=str(where))
    path.write_text(json.dumps(found | {"version": 1}))
    with pytest.raises(
        UserError, match=r"r0/quality\.json was written by an earlier medssl; delete it and measure again"
    ):
        medssl.quality(runs=str(where))
    path.write_text("{")
    with pytest.raises(UserError, match="damaged"):
        medssl.quality(runs=str(where))
    path.unlink()
    with pytest.raises(UserError, match=r"r0 has no quality\.json for its present encoder; add store=STORE"):
        medssl.quality(runs=str(where))


def test_correlations_are_scipys():
    r = np.random.default_rng(0)
    y, x = r.normal(size=15).round(1), r.normal(size=15).round(1)
    got = agreement({"x": x, "same": np.ones(15)}, y, ["a"] * 15)
    assert list(got) == ["x"]
    assert got["x"].spearman.value == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-12)
    assert got["x"].kendall.value == pytest.approx(stats.kendalltau(x, y).statistic, abs=1e-12)
    assert got["x"].within is None
    size = stats.permutation_test(
        (x,), lambda v: abs(stats.spearmanr(v, y).statistic), permutation_type="pairings", alternative="greater",
        n_resamples=5000, random_state=np.random.default_rng(0),
    )  # fmt: skip
    assert got["x"].p == pytest.approx(size.pvalue, abs=0.03)


def test_within_methods_only_runs_of_one_method_are_compared():
    """Between methods x and y go together, within each they go apart."""
    method = np.repeat(["a", "b"], 6)
    within = np.tile(np.arange(6.0), 2)
    y = within + 10 * (method == "b")
    x = -within + 10 * (method == "b")
    got = agreement({"x": x}, y, method)["x"]
    assert got.spearman.value > 0.3
    assert got.within.value == pytest.approx(-1)
    assert "within 2 methods" in got.within.how
    loops = [np.sign(x[i] - x[j]) * np.sign(y[i] - y[j]) for i in range(12) for j in range(i) if method[i] == method[j]]
    assert got.within.value == pytest.approx(np.mean(loops))


def test_the_best_of_many_measures_by_chance_is_not_trusted():
    """Thirteen measures of noise: the best looks good, and Holm over the family keeps it from being named."""
    named = 0
    for seed in range(12):
        r = np.random.default_rng(seed)
        noise = {f"m{i}": r.normal(size=12) for i in range(13)}
        found = agreement(noise, r.normal(size=12), ["a"] * 12, seed=seed)
        named += "do not choose by any" not in trusted(found, dict.fromkeys(noise, 1), 12)
    assert named <= 2
