"""medssl cam: what it draws, what it measures, and what it refuses; on squares whose place is known, and on real volumes."""

import copy
import io
import json
import shutil

import numpy as np
import pytest
import torch
from matplotlib import colormaps
from PIL import Image
from sklearn.linear_model import LogisticRegression

import medssl
import tiny
from medssl.commands.analyse.cam import cam
from medssl.encoders.cnn import CNN
from medssl.encoders.config import InputConfig
from medssl.encoders.export import load_encoder
from medssl.errors import UserError
from medssl.evals.explain.saliency import gradcam
from medssl.evals.explain.saliency_checks import depends_on_weights, randomisation_check
from medssl.evals.probes.linear import linear_probes
from medssl.evals.stats.intervals import NO_SPREAD
from medssl.reporting.pictures import OUTLINE
from medssl.reporting.saliency_sheet import ScanWithMap, saliency_sheet, strongest_slice
from medssl.reporting.scan_overlay import to_scan
from medssl.reporting.sections import cam_section
from medssl.runs.predictions import Predictions
from medssl.runs.run_folder import Run
from medssl.scoring import features
from medssl.scoring.eval_splits import EvalSplits, SplitOptions, load_splits
from medssl.scoring.saliency_maps import fit_probe, masks_on_grid, outputs
from medssl.scoring.saliency_scores import check_random_weights
from medssl.scoring.shown_scans import choose_by_answer, choose_shown
from medssl.scoring.targets import Subset, Target
from medssl.store.resampled import resample_scans

SIZE, PATIENTS = 24, 60


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Noise, and in every second patient a bright square somewhere, with its mask: one image each, two of some."""
    folder = tmp_path_factory.mktemp("squares")
    rng, rows = np.random.default_rng(0), ["file,square,third"]
    for patient in range(PATIENTS):
        for k in range(1 + patient % 3 // 2):
            image = rng.normal(90, 12, (SIZE, SIZE))
            mask = np.zeros((SIZE, SIZE), np.uint8)
            if patient % 2:
                y, x = rng.integers(0, SIZE - 6, 2)
                image[y : y + 6, x : x + 6] += 90
                mask[y : y + 6, x : x + 6] = 1
            for kind, array in (("images", np.clip(image, 0, 255).astype(np.uint8)), ("masks", mask)):
                path = folder / "source" / kind / f"patient{patient:02d}" / f"{k}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(path)
            rows.append(f"images/patient{patient:02d}/{k}.png,{'yes' if patient % 2 else 'no'},{'abc'[patient % 3]}")
    (folder / "labels.csv").write_text("\n".join(rows))
    medssl.ingest(
        folder / "source", folder / "store", masks="masks", labels=folder / "labels.csv", targets=["square", "third"],
        patient="(patient[0-9]+)", key=tiny.secret(folder / "key"),
    )  # fmt: skip
    run = medssl.pretrain(
        folder / "store", folder / "run", encoder="cnn", encoder_options={"widths": [8, 16]}, augment="plain", size=SIZE, steps=3,
        batch=16, monitor_every=0,
    )  # fmt: skip
    return folder, run, medssl.Store.open(folder / "store")


@pytest.fixture(scope="module")
def drawn(made):
    _, run, store = made
    return cam(run, store, "square")


def test_maps_lie_on_the_squares_and_that_is_measured(made, drawn):
    """A square is what the label is of, so the energy in it is far above its share; whatever the weights."""
    ours, baseline = drawn["in_masks"]
    assert [ours["maps of"], baseline["maps of"]] == ["this run", "random init"]
    assert ours["area of mask"]["value"] == pytest.approx(36 / SIZE**2)
    assert ours["energy minus area"]["low"] > 0.05
    assert ours["highest in mask"]["value"] > 0.5
    for line in drawn["in_masks"] + drawn["check"]:
        for value in line.values():
            if isinstance(value, dict) and value["low"] is None:
                assert NO_SPREAD in value["how"]
            elif isinstance(value, dict):
                assert value["low"] <= value["value"] <= value["high"]
    positive = (made[2].column("label:square")[made[2].rows("test")] == "yes").sum()
    assert ours["energy in mask"]["n"] == positive < drawn["check"][0]["rank correlation"]["n"]
    gain = ours["energy in mask"]["value"] - baseline["energy in mask"]["value"]
    assert ours["energy minus random init"]["value"] == pytest.approx(gain)
    assert "square = yes" in drawn["about"]


def test_numbers_by_the_long_way(made, drawn):
    """One scan at a time: scikit-learn's weights, the map's share in the square by summing pixels; the run, and untrained."""
    _, run, store = made
    encoder, config = load_encoder(run)
    splits = load_splits(Run(run), config, store, "square", SplitOptions())
    untrained = features.initial_encoder(Run(run).config(), config.input).eval()
    resampled = resample_scans(store, SIZE)
    for network, line in zip((encoder, untrained), drawn["in_masks"], strict=True):
        source = features.from_encoder(network, config.input, "cpu")
        x, y = source(store, splits.train.rows).astype(np.float64), splits.train.y
        mean, scale = x.mean(0), x.std(0)
        scale[scale == 0] = np.inf
        chooses = (source(store, splits.val.rows), splits.val.y)
        C = linear_probes((x, y), chooses, [], classes=2, patient=splits.train.patient)[0].C
        fitted = LogisticRegression(C=C, tol=1e-10, max_iter=20_000).fit((x - mean) / scale, y)
        weight = torch.from_numpy(fitted.coef_[0] / scale).float()
        energy = []
        for row in store.rows("test"):
            mask = store.mask(int(row))
            if not mask.any():
                continue
            image = torch.from_numpy(resampled.array[row : row + 1].astype(np.float32)) / 255
            with torch.no_grad():
                a = network.maps((image - config.mean) / config.std)[0]
            coarse = torch.einsum("k,khw->hw", weight, a).clamp(min=0)
            full = torch.nn.functional.interpolate(coarse[None, None], (SIZE, SIZE), mode="bilinear")[0, 0].numpy()
            energy.append(sum(full[i, j] for i, j in zip(*np.nonzero(mask[0]), strict=True)) / full.sum())
        assert line["energy in mask"]["value"] == pytest.approx(np.mean(energy), rel=2e-3)


def test_batches_make_no_difference(made, monkeypatch, tmp_path):
    """Of three classes every scan has its own to be explained."""
    run, store = shutil.copytree(made[1], tmp_path / "run"), made[2]
    first = cam(run, store, "third")
    monkeypatch.setattr("medssl.scoring.saliency_maps.BATCH", 5)
    again = cam(run, store, "third")
    assert first["explained"] == "each scan's own third"
    for line, other in zip(first["in_masks"] + first["check"], again["in_masks"] + again["check"], strict=True):
        for value, same in zip(line.values(), other.values(), strict=True):
            assert value == same or value["value"] == pytest.approx(same["value"], rel=1e-4, abs=1e-6)


def centre(where: np.ndarray) -> np.ndarray:
    """The middle of the true pixels, as a share of the picture."""
    return (np.array(np.nonzero(where)).mean(1) + 0.5) / where.shape


def test_outlines_are_those_of_the_scan_below_them(made, drawn):
    """An outline where there is a square, at its place: on the sheet of small scans and on the scans as stored."""
    run = made[1]
    with Image.open(run / "cam.png") as file:
        picture = np.asarray(file.convert("RGB")).astype(int)
    with np.load(run / "cam.npz") as file:
        pairs = [(file[f"scan{k}"].astype(int), file[f"over{k}"].astype(int)) for k in range(len(drawn["shown"]))]
    lines, (high, wide) = -(-len(pairs) // 2), picture.shape[:2]
    high, wide = high / lines, wide / 6
    colour = np.round(255 * np.array(OUTLINE))
    for k, (said, (scan, over)) in enumerate(zip(drawn["shown"], pairs, strict=True)):
        top, left = round(k // 2 * high), round((k % 2 * 3 + 2) * wide)
        cell = picture[top : top + round(wide), left : left + round(wide)]
        small, large = ((np.abs(a - colour) < 60).all(2) for a in (cell, over))
        assert (small.sum() > 30) == (large.sum() > 30) == (said["label"] == "yes")
        assert scan.shape == over.shape == (SIZE * 8, SIZE * 8, 3)
        if said["label"] == "yes":
            bright = scan[..., 0] > (np.median(scan) + scan.max()) / 2
            np.testing.assert_allclose(centre(large), centre(bright), atol=0.02)
            np.testing.assert_allclose(centre(small), centre(bright), atol=0.06)


def test_hits_misses_and_doubtful_scans_are_shown(made):
    """The surest of each, from every class in turn, and each scan once."""
    store = made[2]
    each = {store.column("patient")[row]: row for row in store.rows("test")}
    rows, p = np.array([*each.values()][:8]), np.array([0.9, 0.2, 0.6, 0.45, 0.97, 0.1, 0.52, 0.3])
    y = np.array([1, 0, 0, 1, 0, 1, 1, 0])
    nothing = Subset(store, rows[:0], y[:0], 0, 0)
    target = Target(("square",), "classification", ("no", "yes"))
    splits = EvalSplits(target, nothing, nothing, Subset(store, rows, y, 0, 0), "held-out patients")
    shown = choose_by_answer(splits, np.stack([1 - p, p], 1))
    by = {kind: [s.at for s in shown if s.kind == kind] for kind in ("hit", "doubtful", "miss")}
    patient = splits.test.patient
    assert len(set(patient[by["hit"]])) == len(by["hit"])
    assert by["hit"][:2] == [0, 1]  # the surest yes, then the surest no
    assert by["miss"][:2] == [5, 4]  # of a yes called no, then of a no called yes
    rest = [i for i in range(len(p)) if i not in by["hit"] + by["miss"]]
    assert by["doubtful"][0] == min(rest, key=lambda i: abs(p[i] - 0.5))
    assert len({s.at for s in shown}) == len(shown)
    assert [(s.label, s.called, s.p) for s in shown if s.at == 4] == [("no", "yes", 0.97)]


def test_a_map_lies_on_the_voxels_of_its_scan():
    """A wide scan is padded above and below on a square grid: the map's middle rows cover it, and its corner stays a corner."""
    grid, wanted = np.zeros((8, 8)), InputConfig(1, (8, 8), None, False, 0.0, 1.0)
    grid[2, 0] = 1.0  # the first row that the scan covers
    found = to_scan(grid, (40, 80), (1.0, 1.0), wanted)
    assert found.shape == (40, 80)
    assert np.unravel_index(found.argmax(), found.shape) < (6, 6)
    assert found[:, 40:].max() == 0
    grid[2, 0], grid[0, 0] = 0.0, 1.0  # in the padding
    assert to_scan(grid, (40, 80), (1.0, 1.0), wanted).max() == 0


def test_the_same_command_writes_the_same_bytes_and_no_weights(made, drawn, tmp_path):
    _, run, store = made
    again = shutil.copytree(run, tmp_path / "run")
    (again / "cam.json").unlink()
    assert cam(again, store, "square") == drawn
    for name in ("cam.json", "cam.png", "encoder.safetensors", "encoder.json"):
        assert (run / name).read_bytes() == (again / name).read_bytes()
    assert json.loads((run / "cam.json").read_text()) == drawn


def test_nobody_is_named(made, drawn):
    folder, run, store = made
    text = (run / "cam.json").read_text() + cam_section(run).replace("data:image", "")
    for word in ("patient0", "images/", str(folder), *store.column("scan")[:3], *store.column("patient")[:3]):
        assert word not in text
    kept = [p for p in (Predictions.read(f) for f in (run / "predictions").glob("cam-*.npz"))]
    assert {e.probe for p in kept for e in p.rows} == {"energy in mask", "highest in mask"}
    ours = next(e for p in kept for e in p.rows if e.key[:2] == ("run", "energy in mask"))
    assert ours.p[0].mean() == pytest.approx(drawn["in_masks"][0]["energy in mask"]["value"])


@pytest.mark.parametrize("method", ["similarity", "rollout"])
def test_without_a_label(made, tmp_path, method):
    """No label is read: the sheet has no captions, and all test scans are looked at."""
    _, run, store = made
    if method == "rollout":
        options = {"patch": 8, "dim": 24, "depth": 2, "heads": 2}
        run = medssl.pretrain(
            store.path, tmp_path / "run", encoder="vit", encoder_options=options, augment="plain", size=SIZE, steps=2, batch=16,
            monitor_every=0,
        )  # fmt: skip
    else:
        run = shutil.copytree(run, tmp_path / "run")
    result = cam(run, store, method=method)
    assert (result["target"], result["explained"], result["method"]) == (None, "", method)
    assert result["check"][-1]["rank correlation"]["n"] == len(store.rows("test"))
    assert not any("probe" in line["random"] for line in result["check"])
    assert result["in_masks"][0]["energy in mask"]["n"] == sum(
        bool(store.mask(int(r)).any()) for r in store.rows("test")
    )
    coarse = [flag for flag in result["flags"] if "too coarse" in flag]
    words = "a map has 3 x 3 places, and a mask covers 0.56 of one on average: too coarse to point at it"
    assert coarse == ([] if method == "similarity" else [words])
    if method == "similarity":  # squares are what differs from patient to patient
        assert result["in_masks"][0]["energy minus area"]["low"] > 0.05


def cnns(n):
    out = []
    for seed in range(n):
        torch.manual_seed(seed)
        out.append(CNN(1, (SIZE, SIZE), (4, 8, 8)).eval())
    return out


def test_maps_that_know_nothing_are_found_out():
    """Edges of the scan come out the same whatever the weights are; Grad-CAM does not. Layers go random from the output on."""
    trained, *fresh = cnns(4)
    x = torch.randn(20, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    edges = (x[:, 0, 1:] - x[:, 0, :-1]).abs().numpy()
    patient = np.arange(20) // 2
    head = torch.randn(8, 1, generator=torch.Generator().manual_seed(1)).numpy()
    last, found = check_random_weights(lambda encoder, head, at: edges[at], trained, fresh, None, edges, patient, 0)
    assert last.value == pytest.approx(1)
    assert last.low == pytest.approx(0.025 ** (1 / 10))  # ten patients, all at the largest value
    assert randomisation_check(last).startswith("Do not trust these maps")
    assert [line["random"] for line in found["check"]] == [f"the last {d} of 3 groups of layers" for d in (1, 2, 3)]
    asked = []

    def maps(encoder, weight, at):
        asked.append((encoder, copy.deepcopy(encoder.state_dict()), weight))
        return gradcam(encoder, x[at], torch.from_numpy(weight[:, 0])).numpy()

    ours = maps(trained, head, np.arange(20))
    asked.clear()
    last, found = check_random_weights(maps, trained, fresh, head, ours, patient, 0)
    assert depends_on_weights(last)
    assert found["check"][0]["random"] == "the probe"
    assert len(asked) == 3 * 4
    for draw, other in enumerate(fresh):
        (first, *_), *rest = asked[4 * draw : 4 * draw + 4]
        assert first is trained
        for depth, (_, state, weight) in enumerate(rest, start=1):
            new = [n for n, p in trained.named_parameters() if int(n.split(".")[1]) >= 3 - depth]
            assert {n for n, p in other.named_parameters() if torch.equal(p, state[n])} >= set(new)
            old = {n: p for n, p in trained.named_parameters() if n not in new}
            assert all(torch.equal(p, state[n]) for n, p in old.items())
            assert not np.allclose(weight, head)
    assert len({w.tobytes() for _, _, w in asked}) == 3  # a probe for each draw


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({}, "gradcam explains a score"),
        ({"target": "square", "method": "gradcat"}, "Did you mean 'gradcam'"),
        ({"target": "square", "method": "rollout"}, "no attention between all its patches"),
        ({"target": "square", "explain": "yess"}, "Did you mean 'yes'"),
        ({"target": "circle"}, "has no label 'circle'"),
    ],
)
def test_what_cannot_be_drawn_is_refused(made, asked, words):
    with pytest.raises(UserError, match=words):
        cam(made[1], made[2], **asked)


def test_patients_that_pretraining_has_seen_are_refused_or_marked(made, tmp_path):
    run, store = shutil.copytree(made[1], tmp_path / "run"), made[2]
    with pytest.raises(UserError, match="pretraining includes"):
        cam(run, store, method="similarity", test_store=store.path)
    flags = cam(run, store, method="similarity", test_store=store.path, allow_overlap=True)["flags"]
    assert any("pretraining includes" in flag for flag in flags)


def test_no_mask_no_number_but_the_check(made, tmp_path):
    """Without masks of the label, the sheet and the check remain."""
    run = shutil.copytree(made[1], tmp_path / "run")
    result = cam(run, made[2], "square", part=7)
    assert result["in_masks"] == []
    assert any("label 7" in flag for flag in result["flags"])
    assert result["check"]
    assert "inside the mask" not in cam_section(run)


def test_the_probe_of_several_classes(made):
    """Log-odds of two scans differ by their features times the weights, whatever the intercepts are."""
    _, run, store = made
    encoder, config = load_encoder(run)
    source = features.from_encoder(encoder, config.input, "cpu")
    parts = [
        Subset(store, rows, np.arange(len(rows)) // 2 % 3, 0, 0)
        for rows in (store.rows("train"), store.rows("val"), store.rows("test"))
    ]
    target = Target(("square",), "classification", ("a", "b", "c"))
    head, predicted = fit_probe(source, EvalSplits(target, *parts, "held-out patients"), 0)
    x = [source(store, part.rows) for part in parts]
    p = linear_probes((x[0], parts[0].y), (x[1], parts[1].y), [x[2]], classes=3)[0].predictions[0]
    np.testing.assert_allclose(predicted, p, rtol=1e-2, atol=1e-4)
    logits = x[2] @ head
    for k in (1, 2):
        ours = logits[:, k] - logits[:, 0]
        theirs = np.log(p[:, k]) - np.log(p[:, 0])
        np.testing.assert_allclose(ours - ours[0], theirs - theirs[0], rtol=1e-2, atol=1e-4)


def test_what_is_explained():
    y = np.array([0, 1, 1])
    two, three = (
        Target(("side",), "classification", ("left", "right")),
        Target(("lobe",), "classification", ("a", "b", "c")),
    )
    assert [v.tolist() if isinstance(v, np.ndarray) else v for v in outputs(two, None, y)] == [
        "side = right",
        [0] * 3,
        [1] * 3,
    ]
    assert outputs(two, "left", y)[2].tolist() == [-1, -1, -1]
    assert outputs(three, None, y + 1)[1].tolist() == [1, 2, 2]
    assert outputs(three, "c", y)[1].tolist() == [2, 2, 2]
    many = Target(("findings",), "multilabel", ("mass", "nodule"))
    assert outputs(many, "nodule", y)[1].tolist() == [1, 1, 1]
    with pytest.raises(UserError, match="choose one with explain=, from mass, nodule"):
        outputs(many, None, y)
    assert outputs(Target(("age",), "regression", ()), None, y)[0] == "a high age"
    with pytest.raises(UserError, match="leave explain out"):
        outputs(Target(("age",), "regression", ()), "old", y)
    with pytest.raises(UserError, match="no maps for survival"):
        outputs(Target(("time", "event"), "survival", ()), None, y)


def test_masks_are_brought_to_the_grid_of_the_encoder(tmp_path):
    """A wide scan on a square grid of half its size: a band of padding above and below, two pixels to one."""
    for i in range(4):
        image, mask = np.full((24, 40), 50 + i, np.uint8), np.zeros((24, 40), np.uint8)
        image[::3, ::5] = 200 - i
        mask[4:12, 20:40] = 2
        mask[12:16, :4] = 1
        for kind, array in (("images", image), ("masks", mask)):
            path = tmp_path / "source" / kind / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(path)
    store = medssl.ingest(tmp_path / "source", tmp_path / "store", masks="masks", key=tiny.secret(tmp_path / "key"))
    store = medssl.Store.open(store.path)
    wanted = InputConfig(1, (20, 20), None, False, 0.0, 1.0)
    at, masks, insides = masks_on_grid(store, store.rows()[1:], wanted, 2)
    assert at.tolist() == [0, 1, 2]
    expected = np.zeros((20, 20))
    expected[4 + 2 : 4 + 6, 10:20] = 1
    inside = np.zeros((20, 20), bool)
    inside[4:16] = True
    for i in range(3):
        np.testing.assert_array_equal(masks[i] > 0.5, expected)
        assert masks[i].sum() == pytest.approx(40, rel=0.02)  # a quarter of 8 x 20 pixels
        assert 0 <= masks[i].min() <= masks[i].max() <= 1
        np.testing.assert_array_equal(insides[i], inside)
    low = resample_scans(store, [20, 20]).array[0, 0]
    assert (low[~inside] == low[0, 0]).all()
    assert low[inside].std() > 0
    assert not len(masks_on_grid(store, store.rows(), wanted, 3)[0])
    tiny_mask = masks_on_grid(store, store.rows(), InputConfig(1, (4, 4), None, False, 0.0, 1.0), 1)[1]
    assert 0 < tiny_mask.max() < 0.5  # much smaller than a voxel, it stays where it is


def test_scans_that_arechoose_shown():
    """Most of them with a mask, some without, where there are such."""
    assert len(choose_shown(np.arange(0, 100, 2), 100)) == 8
    assert (choose_shown(np.arange(0, 100, 2), 100) % 2).sum() == 2
    assert choose_shown(np.arange(30), 30).tolist() == choose_shown(np.empty(0, int), 30).tolist()
    assert sorted(choose_shown(np.array([1, 3]), 5)) == [0, 1, 2, 3, 4]


def test_a_sheet_shows_map_and_outline():
    """Red where the map is, the outline's colour round the mask and nowhere else, grey where there is neither."""
    scan, heat, mask = np.full((40, 40), 0.5), np.zeros((40, 40)), np.zeros((40, 40), bool)
    heat[:10, :10], mask[20:30, 20:30] = 3.0, True
    with Image.open(io.BytesIO(saliency_sheet([ScanWithMap(scan, heat, mask, "one")]))) as file:
        picture = np.asarray(file.convert("RGB")).astype(int)
    cell = picture.shape[1] / 6
    blue = (np.abs(picture - np.round(255 * np.array(OUTLINE))) < 40).all(2)
    y, x = np.nonzero(blue)
    assert len(y) > 50
    assert (x > 2 * cell).all()
    assert (x < 3 * cell).all()
    side = np.array([y.max() - y.min(), x.max() - x.min()])
    assert (np.abs(side - (cell - 8) * 10 / 40) < 6).all()
    assert len(y) < 0.4 * side.prod()
    hot = picture[5 : int(cell * 0.2), int(2 * cell) + 5 : int(2.2 * cell)].reshape(-1, 3).mean(0)
    white = 255 * np.array(colormaps["magma"](1.0)[:3])
    assert (np.abs(hot - (0.65 * white + 0.35 * 127.5)) < 12).all()
    grey = np.abs(picture - 128).max(2) < 12
    assert grey[:, : int(cell)].mean() > 0.7
    assert 0.4 < grey[:, int(2 * cell) : int(3 * cell)].mean() < 0.85
    volume = np.zeros((5, 4, 4))
    assert strongest_slice(volume) == 2
    volume[4, 0, 0] = 0.1
    assert strongest_slice(volume) == 4


def test_the_section_of_a_report(made, drawn, tmp_path):
    """Every number with its interval, the sheet, and the sentence of the check; a file that is cut is named."""
    page = cam_section(made[1])
    assert "data:image/png;base64," in page
    for line in drawn["in_masks"]:
        value = line["energy in mask"]
        assert f"{value['value']:.3f}" in page
        assert f"[{value['low']:.3f}, {value['high']:.3f}]" in page
    assert drawn["verdict"] in page
    assert "medssl cam run=" in cam_section(tmp_path)
    for kind in {"hit", "miss", "doubtful"} & {each["kind"] for each in drawn["shown"]}:
        assert {"hit": "Hits", "miss": "Misses", "doubtful": "Doubtful"}[kind] in page
    (tmp_path / "cam.npz").write_bytes((made[1] / "cam.npz").read_bytes())
    (tmp_path / "cam.json").write_text('{"about": "x"}')
    with pytest.raises(UserError, match=r"cam.json is damaged"):
        cam_section(tmp_path)


def test_volumes(shared, tmp_path):
    """Real volumes with real masks, without a label: the same command, three axes; which half of a mask is a matter of `part`."""
    source = tmp_path / "source"
    for kind in ("images", "labels"):
        (source / kind).mkdir(parents=True)
        for path in sorted((shared / "hippocampus" / kind).glob("*.nii.gz"))[:20]:
            shutil.copy(path, source / kind)
    medssl.ingest(source, tmp_path / "store", masks="labels", intensity="mr", key=tiny.secret(tmp_path / "key"))
    run = medssl.pretrain(
        tmp_path / "store", tmp_path / "run", encoder="cnn", encoder_options={"widths": [8, 16]}, size=16, steps=2, batch=8,
        monitor_every=0,
    )  # fmt: skip
    first, second = (cam(run, tmp_path / "store", method="similarity", part=part)["in_masks"][0] for part in (1, 2))
    store = medssl.Store.open(tmp_path / "store")
    assert first["energy in mask"]["n"] == second["energy in mask"]["n"] == len(store.rows("test"))
    exact = [np.mean(store.mask(int(r)) == 1) for r in store.rows("test")]
    assert first["area of mask"]["value"] == pytest.approx(np.mean(exact), rel=0.05)
    assert first["energy in mask"]["value"] != second["energy in mask"]["value"]
    with Image.open(run / "cam.png") as file:
        assert file.size[0] > 6 * 100
