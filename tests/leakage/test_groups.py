"""Groups that must share a split: by identifiers, and by pixels if identifiers are missing."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from medssl.leakage.groups import group_scans, near_duplicate_pairs, patient_identities, shared_patient_ids
from medssl.leakage.similarity import MAX_NEAR, is_near_duplicate, near_hash_pairs
from medssl.readers.phash import BLANK, hamming, packed, phash

RNG = np.random.default_rng(0)


def row(i, patient="", **given):
    """Return a row that shares nothing with others."""
    base = {"scan": f"scan{i}", "patient": patient or f"p{i}", "study": "", "series": "", "patient_known": True}
    return base | {"hash": f"hash{i}", "phash": f"{i + 1:064x}"} | given


def flipped(hashes, bits, rng=RNG):
    b = np.unpackbits(hashes, axis=1)
    for x in b:
        x[rng.permutation(256)[:bits]] ^= 1
    return np.packbits(b, axis=1)


def slow_pairs(hashes, limit):
    return [
        [i, j]
        for i in range(len(hashes))
        for j in range(i + 1, len(hashes))
        if hashes[i].any() and hashes[j].any() and hamming(hashes[i], hashes[j]) <= limit
    ]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 15))
def test_every_pair_up_to_15_bits_is_found(seed, limit):
    rng = np.random.default_rng(seed)
    base = rng.integers(0, 256, (6, 32), dtype=np.uint8)
    hashes = np.concatenate([base, *[flipped(base, d, rng) for d in (1, limit, limit + 1)]])
    hashes = rng.permutation(np.unique(hashes, axis=0))
    assert near_hash_pairs(hashes, limit).tolist() == slow_pairs(hashes, limit)


@pytest.mark.parametrize(("bits", "least"), [(32, 0.995), (40, 0.98)])
def test_most_pairs_up_to_40_bits_are_found(bits, least):
    base = RNG.integers(0, 256, (1000, 32), dtype=np.uint8)
    found = set(map(tuple, near_hash_pairs(np.concatenate([base, flipped(base, bits)])).tolist()))
    assert np.mean([(i, i + 1000) in found for i in range(1000)]) >= least


def test_blank_hashes_are_near_nothing_and_equal_ones_pair_with_the_first():
    one = RNG.integers(0, 256, (1, 32), dtype=np.uint8)
    hashes = np.concatenate([np.zeros((3000, 32), np.uint8), np.repeat(one, 3000, 0)])
    assert near_hash_pairs(hashes).tolist() == [[3000, i] for i in range(3001, 6000)]
    assert near_hash_pairs(hashes[:3000]).shape == (0, 2)
    assert near_hash_pairs(hashes[:0]).shape == (0, 2)


def test_look_alikes_by_the_thousand_stay_bounded():
    hashes = flipped(np.repeat(RNG.integers(0, 256, (1, 32), dtype=np.uint8), 2000, 0), 5)
    pairs = near_hash_pairs(hashes)
    assert len(pairs) <= 2000 * (MAX_NEAR + 1)
    names, _ = group_scans([row(i) for i in range(2000)], map(tuple, pairs.tolist()))
    assert len(set(names)) == 1


@pytest.fixture(scope="module")
def xrays(shared):
    files = sorted((shared / "cxr_nih" / "images").iterdir())[:30]
    return [np.asarray(Image.open(f).convert("L"), np.float32) / 255 for f in files]


def degraded(x):
    """Shift by two pixels, darken, add noise and shrink."""
    x = np.pad(x, ((2, 0), (0, 2)), mode="edge")[:-2, 2:] ** 1.3
    x = np.clip(x + np.random.default_rng(1).normal(0, 0.02, x.shape), 0, 1).astype(np.float32)
    return np.asarray(Image.fromarray(x).resize((200, 210), Image.Resampling.BILINEAR))


def test_the_same_xray_is_a_near_duplicate_and_another_is_not(xrays):
    assert all(is_near_duplicate(x, degraded(x)) and is_near_duplicate(degraded(x), x) for x in xrays)
    assert not any(is_near_duplicate(xrays[i], xrays[i - 1]) for i in range(len(xrays)))
    assert not any(is_near_duplicate(x, x[:, ::-1]) or is_near_duplicate(x, 1 - x) for x in xrays)
    assert not any(is_near_duplicate(x, np.roll(x, 12, 0)) for x in xrays)


def test_images_that_differ_only_in_detail_are_no_near_duplicates(xrays):
    """Two images with equal low frequencies, similar to two patients in the same position."""
    from scipy.ndimage import gaussian_filter

    x, y = xrays[0], xrays[1]
    soft = gaussian_filter(x, 6)
    mixed = np.clip(soft + (y - gaussian_filter(y, 6)) * 0.7, 0, 1)
    assert np.corrcoef(gaussian_filter(mixed, 3).ravel(), gaussian_filter(x, 3).ravel())[0, 1] > 0.97
    assert not is_near_duplicate(x, mixed)


def test_volumes_are_near_duplicates_if_three_slices_are(xrays):
    volume = np.stack(xrays[:8])
    assert is_near_duplicate(volume, np.stack([degraded(x) for x in volume]))
    for k in (2, 4, 6):
        other = volume.copy()
        other[k] = xrays[20]
        assert not is_near_duplicate(volume, other)
    assert not is_near_duplicate(volume, volume[0])


def test_flat_images_are_near_duplicates_of_flat_ones_only(xrays):
    assert is_near_duplicate(np.zeros((40, 40)), np.full((50, 50), 0.5))
    assert not is_near_duplicate(np.zeros((40, 40)), xrays[0])


def test_a_near_duplicate_joins_two_patients(xrays):
    images = [*xrays, degraded(xrays[3])]
    asked = []
    rows = [row(i, phash=phash(x)) for i, x in enumerate(images)]

    def image(i):
        asked.append(i)
        return images[i]

    pairs = near_duplicate_pairs(rows, image)
    names, report = group_scans(rows, pairs)
    assert pairs == [(3, 30)]
    assert len(asked) <= 4
    assert names[30] == names[3] == min("p3", "p30")
    assert (report["groups"], report["merged"], report["largest"]) == (30, 1, 2)


def test_rows_already_tied_are_not_read(xrays):
    def image(_):
        raise AssertionError

    h = phash(xrays[0])
    assert near_duplicate_pairs([row(0, "anna", phash=h), row(1, "anna", phash=h)], image) == []
    assert near_duplicate_pairs([row(0, phash=h, hash="x"), row(1, phash=h, hash="x")], image) == []


def test_identifiers_tie_rows_in_a_chain():
    rows = [
        row(0, "d"),
        row(1, "c", study="s"),
        row(2, "b", study="s", series="t"),
        row(3, "a", series="t"),
        row(4, "d"),
    ]
    assert patient_identities(rows) == ["d", "a", "a", "a", "d"]


def test_equal_pixels_tie_rows_but_blank_images_do_not():
    rows = [row(0, hash="x"), row(1, hash="x"), row(2, hash="y", phash=BLANK), row(3, hash="y", phash=BLANK)]
    names, report = group_scans(rows)
    assert names == ["p0", "p0", "p2", "p3"]
    assert report["merged"] == 1
    assert patient_identities(rows) == ["p0", "p1", "p2", "p3"]


def test_a_shared_patient_id_is_split_into_its_studies():
    rows = [row(i, "anon", study=f"s{i // 2}", born=f"b{i // 2}", **{"fact:sex": "MF"[i % 4 // 2]}) for i in range(6)]
    rows += [row(6, "anon", series="t"), row(7, "anon"), row(8, "bert", study="u")]
    assert shared_patient_ids(rows) == {"anon"}
    names, report = group_scans(rows)
    assert names == ["s0", "s0", "s1", "s1", "s2", "s2", "t", "scan7", "bert"]
    assert (report["placeholders"], report["by"]) == (1, {"patient": 1, "study": 6, "file": 2})


@pytest.mark.parametrize(("studies", "several"), [(50, False), (51, True)])
@pytest.mark.parametrize("conflict", [("born", ["x", "y"]), ("fact:sex", ["M", "F"])])
def test_one_conflict_counts_over_many_studies_only(studies, several, conflict):
    name, values = conflict
    rows = [row(i, "anna", study=f"s{i}", **{name: values[i == 0]}) for i in range(studies)]
    assert bool(shared_patient_ids(rows)) is several
    assert len(set(patient_identities(rows))) == (studies if several else 1)


def test_missing_metadata_is_no_conflict():
    rows = [row(0, "a", born="x", **{"fact:sex": "M"}), row(1, "a", born=""), row(2, "a", **{"fact:sex": None})]
    assert shared_patient_ids(rows) == set()


def test_coverage_and_the_warning_about_a_chain():
    rows = [row(i, patient_known=i < 5, study="s" if i == 5 else "") for i in range(20)]
    _, report = group_scans(rows, [(i, i + 1) for i in range(4)])
    assert report["by"] == {"patient": 5, "study": 1, "file": 14}
    assert "5 patients with 5 of 20 scans" in report["warning"]
    assert not any(f"p{i}" in report["warning"] for i in range(20))
    _, report = group_scans(rows, [(i, i + 1) for i in range(3)])
    assert report["warning"] == ""
    _, report = group_scans([row(i, "anna") for i in range(9)])
    assert (report["warning"], report["largest"]) == ("", 9)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 11), st.integers(0, 11)), max_size=12))
def test_groups_are_the_connected_components(pairs):
    names, _ = group_scans([row(i) for i in range(12)], pairs)
    reach = np.eye(12, dtype=bool)
    for i, j in pairs:
        reach[i, j] = reach[j, i] = True
    for _ in range(12):
        reach = reach @ reach
    assert names == [min(f"p{j}" for j in np.flatnonzero(reach[i])) for i in range(12)]


def test_the_hash_of_every_row_is_read_in_order():
    assert packed([phash(RNG.random((40, 40))) for _ in range(3)]).shape == (3, 32)
