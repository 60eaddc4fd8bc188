"""Models, comparisons and conclusions: on real predictions of small runs, and on planted ones with a known answer."""

import json
from dataclasses import replace

import numpy as np
import pytest

import medssl
import tiny
from medssl.errors import UserError
from medssl.evals.metrics.metrics import MAE, MEAN
from medssl.evals.stats.score import Difference, Score
from medssl.evals.stats.variance_components import components
from medssl.runs.predictions import PredictedRow, predictions_of
from medssl.runs.runs_by_seed import find_runs, group_by_seed
from medssl.scoring.comparison import sentence
from medssl.synthetic.cohort import write_cohort


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two models of two seeds, probed on one store."""
    folder = tmp_path_factory.mktemp("compare")
    cohort = write_cohort(folder / "cohort", patients=120, size=32, seed=3)
    medssl.ingest(cohort / "scans", folder / "store", labels=cohort / "labels.csv", key=tiny.secret(folder / "key"))
    small = {
        "encoder": "mlp",
        "encoder_options": {"widths": [16]},
        "size": 16,
        "steps": 4,
        "batch": 16,
        "monitor_every": 0,
    }
    for method in ("simclr", "byol"):
        for seed in (0, 1):
            run = medssl.pretrain(folder / "store", folder / f"runs/{method}{seed}", method=method, seed=seed, **small)
            medssl.probe(run, folder / "store", "lesion", baselines=["raw pixels"])
    return folder


def plant(run, quality, seed):
    """Replace the run's own linear predictions by scores that separate the classes by `quality`."""
    (answer,) = predictions_of(run)
    rng = np.random.default_rng(seed)
    s = 1 / (1 + np.exp(-(rng.normal(0, 1, len(answer.y)) + quality * (answer.y - 0.5))))
    answer.rows = [replace(answer.rows[0], p=[np.stack([1 - s, s], 1)]), *answer.rows[1:]]
    answer.write(run)


def test_runs_that_differ_in_the_seed_are_one_model(made):
    groups = group_by_seed(find_runs(made / "runs"))
    assert {group.name: sorted(group.runs) for group in groups} == {"byol mlp": [0, 1], "simclr mlp": [0, 1]}


def test_models_are_named_by_their_differing_options(made, tmp_path):
    small = {"encoder": "mlp", "encoder_options": {"widths": [16]}, "size": 16, "batch": 16, "monitor_every": 0}
    for name, more in (("a", {}), ("b", {"lr": 1e-4}), ("c", {"method_options": {"temperature": 0.5}})):
        medssl.pretrain(made / "store", tmp_path / name, steps=1, **small, **more)
    names = [group.name for group in group_by_seed(find_runs([tmp_path / "a", tmp_path / "b", tmp_path / "c"]))]
    assert names == [f"simclr mlp temperature={t} lr={lr}" for t, lr in ((0.1, 0.001), (0.1, 0.0001), (0.5, 0.001))]
    medssl.pretrain(made / "store", tmp_path / "d", steps=1, **small)
    with pytest.raises(UserError, match="have the same settings and seed"):
        group_by_seed(find_runs(tmp_path))


def test_a_planted_difference_is_found_and_said(made, tmp_path):
    for seed in (0, 1):
        plant(made / f"runs/simclr{seed}", 4.0, 10 + seed)
        plant(made / f"runs/byol{seed}", 0.0, 20 + seed)
    result = medssl.compare([str(made / "runs")], out=tmp_path / "result.json")
    (comparison,) = result["comparisons"]
    (pair,) = comparison["pairs"]
    assert (pair["a"], pair["b"]) == ("byol mlp", "simclr mlp")
    assert pair["difference"]["high"] < 0
    assert pair["p_holm"] < 0.05
    assert "simclr mlp is better than byol mlp by" in pair["sentence"]
    assert "2 seeds" in pair["difference"]["how"]
    assert json.loads((tmp_path / "result.json").read_text()) == json.loads(json.dumps(result))
    assert "simclr mlp is better than byol mlp" in str(result)


def test_equal_models_cannot_be_told_apart_and_the_required_sample_is_printed(made):
    for seed in (0, 1):
        plant(made / f"runs/simclr{seed}", 1.0, 30 + seed)
        plant(made / f"runs/byol{seed}", 1.0, 40 + seed)
    (comparison,) = medssl.compare([str(made / "runs")])["comparisons"]
    words = comparison["pairs"][0]["sentence"]
    assert "cannot be told apart with" in words
    assert "and 2 seeds; " in words
    assert "would be needed" in words or "would suffice" in words


def test_rows_of_the_runs_tables_take_part(made):
    (comparison,) = medssl.compare([str(made / "runs")], baselines=["raw pixels"])["comparisons"]
    assert set(comparison["scores"]) == {"byol mlp", "simclr mlp", "raw pixels"}
    assert len(comparison["pairs"]) == 3
    with pytest.raises(UserError, match="Did you mean 'raw pixels'"):
        medssl.compare([str(made / "runs")], baselines=["raw pixel"])


def test_other_patients_are_refused(made):
    (answer,) = predictions_of(made / "runs/byol1")
    kept = answer.scan.copy()
    answer.scan = np.array([*kept[:-1], "someone else"])
    answer.write(made / "runs/byol1")
    with pytest.raises(UserError, match="not tested on the same patients: 1 test scans"):
        medssl.compare([str(made / "runs")])
    answer.scan = kept
    answer.write(made / "runs/byol1")


def test_what_cannot_be_compared_is_said(made):
    with pytest.raises(UserError, match="only one model, byol mlp with 2 seeds"):
        medssl.compare([str(made / "runs/byol0"), str(made / "runs/byol1")])
    with pytest.raises(UserError, match="no seed in common"):
        medssl.compare([str(made / "runs/byol0"), str(made / "runs/simclr1")])
    with pytest.raises(UserError, match=r"with probe=knn on the same test set.*lesion \(linear\)"):
        medssl.compare([str(made / "runs")], probe="knn")
    with pytest.raises(UserError, match="has no run"):
        medssl.compare([str(made / "store")])


def test_better_is_said_only_when_it_is():
    rng = np.random.default_rng(0)
    y = np.arange(40)
    a, b = rng.normal(0, 1, (2, 3, 1, 40))
    three, one = components(MEAN, y, b, y, against=a), components(MEAN, y, b[:1], y, against=a[:1])
    found = Difference(Score(-0.1, -0.2, -0.01, 50, 20, ""), 0.03, 0.05)
    assert sentence("A", "B", found, 0.03, MEAN, three) == "B is better than A by 0.100 (mean)."
    assert sentence("A", "B", found, 0.03, MAE, three) == "A is better than B by 0.100 (MAE)."
    assert "cannot be told apart with n = 40 patients and 3 seeds" in sentence("A", "B", found, 0.06, MEAN, three)
    assert "With one seed each" in sentence("A", "B", found, 0.03, MEAN, one)


def test_several_questions_are_ranked_and_few_are_not(made, tmp_path):
    """Seven targets on which byol is best, then raw pixels: the order is found; of two nothing is said."""
    for method, quality in (("byol", 6.0), ("simclr", -3.0)):
        for seed in (0, 1):
            run = made / f"runs/{method}{seed}"
            (answer,) = [p for p in predictions_of(run) if p.about["target"] == "lesion"]
            rng = np.random.default_rng(seed)
            for i in range(8):
                answer.about["target"] = f"target {i}"
                entries = []
                for name, q in (("run", quality), ("raw pixels", 1.0)):
                    s = 1 / (1 + np.exp(-(rng.normal(0, 1, len(answer.y)) + q * (answer.y - 0.5))))
                    entries.append(PredictedRow(name, "linear", [np.stack([1 - s, s], 1)]))
                answer.rows = entries
                answer.write(run)
    result = medssl.compare([str(made / "runs")], target=None, baselines=["raw pixels"], out=tmp_path / "r.json")
    assert result["ranking"]["names"][0] == "byol mlp"
    assert result["ranking"]["tasks"] == 9
    assert (tmp_path / "r.png").read_bytes().startswith(b"\x89PNG")
    assert "mean ranks over 9 comparisons" in str(result)
    for i in range(1, 8):
        for path in (made / "runs").glob("*/predictions/*.npz"):
            if f'"target {i}"' in str(np.load(path)["about"]):
                path.unlink()
    result = medssl.compare([str(made / "runs")], baselines=["raw pixels"])
    assert result["ranking"] is None
    assert "no ranking over 2 comparisons" in str(result)
