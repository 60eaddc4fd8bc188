"""Dividing slices into volumes: every slice must lie at the position in its header."""

import hashlib
from collections import Counter, defaultdict
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medssl.readers.dicom.header import parse
from medssl.readers.dicom.series import MIN_SLICES, plan
from medssl.readers.dicom.stack_geometry import stack_affine
from medssl.readers.geometry import to_canonical, voxel_spacing
from medssl.readers.scan import Slice, Unreadable

RAS = np.array([-1.0, -1.0, 1.0])
QUICK = settings(max_examples=60, deadline=None)
AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


def flat(heights, orders=None, xs=None, orientation=AXIAL):
    """Return axial slices at these heights (mm). File and UID identify the slice."""
    n = len(heights)
    return [
        Slice(f"f{i}", f"u{i}", "k", (x, 0.0, float(z)), orientation, (1.0, 2.0), order)
        for i, z, x, order in zip(
            range(n), heights, xs or [0.0] * n, orders or [(0.0, 1.0, float(i)) for i in range(n)], strict=True
        )
    ]


def unlike(slices):
    """Return digests that all differ."""
    return {s.file: s.file for s in slices}


def never(slices):
    raise AssertionError("asked though no positions coincide")


@st.composite
def series(draw, fewest=MIN_SLICES, most=16):
    """Draw a regular stack of any orientation, spacing, tilt and position, rounded as in headers."""
    q = np.array(draw(st.tuples(*[st.floats(-1, 1)] * 4)))
    if np.linalg.norm(q) < 0.1:
        q = np.array([1.0, 0, 0, 0])
    w, x, y, z = q / np.linalg.norm(q)
    row = np.array([1 - 2 * (y * y + z * z), 2 * (x * y + w * z), 2 * (x * z - w * y)])
    column = np.array([2 * (x * y - w * z), 1 - 2 * (x * x + z * z), 2 * (y * z + w * x)])
    step = draw(st.floats(0.3, 12))
    tilt = np.radians(draw(st.just(0.0) | st.floats(-30, 30)))
    vector = step * (np.cross(row, column) + np.tan(tilt) * column)
    origin = np.array(draw(st.tuples(*[st.floats(-400, 400)] * 3)))
    spacing = draw(st.tuples(st.floats(0.2, 3), st.floats(0.2, 3)))
    n = draw(st.integers(fewest, most))
    orientation = tuple(np.round(np.concatenate([row, column]), 6).tolist())
    return [
        Slice(f"f{i}", f"u{i}", "k", tuple(np.round(origin + i * vector, 4).tolist()), orientation, spacing)
        for i in range(n)
    ]


def check(slices, result):
    """Check a plan: no slice is lost or duplicated, and every slice lies at the position in its header."""
    out = [s.file for stack in result.stacks for s in stack] + [s.file for s, _ in result.rejected]
    assert Counter(out) == Counter(s.file for s in slices)
    assert len(result.notes) == len(result.stacks)
    for stack in result.stacks:
        assert len(stack) == 1 or len(stack) >= MIN_SLICES
        if len(stack) == 1:
            continue
        affine, _ = stack_affine(stack)
        for d, s in enumerate(stack):
            row, column = np.split(np.array(s.orientation), 2)
            for h, w in ((0, 0), (99, 0), (0, 99), (99, 99)):
                truth = np.array(s.position) + h * s.spacing[0] * column + w * s.spacing[1] * row
                assert np.linalg.norm((affine @ (d, h, w, 1))[:3] - truth * RAS) <= 0.1 + 1e-4


def files(stacks):
    return [[s.file for s in stack] for stack in stacks]


def codes(result):
    return {s.file: why.code for s, why in result.rejected}


# ---- one regular stack


@QUICK
@given(series(), st.randoms(use_true_random=False))
def test_a_regular_stack_in_any_order_is_one_volume(slices, random):
    shuffled = random.sample(slices, len(slices))
    result = plan(shuffled, never)
    check(slices, result)
    assert files(result.stacks) == [[s.file for s in slices]]
    assert result.notes == [{}]
    affine, tilt = stack_affine(result.stacks[0])
    np.testing.assert_allclose(voxel_spacing(affine)[1:], slices[0].spacing, rtol=1e-5)
    step = np.subtract(slices[-1].position, slices[0].position) / (len(slices) - 1)
    normal = np.cross(slices[0].orientation[:3], slices[0].orientation[3:])
    assert np.cos(np.radians(tilt)) == pytest.approx(step @ normal / np.linalg.norm(step), abs=1e-5)


@pytest.mark.parametrize("orientation", [AXIAL, (-1.0, 0, 0, 0, 1.0, 0), (0, 1.0, 0, -1.0, 0, 0)], ids=repr)
def test_instance_numbers_and_patient_position_are_ignored(orientation):
    """Head first, feet first or on the side: the direction cosines already include it."""
    normal = np.cross(orientation[:3], orientation[3:])
    for numbers in (range(5), range(5, 0, -1), [1] * 5, [3, 1, 4, 1, 5]):
        slices = flat([0, 3, 6, 9, 12], [(0.0, 0.0, float(k)) for k in numbers], orientation=orientation)
        result = plan(slices, never)
        check(slices, result)
        upward = ["f0", "f1", "f2", "f3", "f4"]
        assert files(result.stacks) == [upward if normal[2] > 0 else upward[::-1]]


def test_positions_rounded_to_a_tenth_of_a_millimetre_are_one_volume():
    slices = flat([round(0.625 * i, 1) for i in range(40)])
    result = plan(slices, never)
    check(slices, result)
    assert len(result.stacks) == 1


@pytest.mark.parametrize("scale", [1.0, 0.1, 0.01, 0.004, 0.0005])
def test_a_volume_of_any_size(scale):
    """Micrometres as well as millimetres: what is the same position depends on the size of the pixels."""
    slices = [replace(s, spacing=(scale, 2 * scale)) for s in flat([scale * z for z in range(12) for _ in range(2)])]
    result = plan(slices, unlike)
    assert files(result.stacks) == [[f"f{2 * z + t}" for z in range(12)] for t in range(2)]
    assert voxel_spacing(stack_affine(result.stacks[0])[0]) == pytest.approx((scale, scale, 2 * scale))


def test_positions_of_repeats_may_differ_in_their_last_digit():
    heights = [0, 3, 6, 9, 0.004, 3.001, 5.998, 9.0]
    result = plan(flat(heights, [(float(t), 1.0, 1.0) for t in range(2) for _ in range(4)]), never)
    assert files(result.stacks) == [["f0", "f1", "f2", "f3"], ["f4", "f5", "f6", "f7"]]
    assert result.notes == [{"repeat": 0.0}, {"repeat": 1.0}]


@pytest.mark.parametrize("heights", [[5], [5, 6], [5, 6, 9], [5] * 25, [5, 6] * 10, [5, 6, 5, 9, 5]], ids=repr)
@pytest.mark.parametrize("told_apart", [True, False])
def test_slices_at_too_few_positions_are_single_images(heights, told_apart):
    slices = flat(heights, None if told_apart else [(0.0, 1.0, 1.0)] * len(heights))
    result = plan(slices, unlike)
    check(slices, result)
    assert sorted(files(result.stacks)) == sorted([s.file] for s in slices)
    assert result.rejected == []
    assert result.notes == [{}] * len(slices)


# ---- missing slices and changing steps


@QUICK
@given(series(8, 24), st.data())
def test_a_volume_never_spans_a_gap(slices, data):
    gone = data.draw(st.integers(1, len(slices) - 2))
    left = [s for i, s in enumerate(slices) if i != gone]
    result = plan(left, never)
    check(left, result)
    runs = [[s.file for s in run] for run in (slices[:gone], slices[gone + 1 :])]
    assert files(result.stacks) == [run for run in runs if len(run) >= MIN_SLICES]
    assert result.notes == [{"gap": "yes"}] * len(result.stacks)
    assert codes(result) == {f: "MISSING_SLICES" for run in runs if len(run) < MIN_SLICES for f in run}


def test_a_gap_shorter_than_the_tolerance_is_still_a_gap():
    slices = flat([round(0.1 * i, 1) for i in range(11) if i != 5])
    result = plan(slices, never)
    check(slices, result)
    assert [len(stack) for stack in result.stacks] == [5, 5]


@QUICK
@given(series(6, 24), st.data())
def test_volumes_have_even_steps_whatever_is_missing(slices, data):
    gone = data.draw(st.sets(st.integers(0, len(slices) - 1), max_size=len(slices) - 1))
    left = [s for i, s in enumerate(slices) if i not in gone]
    result = plan(left, never)
    check(left, result)
    for stack in result.stacks:
        assert len(set(np.diff([int(s.file[1:]) for s in stack]))) <= 1


@QUICK
@given(st.integers(4, 12), st.integers(4, 12), st.floats(1, 5), st.floats(1.2, 4), st.booleans())
def test_two_spacings_become_two_volumes(n, m, step, ratio, own_step):
    """As in head CT. The slice where the step changes belongs to one of them."""
    first = [step * i for i in range(n)]
    second = [first[-1] + (ratio * step if own_step else step) + ratio * step * i for i in range(m)]
    slices = flat(first + second)
    result = plan(slices, never)
    check(slices, result)
    assert files(result.stacks) == [[f"f{i}" for i in range(n)], [f"f{i}" for i in range(n, n + m)]] or (
        sum(map(len, result.stacks)) == n + m
    )
    assert [len(stack) for stack in result.stacks] in ([n, m], [n + 1, m - 1], [n - 1, m + 1])


def test_the_slice_between_two_spacings_belongs_to_the_smaller_volume():
    for heights, sizes in (([0, 1, 2, 3, 8, 13, 18, 23], [4, 4]), ([0, 5, 10, 15, 20, 25, 26, 27, 28], [5, 4])):
        result = plan(flat(heights), never)
        assert [len(stack) for stack in result.stacks] == sizes
        assert result.notes == [{}, {}]


@pytest.mark.parametrize("heights", [[0, 1.3, 2.0, 4.1, 5.0, 8.3], [0, 1, 3, 6, 10, 15]])
def test_irregular_steps_are_refused(heights):
    slices = flat(heights)
    result = plan(slices, never)
    check(slices, result)
    assert set(codes(result).values()) == {"VARYING_SPACING"}
    assert len(result.rejected) == 6


# ---- several slices at one position


@QUICK
@given(series(), st.data())
def test_copies_are_dropped(slices, data):
    """With the same UID or another; only slices at the same position are compared."""
    chosen = data.draw(st.lists(st.sampled_from(slices), min_size=1, unique_by=lambda s: s.file))
    new_uid = data.draw(st.booleans())
    copies = [replace(s, file=s.file + "copy", uid=s.uid + "copy" * new_uid) for s in chosen]
    asked = []

    def digest(some):
        asked.extend(some)
        return {s.file: s.file.removesuffix("copy") for s in some}

    result = plan([*copies, *slices], digest)
    check([*copies, *slices], result)
    assert files(result.stacks) == [[s.file for s in slices]]
    assert codes(result) == {s.file: "DUPLICATE" for s in copies}
    assert {s.file for s in asked} == {s.file for s in copies + chosen}


@QUICK
@given(series(), st.integers(2, 4), st.booleans(), st.randoms(use_true_random=False))
def test_repeats_become_one_volume_each(slices, times, temporal, random):
    """Separated by temporal position or by instance number; blank slices of repeats are not copies."""
    repeats = [
        replace(s, file=f"{t}{s.file}", uid=f"{t}{s.uid}", order=(t * temporal, 1.0, 100.0 * t + i))
        for t in range(times)
        for i, s in enumerate(slices)
    ]
    random.shuffle(repeats)
    result = plan(repeats, lambda some: {s.file: "blank" if s.file.endswith("f0") else s.file for s in some})
    check(repeats, result)
    assert files(result.stacks) == [[f"{t}{s.file}" for s in slices] for t in range(times)]
    assert result.notes == [{"repeat": float(t)} for t in range(times)]


def test_a_file_copied_into_a_series_of_time_points():
    """Blank slices of the time points are also equal, but have their own UIDs."""
    slices = flat([0, 1, 2, 3] * 2, [(float(t), 1.0, 1.0) for t in range(2) for _ in range(4)])
    copy = replace(slices[5], file="copy")
    same = {"f0": "blank", "f4": "blank", "f6": "blank", "f2": "blank", "copy": "f5"}
    result = plan([copy, *slices], lambda some: {s.file: same.get(s.file, s.file) for s in some})
    check([copy, *slices], result)
    assert files(result.stacks) == [["f0", "f1", "f2", "f3"], ["f4", "copy", "f6", "f7"]]
    assert codes(result) == {"f5": "DUPLICATE"}


def test_time_points_distinguished_by_the_header_are_not_opened():
    slices = flat([0, 1, 2, 3] * 2, [(float(t), 1.0, float(i)) for t in range(2) for i in range(4)])
    assert files(plan(slices, never).stacks) == [["f0", "f1", "f2", "f3"], ["f4", "f5", "f6", "f7"]]


@QUICK
@given(series(9, 14), st.sampled_from([0, 1]), st.data())
def test_a_slice_missing_from_one_of_three_time_points(slices, component, data):
    """Temporal position or acquisition number separates time points that positions do not."""
    gone = data.draw(st.integers(0, len(slices) - 1))
    repeats = [
        replace(s, file=f"{t}{s.file}", uid=f"{t}{s.uid}", order=(*(t if c == component else 0 for c in (0, 1)), 7.0))
        for t in (0, 1, 2)
        for i, s in enumerate(slices)
        if (t, i) != (1, gone)
    ]
    result = plan(repeats, unlike)
    check(repeats, result)
    runs = [[f"1{s.file}" for s in run] for run in (slices[:gone], slices[gone + 1 :])]
    whole = [[f"{t}{s.file}" for s in slices] for t in (0, 2)]
    assert sorted(files(result.stacks)) == sorted([*whole, *(run for run in runs if len(run) >= MIN_SLICES)])
    assert set(codes(result).values()) <= {"MISSING_SLICES"}


@QUICK
@given(series(5), st.floats(-0.5, 1.5), st.floats(0, 100), st.booleans())
def test_a_scout_of_another_acquisition_stays_out(slices, where, shift, between):
    """At any position, also on a slice of the volume or between two slices."""
    row = np.array(slices[0].orientation[:3])
    along = where * (len(slices) - 1) if between else round(where * (len(slices) - 1))
    step = np.subtract(slices[-1].position, slices[0].position) / (len(slices) - 1)
    place = np.array(slices[0].position) + along * step + shift * row
    scout = Slice("scout", "scout", "k", tuple(place.tolist()), slices[0].orientation, slices[0].spacing, (0, 9.0, 1))
    result = plan([*slices, scout], unlike)
    check([*slices, scout], result)
    whole = [s.file for s in slices]
    if (
        shift < 0.2 and codes(result) == {} and len(result.stacks) == 1
    ):  # indistinguishable from the next slice of the volume
        assert files(result.stacks) in ([["scout", *whole]], [[*whole, "scout"]])
        return
    assert whole in files(result.stacks)
    assert ["scout"] in files(result.stacks)
    assert result.notes == [{}] * 2


def test_a_scout_next_to_a_slice_does_not_replace_it():
    """Without the acquisition number, two volumes would be possible, one of which ends with the scout."""
    slices = flat([*range(8), 3.94], [(0.0, 1.0, 1.0)] * 8 + [(0.0, 2.0, 1.0)])
    result = plan(slices, never)
    check(slices, result)
    assert files(result.stacks) == [[f"f{i}" for i in range(8)], ["f8"]]


def test_two_overlapping_passes():
    """The slices of the second pass lie between those of the first, along half of it."""
    orders = [(0.0, 1.0, float(i)) for i in range(6)] + [(0.0, 2.0, float(i)) for i in range(6)]
    slices = flat([0, 5, 10, 15, 20, 25, 17, 22, 27, 32, 37, 42], orders)
    result = plan(slices, never)
    check(slices, result)
    assert files(result.stacks) == [[f"f{i}" for i in range(6)], [f"f{i}" for i in range(6, 12)]]


def test_an_interleaved_volume_stays_whole():
    """Even and odd slices are two acquisitions; each of them alone would lose fewer slices to the defect."""
    missing = flat([z for z in range(14) if z != 3], [(0.0, float(z % 2), 1.0) for z in range(14) if z != 3])
    assert [len(stack) for stack in plan(missing, never).stacks] == [10]
    repeated = flat([*range(24), 3], [(0.0, float(z % 2), 1.0) for z in [*range(24), 3]])
    assert [len(stack) for stack in plan(repeated, unlike).stacks] == [20]


@pytest.mark.parametrize("kind", ["every slice its own acquisition", "two acquisitions of two time points"])
def test_time_points_with_a_missing_slice_for_any_acquisition_numbers(kind):
    times = [(t, a) for t in range(2) for a in range(1 + kind.startswith("two"))]
    cells = [(t, a, z) for t, a in times for z in range(9) if (t, a, z) != (1, 0, 8)]
    own = kind.startswith("every")
    orders = [(float(t), float(10 * t + z if own else a), 1.0) for t, a, z in cells]
    slices = flat([z for _, _, z in cells], orders)
    result = plan(slices, unlike)
    check(slices, result)
    assert codes(result) == {}
    assert sorted(map(len, result.stacks)) == [8] + [9] * (len(times) - 1)
    for stack in result.stacks:
        assert len({s.order[0] if own else s.order[:2] for s in stack}) == 1


def test_indistinguishable_slices_are_refused_and_the_others_kept():
    """Slices 0 to 4, two different images at 5 that the header does not distinguish, slices 6 to 9."""
    slices = flat([*range(10), 5], [(0.0, 1.0, 1.0)] * 11)
    result = plan(slices, unlike)
    check(slices, result)
    assert codes(result) == {"f5": "REPEATED_POSITIONS", "f10": "REPEATED_POSITIONS"}
    assert [len(stack) for stack in result.stacks] == [5, 4]
    assert result.notes == [{"gap": "yes"}] * 2
    twice = flat([0, 1, 2, 3] * 2, [(0.0, 1.0, 1.0)] * 8)
    assert Counter(codes(plan(twice, unlike)).values()) == {"REPEATED_POSITIONS": 8}


def test_a_short_fragment_is_missing_slices_only_if_slices_are_missing():
    alike = flat([0, 1, 2, 2, 3, 4, 5, 6], [(0.0, 1.0, 1.0)] * 8)
    assert codes(plan(alike, unlike)) == {
        "f0": "TOO_FEW_SLICES",
        "f1": "TOO_FEW_SLICES",
        "f2": "REPEATED_POSITIONS",
        "f3": "REPEATED_POSITIONS",
    }
    both = flat([0, 1, 3, 4, 5, 6, 7, 7, 8, 9, 11, 12, 13, 14], [(0.0, 1.0, 1.0)] * 14)
    found = codes(plan(both, unlike))
    assert {f: found[f] for f in ("f0", "f1", "f8", "f9")} == dict.fromkeys(("f0", "f1", "f8", "f9"), "MISSING_SLICES")


def numbered(cells, places, first=1):
    """Return slices from (instance number, position) pairs; the file names the pair."""
    slices = flat([3.0 * z for _, z in cells], [(0.0, 1.0, float(first + n)) for n, _ in cells])
    return [replace(s, file=f"{n // places}/{z}") for s, (n, z) in zip(slices, cells, strict=True)]


@pytest.mark.parametrize("extra", [1, 3, 5, 11])
@pytest.mark.parametrize("first", [1, 0, 101])
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("times", [2, 3])
def test_a_scan_that_was_stopped_keeps_its_whole_time_points(times, extra, first, interleaved):
    """Time points of 12 slices and a part of another, told apart by instance number only, as GE and Philips write them."""
    places = [*range(0, 12, 2), *range(1, 12, 2)] if interleaved else list(range(12))
    cells = [(12 * t + k, z) for t in range(times + 1) for k, z in enumerate(places) if t < times or k < extra]
    slices = numbered(cells, 12, first)
    result = plan(slices, unlike)
    check(slices, result)
    assert [s for s in files(result.stacks) if len(s) == 12] == [[f"{t}/{z}" for z in range(12)] for t in range(times)]
    rest = sorted(s.file for s in slices if s.file.startswith(f"{times}/"))
    assert sorted(f for stack in files(result.stacks) if len(stack) < 12 for f in stack) + sorted(codes(result)) == rest


def test_a_stopped_scan_of_one_position_after_the_other():
    """All 4 time points of a slice before the next slice; of the ninth, only two."""
    slices = numbered([(n, n // 4) for n in range(34)], 4)
    slices = [replace(s, file=f"{n % 4}/{n // 4}") for n, s in enumerate(slices)]
    result = plan(slices, unlike)
    check(slices, result)
    assert sorted(files(result.stacks)) == [[f"{t}/{z}" for z in range(8 + (t < 2))] for t in range(4)]


def test_a_slice_missing_from_a_time_point_that_only_the_instance_number_tells_apart():
    slices = numbered([(n, n % 12) for n in range(36) if n != 17], 12)
    result = plan(slices, unlike)
    check(slices, result)
    whole = [[f"{t}/{z}" for z in range(12)] for t in (0, 2)]
    assert sorted(files(result.stacks)) == sorted(
        [*whole, [f"1/{z}" for z in range(5)], [f"1/{z}" for z in range(6, 12)]]
    )


def test_instance_numbers_that_do_not_follow_the_positions_separate_nothing():
    numbers = np.random.default_rng(0).permutation(29)
    slices = flat([k % 12 for k in range(29)], [(0.0, 1.0, float(n)) for n in numbers])
    result = plan(slices, unlike)
    check(slices, result)
    assert sorted(map(len, result.stacks)) == [5, 5, 5, 7, 7]


@pytest.mark.parametrize(("acquisition", "sizes", "code"), [(2.0, [10], None), (1.0, [5, 4], "REPEATED_POSITIONS")])
def test_a_cine_at_one_position_of_a_longer_series(acquisition, sizes, code):
    """25 phases at the sixth slice: images if the acquisition number sets them apart, otherwise it is said why not."""
    cine = [(40.0 * t, acquisition, 100.0 + t) for t in range(25)]
    slices = flat([*range(10), *[5] * 25], [(0.0, 1.0, float(z)) for z in range(10)] + cine)
    result = plan(slices, unlike)
    check(slices, result)
    assert [len(stack) for stack in result.volumes] == sizes
    images = {stack[0].file for stack in result.stacks if len(stack) == 1}
    refused = {f for f, why in codes(result).items() if why == code}
    assert images | refused >= {f"f{10 + t}" for t in range(25)}
    assert len(refused) == (0 if code is None else 26)


# ---- slices off the line


def test_two_stacks_side_by_side():
    slices = flat([0, 5, 10, 15, 20] * 2, xs=[0.0] * 5 + [80.0] * 5)
    result = plan(slices, unlike)
    check(slices, result)
    assert sorted(files(result.stacks)) == [[f"f{i}" for i in range(5)], [f"f{i}" for i in range(5, 10)]]
    kinked = [
        replace(s, position=(0.0, s.position[2] / 3 + 60 * (i > 4), s.position[2]))
        for i, s in enumerate(flat(range(10)))
    ]
    result = plan(kinked, never)
    check(kinked, result)
    assert [len(stack) for stack in result.stacks] == [5, 5]
    one_off = flat([0, 5, 10, 15, 20, 25], xs=[0.0, 0.0, 0.3, 0.0, 0.0, 0.0])
    result = plan(one_off, never)
    check(one_off, result)
    assert codes(result)["f2"] == "BAD_GEOMETRY"


@QUICK
@given(series(6), st.data())
def test_a_displaced_slice_is_never_misplaced(slices, data):
    i = data.draw(st.integers(0, len(slices) - 1))
    off = np.array(data.draw(st.tuples(*[st.floats(-20, 20)] * 3)))
    moved = replace(slices[i], position=tuple((np.array(slices[i].position) + off).tolist()))
    some = [*slices[:i], moved, *slices[i + 1 :]]
    result = plan(some, unlike)
    check(some, result)


@QUICK
@given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=40), st.randoms()
)
def test_random_slices_are_accounted_for_in_any_order(cells, random):
    slices = flat(
        [0.7 * z for z, _, _ in cells], [(float(t), 1.0, 1.0) for _, t, _ in cells], [0.08 * x for _, _, x in cells]
    )
    result = plan(slices, unlike)
    check(slices, result)
    other = plan(random.sample(slices, len(slices)), unlike)
    assert files(other.stacks) == files(result.stacks)
    assert codes(other) == codes(result)


def test_ambiguous_neighbours_do_not_depend_on_the_order_of_the_files():
    """Three lines, each within the tolerance of only the next."""
    slices = flat([0, 1, 2, 3] * 3, [(0.0, 1.0, 1.0)] * 12, [0.0] * 4 + [0.08] * 4 + [0.16] * 4)
    one, other = plan(slices, unlike), plan(slices[::-1], unlike)
    assert files(one.stacks) == files(other.stacks)
    assert codes(one) == codes(other)


def test_rotating_slices_are_not_one_volume():
    turn = 5e-4  # 0.25 mm at a corner 500 mm away; the key rounds to 0.001
    turned = (np.cos(turn), np.sin(turn), 0.0, -np.sin(turn), np.cos(turn), 0.0)
    slices = flat([0, 1, 2, 3]) + [replace(s, file=s.file + "t", orientation=turned) for s in flat([4, 5, 6, 7])]
    with pytest.raises(Unreadable) as why:
        stack_affine(slices)
    assert why.value.code == "BAD_GEOMETRY"
    result = plan(slices, never)
    check(slices, result)
    assert [len(stack) for stack in result.stacks] == [4, 4]


# ---- affines


@pytest.mark.parametrize(
    "wrong",
    [
        {"position": (0.0, 0.0, 2.2)},  # in the middle; the ends of the stack are correct
        {"position": (0.2, 0.0, 2.0)},
        {"position": (float("nan"), 0.0, 2.0)},
    ],
    ids=repr,
)
def test_every_slice_is_checked_against_its_header(wrong):
    stack = flat([0, 1, 2, 3, 4])
    stack_affine(stack)
    stack[2] = replace(stack[2], **wrong)
    with pytest.raises(Unreadable) as why:
        stack_affine(stack)
    assert why.value.code == "BAD_GEOMETRY"


@pytest.mark.parametrize(
    "orientation",
    [(1.0, 0, 0, 0.1, 1.0, 0), (2.0, 0, 0, 0, 1.0, 0), (0.0,) * 6, (0, 1.0, 0, 0, 0, 1.0)],
    ids=["skew", "long", "zero", "in plane"],
)
def test_directions_that_do_not_span_a_volume(orientation):
    with pytest.raises(Unreadable) as why:
        stack_affine(flat([0, 1, 2, 3], orientation=orientation))
    assert why.value.code == "BAD_GEOMETRY"


def test_directions_of_almost_unit_length_are_normalised():
    affine, tilt = stack_affine(flat([0, 3, 6, 9], orientation=(1.0005, 0, 0, 0, 0.9996, 0)))
    np.testing.assert_allclose(voxel_spacing(affine), (3, 1, 2), rtol=1e-12)
    assert tilt == 0


@QUICK
@given(series(4, 5))
def test_canonical_orientation_does_not_move_voxels(slices):
    affine, _ = stack_affine(slices)
    shape = (2, len(slices), 3, 6)
    array = np.arange(np.prod(shape)).reshape(shape)
    turned, where = to_canonical(array, affine)
    places = {v: (affine @ (*i[1:], 1))[:3] for i, v in np.ndenumerate(array)}
    for i, v in np.ndenumerate(turned):
        np.testing.assert_allclose((where @ (*i[1:], 1))[:3], places[v], atol=1e-6)
    assert np.linalg.det(where[:3, 2::-1]) > 0
    cosines = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    nearest = set(np.abs(cosines).argmax(0))
    if (
        np.abs(cosines).max(0).min() > 0.8 and len(nearest) == 3
    ):  # each axis is close to a different anatomical direction
        pointing = where[:3, :3] / np.linalg.norm(where[:3, :3], axis=0)
        assert pointing[[2, 1, 0], [0, 1, 2]].min() > 0.8, "superior, anterior, right"


def test_canonical_orientation_is_idempotent():
    """Rows point to posterior and columns to the right: they are swapped, and one is flipped."""
    affine, _ = stack_affine(flat([0, 3, 6, 9], orientation=(0.0, 1.0, 0.0, -1.0, 0.0, 0.0)))
    array = np.arange(2 * 4 * 3 * 6).reshape(2, 4, 3, 6)
    turned, where = to_canonical(array, affine)
    np.testing.assert_array_equal(turned, array.swapaxes(2, 3)[:, :, ::-1])
    np.testing.assert_allclose(where, [[0, 0, 1, 0], [0, 2, 0, -10], [3, 0, 0, 0], [0, 0, 0, 1]], atol=1e-12)
    again, there = to_canonical(turned, where)
    np.testing.assert_array_equal(again, turned)
    np.testing.assert_array_equal(there, where)


# ---- real series


def headers(folder):
    """Return the slices of a folder, with a key without exposure and acquisition number; mosaics are left out."""
    slices = []
    for path in sorted(p for p in folder.iterdir() if p.is_file()):
        with path.open("rb") as stream:
            try:
                h = parse(stream)
            except Unreadable:
                continue
        position, orientation, spacing = (
            h.numbers(k) for k in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")
        )
        if "MOSAIC" in h.words("ImageType") or len(orientation) != 6:
            continue
        key = (h.raw("SeriesInstanceUID"), h.integer("Rows", 0), h.words("ImageType"), h.numbers("EchoTime"))
        order = [
            (h.numbers(k) or (0.0,))[0] for k in ("TemporalPositionIdentifier", "AcquisitionNumber", "InstanceNumber")
        ]
        shape = tuple(round(v, 3) + 0.0 for v in orientation), tuple(round(v, 4) for v in spacing)
        uid = h.raw("SOPInstanceUID").decode()
        slices.append(Slice(str(path), uid, repr(key + shape), position, orientation, spacing, tuple(order)))
    return slices


def pixels(slices):
    hashes = {}
    for s in slices:
        with open(s.file, "rb") as stream:
            header = parse(stream)
            stream.seek(header.pixels[1])
            hashes[s.file] = hashlib.sha256(stream.read()).hexdigest()
    return hashes


def grouped(slices):
    groups = defaultdict(list)
    for s in slices:
        groups[s.key].append(s)
    return list(groups.values())


def plans(folder):
    """Return (sizes of the stacks, codes of the rejects) of a folder, after checking every slice against its header."""
    slices = headers(folder)
    sizes, why = [], Counter()
    for some in grouped(slices):
        result = plan(some, pixels)
        check(some, result)
        sizes += map(len, result.stacks)
        why.update(w.code for _, w in result.rejected)
    return sorted(sizes), dict(why), slices


REAL = [
    ("ct_ge_variable_spacing_tilt", [14, 14]),  # 4.22 mm steps, then 7.38 mm
    *((f"dcm_qa_nih/In/20180918GE/mr_000{n}", [15] * 10) for n in (4, 5, 6, 7)),
    ("dicom2nifti/generic/anatomical/001", [4]),
    ("dicom2nifti/generic/anatomical/001_implicit", [4]),
    ("dicom2nifti/generic/anatomical/002_non_isotropic", [4]),
    *((f"dicom2nifti/generic/compressed{kind}/001", [4]) for kind in ("", "_rle", "_jpeg", "_jpegls", "_j2k")),
    ("dicom2nifti/generic/rgb/001", [4]),
    ("dicom2nifti/ge/anatomical/001", [4]),
    ("dicom2nifti/ge/anatomical/001_implicit", [4]),
    ("dicom2nifti/ge/anatomical/001_single_slice", [1]),
    ("dicom2nifti/ge/fmri/001", [4, 4]),
    ("dicom2nifti/ge/fmri/001_implicit", [4, 4]),
    ("dicom2nifti/ge/dti/001", [4, 4]),
    ("dicom2nifti/ge/dti/001_implicit", [4, 4]),
    ("dicom2nifti/ge/dti/002", [4] * 4),
    ("dicom2nifti/failing/gantrytilting/001", [4]),  # other tools fail on it; a tilt is a shear, not a defect
]


@pytest.mark.parametrize(("folder", "sizes"), REAL, ids=[r[0] for r in REAL])
def test_slices_of_real_series_lie_at_the_positions_in_their_headers(shared, folder, sizes):
    assert plans(shared / "dicom" / folder)[:2] == (sizes, {})


@pytest.mark.parametrize(
    ("folder", "degrees"), [("ct_ge_variable_spacing_tilt", 18.5), ("dicom2nifti/failing/gantrytilting/001", 14.0)]
)
def test_gantry_tilt(shared, folder, degrees):
    for some in grouped(headers(shared / "dicom" / folder)):
        [stack] = plan(some, never).stacks
        assert stack_affine(stack)[1] == pytest.approx(degrees, abs=0.05)


REFUSED = [
    ("sliceincrement/001", "MISSING_SLICES"),  # steps of 5, 5 and 10 mm; three slices are not a volume
    ("sliceincrement/002", "MISSING_SLICES"),  # the fourth of five is missing
]


@pytest.mark.parametrize(("folder", "code"), REFUSED, ids=[r[0] for r in REFUSED])
def test_real_series_with_missing_slices_are_refused(shared, folder, code):
    sizes, why, slices = plans(shared / "dicom" / "dicom2nifti" / "failing" / folder)
    assert sizes == []
    assert why == {code: len(slices)}
    assert len(slices) == 4


@pytest.mark.parametrize(
    ("folder", "count"),
    [
        ("sliceorientation/001", 4),  # two orientations, two slices of each
        ("slicecount/001", 2),
        ("notavolume/001", 4),  # bolus tracking at one position
    ],
)
def test_real_series_at_few_positions_are_images(shared, folder, count):
    sizes, why, slices = plans(shared / "dicom" / "dicom2nifti" / "failing" / folder)
    assert (sizes, why, len(slices)) == ([1] * count, {}, count)


def test_a_real_head_ct_in_one_group_is_cut_where_the_step_changes(shared):
    """The scanner gave each spacing its own key. Merged, and with slices missing, the cut must still be found."""
    slices = [replace(s, key="k") for s in headers(shared / "dicom" / "ct_ge_variable_spacing_tilt")]
    result = plan(slices, pixels)
    check(slices, result)
    assert sum(map(len, result.stacks)) + len(result.rejected) == 28
    steps = sorted(round(voxel_spacing(stack_affine(stack)[0])[0], 1) for stack in result.stacks)
    assert steps == [4.2, 7.4]


def test_a_series_that_was_sent_twice_under_new_uids_is_one_volume_and_its_copies():
    """Instance numbers go on, as if there were two acquisitions, and only the pixels show that there are not."""
    slices = flat([*range(8)] * 2)
    result = plan(slices, lambda asked: {s.file: str(s.position) for s in asked})
    assert files(result.volumes) == [[f"f{i}" for i in range(8)]]
    assert codes(result) == {f"f{i}": "DUPLICATE" for i in range(8, 16)}
