"""Models, comparisons and conclusions: on real predictions of small runs, and on planted ones with a known answer."""

import inspect
import json
import re
import shutil
from dataclasses import fields, replace

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
from medssl.scoring.eval_splits import SplitOptions
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


@pytest.fixture
def pair(made, tmp_path):
    """Copies of two runs without scores."""
    runs = []
    for name in ("simclr0", "byol0"):
        copy = shutil.copytree(made / "runs" / name, tmp_path / name)
        shutil.rmtree(copy / "predictions")
        (copy / "scores.json").unlink()
        runs.append(copy)
    return runs


def asked(made, run, command, **options):
    getattr(medssl, command)(run, made / "store", "lesion", baselines=[], **options)


TUNING = {"label_budgets": ["all"], "draws": 1, "steps": 1}
UNLIKE = {
    "k": ("knn", {"k": 1}, {"k": 20}, r"knn of lesion, kNN\): k is 1 and 20;"),
    "gallery": ("retrieve", {}, {"gallery": "test"}, "gallery is train and test"),
    "steps": ("finetune", TUNING, TUNING | {"steps": 2}, "steps is 1 and 2"),
    "recipe": ("finetune", TUNING, TUNING | {"augment": "plain"}, "augment is the run's own and plain"),
    "head": ("finetune", TUNING, TUNING | {"head": "random"}, "head is probe and random"),
    "training": ("finetune", TUNING, TUNING | {"seed": 1}, r"scans with seed 0 .* and \d+ scans with seed 1"),
    "draws": (
        "probe", {"label_budgets": [20], "draws": 2}, {"label_budgets": [20], "draws": 3},
        "label budget 20 scans.: labelled scans is 2 draws of .* and 3 draws of ",
    ),
    "the seed of draws": (
        "probe", {"label_budgets": [20], "draws": 2}, {"label_budgets": [20], "draws": 2, "seed": 5},
        "with seed 0 .* with seed 5",
    ),
    "test patients": (
        "probe", {}, {"test_where": "sex == 'F'"}, r"test scans is \d+ scans of \d+ patients \[\w+\] and \d+ scans",
    ),
    "classes": ("probe", {}, {"positive": "yes"}, "classes is no, yes and not yes, yes"),
}  # fmt: skip


@pytest.mark.parametrize("what", UNLIKE)
def test_different_settings_are_refused_and_the_difference_is_named(made, pair, what):
    command, one, other, words = UNLIKE[what]
    for run, options in zip(pair, (one, other), strict=True):
        asked(made, run, command, **options)
    with pytest.raises(UserError, match="were scored with different settings.*" + words) as refused:
        medssl.compare([str(run) for run in pair])
    assert all(str(run) in str(refused.value) for run in pair)
    asked(made, pair[0], command, **other)  # asked the same as well, it is compared, and the first answer is not lost
    comparison, *_ = medssl.compare([str(run) for run in pair])["comparisons"]  # retrieve has three measures
    assert comparison["about"]["asked"] == next(
        p.about["asked"] for p in predictions_of(pair[1]) if p.about["command"] == command
    )
    assert len(predictions_of(pair[0])) == 2


SAME_PREDICTIONS = {"run", "store", "target", "baselines", "features", "save_every"}
SCANS = {field.name for field in fields(SplitOptions)} | {
    "label_budgets",
    "draws",
}  # the settings have digests of these


@pytest.mark.parametrize(("command", "options"), [("knn", {}), ("retrieve", {}), ("finetune", TUNING)], ids=str)
def test_every_option_that_changes_predictions_is_among_the_settings(made, pair, command, options):
    """So that no option can be added to a command and make tables unlike without `compare` seeing it."""
    asked(made, pair[0], command, **options)
    settings = predictions_of(pair[0])[0].about["asked"]
    own = inspect.signature(getattr(medssl, command)).parameters.keys() - SAME_PREDICTIONS - SCANS - {"options"}
    assert own <= settings.keys()
    assert own, "the command has options of its own, so that the test sees them"


def test_fewer_training_scans_are_another_question(made, pair, tmp_path):
    """The test hospital is the same; one probe learnt from the labels of women only."""
    away = write_cohort(tmp_path / "away", patients=20, size=32, seed=99)
    medssl.ingest(away / "scans", tmp_path / "there", labels=away / "labels.csv", key=tiny.secret(made / "key"))
    asked(made, pair[0], "probe", test_store=tmp_path / "there")
    asked(made, pair[1], "probe", test_store=tmp_path / "there", where="sex == 'F'")
    with pytest.raises(UserError, match=r"training scans is \d+ scans of \d+ patients .* validation scans is"):
        medssl.compare([str(run) for run in pair])


def test_a_label_or_a_where_that_changes_no_scan_is_the_same_question(made, pair):
    asked(made, pair[0], "probe")
    asked(made, pair[1], "probe", where="width > 1")
    assert len(medssl.compare([str(run) for run in pair])["comparisons"]) == 1


def test_several_answers_of_one_kind_say_what_they_are(made, pair):
    for run in pair:
        for k in (1, 20):
            asked(made, run, "knn", k=k)
    titles = [str(c).splitlines()[0] for c in medssl.compare([str(run) for run in pair])["comparisons"]]
    assert [t.rpartition(", ")[2] for t in titles] == ["k 1", "k 20"]


def test_a_run_that_has_seen_the_test_set_is_marked_wherever_it_stands(made, tmp_path):
    """Scored with allow_overlap on a store of the same images under another key; the other run has not seen them."""
    medssl.ingest(
        made / "cohort/scans",
        tmp_path / "again",
        labels=made / "cohort/labels.csv",
        key=tiny.secret(tmp_path / "key", "1"),
    )
    other = write_cohort(tmp_path / "other", patients=40, size=32, seed=77)
    medssl.ingest(other / "scans", tmp_path / "clean", labels=other / "labels.csv", key=tiny.secret(made / "key"))
    small = {
        "encoder": "mlp",
        "encoder_options": {"widths": [16]},
        "size": 16,
        "steps": 4,
        "batch": 16,
        "monitor_every": 0,
    }
    clean = medssl.pretrain(tmp_path / "clean", tmp_path / "runs/clean", method="byol", **small)
    seen = shutil.copytree(made / "runs/simclr0", tmp_path / "runs/seen")
    for run in (clean, seen):
        table = medssl.probe(run, tmp_path / "again", "lesion", baselines=["raw pixels"], allow_overlap=run == seen)
        assert ("simclr mlp (!)" in str(table)) == (table["overlap"] == ["pretraining"]) == (run == seen)
        assert "raw pixels (!)" not in str(table)
    result = medssl.compare([str(tmp_path / "runs")], baselines=["raw pixels"], probe="linear", target="lesion")
    (flag,) = [f for f in result["flags"] if "pretraining includes" in f]
    assert flag.startswith("simclr mlp: ")
    (comparison,) = result["comparisons"]
    assert flag in comparison["flags"]
    text = str(result)
    assert f"! {flag}" in text
    assert all(("simclr mlp (!)" in line) == ("simclr mlp" in line) for line in text.splitlines() if "! " not in line)
    assert "byol mlp (!)" not in text
    assert "raw pixels (!)" not in text


def test_a_report_on_two_runs_has_the_numbers_of_compare(made, tmp_path):
    """In both languages; each run of a comparison is named with how it was trained."""
    runs = [str(made / f"runs/{method}0") for method in ("simclr", "byol")]
    result = medssl.compare(runs)
    pair = result["comparisons"][0]["pairs"][0]
    d = pair["difference"]
    for language, word in (("en", "after Holm correction"), ("ko", "Holm 다중 비교 교정 후")):
        path = medssl.report(runs=runs, out=tmp_path / f"{language}.html", language=language)
        page = re.sub(r"</?abbr[^>]*>", "", path.read_text("utf-8"))
        assert word in page
        assert f"{abs(d['value']):.3f}" in page
        assert f"{abs(d['low']):.3f}" in page
        for score in result["comparisons"][0]["scores"].values():
            assert f"{score['value']:.3f}" in page
        assert f'<html lang="{language}">' in page
        assert page.count('<dl class="sums">') == 2
        assert "<script" not in page
    assert medssl.report(runs=runs).name == "comparison.html"
    for given in ({}, {"run": runs[0], "runs": runs}):
        with pytest.raises(UserError, match="give either one run"):
            medssl.report(**given)
    with pytest.raises(UserError, match="there is no report in language='kr'"):
        medssl.report(runs=runs, language="kr")
    with pytest.raises(UserError, match="there is only one model"):
        medssl.report(runs=runs[0])
