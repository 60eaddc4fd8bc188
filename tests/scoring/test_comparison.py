"""Comparisons of planted predictions, whose p values and conclusions can be recomputed."""

from itertools import combinations

import numpy as np
import pytest

from medssl.evals.metrics.metrics import AUROC, ECE
from medssl.evals.stats.bootstrap import paired
from medssl.evals.stats.score import Score
from medssl.runs.predictions import Predictions
from medssl.scoring.comparison import Comparison, compare_pairs, rank_models, selection

ABOUT = {"command": "probe", "target": "lesion", "task": "classification", "classes": ["no", "yes"], "test_store": "a"}
Y = np.arange(120) % 2


def comparison(target, models, seeds=1, metric=AUROC):
    """Models by how far their scores separate the classes, each with several seeds."""
    first = Predictions(
        ABOUT | {"target": target, "test": "held-out patients"}, np.arange(120).astype(str), np.arange(120), Y
    )
    p = {}
    for name, quality in models.items():
        r = np.random.default_rng(sum(map(ord, target + name)))
        scores = (1 / (1 + np.exp(-quality * Y - r.normal(size=120))) for _ in range(seeds))
        p[name] = [[np.stack([1 - s, s], 1)] for s in scores]
    return Comparison(first, "linear", "all", metric, "", {m: m for m in models}, [], p, list(range(seeds)))


def by_hand(p):
    """Holm, 1979: the k-th smallest of m p values times m - k + 1, never below the one before."""
    out, least = {}, 0.0
    for k, name in enumerate(sorted(p, key=p.get)):
        least = max(least, min(1.0, (len(p) - k) * p[name]))
        out[name] = least
    return out


def test_all_pairs_of_all_targets_are_one_family():
    """Four models on two targets: twelve comparisons, some of which are only below .05 on their own."""
    models = {"a": 0.0, "b": 0.55, "c": 0.9, "d": 1.3}
    asked = [comparison(target, models) for target in ("lesion", "nodule")]
    p = {
        (i, a, b): paired(AUROC, Y, c.p[a][0], c.p[b][0], np.arange(120)).p
        for i, c in enumerate(asked)
        for a, b in combinations(models, 2)
    }
    adjusted = by_hand(p)
    only_alone = [pair for pair in p if p[pair] < 0.05 <= adjusted[pair]]
    assert only_alone
    assert any(adjusted[pair] < 0.05 for pair in p)
    found = compare_pairs(asked, seed=0)
    for (i, a, b), expected in adjusted.items():
        (pair,) = [pair for pair in found[i]["pairs"] if (pair["a"], pair["b"]) == (a, b)]
        assert pair["p_holm"] == pytest.approx(expected, rel=1e-9)
        assert ("is better than" in pair["sentence"]) == (expected < 0.05)
        assert ("cannot be told apart" in pair["sentence"]) == (expected >= 0.05)
    assert str(found[0]).count("after Holm's correction for 12 comparisons") == 6


def test_the_best_of_several_is_said_to_be_selected():
    """Of three or more models on one test set: the best score is the largest of several, so it is too high."""
    three = compare_pairs([comparison("lesion", {"a": 0.2, "b": 1.5, "c": 0.4})], seed=0)[0]
    words = (
        "b has the best AUROC of these 3 models on these patients. The best of several is partly the luckiest, so its AUROC "
        "looks better than it is; report it on patients that did not choose it."
    )
    assert words in str(three)
    assert three["selection"] == words
    two = compare_pairs([comparison("lesion", {"a": 0.2, "b": 1.5})], seed=0)[0]
    assert "partly the luckiest" not in str(two)
    assert two["selection"] is None


def test_a_model_without_a_score_is_none_of_the_several():
    def scored(**values):
        return {name: Score(value, 0.0, 1.0, 10, 10, "") for name, value in values.items()}

    assert selection(scored(a=0.7, b=0.9, c=float("nan")), AUROC) is None
    assert selection(scored(a=0.7, b=0.9, c=0.8, d=float("nan")), AUROC).startswith(
        "b has the best AUROC of these 3 models"
    )


def test_the_selected_model_is_named_as_in_the_table():
    """With the mark of a test set that overlaps with what the model was trained on."""
    asked = comparison("lesion", {"a": 0.2, "b": 1.5, "c": 0.4})
    asked.shown["b"] = "b (!)"
    found = compare_pairs([asked], seed=0)[0]
    assert found["selection"].startswith("b (!) has the best AUROC of these 3 models")


def test_the_first_of_a_ranking_is_said_to_be_selected():
    models = {"a": 0.0, "b": 1.5, "c": 0.7}
    ranking, result = rank_models([comparison(f"target {i}", models) for i in range(9)])
    assert ranking.names[0] == "b"
    words = (
        "b has the best mean rank of these 3 models on these patients. The best of several is partly the luckiest, so its mean "
        "rank looks better than it is; report it on patients that did not choose it."
    )
    assert str(result).splitlines()[-1] == words
    assert result["ranking"]["selection"] == words


def test_the_best_of_several_has_the_lowest_error():
    found = compare_pairs([comparison("lesion", {"a": 3.0, "b": -3.0, "c": 0.4}, metric=ECE)], seed=0)[0]
    lowest = min(found["scores"], key=lambda model: found["scores"][model]["value"])
    assert found["selection"].startswith(f"{lowest} has the best ECE of these 3 models")
