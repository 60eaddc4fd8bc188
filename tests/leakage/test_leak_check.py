"""The leak check counts what a test set shares with pretraining, training and validation, and nothing else."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.ndimage import gaussian_filter, shift

import medssl
import medssl.leakage.image_sets as image_sets_module
import tiny
from medssl.errors import UserError
from medssl.leakage.hash_copies import SURE_BITS
from medssl.leakage.image_sets import ImageComparer, ScanSet
from medssl.leakage.leak_check import check_leaks, read_pretrained_on, scan_set_from_store
from medssl.leakage.near_duplicates import BITS, find_duplicates
from medssl.leakage.similarity import is_near_duplicate
from medssl.readers.phash import BLANK, phash
from medssl.store.manifest_columns import content_hash
from medssl.store.store import Store

RNG = np.random.default_rng(1)
START = RNG.bit_generator.state
ORDER = [("pretraining", "test"), ("training", "test"), ("validation", "test"), ("training", "validation")]
ORDER += [(name, name) for name in ("training", "validation", "test")]


@pytest.fixture(autouse=True)
def _the_same_numbers_in_any_order():
    RNG.bit_generator.state = START


def of(name, images=(), patients=None, *, readable=True, key="key", named=True, **columns):
    """Return a set of scans, by default each of another patient."""
    n = len(images)
    words = {
        "patient": patients or [f"{name} patient {i}" for i in range(n)],
        "scan": [f"{name} scan {i}" for i in range(n)],
        "hash": [content_hash(x) for x in images],
        "phash": [phash(x) for x in images],
    } | columns
    words = {k: np.array(v, str) for k, v in words.items()}
    edge = np.array([max(x.shape) * readable for x in images], np.int64)
    return ScanSet(
        name, key, **words, patient_known=np.full(n, named), side=edge, image=images.__getitem__ if readable else None
    )


def bare(name, patients, hashes, key="key"):
    """Return a set without pixels; its hashes are near nothing."""
    patient, content = (np.array(list(v), str) for v in (patients, hashes))
    scan, bits = (
        np.array([f(i) for i in range(len(content))], str)
        for f in (f"{name}{{}}".format, lambda _: RNG.bytes(32).hex())
    )
    return ScanSet(name, key, patient, scan, content, bits, np.ones(len(bits), bool), np.zeros(len(bits), np.int64))


def empty(name):
    return bare(name, [], [])


def texture(n, size=28, sigma=2.0):
    x = gaussian_filter(RNG.normal(size=(n, size, size)), (0, sigma, sigma))
    low, high = x.min((1, 2), keepdims=True), x.max((1, 2), keepdims=True)
    return list(((x - low) / (high - low)).astype(np.float32))


def moved(x, down, right):
    return shift(x, (down, right), order=0, mode="nearest")


def jpeg(x, tmp_path):
    Image.fromarray(np.round(x * 255).astype(np.uint8)).save(tmp_path / "x.jpg", quality=75)
    return np.asarray(Image.open(tmp_path / "x.jpg"), np.float32) / 255


# counting


@given(st.tuples(*[st.lists(st.tuples(st.sampled_from("abcdef"), st.sampled_from("uvwxyz")), max_size=10)] * 4))
@settings(max_examples=60, deadline=None)
def test_patients_and_exact_copies_are_counted_as_by_hand(rows):
    names = ("pretraining", "training", "validation", "test")
    sets = {name: bare(name, [p for p, _ in r], [h for _, h in r]) for name, r in zip(names, rows, strict=True)}
    report = check_leaks(*sets.values())
    assert [(pair.a, pair.b) for pair in report.pairs] == ORDER
    for pair in report.pairs:
        a, b = (dict(zip(names, rows, strict=True))[name] for name in (pair.a, pair.b))
        if pair.a == pair.b:
            copy = [any(h == g and p != q for q, g in b[:j]) for j, (p, h) in enumerate(b)]
            expected = 0, sum(copy)
        else:
            expected = len({p for p, _ in a} & {p for p, _ in b}), sum(h in {g for _, g in a} for _, h in b)
        assert (pair.shared_patients, pair.exact) == expected
        assert (pair.scans, pair.patients, pair.near, pair.maybe) == (len(b), len({p for p, _ in b}), 0, 0)
        assert bool(pair) == any(expected)
    assert bool(report.refusal) == any(report[name, "test"] for name in names[:3])


def test_only_patients_with_a_name_are_compared():
    """Two hospitals may both have a 1.png, and its file name stands for a patient without a name."""
    test = dataclasses.replace(bare("test", "abcd", "wxyz"), patient_known=np.array([True, True, False, False]))
    train = dataclasses.replace(bare("training", "abcd", "stuv"), patient_known=np.array([True, False, True, False]))
    report = check_leaks(empty("pretraining"), train, empty("validation"), test)
    assert report["training", "test"].shared_patients == 1
    unnamed = dataclasses.replace(train, patient_known=np.zeros(4, bool))
    report = check_leaks(unnamed, unnamed, empty("validation"), test)
    assert not report.refusal
    assert report["training", "test"].shared_patients == 0
    assert any("2 of 4 test scans have no patient id" in line for line in report.warnings())


def test_exact_copies_need_no_pixels_and_blank_images_are_copies_of_nothing():
    def image(_):
        raise AssertionError

    images = texture(5)
    a, b = (dataclasses.replace(of(name, images), image=image, side=np.full(5, 300)) for name in ("training", "test"))
    assert find_duplicates(a, b, ImageComparer([a, b])).exact == {i: i for i in range(5)}
    blank = of("training", [np.full((30, 30), v, np.float32) for v in (0, 0, 0.5)])
    assert set(blank.phash) == {BLANK}
    report = check_leaks(empty("pretraining"), blank, empty("validation"), dataclasses.replace(blank, name="test"))
    assert not any(pair.exact or pair.near or pair.maybe for pair in report.pairs)


def test_pneumonia_has_18_8_0_and_3(shared, tmp_path):
    source = shared / "medmnist" / "pneumoniamnist_rebuilt.npz"
    store = medssl.ingest(source, tmp_path / "store", key=tiny.secret(tmp_path / "key"))
    sets = [
        scan_set_from_store(n, store, store.rows(s))
        for n, s in (("training", "train"), ("validation", "val"), ("test", "test"))
    ]
    assert [len(s) for s in sets] == [4708, 524, 624]
    blind = [dataclasses.replace(s, image=None, side=s.side * 0) for s in sets]  # exact copies alone: no pixels read
    report = check_leaks(dataclasses.replace(blind[0], name="pretraining"), *blind)
    counts = {(p.a, p.b): p.exact for p in report.pairs}
    assert [counts[pair] for pair in ORDER] == [0, 0, 0, 8, 18, 0, 3]
    assert not any(p.near or p.maybe or p.shared_patients for p in report.pairs)
    assert report.refusal == ""
    for _, a, b in report["training", "validation"].examples:
        rows = [np.flatnonzero(store.column("scan") == name)[0] for name in (a, b)]
        assert store.column("split")[rows].tolist() == ["train", "val"]
        np.testing.assert_array_equal(store[rows[0]], store[rows[1]])
    assert "624 of 624 test scans have no patient id" in "\n".join(report.warnings())


# near-duplicates


@pytest.fixture(scope="module")
def xrays(shared):
    files = sorted((shared / "cxr_nih" / "images").iterdir())[:40]
    return [np.asarray(Image.open(f).convert("L"), np.float32) / 255 for f in files]


@pytest.fixture(scope="module")
def degraded(xrays, tmp_path_factory):
    """Four X-rays, each degraded in four ways and in all ways at once."""
    folder, rng = tmp_path_factory.mktemp("jpeg"), np.random.default_rng(1)

    def noisy(x):
        return np.clip(x + rng.normal(0, 0.02, x.shape), 0, 1).astype(np.float32)

    ways = [lambda x: moved(x, 2, -1), lambda x: x**1.3, noisy, lambda x: jpeg(x, folder)]
    ways.append(lambda x: jpeg(noisy(moved(x, -2, 1) ** 0.8), folder))
    return [way(x) for way in ways for x in xrays[:4]]


def test_near_duplicates_of_xrays_are_found_and_other_xrays_are_not(xrays, degraded):
    seen, test = of("pretraining", xrays[:20]), of("test", [*degraded, *xrays[20:]])
    report = check_leaks(seen, empty("training"), empty("validation"), test)
    pair = report["pretraining", "test"]
    assert (pair.exact, pair.near, pair.maybe, pair.shared_patients) == (0, 20, 0, 0)
    assert find_duplicates(seen, test, ImageComparer([seen, test])).near == {j: j % 4 for j in range(20)}
    assert pair.examples[0] == ("near", "pretraining scan 0", "test scan 0")
    assert "at least 20 of the 40 test images (20 near-duplicates)" in report.refusal
    inside = report["test", "test"]  # the copies of one X-ray under several names
    assert (inside.exact, inside.near) == (0, 16)


def test_if_pretraining_cannot_be_read_its_hashes_refuse(xrays, degraded):
    turned = [xrays[4][:, ::-1], 1 - xrays[5], np.rot90(xrays[6]), np.pad(xrays[7], 12)]
    copies = [*degraded, *(np.ascontiguousarray(x) for x in turned)]
    seen, test = of("pretraining", xrays[:20], readable=False), of("test", [*copies, *xrays[20:]])
    report = check_leaks(seen, empty("training"), empty("validation"), test)
    pair = report["pretraining", "test"]
    assert (pair.exact, pair.maybe) == (0, 0)
    found = find_duplicates(seen, test, ImageComparer([seen, test])).near
    assert len(found) == pair.near >= 20
    assert {j: i for j, i in found.items() if j >= 20} == {20: 4, 21: 5, 22: 6, 23: 7}
    assert all(i == j % 4 for j, i in found.items() if j < 20)
    assert f"at least {pair.near} of the 44 test images" in report.refusal
    assert "the pixels of 20 of 20 pretraining scans cannot be read" in "\n".join(report.warnings())
    clean = check_leaks(seen, empty("training"), empty("validation"), of("test", xrays[20:]))
    assert clean.refusal == ""
    train = of("training", xrays[:3])  # the first three of them
    report = check_leaks(seen, train, empty("validation"), test)
    assert report["training", "test"].near == 15
    assert "the pixels of 17 of 20" in "\n".join(report.warnings())
    gone = dataclasses.replace(seen, image=lambda i: None, side=np.full(20, 224))  # the store exists but is damaged
    assert check_leaks(gone, train, empty("validation"), test)["pretraining", "test"].near == 15


def test_hashes_alone_are_not_certain_for_shapes_on_a_background():
    shapes = [np.where(x > np.quantile(x, 0.7), x, 0).astype(np.float32) for x in texture(5, 80, 6)]
    seen, test = of("pretraining", shapes, readable=False), of("test", [shapes[2] ** 1.02])
    report = check_leaks(seen, empty("training"), empty("validation"), test)
    assert (report["pretraining", "test"].near, report["pretraining", "test"].maybe) == (0, 1)
    assert report.refusal == ""


def test_many_possible_copies_refuse_and_few_do_not(xrays):
    shapes = [np.where(x > np.quantile(x, 0.7), x, 0).astype(np.float32) for x in texture(5, 80, 6)]
    seen = of("pretraining", shapes, readable=False)
    for n, refused in ((5, True), (4, False)):
        test = of("test", [*(x**1.02 for x in shapes[:n]), *xrays[20:]])
        report = check_leaks(seen, empty("training"), empty("validation"), test)
        assert report["pretraining", "test"].maybe == n
        assert bool(report.refusal) == refused
    assert "may include 4 of the" in "\n".join(report.warnings())


@pytest.mark.parametrize(("bits", "pixels", "kind"), [
    (SURE_BITS - 4, False, "near"), (SURE_BITS + 8, False, ""), (SURE_BITS, True, "near"), (BITS - 4, True, "near"),
    (BITS + 8, True, ""),
])  # fmt: skip
def test_candidates_are_limited_by_bits(bits, pixels, kind):
    x, y = texture(1, 224, 9)[0], texture(1, 224, 9)[0]
    flip = np.unpackbits(np.frombuffer(bytes.fromhex(phash(x)), np.uint8))
    flip[RNG.permutation(256)[:bits]] ^= 1
    a = of("training", [y, x], readable=pixels, phash=[phash(y), np.packbits(flip).tobytes().hex()])
    b = of("test", [x * np.float32(0.999)])
    found = find_duplicates(a, b, ImageComparer([a, b]))
    assert (found.near, found.maybe) == ({0: 1} if kind == "near" else {}, {0: 1} if kind == "maybe" else {})


def test_near_hashes_with_different_pixels_are_maybe():
    x, y = texture(2, 224, 9)
    a, b = of("training", [x]), of("test", [y], phash=[phash(x)])
    found = find_duplicates(a, b, ImageComparer([a, b]))
    assert (found.exact, found.near, found.maybe) == ({}, {}, {0: 0})


def test_shifts_of_small_images_are_found_though_their_hashes_differ():
    images = texture(60)
    shifted = [
        moved(x, *by) ** 0.8 for x, by in zip(images[:9], [(d, r) for d in (-1, 0, 1) for r in (-1, 0, 1)], strict=True)
    ]
    a, b = of("training", images), of("test", [*shifted, *texture(20)])
    assert find_duplicates(a, b, ImageComparer([a, b])).near == {j: j for j in range(9)}
    words = "\n".join(check_leaks(empty("pretraining"), a, empty("validation"), b).warnings())
    assert "training includes at least 9 of the 29 test images (9 near-duplicates)" in words
    assert "29 test scans are at most 64 pixels" in words
    large = dataclasses.replace(a, side=np.full(60, 300)), dataclasses.replace(b, side=np.full(29, 300))
    assert set(find_duplicates(*large, ImageComparer(large)).near) == {4}  # by hash alone, only the one without a shift


def test_comparisons_are_cached_unless_an_image_could_not_be_read(tmp_path, monkeypatch):
    images = texture(12, 300)
    a, b = of("training", images), of("test", [moved(x, 1, 0) ** 0.8 for x in images[:5]])
    cache, compared_pairs = tmp_path / "cache", []
    monkeypatch.setattr(
        image_sets_module, "is_near_duplicate", lambda x, y: compared_pairs.append(1) or is_near_duplicate(x, y)
    )

    def found(a=a, b=b):
        compared_pairs.clear()
        report = check_leaks(empty("pretraining"), a, empty("validation"), b, cache=cache)
        for file in cache.glob("leaks_*.json"):
            file.unlink()
        return report["training", "test"].near, len(compared_pairs)

    dark = dataclasses.replace(b, image=lambda _: None)
    assert found(b=dark) == (0, 0)  # nothing can be read
    near, compared = found()
    assert near == 5
    assert compared >= 5
    assert found() == (5, 0)
    pairs = cache / "alike.npz"
    pairs.write_bytes(pairs.read_bytes()[:50])
    assert found() == (5, compared)
    monkeypatch.setattr(image_sets_module, "VERSION", -1)
    assert found() == (5, compared)
    assert found() == (5, 0)


def test_a_report_is_kept_until_something_differs(tmp_path, monkeypatch):
    images = texture(12, 300)
    sets = [bare("pretraining", "ab", "12"), of("training", images), empty("validation")]
    sets.append(of("test", [moved(x, 1, 0) ** 0.8 for x in images[:5]] + texture(2, 300) + [images[0]] * 2))
    read = []

    def report(**changed):
        read.clear()
        pixels = {part.name: part.image for part in sets if part.image is not None}
        noting = [
            dataclasses.replace(part, image=lambda i, name=part.name: read.append(i) or pixels[name](i))
            if part.name in pixels
            else part
            for part in sets
        ]
        noting[3] = dataclasses.replace(noting[3], **changed)
        return check_leaks(*noting, cache=tmp_path)

    dark = report(image=lambda i: None)
    assert dark["training", "test"].near == 0  # and not kept
    first = report()
    assert first["training", "test"].near == 5
    assert first.repeats
    assert read
    (kept,) = tmp_path.glob("leaks_*.json")
    assert report() == first
    assert not read
    assert report(patient=np.roll(sets[3].patient, 1)) != dark
    assert read
    kept.write_text(kept.read_text()[:50])
    assert report() == first
    assert read
    monkeypatch.setattr(image_sets_module, "VERSION", -1)
    assert report() == first
    assert read


# messages


def test_a_test_inside_pretraining_is_refused_in_one_line_with_the_numbers():
    seen = bare("pretraining", "aabbcc", "123456")
    report = check_leaks(seen, empty("training"), empty("validation"), bare("test", "bbc", "347"))
    assert (
        report.refusal
        == "pretraining includes 2 of the 2 test patients and at least 2 of the 3 test images (0 near-duplicates)"
    )
    assert report.refusal in report.warnings()[0]


def test_another_key_hides_patients_with_a_warning():
    seen = bare("pretraining", "ab", "12", key="other")
    report = check_leaks(seen, bare("training", "ab", "34"), empty("validation"), bare("test", "a", "1"))
    assert report["pretraining", "test"].shared_patients is None
    assert report["training", "test"].shared_patients == 1
    assert "a different key than pretraining: shared images are found, shared patients are not" in "\n".join(
        report.warnings()
    )
    clean = check_leaks(seen, bare("training", "ab", "34"), empty("validation"), bare("test", "c", "5", key="key"))
    assert clean.refusal == ""


def test_overlap_of_training_and_validation_is_a_warning_and_no_refusal():
    report = check_leaks(
        empty("pretraining"), bare("training", "ab", "12"), bare("validation", "ac", "13"), bare("test", "d", "4")
    )
    assert report.refusal == ""
    assert report.warnings()[0].startswith(
        "training includes 1 of the 2 validation patients and at least 1 of the 2 validation images"
    )
    assert "for example training0 and validation0" in report.warnings()[0]


# stores and runs


@pytest.fixture(scope="module")
def ingested(tmp_path_factory):
    folder = tmp_path_factory.mktemp("guarded")
    (folder / "scans").mkdir()
    rng = np.random.default_rng(3)
    for i in range(30):
        x = gaussian_filter(rng.normal(size=(40, 50)), 3)
        Image.fromarray(np.uint8(255 * (x - x.min()) / np.ptp(x))).save(folder / "scans" / f"p{i // 2}_{i}.png")
    store = medssl.ingest(folder / "scans", folder / "store", patient=r"(p\d+)_", key=tiny.secret(folder / "key"))
    run = medssl.pretrain(store, folder / "run", encoder="cnn", steps=1, batch=4, size=16, monitor_every=0)
    return store, run


def test_a_run_lists_its_pretraining_scans(ingested):
    store, run = ingested
    rows = store.rows("train")
    key = json.loads((run / "encoder.json").read_text())["key_id"]
    seen, train = read_pretrained_on(run / "pretrained_on.parquet", key), scan_set_from_store("training", store, rows)
    assert len(seen) == len(rows)
    for column in ("patient", "scan", "hash", "phash", "patient_known"):
        np.testing.assert_array_equal(getattr(seen, column), getattr(train, column))
    assert seen.image is None
    assert seen.key == train.key
    np.testing.assert_array_equal(train.side, 50)
    np.testing.assert_allclose(train.image(1) * 255, store[rows[1]][0], atol=1e-3)
    test = scan_set_from_store("test", store, store.rows("test"))
    assert check_leaks(seen, train, scan_set_from_store("validation", store, store.rows("val")), test).refusal == ""
    assert (
        f"{len(rows)} of the {len(rows)} test images"
        in check_leaks(seen, empty("training"), empty("validation"), dataclasses.replace(train, name="test")).refusal
    )


def test_pretraining_images_are_read_from_the_store_if_it_exists(ingested, tmp_path):
    store, run = ingested
    seen = read_pretrained_on(run / "pretrained_on.parquet", "key", [store])
    x = seen.image(2)
    np.testing.assert_array_equal(x, scan_set_from_store("training", store, store.rows("train")).image(2))
    copy = dataclasses.replace(of("test", [moved(x, 1, 1) ** 1.2]), key="key")
    assert check_leaks(seen, empty("training"), empty("validation"), copy)["pretraining", "test"].near == 1
    assert (
        check_leaks(
            dataclasses.replace(seen, image=lambda i: None), empty("training"), empty("validation"), copy
        ).refusal
        == ""
    )
    less = Store.open(store, f"scan != '{seen.scan[2]}'")  # scans may have been removed since
    assert read_pretrained_on(run / "pretrained_on.parquet", "key", [less]).side.tolist().count(0) == 1
    (tmp_path / "damaged.parquet").write_bytes(b"no")
    for name in ("damaged.parquet", "missing.parquet"):
        with pytest.raises(UserError, match=r"missing or damaged; pretrain again"):
            read_pretrained_on(tmp_path / name, "key")


def test_pretraining_images_are_found_by_content_in_a_store_that_has_moved_and_changed(ingested, tmp_path):
    store, run = ingested
    shutil.copytree(store.path, tmp_path / "moved")
    moved = Store.open(tmp_path / "moved", f"scan != '{store.column('scan')[store.rows('train')[0]]}'")
    seen = read_pretrained_on(run / "pretrained_on.parquet", "key", [moved])
    train = scan_set_from_store("training", store, store.rows("train"))
    assert seen.side.tolist() == [0, *[50] * (len(train) - 1)]
    np.testing.assert_array_equal(seen.image(1), train.image(1))


def test_the_middle_slice_of_a_volume_is_compared(tmp_path):
    np.savez(tmp_path / "v.npz", train_images=RNG.integers(0, 255, (2, 9, 20, 20), np.uint8))
    store = medssl.ingest(tmp_path / "v.npz", tmp_path / "store", key=tiny.secret(tmp_path / "key"))
    part = scan_set_from_store("test", store, store.rows())
    np.testing.assert_allclose(part.image(1) * 255, store[1][0, 4], atol=1e-3)
    assert part.side.tolist() == [20, 20]
