"""Near-duplicates of small images: each function against an independent computation, and all together on real scans."""

import dataclasses
import io

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter
from sklearn.isotonic import IsotonicRegression

import medssl.leakage.image_sets as image_sets_module
from medssl.leakage import small_images
from medssl.leakage.image_sets import ImageComparer, ScanSet
from medssl.leakage.near_duplicates import _typical_excess, find_duplicates
from medssl.leakage.similarity import is_near_duplicate
from medssl.readers.phash import phash
from medssl.store.manifest_columns import content_hash

RNG = np.random.default_rng(0)
START = RNG.bit_generator.state
S = small_images.SIDE


@pytest.fixture(autouse=True)
def _the_same_numbers_in_any_order():
    RNG.bit_generator.state = START


def texture(n, size=S, sigma=2.0):
    x = gaussian_filter(RNG.normal(size=(n, size, size)), (0, sigma, sigma))
    low, high = x.min((1, 2), keepdims=True), x.max((1, 2), keepdims=True)
    return ((x - low) / (high - low)).astype(np.float32)


def of(name, images):
    words = [[f"{name} {i}" for i in range(len(images))]] * 2
    words += [[content_hash(x) for x in images], [phash(x) for x in images]]
    patient, scan, content, bits = (np.array(w, str) for w in words)
    edge = np.array([max(x.shape) for x in images])
    return ScanSet(name, "key", patient, scan, content, bits, np.ones(len(images), bool), edge, images.__getitem__)


def jpeg(x, quality):
    buffer = io.BytesIO()
    Image.fromarray(np.round(x * 255).astype(np.uint8)).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer), np.float32) / 255


def noisy(x, sd):
    return np.clip(x + RNG.normal(0, sd, x.shape), 0, 1).astype(np.float32)


def half(x):
    return np.clip(
        np.asarray(Image.fromarray(x).resize((x.shape[1] // 2, x.shape[0] // 2), Image.Resampling.BICUBIC)), 0, 1
    )


def test_a_grid_of_the_same_size_is_the_image_and_its_shifts_are_by_whole_pixels():
    (x,) = texture(1)
    np.testing.assert_allclose(small_images.to_grid(x), x, atol=1e-6)
    seen = small_images.shifted_grids(x).reshape(5, 5, S, S)
    for down in range(-2, 3):
        for right in range(-2, 3):
            want = np.pad(x, 2, mode="edge")[2 + down :, 2 + right :][:S, :S]
            np.testing.assert_allclose(seen[2 + down, 2 + right], want, atol=1e-6)


@pytest.mark.parametrize("shape", [(14, 14), (28, 28), (40, 31), (64, 64)])
def test_a_grid_keeps_a_slope_and_a_level(shape):
    x = np.add.outer(np.linspace(0, 0.5, shape[0]), np.linspace(0.1, 0.4, shape[1]))
    inner = small_images.to_grid(x)[4:-4, 4:-4]
    np.testing.assert_allclose(np.diff(inner, axis=0), 0.5 * shape[0] / (shape[0] - 1) / S, atol=1e-3)
    np.testing.assert_allclose(np.diff(inner, axis=1), 0.3 * shape[1] / (shape[1] - 1) / S, atol=1e-3)
    np.testing.assert_allclose(small_images.to_grid(np.full(shape, 0.3)), 0.3, atol=1e-6)


def test_descriptors_are_invariant_to_power_curves_and_find_shifted_images():
    x = 0.1 + 0.8 * texture(40)
    z = small_images.descriptor(x)
    np.testing.assert_allclose(np.linalg.norm(z, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(small_images.descriptor(x**1.7), z, atol=1e-4)
    moved = [np.roll(i, (2, -1), (0, 1)) ** 1.4 for i in x[:9]]
    shifted = np.stack([small_images.descriptor(small_images.shifted_grids(i)) for i in moved])
    cosine = np.einsum("nsd,nd->ns", shifted, z[:9])
    assert (cosine.argmax(1) == 4 * 5 + 1).all()  # two down, one to the left
    assert cosine.max(1).min() > 0.99 > np.einsum("nd,nd->n", small_images.descriptor(np.stack(moved)), z[:9]).max()
    found = small_images.nearest_candidates(z, shifted)
    assert [row[0] for row in found] == list(range(9))
    assert all(len(set(row.tolist())) == small_images.CANDIDATES for row in found)
    assert len(small_images.nearest_candidates(z[:3], z[:1, None])[0]) == 3


def by_hand(a, b, frequencies):
    """Return the log likelihood ratio of one pair, frequency by frequency."""
    x, y = (v[2:-2, 2:-2].astype(float) for v in (a, b))
    values, at = np.sort(x.ravel()), np.argsort(y.ravel(), kind="stable")
    taken = np.empty(y.size)
    for rank, place in enumerate(at):
        taken[place] = values[rank]
    y, n = taken.reshape(y.shape), len(x)
    w = small_images._WINDOW
    sums = {
        r: [0, 0.0, 0.0] for r in range(1, small_images.MAX_FREQUENCY + 1)
    }  # frequencies, power of both, of the difference
    rows, columns = np.mgrid[:n, :n]
    for u in range(-n // 2, n // 2):
        for v in range(n // 2):
            ring = round(np.hypot(u, v) * S / n)
            if (
                1 <= ring <= small_images.MAX_FREQUENCY
                and np.hypot(u, v) * S / n < small_images.MAX_FREQUENCY + 0.5
                and (v > 0 or u > 0)
            ):
                wave = np.exp(-2j * np.pi * (u * rows + v * columns) / n)
                p, q = ((((i - (i * w).sum() / w.sum()) * w) * wave).sum() for i in (x, y))
                sums[ring][0] += 1
                sums[ring][1] += abs(p) ** 2 + abs(q) ** 2
                sums[ring][2] += abs(p - q) ** 2
    count, both, apart = np.array(list(sums.values())).T
    both, apart = both / count, apart / count
    noise = IsotonicRegression().fit_transform(np.arange(len(count)), apart + 1e-4 * both, sample_weight=count)
    return float((count * np.log(both / np.minimum(noise, both)))[:frequencies].sum())


def test_the_log_likelihood_ratio_is_the_sum_over_frequencies():
    a, b = texture(4), texture(4)
    b[1], b[2] = noisy(a[1], 0.03), a[2] ** 2
    frequencies = np.array([13, 13, 13, 6])
    want = [by_hand(*pair) for pair in zip(a, b, frequencies, strict=True)]
    np.testing.assert_allclose(small_images.log_likelihood_ratio(a, b, frequencies)[0], want, rtol=1e-6)
    same, alike = small_images.log_likelihood_ratio(a[2:3], a[2:3], frequencies[2:3])
    assert alike == pytest.approx([1])
    np.testing.assert_allclose(same, want[2], rtol=1e-6)  # a grey-value curve changes nothing
    assert want[0] < want[1] < want[2]


def test_the_excess_over_the_other_candidates_decides():
    def classified(*found, frequencies=small_images.MAX_FREQUENCY, alike=0.95, typical=10.0):
        return small_images.classify(np.array(found, float), np.full(len(found), alike), frequencies, typical)

    for best, kind in ((700, "near"), (245, "near"), (235, "maybe"), (190, "maybe"), (180, "")):
        assert classified(100, best, 120, 90, 80) == (1, kind)
        assert classified(100, best, 120, 90, 80, alike=0.85) == (
            1,
            kind and "maybe",
        )  # noise may hide another scan
    assert classified(100, 245, 120, 90, 80, alike=0.75)[1] == "compare"
    assert classified(100, 270, 120, 90, 80, typical=40) == (1, "maybe")  # simple images need more
    assert classified(100, 220, 120, 90, 80, typical=40)[1] == "compare"
    assert classified(300, 290, 280, 100) == (0, "near")  # three copies in one set hide nothing
    assert classified(300, 310, 290, 305, 280) == (1, "compare")
    assert classified(150, -20, -30, -40) == (0, "maybe")  # a clear excess but a low ratio
    quarter = int(np.flatnonzero(np.cumsum(small_images.COUNT) <= small_images.COUNT.sum() / 4)[-1] + 1)
    assert classified(190, 120, 110, 105, frequencies=quarter)[1] == "near"  # fewer frequencies, less spread


def test_resolved_frequencies_and_texture():
    assert [
        small_images.resolved_frequencies(np.zeros(s)) for s in ((14, 14), (28, 20), (28, 28), (64, 64), (3, 50))
    ] == [
        6,
        9,
        13,
        13,
        1,
    ]
    (x,) = texture(1)
    assert small_images.has_texture(x)
    assert not small_images.has_texture(np.where(x > np.quantile(x, 0.7), x, 0))


WAYS = {
    "JPEG": lambda x: jpeg(x, 40),
    "noise": lambda x: noisy(x, 0.02),
    "half": half,
    "all": lambda x: jpeg(noisy(np.pad(x, 2, mode="edge")[4:, 1:][:S, :S] ** 0.8, 0.02), 75),
}


def test_degraded_copies_of_small_xrays_are_found_and_other_patients_are_not(shared):
    with np.load(shared / "medmnist/pneumoniamnist_rebuilt.npz", allow_pickle=False) as f:
        train, test = (f[f"{s}_images"].astype(np.float32) / 255 for s in ("train", "test"))
    seen, others = list(train[:2000]), list(test[:200])
    degraded = {way: [change(x) for x in seen[:60]] for way, change in WAYS.items()}
    a, b = of("training", seen), of("test", [*others, *(x for v in degraded.values() for x in v)])
    found = find_duplicates(a, b, ImageComparer([a, b]))
    assert not {j for j in found.near | found.maybe if j < len(others)}
    right = np.array([(found.near | found.maybe).get(200 + j) == j % 60 for j in range(240)]).reshape(4, 60)
    assert dict(zip(WAYS, right.sum(1) >= [58, 58, 54, 58], strict=True)) == dict.fromkeys(WAYS, True)
    sure = np.array([found.near.get(200 + j) == j % 60 for j in range(240)]).reshape(4, 60).sum(1)
    assert sure[1] >= 50  # certain, so refused
    assert sure[3] >= 50


def test_breast_ultrasound_has_the_same_pictures_in_training_and_test(shared):
    """The archive's own splits share images. Those found with the highest certainty were checked by eye."""
    with np.load(shared / "medmnist/breastmnist.npz", allow_pickle=False) as f:
        train, test = (list(f[f"{s}_images"].astype(np.float32) / 255) for s in ("train", "test"))
    a, b = of("training", train), of("test", test)
    found = find_duplicates(a, b, ImageComparer([a, b]))
    assert len(found.exact) + len(found.near) >= 50
    pixels = [np.corrcoef(train[i].ravel(), test[j].ravel())[0, 1] for j, i in found.near.items()]
    assert np.median(pixels) > 0.95


def test_shapes_on_a_background_are_compared_by_their_pixels(monkeypatch):
    def shapes(n):
        return [np.where(x > np.quantile(x, 0.7), x, 0).astype(np.float32) for x in texture(n)]

    x = shapes(30)
    a, b = of("training", x), of("test", [x[3] ** 1.5, *shapes(5)])
    monkeypatch.setattr(ImageComparer, "log_likelihood_ratio", lambda *_: pytest.fail("compared by likelihood"))
    assert find_duplicates(a, b, ImageComparer([a, b])).near == {0: 3}


def test_decided_pairs_are_not_compared_by_pixels_and_few_scans_have_no_runner_up(monkeypatch):
    x, compared_pairs = texture(30), []
    monkeypatch.setattr(
        image_sets_module, "is_near_duplicate", lambda i, j: compared_pairs.append(1) or is_near_duplicate(i, j)
    )
    test = [noisy(x[1], 0.02), *texture(3)]
    a, b = of("training", list(x)), of("test", test)
    assert find_duplicates(a, b, ImageComparer([a, b])).near == {0: 1}
    assert not compared_pairs
    few = of("training", list(x[:3]))
    assert find_duplicates(few, b, ImageComparer([few, b])).near == {0: 1}
    assert compared_pairs


def test_two_noisy_images_of_one_shape_are_no_copies():
    def square(y, x):
        image = RNG.normal(0.35, 0.05, (S, S))
        image[y : y + 6, x : x + 6] += 0.35
        return np.clip(image, 0, 1).astype(np.float32)

    a = of("training", [square(*RNG.integers(0, S - 6, 2)) for _ in range(60)])
    b = of("test", [square(*RNG.integers(0, S - 6, 2)) for _ in range(20)])
    found = find_duplicates(a, b, ImageComparer([a, b]))
    assert not found.near
    assert not found.maybe


def test_the_typical_excess_ignores_copies_and_other_scans_of_a_patient():
    def typical(images, patients):
        part = dataclasses.replace(of("training", images), patient=np.array(patients))
        pixels = ImageComparer([part])
        at, outlines = pixels.descriptors(part.hash)
        return _typical_excess(part, at, outlines, pixels)

    x, names = list(texture(80)), [f"patient {i}" for i in range(80)]
    alone = typical(x, names)
    assert 5 < alone < 40
    copied = typical([*x, *(i**1.2 for i in x[:40])], [*names, *(f"copy {i}" for i in range(40))])
    again = typical([*x, *(noisy(i, 0.08) for i in x)], [*names, *names])
    assert copied == pytest.approx(alone, rel=0.5)
    assert again == pytest.approx(alone, rel=0.5)
    strangers = typical([*x, *(noisy(i, 0.08) for i in x)], [*names, *(f"other {i}" for i in range(80))])
    assert strangers > 2 * alone


def test_many_copies_in_one_set_hide_nothing():
    x = texture(30)
    many = [*x, *(noisy(x[4], 0.01) for _ in range(6))]
    a, b = of("training", many), of("test", [noisy(x[4], 0.01), *texture(3)])
    found = find_duplicates(a, b, ImageComparer([a, b]))
    assert list(found.near) == [0]
    assert found.near[0] in {4, *range(30, 36)}


def test_shifts_of_mid_sized_images_are_found_though_their_hashes_differ():
    x = texture(40, 100, 5)
    a, b = of("training", list(x)), of("test", [np.roll(i, (2, -2), (0, 1)) ** 0.8 for i in x[:9]])
    assert find_duplicates(a, b, ImageComparer([a, b])).near == {j: j for j in range(9)}
    large = ImageComparer([dataclasses.replace(s, side=s.side * 3) for s in (a, b)])
    assert len(find_duplicates(a, b, large).near) < 5  # by hash alone
