"""A report in English or Korean: the same keys and placeholders in both, and every number in its sentence."""

import copy
import itertools
import math
import re

import numpy as np
import pytest
import yaml

from medssl.errors import UserError
from medssl.evals.explain.evidence import ASSOCIATION, Evidence, _listed
from medssl.evals.explain.picture_properties import picture_properties
from medssl.evals.label_free.collapse import LIMITS, diagnose
from medssl.evals.label_free.quality import MEASURES
from medssl.evals.stats.score import Score
from medssl.leakage.leak_report import SetOverlap
from medssl.leakage.transformed_duplicates import LOOKED_FOR
from medssl.readers.quality_flags import FLAGS
from medssl.reporting.answer import answer
from medssl.reporting.clinical_use import meaning, subgroups
from medssl.reporting.conclusions import conclusions
from medssl.reporting.glossary import explain
from medssl.reporting.korean import particles
from medssl.reporting.messages import FOLDER, GLOSSARY, LANGUAGES, messages, phrases, placeholders, table
from medssl.reporting.render import _interval_methods
from medssl.reporting.report import CONFIG
from medssl.reporting.score_table import score_table
from medssl.scoring.attention_probes import READERS
from medssl.scoring.baselines import BASELINES, RANDOM_INIT_FROZEN
from medssl.scoring.clinical import GROUPS
from medssl.scoring.training import end_to_end
from medssl.store.intensity_windows import INTENSITIES

HANGUL = re.compile("[가-힣]")
HOW = "95 % Wilson interval by a jackknife over 7 patients"


def score(value: float, low: float, high: float) -> dict:
    return {"value": value, "low": low, "high": high, "n": 14, "patients": 7, "how": HOW}


def make_table() -> dict:
    """A probe's table with all its sections."""

    def row(source: str, features: str, auroc: float, difference: dict | None) -> dict:
        kept = {"source": source, "features": features, "probe": "linear", "label_budget": "all", "draws": 1}
        return kept | {"scores": {"AUROC": score(auroc, auroc - 0.031, auroc + 0.024)}, "difference": difference}

    points = {"sensitivity": score(0.8, 0.71, 0.88), "specificity": score(0.9, 0.82, 0.95)}
    points |= {"PPV": score(0.75, 0.6, 0.85), "NPV": score(0.93, 0.85, 0.97)}
    points |= {"PPV at 5 %": score(0.296, 0.2, 0.4), "NPV at 5 %": score(0.988, 0.98, 0.99)}
    both = {"ECE": score(0.12, 0.08, 0.2)}, {"ECE": score(0.05, 0.03, 0.1)}
    groups = [
        {"name": name, "n": n, "patients": n // 2, "score": score(*s), "why": ""}
        for name, n, s in (("F", 8, (0.9, 0.8, 0.95)), ("M", 6, (0.85, 0.7, 0.93)))
    ]
    return {
        "command": "probe",
        "target": "lesion",
        "classes": ["no", "yes"],
        "task": "classification",
        "train_store": "a" * 32,
        "test_store": "b" * 32,
        "test": "held-out patients",
        "n_train": 40,
        "patients_train": 20,
        "n_test": 14,
        "patients_test": 7,
        "flags": [],
        "overlap": [],
        "asked": {},
        "sign": 1,
        "prevalence": 0.25,
        "rows": [
            row("run", "simclr cnn", 0.912, None),
            row("random init", "random init", 0.8, score(-0.112, -0.15, -0.07)),
            row("k-means patch bank", "k-means patch bank", 0.88, score(-0.032, -0.06, 0.01)),
        ],
        "operating_point": {"threshold": 0.4, "how": "threshold 0.4", "scores": points},
        "calibration": {
            "temperature": 1.5,
            "how": "temperature by cross-entropy on 49 scans",
            "uncalibrated": both[0],
            "temperature_scaled": both[1],
            "difference": {"ECE": score(-0.07, -0.1, -0.04)},
            "curve": [{"predicted": score(0.2, 0.1, 0.3), "observed": score(0.25, 0.1, 0.4)}],
        },
        "subgroups": {
            "sex": {"groups": groups, "largest": "F", "smallest": "M", "gap": score(0.05, 0.0, 0.15), "why": ""}
        },
    }


def text(html: str) -> str:
    return " ".join(re.sub(r"<[^>]*>", " ", html).split())


SENTENCES = {
    "answer": lambda table, t: "\n".join(answer([table], 2, t)),
    "conclusions": lambda table, t: "\n".join(conclusions(table, t)),
    "scores": lambda table, t: text(score_table(table, t)),
    "meaning": lambda table, t: text(meaning(table, t)),
    "subgroups": lambda table, t: text(subgroups(table, t)),
}
ENDS = ("value", "low", "high")
RUN_SCORE = [("rows", 0, "scores", "AUROC", k) for k in ENDS]
BANK, RANDOM = ([("rows", i, "difference", k) for k in ENDS] for i in (2, 1))
POINT = [("operating_point", "scores", m, k) for m in ("sensitivity", "specificity", "PPV", "NPV") for k in ENDS]
NUMBERS = {
    "answer": [*RUN_SCORE, *BANK, ("rows", 2, "scores", "AUROC", "value"), ("n_test",), ("patients_test",)],
    "conclusions": [*RUN_SCORE, *BANK, *RANDOM, ("rows", 0, "scores", "AUROC", "n"), ("rows", 0, "scores", "AUROC", "patients")],
    "scores": [*RUN_SCORE, *BANK, *RANDOM, ("n_train",), ("patients_train",), ("n_test",), ("patients_test",)]
    + [("rows", i, "scores", "AUROC", k) for i in (1, 2) for k in ENDS],
    "meaning": [*POINT, ("prevalence",), ("calibration", "temperature")]
    + [("operating_point", "scores", f"{m} at 5 %", k) for m in ("PPV", "NPV") for k in ENDS]
    + [("calibration", when, "ECE", k) for when in ("uncalibrated", "temperature_scaled", "difference") for k in ENDS],
    "subgroups": [("subgroups", "sex", "gap", k) for k in ENDS]
    + [("subgroups", "sex", "groups", i, k) for i in (0, 1) for k in ("n", "patients")]
    + [("subgroups", "sex", "groups", i, "score", k) for i in (0, 1) for k in ENDS],
}  # fmt: skip


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_number_changes_its_sentence(language):
    t, unchanged = messages(language), []
    for part, paths in NUMBERS.items():
        before = SENTENCES[part](make_table(), t)
        for path in paths:
            changed = copy.deepcopy(make_table())
            inner = changed
            for key in path[:-1]:
                inner = inner[key]
            # an end of an interval stays on its side of the value
            inner[path[-1]] += 3 if isinstance(inner[path[-1]], int) else 0.0052
            if SENTENCES[part](changed, t) == before:
                unchanged.append((part, *path))
    assert unchanged == []


def test_the_answer_has_three_sentences_with_the_strongest_baseline():
    asked, found, not_for = answer([make_table()], 1, messages("en"))
    assert asked == (
        'Asked: how well does simclr cnn (linear) predict "lesion" (no, yes) on held-out patients, 14 scans of 7 patients?'
    )
    assert found == (
        "Found: AUROC 0.912 [0.881, 0.936], which cannot be told apart from the strongest baseline, "
        "k-means patch bank (0.880; difference +0.032 [-0.010, +0.060])."
    )
    assert "7 test patients of one site" in not_for
    trained = make_table()
    like = trained["rows"][-1]
    given = {
        "source": "supervised",
        "features": "supervised",
        "probe": "end to end",
        "scores": {"AUROC": score(0.905, 0.87, 0.93)},
    }
    supervised = like | given | {"difference": score(-0.007, -0.02, 0.01)}
    of_the_run = like | {"source": "run, pooled+pyramid", "difference": score(0.04, 0.01, 0.07)}
    trained["rows"] += [
        supervised,
        of_the_run,
        supervised | {"label_budget": "20 scans", "difference": score(0.2, 0.1, 0.3)},
    ]
    assert "the strongest baseline, supervised, end to end (0.905;" in answer([trained], 1, messages("en"))[1]
    assert "with 4 sites" in answer([make_table()], 4, messages("en"))[2]


def test_the_answer_claims_no_more_than_the_interval():
    table = make_table()
    for low, high, word in ((-0.06, -0.01, "which is better than"), (0.01, 0.06, "which is worse than")):
        table["rows"][-1]["difference"] = score((low + high) / 2, low, high)
        table["rows"] = [table["rows"][0], table["rows"][-1]]
        assert word in answer([table], 1, messages("en"))[1]
    table["overlap"] = ["pretraining"]
    assert "It may be too good, since the test set overlaps with pretraining." in answer([table], 1, messages("en"))[1]
    table["rows"] = table["rows"][:1]
    assert "what training added is unknown" in answer([table], 1, messages("en"))[1]
    table["rows"][0]["scores"]["AUROC"] |= {"low": None, "high": None}
    assert "nothing that can be concluded" in answer([table], 1, messages("en"))[1]
    assert answer([], 1, messages("en")) == []


def test_natural_frequencies_by_hand():
    """250 of 1,000 ill: 200 found, 50 missed; of 750 well, 75 called. At 5 %: 40 of 50 found, 95 of 950 called."""
    shown = text(meaning(make_table()))
    assert "250 have" in shown
    assert (
        "275 are called positive, of which 200 have it and 75 do not. Of the 725 called negative, 50 have it" in shown
    )
    assert "135 are called positive, of which 40 have it and 95 do not. Of the 865 called negative, 10 have it" in shown


def test_both_languages_have_the_same_keys_and_placeholders():
    for key, texts in table().items():
        assert texts.keys() == LANGUAGES.keys(), key
        assert placeholders(texts["en"]) == placeholders(texts["ko"]), key
        assert HANGUL.search(texts["ko"]) or not re.search("[a-z]{4}", re.sub(r"{[^}]*}", "", texts["en"])), key
        assert not HANGUL.search(texts["en"]), key
    for entry in yaml.safe_load((FOLDER / f"{GLOSSARY}.yaml").read_text("utf-8")).values():
        assert entry["term"].keys() == LANGUAGES.keys()
        assert HANGUL.search(entry["ko"])
    assert 18 <= len(messages("en").glossary()) <= 32
    for english, korean in phrases():
        assert placeholders(english) == placeholders(korean), english


def test_an_unknown_language_is_refused_in_one_line():
    with pytest.raises(UserError, match=r"^there is no report in language='de'\. .*en.*ko[^\n]*$"):
        messages("de")


def test_particles_follow_the_sound():
    assert particles("모델은(는) 환자이(가) AUROC을(를) cnn과(와) 서울으로(로)") == "모델은 환자가 AUROC를 cnn과 서울로"
    assert particles("small_resnet(선형 프로브)은(는) AUROC은(는)") == "small_resnet(선형 프로브)은 AUROC는"
    assert particles('"병변"(예)을(를)') == '"병변"(예)을'
    assert particles("모델(선형 프로브)은(는) 3이(가) 4이(가)") == "모델(선형 프로브)은 3이 4가"


def test_terms_are_explained_once_in_each_section():
    page = explain(
        "<section><h2>AUROC</h2><p>AUROC and AUROC, preAUROC</p><code>AUROC</code></section><section>AUROC 보정을</section>",
        {"AUROC": 'a "chance"', "보정": "맞춤"},
    )
    assert page.count("<abbr") == 3
    assert '<h2>AUROC</h2><p><abbr tabindex="0" title="a &#34;chance&#34;">AUROC</abbr> and AUROC, preAUROC</p>' in page
    assert "<code>AUROC</code>" in page
    assert ">보정</abbr>을" in page


def test_kept_sentences_are_translated_without_pseudonyms():
    ids = "b5boyafka2pyopvq6amyxcnkav", "s5vglzw4lz64fgb2wi5m36sk3k"
    flag = (
        "training may include 7 of the 90 test images (similar, but their pixels cannot be read or do not decide), for example "
        f"{ids[0]} and {ids[1]}"
    )
    for language in LANGUAGES:
        shown = messages(language).phrase(flag)
        assert "7" in shown
        assert not any(one in shown for one in ids)
    assert HANGUL.search(messages("ko").phrase(flag))
    unknown = "a sentence nobody has translated"
    assert messages("ko").marked(unknown) == f'<span lang="en">{unknown}</span>'
    assert messages("en").marked("a < b") == "a &lt; b"


def english_in(text: str, names: tuple[str, ...] = ()) -> list[str]:
    """Return the English words of a Korean sentence, apart from names, acronyms and what stands in <…>."""
    for name in (*names, "CT, MR, PET, X", "alpha-ReQ", "SIGReg", "min(N - 1, D)"):
        text = text.replace(name, "")
    return re.findall(r"\b[a-z]{2,}\b", re.sub(r"<[^>]*>", "", text))


def test_every_name_that_a_page_takes_from_the_code_is_korean():
    t = messages("ko")
    names = [
        *FLAGS,
        *INTENSITIES.values(),
        *picture_properties(np.ones((16, 16))),
        *(m.about for m in MEASURES.values()),
    ]
    names += [b for b in (*BASELINES, RANDOM_INIT_FROZEN) if b != "PCA"]
    names += [end_to_end(1), end_to_end(3), *READERS, *CONFIG.values(), *GROUPS, *ASSOCIATION.values()]
    assert [
        name for name in names if not HANGUL.search(t.phrase(name)) or english_in(t.phrase(name), ("ImageNet", "mm"))
    ] == []


def test_every_leak_warning_is_one_korean_sentence_with_its_numbers():
    t = messages("ko")
    some = [(0, 0, 0), (2, 0, 0), (0, 3, 0), (0, 0, 4), (2, 3, 0), (0, 3, 4), (2, 3, 4)]
    for a, b in (("pretraining", "test"), ("training", "validation"), ("training", "training"), ("test", "test")):
        for shared, exact, maybe in some[1:]:
            overlap = SetOverlap(a, b, 90, 50, 0 if a == b else shared, exact, 1, maybe, ())
            said, shown = str(overlap), t.phrase(str(overlap))
            assert english_in(shown) == [], said
            assert sorted(re.findall(r"\d+", shown)) == sorted(re.findall(r"\d+", said)), said
            assert shown.endswith(("니다", "음)")), shown
    assert english_in(t.phrase(LOOKED_FOR), ("JPEG",)) == []


@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_every_sentence_of_an_audit_is_korean(kind):
    t, low, middle, high = messages("ko"), score(0.2, 0.1, 0.3), score(0.55, 0.4, 0.7), score(0.8, 0.7, 0.9)
    none = score(0.5, math.nan, math.nan) | {"how": "no interval from 3 patients"}
    low, middle, high, none = (Score(**s) for s in (low, middle, high, none))
    down, same, up = (Score(v, v - 0.1, v + 0.1, 9, 9, HOW) for v in (-0.2, 0.0, 0.2))
    baselines = ("raw pixels", "random init", "PCA")
    choices = itertools.product(
        (low, middle, high, none), (low, middle, high, none), (down, same, up, none), (same, none)
    )
    for number, (predicted, alone, change, train) in enumerate(choices):
        compared = itertools.islice(itertools.cycle((down, same, up)), number % 3, number % 3 + len(baselines))
        versus = dict(zip(baselines, compared, strict=True))
        evidence = Evidence(
            "age" if kind == "regression" else "scanner", kind, (), "AUROC", {"run": {"AUROC": predicted}}, predicted, versus,
            alone, train, train, high, high, (high, middle)[number % 2], high, {"within": change},
        )  # fmt: skip
        said = evidence.sentence("lesion")
        shown = t.phrase(said)
        assert english_in(shown, ("lesion",)) == [], said
        assert sorted(re.findall(r"\d\.\d{3}", shown)) == sorted(re.findall(r"\d\.\d{3}", said)), said
    for fields in (["age"], ["age", "scanner"], ["age", "scanner", "view"]):
        shown = t.phrase(f"No shortcut was found in the metadata at hand: {_listed(fields)}.")
        assert english_in(shown) == []


def test_every_warning_of_a_training_is_korean():
    t = messages("ko")
    settings = (
        "lr clip precision warmup weight decay batch augment mae simclr medssl inspect sheet png crop scale true ln"
    )
    low = dict.fromkeys(LIMITS, 0.0)
    high = dict.fromkeys(LIMITS, 1e3) | {
        "rankme": 2.0,
        "rankme_of": 64,
        "finite": 0.5,
        "teacher_moved": 0,
        "common": 0.95,
    }
    found = [diagnose(low | {"rankme_of": 64, "spread": 1.0}), diagnose(low | {"spread_untrained": 1.0})]
    found += [
        diagnose({**high, "chance": math.log(64)}, [math.log(64)] * 100, "encoder.relu"),
        diagnose({"dead": 0.95}),
    ]
    said = {collapse.words for part in found for collapse in part}
    assert len(said) >= 12
    for words in said:
        shown = t.phrase(f"Step 50: {words}")
        assert [w for w in english_in(shown) if w not in (*settings.split(), "encoder", "relu")] == [], words


def test_ways_of_computing_intervals_that_differ_in_numbers_are_told_once():
    how = "95 % jackknife interval over {} patients, which allows for a bias of up to {} upwards"
    scores = [score(0.1, 0.0, 0.2) | {"how": how.format(n, bias)} for n, bias in ((19, 0.031), (39, 0.019))]
    shown = _interval_methods(scores, messages())
    assert shown == how.format("19 to 39", "0.019 to 0.031")
    assert _interval_methods(scores, messages("ko")).startswith(
        "환자 19~39명의 잭나이프에 의한 95 % 신뢰구간(최대 0.019~0.031의"
    )


def test_a_kept_warning_is_shown_as_a_sentence():
    assert messages().sentence("pretraining has seen it") == "Pretraining has seen it."
    assert messages().sentence("Is it so?") == "Is it so?"
    shown = messages("ko").sentence("training includes 2 of the 5 test patients")
    assert shown == "학습 자료에 시험 환자 5명 중 2명이 들어 있습니다."


def test_a_specificity_that_was_missed_on_the_test_is_said():
    table = make_table()
    table["operating_point"]["how"] = "threshold 0.4, the lowest with specificity 0.9 on 50 validation scans"
    assert "more false alarms" not in text(meaning(table))
    table["operating_point"]["scores"]["specificity"] = score(0.57, 0.5, 0.63)
    assert "it is only 0.570 [0.500, 0.630]: there are more false alarms than intended" in text(meaning(table))
    assert "0.570 [0.500, 0.630]에 그쳤습니다" in text(meaning(table, messages("ko")))
    table["operating_point"]["scores"]["specificity"] = score(0.97, 0.95, 0.99)
    assert "it is 0.970 [0.950, 0.990]: the sensitivity is lower" in text(meaning(table))


def test_kept_sentences_of_an_audit_are_translated_with_their_numbers():
    """Two sentences are two, a part in brackets is kept, and what follows a colon is translated too."""
    t = messages("ko")
    verdict = "Part of the score of lesion comes from the scanner. No shortcut was found in the metadata at hand: age."
    assert t.phrase(verdict) == (
        "lesion 점수의 일부는 촬영 장비에서 나옵니다. 주어진 메타데이터에서 지름길 학습을 찾지 못했습니다(확인한 항목: 나이)."
    )
    field = "scanner: alone it predicts lesion on test scans (AUROC 0.712 [0.601, 0.803]); within one scanner the score falls "
    shown = t.phrase(f"{field}from 0.801 [0.700, 0.902] to 0.7, paired -0.1: part of the score comes from the scanner.")
    for number in ("0.712 [0.601, 0.803]", "0.801 [0.700, 0.902]", "0.7로", "-0.1"):
        assert number in shown
    assert "predicts" not in shown
    assert t.phrase("Step 50: the embedding is collapsing") == "50단계: the embedding is collapsing"
