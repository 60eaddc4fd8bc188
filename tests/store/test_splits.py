"""Patients stay in one split when others are added."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medssl.errors import UserError
from medssl.readers.pseudonyms import Pseudonyms
from medssl.store.splits import SPLITS, assign_splits, count_groups_across_splits, empty_split_warning

ALIAS = Pseudonyms(b"k" * 32)
patients = st.lists(st.text("abcdef", min_size=1, max_size=3), max_size=40)


@given(patients, patients)
def test_adding_patients_moves_nobody(old, new):
    before = dict(zip(old, assign_splits(old, ALIAS), strict=True))
    after = dict(zip(new + old, assign_splits(new + old, ALIAS), strict=True))
    assert {p: after[p] for p in old} == before


@given(st.lists(st.tuples(st.sampled_from("abcde"), st.sampled_from(["", *SPLITS])), max_size=30))
def test_a_patient_is_in_one_split_and_given_splits_are_kept(rows):
    people, fixed = [p for p, _ in rows], [s for _, s in rows]
    given_splits = {p: {s for q, s in rows if q == p and s} for p in people}
    conflicts = [p for p, s in given_splits.items() if len(s) > 1]
    if conflicts:
        with pytest.raises(UserError, match=f"{len(conflicts)} patients"):
            assign_splits(people, ALIAS, fixed)
        return
    splits = assign_splits(people, ALIAS, fixed)
    for p in people:
        mine = {s for q, s in zip(people, splits, strict=True) if q == p}
        assert len(mine) == 1
        assert mine <= (given_splits[p] or set(SPLITS))


def test_proportions_and_key():
    people = [f"patient{i}" for i in range(20_000)]
    splits = assign_splits(people, ALIAS)
    for split, share in (("train", 0.7), ("val", 0.1), ("test", 0.2)):
        assert splits.count(split) / len(people) == pytest.approx(share, abs=0.01)
    assert assign_splits(people, Pseudonyms(b"q" * 32)) != splits


def test_a_patient_in_two_splits_is_named_by_row_and_never_by_id():
    with pytest.raises(UserError, match=r"1 patients .* scans 2 ") as e:
        assign_splits(["anna", "bert", "anna"], ALIAS, ["train", "", "test"])
    assert "anna" not in str(e.value)


@given(st.lists(st.tuples(st.sampled_from("abcdefgh"), st.sampled_from(["", *SPLITS])), max_size=30))
def test_a_group_is_in_one_split_unless_the_source_splits_it(rows):
    """Two patients per group; the first given split of a patient counts."""
    first = {}
    for patient, split in rows:
        first[patient] = first.get(patient) or split
    people, fixed = [p for p, _ in rows], [first[p] for p, _ in rows]
    group = ["abcdefgh"["abcdefgh".index(p) // 2 * 2] for p in people]
    splits = assign_splits(people, ALIAS, fixed, group)
    assert all(f in ("", s) for f, s in zip(fixed, splits, strict=True))
    several = 0
    for g in set(group):
        ours = {s for h, s in zip(group, splits, strict=True) if h == g}
        theirs = {f for h, f in zip(group, fixed, strict=True) if h == g and f}
        assert ours == theirs or (not theirs and len(ours) == 1)
        several += len(ours) > 1
    assert count_groups_across_splits(group, splits) == several


def test_the_group_decides_and_not_the_patient():
    people = [f"p{i}" for i in range(200)]
    group = [f"p{i // 2 * 2}" for i in range(200)]
    assert assign_splits(people, ALIAS, None, group) == assign_splits(group, ALIAS)


def test_a_free_patient_of_a_group_in_several_splits_trains():
    assert assign_splits(["a", "b", "c"], ALIAS, ["test", "", "train"], ["a", "a", "a"]) == ["test", "train", "train"]


def test_an_unknown_split_is_refused():
    with pytest.raises(UserError, match="train, val, test"):
        assign_splits(["a"], ALIAS, ["training"])


def test_an_empty_split_stays_empty_with_a_warning():
    assert "val" in empty_split_warning(["train", "test"], 12)
    assert empty_split_warning(["train", "test"], 9) == ""
    assert empty_split_warning(SPLITS, 12) == ""
