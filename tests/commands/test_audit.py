"""medssl audit: facts that are planted are named, others are not, and what cannot be audited is said; real views too."""

import csv
import json
import re

import numpy as np
import pytest
from markupsafe import escape
from PIL import Image

import medssl
import tiny
from medssl.commands.analyse.audit import audit
from medssl.errors import UserError
from medssl.evals.stats.score import Score
from medssl.reporting.sections import audit_section
from medssl.synthetic.cohort import write_cohort

SIZE, PATIENTS, FAINT = 16, 150, 4
SPLIT = np.repeat(["train", "val", "test"], [75, 15, 60])


def pretrained(store, out, **options):
    """A run that has hardly learnt: what a view or a scanner does to pixels, random weights show."""
    asked = {"encoder": "cnn", "encoder_options": {"widths": [8, 16]}, "size": SIZE, "steps": 2, "batch": 16}
    return medssl.pretrain(store, out, monitor_every=0, **(asked | options))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Three hospitals. A lesion is a faint blob; its patients are mostly seen in AP, which brightens a border of the picture."""
    folder, rng = tmp_path_factory.mktemp("hospitals"), np.random.default_rng(0)
    (folder / "scans").mkdir()
    grid = np.hypot(*np.meshgrid(*[np.arange(SIZE) - 7.5] * 2))
    with (folder / "table.csv").open("w", newline="") as f:
        writer = csv.writer(f)
        writer.writerow(
            ("file", "patient_id", "split", "site", "sex", "view", "age", "laterality", "lesion", "found", "tube")
        )
        for p in range(PATIENTS):
            lesion = rng.random() < 0.5
            ap = lesion if rng.random() < 0.75 else rng.random() < 0.5
            site = rng.choice(["north", "south", "", "tiny"], p=[0.5, 0.3, 0.18, 0.02])
            sex, age, tube = rng.choice(["F", "M"]), rng.integers(20, 90), rng.choice(["in", "out"])
            for k in range(1 + p % 2):
                image = 90 + 10 * rng.normal(size=(SIZE, SIZE)) + FAINT * lesion * (grid < 4)
                image[:2] += 90 * ap
                Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(folder / f"scans/p{p:03}-{k}.png")
                found = "|".join(w for w, there in (("blob", lesion), ("fluid", p % 5 == 0)) if there) or "none"
                words = (site, sex, "AP" if ap else "PA", age, "L", "yes" if lesion else "no", found, tube)
                writer.writerow((f"p{p:03}-{k}.png", f"P{p:03}", SPLIT[p], *words))
    store = medssl.ingest(
        folder / "scans", folder / "store", labels=folder / "table.csv", targets=["lesion", "found", "tube"],
        key=tiny.secret(folder / "key"), workers=1,
    )  # fmt: skip
    return folder, store, pretrained(store, folder / "run")


@pytest.fixture(scope="module")
def found(made):
    _, store, run = made
    return audit(run, store, "lesion")


def of(result, name):
    return next(f for f in result["metadata"] if f["field"] == name)


def test_only_the_planted_view_is_found_by_default(found):
    assert {f["field"]: f["finding"] for f in found["metadata"]} == {
        "view": "part",
        "site": "none",
        "sex": "none",
        "age": "none",
    }
    assert found["metadata"][0]["field"] == "view"  # the worst first
    assert found["verdict"].startswith(
        "Part of the score of lesion comes from the view. No shortcut was found in the metadata at hand: "
    )
    said = of(found, "view")["sentence"]
    for words in (
        "the features predict it (AUROC",
        "it is associated with lesion in training",
        "alone it predicts lesion on test scans",
    ):
        assert words in said
    assert re.search(
        r"within one view the score falls from 0\.\d+ \[.*: part of the score comes from the view\.$", said
    )


def test_what_the_audit_measured_is_what_was_planted(found):
    view = of(found, "view")
    assert view["values"] == ["AP", "PA"]
    assert (
        view["predicted"]["simclr cnn"]["AUROC"]["low"] > 0.87
    )  # all patients agree: .025^(1 / patients of the rarer view)
    assert view["alone"]["low"] <= 0.875 <= view["alone"]["high"]  # (1 + 3/4) / 2
    assert view["association_train"]["low"] <= 0.75 <= view["association_train"]["high"]
    assert view["association_test"]["low"] <= 0.75 <= view["association_test"]["high"]
    assert of(found, "sex")["predicted"]["simclr cnn"]["AUROC"]["low"] < 0.5
    assert view["score"]["n"] == found["n_test"]


def test_the_brightened_border_is_found_in_the_pictures_alone(found):
    """AP views, which go with the lesion, are brighter along the upper edge."""
    assert {"border", "outer ring"} <= set(found["picture_alarms"])
    border = Score.from_dict(found["pictures"]["border"])
    assert border.low <= 0.875 <= border.high  # (1 + 3/4) / 2, the AUROC of the view
    assert "The border alone predicts lesion" in str(found)
    assert "size (the same in every training scan)" in str(found)


def test_every_fact_that_cannot_be_audited_is_listed_with_the_reason(found):
    assert found["not_audited"] == {
        "scanner": "not known for any scan",
        "modality": "not known for any scan",
        "laterality": "always L",
        "pixel type": "always uint8",
        "pixels": "always 256",
    }
    site = of(found, "site")
    assert site["values"] == ["north", "south", "unknown"]  # not to know a site may be a shortcut as well
    assert re.fullmatch(r"\d test scans with rarer values left out", site["notes"][0])
    assert site["score"]["n"] == found["n_test"] - int(site["notes"][0][0])


def test_each_site_is_tested_by_a_probe_that_has_not_seen_it(found):
    assert set(found["sites"]) == {"north", "south", "tiny"}
    north = found["sites"]["north"]
    change = Score.from_dict(north["difference"])
    assert change.value == pytest.approx(north["trained without it"]["value"] - north["trained on all sites"]["value"])
    assert change.low <= 0 <= change.high  # the sites are alike
    assert change.n < found["n_test"]
    assert "why" in found["sites"]["tiny"]
    assert set(found["subgroups"]) == {"view", "sex", "age", "site"}


def test_the_printed_tables_hold_no_bare_number(made):
    _, store, run = made
    result = audit(run, store, "lesion", metadata="view")
    printed = str(result)
    assert result["metadata"][0]["sentence"] in printed
    assert printed.rstrip().endswith("Part of the score of lesion comes from the view.")
    lines = [line for line in printed.splitlines() if re.match(r"(view|age) .*\d\.\d{3}", line)]
    assert len(lines) == 3
    for line in lines:
        without = line.count("[no interval]")  # a score of 1 within each label, on which all patients agree
        held = len(re.findall(r"-?\d\.\d{3} \[", line))
        assert (held - without) * 3 + without == len(re.findall(r"-?\d\.\d{3}", line))


def test_the_file_holds_every_score_and_no_names(made, found):
    folder, store, run = made
    audit(run, store, "lesion")
    text = (run / "audit.json").read_text()
    (table,) = json.loads(text)["tables"]  # an audit of the same question takes the place of the older
    assert table == json.loads(json.dumps(found))
    assert str(folder) not in text
    assert not any(patient in text for patient in store.column("patient"))

    def scores(value):
        if isinstance(value, dict):
            if "low" in value:
                yield Score.from_dict({k: v for k, v in value.items() if k not in ("p", "se")})
            else:
                for v in value.values():
                    yield from scores(v)

    every = [s for fact in table["metadata"] for s in scores(fact)]
    assert len(every) == 4 * 16 + 3  # of age R2 of three encoders too
    assert all(s.low <= s.value <= s.high or (s.value == 1 and "the value stays the same" in s.how) for s in every)


def test_the_section_of_a_report(made, found):
    _, _, run = made
    page = audit_section(run)
    assert escape(found["verdict"]) in page
    sentence = found["metadata"][0]["sentence"]
    assert escape(sentence[0].upper() + sentence[1:]) in page
    assert "laterality: always L" in page
    assert page.count('<tr class="ours">') == 2  # the view, in both tables
    assert "The border alone predicts lesion" in page
    empty = run.parent / "empty"
    empty.mkdir()
    assert "medssl audit run=empty" in audit_section(empty)
    (empty / "audit.json").write_text('{"tables": [{}]}')
    with pytest.raises(UserError, match="damaged"):
        audit_section(empty)


def test_findings_beside_each_other_and_another_label_as_a_fact(made):
    _, store, run = made
    result = audit(run, store, "found", metadata=["view", "tube"])
    assert result["task"] == "multilabel"
    assert of(result, "view")["metric"] == "macro AUROC"
    assert of(result, "view")["finding"] == "part"
    assert of(result, "tube")["finding"] == "none"
    assert [t["target"] for t in json.loads((run / "audit.json").read_text())["tables"]] == ["lesion", "found"]


def test_an_impossible_audit_is_a_one_line_error(made, tmp_path):
    _, store, run = made
    for metadata, words in ((["vew"], "Did you mean 'view'"), (["lesion"], "cannot be a shortcut to itself")):
        with pytest.raises(UserError, match=words):
            audit(run, store, "lesion", metadata=metadata)
    with pytest.raises(UserError, match=r"has no metadata that could be audited \(laterality \(always L\)\)"):
        audit(run, store, "lesion", metadata=["laterality"])
    with pytest.raises(UserError, match="scored as regression; use task=classification"):
        audit(run, store, "age", task="regression")
    with pytest.raises(
        UserError, match="patients in the smallest class of lesion: too few, an audit needs at least 10"
    ):
        audit(run, store, "lesion", where="site == 'south'")
    with pytest.raises(UserError, match="1 classes"):
        audit(run, store, "laterality")


@pytest.fixture(scope="module", params=[0.9, 0.0])
def scanners(request, tmp_path_factory):
    """The synthetic cohort, half of its patients in the test, and how its scanner goes with the lesion."""
    folder, patients = tmp_path_factory.mktemp("scanners"), 100
    write_cohort(folder, patients, size=32, seed=1, prevalence=0.5, scanner_label_correlation=request.param)
    with (folder / "labels.csv").open() as f:
        rows = list(csv.reader(f))[1:]
    rows = [row for row in rows if int(row[0][5]) < 2]  # of each patient two at most
    split = np.array(["train", "test", "train", "test", "val"])
    with (folder / "table.csv").open("w", newline="") as f:
        csv.writer(f).writerows([("file", "lesion", "split"), *((*r, split[int(r[0][:4]) % 5]) for r in rows)])
    for path in (folder / "scans").rglob("[2-3].dcm"):
        path.unlink()
    store = medssl.ingest(
        folder / "scans", folder / "store", labels=folder / "table.csv", key=tiny.secret(folder / "key"), workers=1
    )
    return request.param, store, pretrained(store, folder / "run", size=32)


def test_a_scanner_that_goes_with_the_lesion_is_named_and_one_that_does_not_is_not(scanners):
    correlation, store, run = scanners
    result = audit(run, store, "lesion")
    scanner = of(result, "scanner")
    assert scanner["predicted"]["simclr cnn"]["AUROC"]["low"] > 0.9  # the encoder knows it either way
    assert "the same as scanner in every scan" in result["not_audited"].values()  # what the two write into headers
    if correlation:
        assert scanner["finding"] in ("part", "possible")
        assert "the scanner" in result["verdict"]
        assert scanner["association_train"]["low"] > 0.5
    else:
        assert scanner["finding"] == "none"
        assert "the scanner" not in result["verdict"]


def test_the_view_of_real_chest_xrays_goes_with_the_label_and_that_is_said(shared, tmp_path):
    """261 pneumonias, 46 % of them AP, and 263 scans without findings, 65 % AP."""
    source = shared / "cxr_nih"
    store = medssl.ingest(
        source / "images",
        tmp_path / "store",
        labels=source / "manifest.csv",
        key=tiny.secret(tmp_path / "key"),
        workers=1,
    )
    result = audit(pretrained(store, tmp_path / "run", size=32), store, "label")
    assert {f["field"] for f in result["metadata"]} == {"view", "sex", "age"}
    said = of(result, "view")["sentence"]
    assert said.startswith("view: the features predict it (AUROC")
    assert "it is associated with label in training (Cramér's V 0." in said
    assert of(result, "view")["finding"] != "none"
    assert "the view" in result["verdict"]
