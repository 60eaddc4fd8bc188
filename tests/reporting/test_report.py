"""The report is one self-contained file, names what is missing, and identifies no patient."""

import base64
import copy
import io
import json
import re
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from medssl.errors import UserError
from medssl.evals.label_free.quality import MEASURES
from medssl.ingestion.writer import StoreWriter
from medssl.readers.pseudonyms import Pseudonyms
from medssl.readers.scan import Scan, Unreadable
from medssl.reporting import pictures, plots
from medssl.reporting.clinical_use import meaning
from medssl.reporting.conclusions import conclusions
from medssl.reporting.embeddings import neighbours, read_embeddings
from medssl.reporting.report import write_report
from medssl.reporting.score_table import score_table
from medssl.store.store import Store

EVIL = "<script>alert('x')</script> & $x_1"
HOW = "95 % bootstrap over patients"
N, PER_PATIENT = 60, 2
ENGLISH = re.compile(r"(?:\b[A-Za-z][a-z]+[ ,]+){2,}[a-z]{2,}")  # three words in a row


def make_store(path: Path, dims: int = 2) -> Store:
    alias, rng = Pseudonyms(b"k" * 32), np.random.default_rng(0)
    shape = (1, 24, 20) if dims == 2 else (1, 6, 12, 10)
    with StoreWriter(path, alias) as writer:
        for i in range(N):
            scan = Scan(
                array=rng.integers(0, 255, shape).astype(np.uint8),
                scan=alias.of("scan", str(i)),
                patient=alias.of("patient", str(i // PER_PATIENT)),
                study=alias.of("study", str(i)),
                series=alias.of("series", str(i)),
                site="north" if i % 3 else "south",
                scanner="scanner A",
                modality="DX" if dims == 2 else "CT",
                spacing=(1.0, 1.0) if dims == 2 else (3.0, 1.0, 1.0),
                labels={"finding": "normal" if i // PER_PATIENT % 2 else EVIL},
                patient_known=i > 3,
            )
            writer.add(scan, f"{i}.png")
        for code in ("TRUNCATED", "TRUNCATED", "NOT_AN_IMAGE"):
            writer.reject(f"{code}.dcm", Unreadable(code, "no reason given"))
        return writer.finish()


def score(value: float, low: float, high: float) -> dict:
    return {"value": value, "low": low, "high": high, "n": 14, "patients": 7, "how": HOW}


def row(features: str, probe: str, auroc: float, difference: dict | None, source: str = "") -> dict:
    scores = {"AUROC": score(auroc, auroc - 0.03, auroc + 0.02), "ECE": score(0.1, 0.05, 0.2)}
    source = source or ("run" if features == "simclr cnn" else features)
    row = {"source": source, "features": features, "probe": probe, "label_budget": "all", "draws": 1}
    return row | {"scores": scores, "difference": difference}


def make_table(store: Store) -> dict:
    return {
        "command": "probe",
        "target": "finding",
        "classes": ["normal", EVIL],
        "train_store": store.fingerprint,
        "test_store": store.fingerprint,
        "test": "held-out patients",
        "n_train": 40,
        "patients_train": 20,
        "n_test": 14,
        "patients_test": 7,
        "flags": ["pretraining has seen 2 of the test patients"],
        "overlap": [],
        "asked": {},
        "rows": [
            row("simclr cnn", "linear", 0.912, None),
            row("simclr cnn", "kNN", 0.9, None),
            row("random init", "linear", 0.8, score(-0.112, -0.15, -0.07)),
            row("k-means patch bank", "linear", 0.91, score(-0.002, -0.03, 0.02)),
            row("supervised", "end to end", 0.93, score(0.018, -0.01, 0.04)),
        ],
    }


def make_run(run: Path, store: Store) -> Path:
    """Write a run folder like that of pretrain, embed and probe."""
    run.mkdir()
    rng = np.random.default_rng(1)
    finding = store.column("label:finding")
    x = rng.normal(size=(N, 12)).astype(np.float32) + 3 * (finding == "normal")[:, None]
    columns = {name: store.column(name).tolist() for name in ("scan", "patient", "split", "label:finding")}
    embedding = pa.FixedSizeListArray.from_arrays(pa.array(x.ravel()), x.shape[1])
    pq.write_table(pa.table(columns | {"embedding": embedding}), run / "embeddings.parquet")
    steps = [{"step": s, "loss": 3 - s / 100, "lr": 0.1, "rankme": 9.5, "rankme_of": 12} for s in range(0, 100, 10)]
    steps[5]["warning"] = (
        "features have collapsed onto about 1.5 of 12 directions; lower lr, raise batch, or use a method that "
    )
    steps[5]["warning"] += "reconstructs and cannot collapse (mae)"
    (run / "metrics.jsonl").write_text("".join(json.dumps(s) + "\n" for s in steps))
    (run / "scores.json").write_text(json.dumps({"tables": [make_table(store)]}))
    (run / "resolved.yaml").write_text(f"method:\n  name: simclr\n  note: {EVIL}\nsteps: 100\n")
    (run / "env.json").write_text(json.dumps({"python": "3.11", "libraries": {"torch": "2.11"}, "cuda": None}))
    card = {"format": 2, "name": "CNN", "options": {"widths": [8, 16]}, "channels": 1, "size": [16, 16], "dim": 12}
    card |= {"method": "simclr", "intensity": "0 to 255", "store": store.fingerprint, "step": 100, "spacing": None}
    (run / "encoder.json").write_text(json.dumps(card))
    measured = {
        k: {"value": i + 0.25, "low": i + 0.125, "high": i + 0.5, "how": "jackknife"} for i, k in enumerate(MEASURES)
    }
    subset = {"scans": 90, "split": "val", "patients": 45, "views": 7}
    quality = {"subset": subset, "flags": [f"half of them were seen {EVIL}"], "measures": measured, "half": measured}
    quality |= {"mutual_information": {"InfoNCE": score(1.5, 1.25, 1.75), "ceiling": 3.25}}
    quality |= {"distances": {"cosine": {"text": "on these points it is a semimetric"}}}
    (run / "quality.json").write_text(json.dumps(quality))
    return run


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    return make_store(tmp_path_factory.mktemp("data") / "store")


@pytest.fixture(scope="module")
def run(tmp_path_factory, store) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "first", store)


@pytest.fixture(scope="module")
def page(run, store) -> str:
    views = [("scan", store[0][0].astype(np.float32)), ("view", np.zeros((3, 8, 8), np.float32))]
    return write_report(run, store, views=views).read_text("utf-8")


class Reader(HTMLParser):
    """Check that tags nest, and collect attributes and the text of the cells."""

    def __init__(self, page: str):
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict]] = []
        self.cells: list[tuple[str, str]] = []  # (class, text)
        self.feed(page)
        self.close()
        assert self.open == [], f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in {"meta", "img"}:
            self.open.append(tag)
        if tag in {"td", "th"}:
            self.cells.append((dict(attrs).get("class", ""), ""))

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data):
        if {"td", "th"} & set(self.open):
            kind, text = self.cells[-1]
            self.cells[-1] = (kind, text + data)


def section(page: str, key: str) -> str:
    found = re.search(rf'<section id="{key}">.*?</section>', page, re.S)
    assert found
    return re.sub(r"</?abbr[^>]*>", "", found[0])


def test_label_free_measures_have_intervals(page):
    found = section(page, "quality")
    assert "90 val scans of 45 patients, 7 views of each" in found
    assert all(name in found for name in MEASURES)
    at = list(MEASURES).index("LiDAR")
    assert f"{at + 0.25:.3f}" in found
    assert f"[{at + 0.125:.3f}, {at + 0.5:.3f}]" in found
    assert "Half of them were seen" in found
    assert '1.500 <span class="ci">[1.250, 1.750]</span>' in found
    assert "InfoNCE cannot exceed 3.25" in found
    assert "cosine distance of the features: on these points it is a semimetric" in found


def test_page_loads_nothing_and_its_tags_nest(page):
    read = Reader(page)
    for tag, attributes in read.seen:
        assert tag not in {"script", "link", "iframe", "object", "base", "form"}
        assert not [name for name in attributes if name.startswith("on")]
        assert attributes.get("src", "data:image/png;base64,").startswith("data:image/png;base64,")
        assert attributes.get("href", "#").startswith("#")
    style = re.search(r"<style>(.*?)</style>", page, re.S)[1]
    assert "url(" not in style
    assert "@import" not in style
    assert not re.search("https?:", page)
    assert {"#" + a["id"] for t, a in read.seen if t == "section"} == {a["href"] for t, a in read.seen if t == "a"}


def test_page_is_small_and_every_picture_has_an_alt_text_and_loads(page):
    assert len(page.encode()) < 4e6
    images = [a for tag, a in Reader(page).seen if tag == "img"]
    # scans, curves, t-SNE by finding, site and split, views, queries with their neighbours
    assert len(images) == 12 + 1 + 3 + 2 + 5 * 7
    for image in images:
        assert len(image["alt"]) > 10
        picture = Image.open(io.BytesIO(base64.b64decode(image["src"].partition(",")[2])))
        assert abs(picture.width / picture.height - int(image["width"]) / int(image["height"])) < 0.05


def test_every_number_in_the_score_tables_has_an_interval(page):
    number = r"[+-]?\d\.\d{3}"
    cells = [text for kind, text in Reader(section(page, "scores")).cells if kind == "num"]
    heads, values = cells[:3], cells[3:]
    assert heads == ["AUROC", "ECE", "Δ AUROC vs run"]
    assert len(values) == 5 * 3
    assert all(re.fullmatch(rf"–|{number} \[{number}, {number}\]", v) for v in values), values
    assert values[0] == "0.912 [0.882, 0.932]"
    assert values[8] == "-0.112 [-0.150, -0.070]"
    assert values.count("–") == 2  # rows of the run itself have no difference


def test_a_decision_curve_is_drawn_with_its_numbers(store):
    points = [
        {"threshold": t, "model": score(0.3 - t / 4, 0.1, 0.4), "treat_all": score((0.4 - t) / (1 - t), -1, 1)}
        for t in (0.1, 0.2, 0.5)
    ]
    shown = meaning(make_table(store) | {"decision_curve": {"how": EVIL, "curve": points}})
    assert "net benefit 0.275 at threshold 0.1, 0.333 if all are treated" in shown
    assert "net benefit 0.175 at threshold 0.5, -0.200 if all are treated" in shown
    assert "<script" not in shown
    drawn = pixels(plots.decision_curve(points))
    for colour in plots.COLOURS[:2]:
        rgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
        assert (np.abs(drawn - rgb).max(1) < 5).sum() > 100, colour
    assert "Decision curve" not in meaning(make_table(store))


def test_numbers_without_an_interval_say_so(run, store, tmp_path):
    tables = json.loads((run / "scores.json").read_text())
    tables["tables"][0]["rows"][0]["scores"]["ECE"] |= {"low": None, "high": None}
    tables["tables"][0]["rows"][0]["scores"]["AUROC"] |= {"value": None, "low": None, "high": None}
    other = tmp_path / "other"
    other.mkdir()
    (other / "scores.json").write_text(json.dumps(tables))
    cells = [text for kind, text in Reader(write_report(other, store).read_text("utf-8")).cells if kind == "num"]
    assert {"undefined", "0.100 [no interval]"} <= set(cells)


def test_nothing_from_a_label_becomes_markup(page):
    assert "<script" not in page
    assert page.count("&lt;script&gt;alert(") >= 4  # prevalence, classes, settings, an alt text


def test_no_identifier_is_in_the_page(page, store):
    for column in ("patient", "scan", "study", "series", "hash"):
        for value in store.column(column):
            assert value not in page
    assert store.info["key_id"] not in page


def test_same_input_same_bytes(run, store, tmp_path):
    first, second = (write_report(run, store, out=tmp_path / name).read_bytes() for name in ("a.html", "b.html"))
    assert first == second


MISSING = [
    ("scores.json", "scores", "medssl probe run=first store=STORE target=LABEL"),
    ("embeddings.parquet", "tsne", "medssl embed run=first store=STORE"),
    ("embeddings.parquet", "neighbours", "medssl embed run=first store=STORE"),
    ("metrics.jsonl", "curves", "medssl pretrain store=STORE out=first"),
    ("resolved.yaml", "training", "medssl pretrain store=STORE out=first"),
    ("env.json", "training", "medssl pretrain store=STORE out=first"),
    ("encoder.json", "training", "medssl pretrain store=STORE out=first"),
    ("views", "views", "medssl report run=first"),
    ("quality.json", "quality", "medssl quality run=first store=STORE"),
]


@pytest.fixture(scope="module")
def bare(tmp_path_factory, store) -> str:
    run = tmp_path_factory.mktemp("bare") / "first"
    run.mkdir()
    return write_report(run, store).read_text("utf-8")


@pytest.mark.parametrize(("file", "key", "command"), MISSING)
def test_a_missing_file_is_named_with_its_command(file, key, command, bare, page):
    assert f"<code>{command}</code>" in section(bare, key)
    if file != "views":
        assert file in section(bare, key)
    assert command not in section(page, key)


def test_a_bare_run_still_has_a_page_that_nests(bare):
    Reader(bare)
    assert "no result to state" in bare


@pytest.mark.parametrize("file", ["scores.json", "encoder.json", "metrics.jsonl", "embeddings.parquet"])
def test_a_damaged_file_is_named(file, run, store, tmp_path):
    broken = tmp_path / "run"
    shutil.copytree(run, broken)
    (broken / file).write_bytes((broken / file).read_bytes()[:-20])
    with pytest.raises(UserError, match=file):
        write_report(broken, store)


def test_scores_of_an_earlier_version_are_refused(run, store, tmp_path):
    old = make_table(store)
    del old["asked"]
    (tmp_path / "scores.json").write_text(json.dumps({"tables": [old]}))
    with pytest.raises(UserError, match=r"scores.json was written by an earlier medssl; delete it and score again"):
        write_report(tmp_path, store)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("audit.json", '{"tables": [{"metadata": []}]}'),
        ("quality.json", "{}"),
        ("cam.json", '{"in_masks": [], "check": []}'),
    ],
)
def test_results_without_a_key_are_called_damaged(file, content, tmp_path, store):
    (tmp_path / file).write_text(content)
    np.savez(tmp_path / "cam.npz", scan0=np.zeros((4, 4, 3), np.uint8))
    with pytest.raises(UserError, match=rf"{file} is damaged"):
        write_report(tmp_path, store)


def test_a_missing_run_is_an_error(store, tmp_path):
    with pytest.raises(UserError, match="no run at"):
        write_report(tmp_path / "nowhere", store)


def test_data_card_counts(page, store):
    cells = [text for _, text in Reader(section(page, "data")).cells]
    facts = dict(zip(cells[:20:2], cells[1:20:2], strict=True))
    assert facts["scans"] == "60"
    assert facts["patients"] == "30 (4 scans without a patient id)"
    assert facts["sites"] == "north 40, south 20"
    assert facts["files rejected"] == "NOT_AN_IMAGE 1, TRUNCATED 2"
    assert facts["fingerprint"] == store.fingerprint
    split, patient, finding = (store.column(c) for c in ("split", "patient", "label:finding"))
    expected = ["normal"]
    for s in ("train", "val", "test"):
        here, chosen = split == s, (split == s) & (finding == "normal")
        for n, of in ((len(set(patient[chosen])), len(set(patient[here]))), (chosen.sum(), here.sum())):
            expected.append(f"{n} ({n / of:.0%})" if of else "0")
    at = cells.index("normal")
    assert cells[at : at + 7] == expected


def test_warnings_and_flags_are_shown(page):
    assert "Step 50: features have collapsed onto about 1.5 of 12 directions" in section(page, "curves")
    header = page[: page.index("<main>")]
    assert "Warnings that limit this answer: 1" in header
    assert "Pretraining has seen 2 of the test patients." in section(page, "findings")
    assert "have warnings" in section(page, "limits")
    assert "4 scans no patient was found" in section(page, "limits")
    assert "Trustworthiness 0." in section(page, "tsne")
    assert "Not drawn: scanner (always scanner A)" in section(page, "tsne")


def test_volumes_have_a_page_too(tmp_path):
    store = make_store(tmp_path / "store", dims=3)
    page = write_report(make_run(tmp_path / "run", store), store).read_text("utf-8")
    assert "3D, 1 channel" in page
    assert "the middle slice" in section(page, "neighbours")


def test_tables_of_one_target_can_be_told_apart(store):
    """By the settings of the command, and by the label budget even if there is only one."""
    table = make_table(store) | {"asked": {"classes": ["normal"], "test scans": "14 scans", "k": 3, "blocks": None}}
    assert "Settings: k 3, blocks none." in score_table(table)
    assert "Settings" not in score_table(make_table(store))
    assert "label budget" not in score_table(table)
    few = table | {"rows": [row | {"label_budget": "20 scans"} for row in table["rows"]]}
    assert "label budget" in score_table(few)
    assert "(linear, 20 scans) has AUROC" in conclusions(few)[0]


def test_rows_whose_test_set_overlaps_are_marked(store):
    """Overlap with pretraining concerns the run's own rows; overlap with training concerns every row."""
    clean, seen, shared = (make_table(store) | {"overlap": sets} for sets in ([], ["pretraining"], ["training"]))
    assert "(!)" not in score_table(clean) + " ".join(conclusions(clean))
    assert "simclr cnn (!)" in score_table(seen)
    assert "random init (!)" not in score_table(seen)
    assert "random init (!)" in score_table(shared)
    assert "simclr cnn (!) (linear) has AUROC" in conclusions(seen)[0]
    assert "overlaps with pretraining" in " ".join(conclusions(seen))


@pytest.mark.parametrize(
    ("difference", "claim"),
    [
        (score(-0.112, -0.15, -0.07), "better than random init by 0.112 [0.070, 0.150]"),
        (score(0.05, 0.01, 0.09), "worse than random init by 0.050 [0.010, 0.090]"),
        (score(-0.02, -0.05, 0.01), "cannot be told apart from random init (difference +0.020 [-0.010, +0.050])"),
        (score(-0.02, -0.05, 0.0), "cannot be told apart"),
    ],
)
def test_a_difference_is_claimed_only_when_its_interval_excludes_zero(difference, claim, store):
    table = make_table(store)
    table["rows"] = [table["rows"][0], row("random init", "linear", 0.8, difference)]
    said = " ".join(conclusions(table))
    assert claim in said
    assert sum(phrase in said for phrase in ("better than", "worse than", "told apart")) == 1
    assert 'For "finding" on held-out patients, simclr cnn (linear) has AUROC 0.912 [0.882, 0.932]' in said


def test_a_row_is_what_its_source_says_and_not_its_name(store):
    """A run of somebody's RandomCrops method is no random baseline, and a run without a difference is not the only run."""
    table = make_table(store)
    worse = score(-0.112, -0.15, -0.07)
    table["rows"] = [
        row("RandomCrops cnn", "linear", 0.912, None, source="run"),
        row("RandomCrops cnn, frozen", "linear", 0.8, worse, source="run, frozen"),
        row("PCA", "linear", 0.95, None),
    ]
    said = " ".join(conclusions(table))
    assert "neither random weights nor a k-means patch bank" in said
    assert "RandomCrops cnn (linear) has AUROC 0.912" in said
    assert "The best AUROC is not this run's: PCA" in said


def test_a_lower_error_is_better(store):
    """For an error, the same difference of baseline and run means the opposite."""
    table = make_table(store) | {"sign": -1}
    for value, claim in (
        (0.112, "better than random init by 0.112 [0.070, 0.150]"),
        (-0.112, "worse than random init by 0.112"),
    ):
        minus = score(value, *sorted((value - np.sign(value) * 0.042, value + np.sign(value) * 0.038)))
        table["rows"] = [table["rows"][0], row("random init", "linear", 0.912 + value, minus)]
        assert claim in " ".join(conclusions(table))
    assert "The best AUROC is not this run's: random init" in " ".join(conclusions(table))


def test_conclusions_name_a_better_row_and_missing_baselines(store):
    table = make_table(store)
    assert "The best AUROC is not this run's: supervised (end to end)" in " ".join(conclusions(table))
    table["rows"] = table["rows"][:2]
    said = " ".join(conclusions(table))
    assert "what training added is unknown" in said
    assert "The best" not in said
    undefined = copy.deepcopy(table)
    for r in undefined["rows"]:
        r["scores"]["AUROC"]["low"] = None
    assert "nothing can be concluded" in " ".join(conclusions(undefined))


def test_the_best_of_several_rows_is_said_to_be_selected(store):
    luck = "Because it is the best of several, part of its AUROC is luck"
    table = make_table(store)
    said = " ".join(conclusions(table))
    assert f"supervised (end to end) has the best AUROC of this table's 5 rows on these patients. {luck}" in said
    assert said.count(luck) == 1  # two rows of the run are few
    table["rows"].append(row("simclr cnn", "RankMe", 0.7, None))
    said = " ".join(conclusions(table))
    assert f"simclr cnn (linear) has the best AUROC of this run's 3 rows on these patients. {luck}" in said
    assert f"supervised (end to end) has the best AUROC of this table's 6 rows on these patients. {luck}" in said
    table["rows"] = [r for r in table["rows"] if r["source"] == "run"]
    said = " ".join(conclusions(table))
    assert f"simclr cnn (linear) has the best AUROC of this table's 3 rows on these patients. {luck}" in said
    assert said.count(luck) == 1
    table["rows"].pop()
    assert luck not in " ".join(conclusions(table))


def test_the_page_says_that_the_best_was_selected(page):
    assert "Because it is the best of several" in section(page, "scores")


def test_neighbours_are_never_of_the_same_patient(run, store):
    embeddings = read_embeddings(run, store)
    embeddings.x[1] = embeddings.x[0]  # another scan of the same patient, made its nearest neighbour
    assert embeddings.patient[0] == embeddings.patient[1]
    near = neighbours(embeddings, 0, 10)
    assert not set(near) & {0, 1}
    unit = embeddings.x / np.linalg.norm(embeddings.x, axis=1, keepdims=True)
    by_hand = sorted(range(2, N), key=lambda i: -float(unit[i] @ unit[0]))[:10]
    assert near.tolist() == by_hand


def test_embeddings_are_joined_with_the_store(run, store):
    embeddings = read_embeddings(run, store)
    assert embeddings.labels == ["finding"]
    assert list(embeddings.columns) == ["finding", "site", "scanner", "sex", "split"]
    np.testing.assert_array_equal(embeddings.columns["site"], store.column("site"))
    np.testing.assert_array_equal(embeddings.row, np.arange(N))


def test_picture_keeps_proportions_and_takes_the_middle_slice():
    scan = np.zeros((1, 5, 10, 20), np.float32)
    scan[0, 2] = 100
    shown = pictures.picture(scan, 0.0, 200.0, (7.0, 2.0, 1.0))
    assert shown.shape == (20, 20)
    np.testing.assert_allclose(shown, 0.5, atol=1e-6)
    assert pictures.picture(np.zeros((3, 500, 250), np.uint8), 0, 255).shape == (144, 72, 3)


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).reshape(-1, 3)


def test_scatter_colours_known_values_and_greys_the_rest():
    rng = np.random.default_rng(0)
    values = [f"value {i % 9}" for i in range(200)] + [None] * 20
    png = plots.scatter(rng.normal(size=(220, 2)), values)
    shown = pixels(png)
    for colour in (*plots.COLOURS[:6], plots.GREY):
        rgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
        seen = 255 - 0.75 * (255 - rgb)  # translucent
        assert (np.abs(shown - seen).max(1) < 5).sum() > 20, colour
    entries = plots.legend(values)
    assert [entry.colour for entry in entries] == [*plots.COLOURS[:6], plots.GREY, plots.GREY]
    assert [(entry.name, entry.n) for entry in entries[6:]] == [("3 others", 66), ("unknown", 20)]
    assert len(png) < 100_000


def test_figures_leave_no_state_behind():
    before = dict(mpl.rcParams)
    plots.curves([{"step": i, "loss": 1 / (i + 1), "lr": 0.1} for i in range(5000)])
    plots.scatter(np.zeros((3, 2)), ["_a", "$", ""])
    pictures.grid([[np.ones((4, 4))]], captions=[["a"]])
    assert dict(mpl.rcParams) == before
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or pyplot.get_fignums() == []


def test_a_korean_page_holds_the_same_numbers(run, store, page, tmp_path):
    """Same tables and pictures; its sentences and headings are Korean, and what has no translation is marked as English."""
    korean = write_report(run, store, out=tmp_path / "ko.html", language="ko").read_text("utf-8")
    assert '<html lang="ko">' in korean
    for key in ("scores", "quality"):
        numbers = [sorted(re.findall(r"-?\d\.\d{3}", re.sub(r"<[^>]*>", " ", section(p, key)))) for p in (page, korean)]
        assert numbers[0] == numbers[1]
    headings = re.findall(r"<h2>(.*?)</h2>", korean)
    assert len(headings) == 14
    assert all(re.search("[가-힣]", heading) for heading in headings)
    header = re.sub(r"<[^>]*>", "", korean[korean.index("<body>") : korean.index("<main>")])
    assert "질문:" in header
    assert "용도 제한: 환자의 진단이나 치료에 쓸 수 없습니다" in header
    kept = re.sub(r'<(style|code|pre|title|span lang="en").*?</(style|code|pre|title|span)>', " ", korean, flags=re.S)
    words = [line for line in re.split(r"<[^>]*>", kept) if ENGLISH.search(line)]
    assert words == []
    attributes = [v for _, a in Reader(korean).seen for k, v in a.items() if k in ("alt", "aria-label", "title")]
    assert [v for v in attributes if ENGLISH.search(v)] == []
