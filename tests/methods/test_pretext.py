"""Pretext tasks: inputs, targets and hidden pixels, each against its definition."""

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny
from medssl import catalog
from medssl.errors import UserError
from medssl.losses.regression import masked_squared_error
from medssl.methods.base import Clock
from medssl.methods.parts.patches import (
    distant_permutations,
    random_boxes,
    slab,
    standardise,
    tile_size,
    tiles,
)
from medssl.methods.pretext.context_restoration import swapped
from medssl.methods.pretext.rotation import rotations
from medssl.methods.reconstruction.models_genesis import curved, shuffled
from medssl.rng import uniform

CLOCK = Clock(0, 10)


def shown_to(module, method, batch):
    """Return the arguments of `module` during a step of `method`, and the loss."""
    seen = []
    hook = module.register_forward_hook(lambda m, given, out: seen.append(given))
    loss = method(batch, CLOCK)["loss"]
    hook.remove()
    return seen, loss


def answers(method, batch):
    """Return the scores of the head and the target of the cross-entropy, recovered from the definition of the loss."""
    scores = []
    hook = method.head.register_forward_hook(lambda m, given, out: scores.append(out))
    out = method(batch, CLOCK)
    hook.remove()
    return scores[0], out


def test_rotations_are_the_proper_groups():
    for dims, count in ((2, 4), (3, 24)):
        cube = torch.arange(3**dims).view((3,) * dims)
        turned = {tuple(cube.permute(axes).flip(flips).flatten().tolist()) for axes, flips in rotations(dims)}
        assert len(turned) == len(rotations(dims)) == count
        signs = []
        for axes, flips in rotations(dims):
            matrix = torch.eye(dims, dtype=torch.float64)[list(axes)]
            matrix[list(flips)] *= -1
            signs.append(torch.linalg.det(matrix).item())
        assert signs == [1.0] * count


@pytest.mark.parametrize(("dims", "copies"), [(2, 4), (3, 5)])
def test_rotation_turns_each_copy_by_its_target(dims, copies):
    method = tiny.method("rotation", dims=dims, copies=copies)
    batch = tiny.batch_for(method, n=3)
    (given,), _ = shown_to(method.encoder, method, batch)
    shown = given[0]
    x = batch["views"][0]
    assert len(shown) == 3 * copies
    asked = []
    for i, view in enumerate(shown):
        matches = [
            k
            for k, (axes, flips) in enumerate(method.turns)
            if torch.equal(x[i // copies].permute(0, *(1 + a for a in axes)).flip([1 + a for a in flips]), view)
        ]
        assert len(matches) == 1
        asked += matches
    assert all(len(set(asked[i * copies : (i + 1) * copies])) == copies for i in range(3)), (
        "the copies of a scan differ"
    )
    scores, out = answers(method.eval(), batch)
    assert out["loss"].item() == pytest.approx(F.cross_entropy(scores, torch.tensor(asked)).item(), rel=1e-5)


@given(st.integers(2, 4), st.integers(2, 60))
@settings(max_examples=20, deadline=None)
def test_orders_are_different_permutations(n, count):
    found = distant_permutations(n, count)
    rows = {tuple(o) for o in found.tolist()}
    assert len(rows) == len(found) == min(count, math.factorial(n))
    assert all(sorted(o) == list(range(n)) for o in rows)


def test_orders_of_many_tiles_lie_far_apart():
    found = distant_permutations(9, 50)
    assert torch.equal(found, distant_permutations(9, 50))
    apart = min(int((a != b).sum()) for a, b in itertools.combinations(found, 2))
    by_chance = torch.stack([torch.randperm(9, generator=torch.Generator().manual_seed(i)) for i in range(50)])
    assert apart > min(int((a != b).sum()) for a, b in itertools.combinations(by_chance, 2))
    assert apart >= 6


@pytest.mark.parametrize("dims", [2, 3])
def test_tiles_are_those_of_the_grid(dims):
    grid, edge = 3, 4
    number = torch.arange(grid**dims).view((grid,) * dims).float()
    for axis in range(dims):
        number = number.repeat_interleave(edge, axis)
    x = number.expand(2, 1, *[-1] * dims).contiguous()
    which = torch.stack([torch.arange(grid**dims), torch.arange(grid**dims).flip(0)])
    out = tiles(x, which, grid, 0.5, (6,) * dims, tiny.key(2), 1001)
    assert out.shape == (2 * grid**dims, 1, *(6,) * dims)
    torch.testing.assert_close(out, which.flatten().view(-1, 1, *[1] * dims).float().expand_as(out))
    ramp = torch.linspace(0, 1, 12).expand(2, 1, *(12,) * dims)
    first, second = (tiles(ramp, which, grid, 0.5, (12,) * dims, tiny.key(2, start=s), 1001) for s in (0, 2))
    assert not torch.allclose(first, second), "tiles are jittered by the scan"


def of_own_brightness(tile):
    """Return a tile (C, *S) less its mean, over its deviation."""
    return (tile - tile.mean()) / (tile.var(correction=0) + 0.01).sqrt()


@pytest.mark.parametrize(("dims", "channels"), [(2, 1), (2, 3), (3, 2)])
def test_a_tile_tells_neither_its_brightness_nor_its_contrast(dims, channels):
    x = torch.randn(5, channels, *(6,) * dims, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = standardise(x)
    for tile, expected in zip(found, x, strict=True):
        torch.testing.assert_close(tile, of_own_brightness(expected))
    torch.testing.assert_close(standardise(x + 3), found)
    noise = standardise(x * 1e-3)
    assert noise.std() < 0.05, "what hardly varies stays faint"
    assert not standardise(torch.full_like(x, 4)).any()


@pytest.mark.parametrize(
    ("encoder", "share", "edge"), [("cnn", 0.43, 7), ("vit", 0.43, 8), ("vit", 0.1, 4), ("mlp", 0.43, 16)]
)
def test_tiles_have_the_size_that_the_encoder_takes(encoder, share, edge):
    """7 of 16 pixels; whole patches of 4, at least one; all pixels for an encoder of one size."""
    options = tiny.SMALL[encoder]
    made = catalog.build(catalog.spec("encoder", encoder, **options), channels=1, size=(16, 16))
    assert tile_size(made, share) == (edge, edge)


def test_jigsaw_shows_the_tiles_in_the_target_order():
    method = tiny.method("jigsaw", grid=2, permutations=24, keep=1.0, edge=0.5).eval()
    batch = tiny.batch_for(method, n=6)
    (given,), loss = shown_to(method.encoder, method, batch)
    quarters = [batch["views"][0][:, :, a : a + 8, b : b + 8] for a in (0, 8) for b in (0, 8)]
    asked = []
    for i in range(6):
        own = [of_own_brightness(q[i]) for q in quarters]
        order = [
            next(k for k in range(4) if torch.allclose(own[k], t, atol=1e-5)) for t in given[0].view(6, 4, 1, 8, 8)[i]
        ]
        asked.append([o.tolist() for o in method.orders].index(order))
    assert len(set(asked)) > 1
    scores, out = answers(method, batch)
    assert out["loss"].item() == pytest.approx(F.cross_entropy(scores, torch.tensor(asked)).item(), rel=1e-5)
    assert torch.equal(loss, out["loss"])


@pytest.mark.parametrize(("dims", "places"), [(2, 8), (3, 26)])
def test_relative_patch_targets_are_neighbour_positions(dims, places):
    method = tiny.method("relative_patch", dims=dims, size=15, keep=1.0, edge=1 / 3).eval()
    x = torch.randn(8, 1, *(15,) * dims, generator=torch.Generator().manual_seed(0))
    batch = {"views": [x], "key": tiny.key(8)}
    (given,), _ = shown_to(method.encoder, method, batch)
    asked = []
    for i, (first, second) in enumerate(given[0].unflatten(0, (8, 2))):
        cells = [
            of_own_brightness(x[(i, slice(None), *(slice(5 * k, 5 * k + 5) for k in place))])
            for place in itertools.product(range(3), repeat=dims)
        ]
        middle, other = (
            next(k for k, c in enumerate(cells) if torch.allclose(c, t, atol=1e-5)) for t in (first, second)
        )
        assert middle == 3**dims // 2
        asked.append([k for k in range(3**dims) if k != middle].index(other))
    assert len(set(asked)) > 1
    assert len(method.others) == places
    scores, out = answers(method, batch)
    assert out["loss"].item() == pytest.approx(F.cross_entropy(scores, torch.tensor(asked)).item(), rel=1e-5)


@given(st.floats(0.05, 0.9), st.floats(0, 1), st.integers(2, 3))
@settings(max_examples=30, deadline=None)
def test_a_slab_is_that_part_of_the_first_axis(share, at, dims):
    n = 20
    ramp = ((torch.arange(n) + 0.5) / n).view(1, 1, n, *[1] * (dims - 1)).expand(1, 1, *(n,) * dims).contiguous()
    start = at * (1 - share)
    out = slab(ramp, torch.tensor([start]), share)
    assert out.shape == ramp.shape
    assert out.mean().item() == pytest.approx(start + share / 2, abs=0.5 / n)


def test_slice_position_targets_are_the_slab_positions():
    method = tiny.method("slice_position", share=0.25).eval()
    ramp = ((torch.arange(16) + 0.5) / 16).view(1, 1, 16, 1).expand(8, 1, 16, 16).contiguous()
    batch = {"views": [ramp], "key": tiny.key(8)}
    (given,), _ = shown_to(method.encoder, method, batch)
    place = 2 * (given[0].mean((1, 2, 3)) - 0.125) / 0.75 - 1
    scores, out = answers(method, batch)
    expected = F.smooth_l1_loss(scores[:, 0], 2 * uniform(batch["key"], 0, 1000)[:, 0] - 1)
    assert out["loss"].item() == pytest.approx(expected.item(), rel=1e-5)
    torch.testing.assert_close(place, 2 * uniform(batch["key"], 0, 1000)[:, 0] - 1, atol=0.1, rtol=0)


@pytest.mark.parametrize("dims", [2, 3])
def test_slice_order_shuffles_slabs_and_nothing_else(dims):
    method = tiny.method("slice_order", dims=dims, slabs=3).eval()
    batch = tiny.batch_for(method, n=6)
    (given,), _ = shown_to(method.encoder, method, batch)
    x, asked = batch["views"][0], []
    for i in range(6):
        order = [
            next(k for k in range(3) if torch.equal(given[0][i, :, 5 * j : 5 * j + 5], x[i, :, 5 * k : 5 * k + 5]))
            for j in range(3)
        ]
        assert torch.equal(given[0][i, :, 15:], x[i, :, 15:])
        asked.append([o.tolist() for o in method.orders].index(order))
    assert len(method.orders) == 6
    scores, out = answers(method, batch)
    assert out["loss"].item() == pytest.approx(F.cross_entropy(scores, torch.tensor(asked)).item(), rel=1e-5)


def test_neighbouring_slabs_lie_side_by_side():
    method = tiny.method("slice_neighbours", share=0.25).eval()
    ramp = ((torch.arange(16) + 0.5) / 16).view(1, 1, 16, 1).expand(8, 1, 16, 16).contiguous()
    (given,), _ = shown_to(method.encoder, method, {"views": [ramp, ramp], "key": tiny.key(8)})
    first, second = given[0].mean((1, 2, 3)).chunk(2)
    torch.testing.assert_close(second - first, torch.full((8,), 0.25), atol=0.02, rtol=0)
    assert first.std() > 0.05


@given(st.integers(0, 1000), st.floats(0.1, 0.5), st.floats(0.5, 0.9))
@settings(max_examples=30, deadline=None)
def test_boxes_have_the_requested_size(seed, smallest, largest):
    found = random_boxes(tiny.key(6, seed=seed), 1000, (10, 20), smallest, largest).numpy()
    for box in found:
        rows, columns = np.flatnonzero(box.any(1)), np.flatnonzero(box.any(0))
        assert box[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
        assert box.sum() == len(rows) * len(columns)
        for along, n in ((rows, 10), (columns, 20)):
            assert round(smallest * n) - 1 <= len(along) <= round(largest * n) + 1


def test_boxes_reach_every_corner():
    found = random_boxes(tiny.key(400), 1000, (6, 6), 0.5, 0.5)
    assert found.float().mean(0).amin() > 0.01
    assert found.flatten(1).sum(1).unique().tolist() == [9]


@pytest.mark.parametrize("name", ["inpainting", "colour"])
def test_hidden_pixels_are_not_seen_and_only_they_are_scored(name):
    method = tiny.method(name).eval()
    batch = tiny.batch_for(method, n=4)
    seen, loss = shown_to(method.decoder, method, batch)
    hidden = seen[0][1] == 0
    assert 0 < hidden.float().mean() < 0.6
    other = batch | {"views": [torch.where(hidden, batch["views"][0] + 5, batch["views"][0])]}
    again, moved = shown_to(method.decoder, method, other)
    assert torch.equal(seen[0][1], again[0][1])
    rebuilt = method.decoder(method.encoder, seen[0][1])
    error = (rebuilt - batch["views"][0]).square()[hidden].mean()
    assert loss.item() == pytest.approx(error.item(), rel=1e-5)
    assert moved > loss


def test_colour_hides_one_channel_of_each_scan():
    method = tiny.method("colour", channels=3).eval()
    seen, _ = shown_to(method.decoder, method, tiny.batch_for(method, n=12))
    gone = (seen[0][1].flatten(2) == 0).all(2)
    assert gone.sum(1).tolist() == [1] * 12
    assert gone.any(0).all()


def test_masked_squared_error_equals_its_definition():
    p, t = (torch.randn(3, 2, 4, generator=torch.Generator().manual_seed(i), dtype=torch.float64) for i in (0, 1))
    hidden = torch.tensor([[[True, False, False, True]], [[False] * 4], [[True] * 4]])
    total = [
        (p[b, c, i] - t[b, c, i]).item() ** 2 for b in range(3) for c in range(2) for i in range(4) if hidden[b, 0, i]
    ]
    assert masked_squared_error(p, t, hidden).item() == pytest.approx(sum(total) / len(total), rel=1e-12)
    assert masked_squared_error(p, t, hidden & False).item() == 0


@pytest.mark.parametrize("dims", [2, 3])
def test_context_restoration_swaps_pairs_of_patches(dims):
    size, edge = (12,) * dims, (3,) * dims
    positions = torch.arange(12**dims).view(1, 1, *size).expand(5, -1, *size)
    at = swapped(positions, tiny.key(5), edge, 1).flatten(1)
    for order in at:
        order = order.view(size)
        assert sorted(order.flatten().tolist()) == list(range(12**dims)), "pixels are moved, none is lost"
        moved = order != torch.arange(12**dims).view(size)
        assert moved.sum().item() in {0, 2 * 3**dims}
        twice = order.flatten()[order.flatten()]
        assert torch.equal(twice, torch.arange(12**dims)), "a swap done twice is none"
    assert (at != torch.arange(12**dims)).any(1).float().mean() > 0.5
    many = swapped(positions, tiny.key(5), edge, 8).flatten(1)
    assert all(sorted(o.tolist()) == list(range(12**dims)) for o in many)
    assert (many != torch.arange(12**dims)).sum() > (at != torch.arange(12**dims)).sum()


def test_context_restoration_equals_swaps_in_a_loop():
    """Two successive swaps on the image itself."""
    key, size, edge = tiny.key(4), (9, 11), (2, 3)
    u = uniform(key, 0, 1000, 2 * 2 * 2).view(4, 2, 2, 2).numpy()
    positions = torch.arange(99).view(1, 1, *size).expand(4, -1, *size)
    for i, order in enumerate(swapped(positions, key, edge, 2)):
        picture = np.arange(99).reshape(size)
        for swap in u[i]:
            (r0, c0), (r1, c1) = np.floor(swap * (np.array(size) - edge + 1)).astype(int)
            if abs(r0 - r1) >= 2 or abs(c0 - c1) >= 3:
                one = picture[r0 : r0 + 2, c0 : c0 + 3].copy()
                picture[r0 : r0 + 2, c0 : c0 + 3] = picture[r1 : r1 + 2, c1 : c1 + 3]
                picture[r1 : r1 + 2, c1 : c1 + 3] = one
        assert np.array_equal(order.view(size).numpy(), picture)


@given(st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_curves_of_intensity_are_monotone_and_keep_the_ends(seed):
    x = torch.linspace(0, 1, 101, dtype=torch.float64).expand(4, 1, 101)
    for y in curved(x, tiny.key(4, seed=seed))[:, 0]:
        steps = y.diff()
        assert (steps >= -1e-9).all() or (steps <= 1e-9).all()
        assert {round(y[0].item(), 6), round(y[-1].item(), 6)} == {0.0, 1.0}


def test_a_curve_is_beziers():
    """B(t) = (1-t)^3 P0 + 3 t (1-t)^2 P1 + 3 t^2 (1-t) P2 + t^3 P3 at one t, read off at its x."""
    key, t = tiny.key(6), 0.4
    u = uniform(key, 0, 1001, 5).double()
    basis = torch.tensor([3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t)], dtype=torch.float64)
    x, y = (u[:, i : i + 2] @ basis + t**3 for i in (0, 2))
    expected = torch.where(u[:, 4] < 0.5, y, 1 - y)
    torch.testing.assert_close(curved(x.view(6, 1, 1), key).flatten(), expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize("size", [(8, 8), (7, 10), (5, 6, 7)])
def test_shuffling_stays_inside_its_windows(size):
    positions = torch.arange(math.prod(size)).view(1, 1, *size).expand(3, -1, *size)
    at = shuffled(positions, tiny.key(3), 3).flatten(1)
    places = np.stack(np.unravel_index(np.arange(math.prod(size)), size)) // 3
    for order in at.numpy():
        assert sorted(order) == list(range(math.prod(size)))
        assert np.array_equal(places[:, order], places)
    assert (at != torch.arange(math.prod(size))).float().mean() > 0.5


def test_models_genesis_applies_deformations_by_their_probabilities():
    never = {"nonlinear": 0.0, "shuffle": 0.0, "paint": 0.0, "inner": 0.0}
    batch = tiny.batch(1, n=6)
    x = batch["views"][0]

    def made(**chances):
        return tiny.method("models_genesis", **never | chances).deformed(x, batch["key"])

    assert torch.equal(made(), x)
    mixed = made(shuffle=1.0)
    assert not torch.equal(mixed, x)
    torch.testing.assert_close(mixed.flatten(1).sort(1)[0], x.flatten(1).sort(1)[0])
    for before, after in zip(x.flatten(1), made(nonlinear=1.0).flatten(1), strict=True):
        order = before.argsort()
        same = [torch.equal(order, after.argsort(descending=d)) for d in (False, True)]
        assert sum(same) == 1, "intensities keep their order, or all of them turn round"
    kept = [(out == x).float().flatten(1).mean(1) for out in (made(paint=1.0), made(paint=1.0, inner=1.0))]
    assert ((kept[0] > 0.2) & (kept[0] < 0.6)).all(), "one box is left of the scan"
    assert ((kept[1] > 0.5) & (kept[1] < 0.98)).all(), "a few boxes are gone"


@pytest.mark.parametrize("name", ["denoising", "inpainting"])
@pytest.mark.parametrize("encoder", ["cnn", "vit", "mlp"])
@pytest.mark.parametrize("size", [13, 16])
def test_the_decoder_returns_scans_of_any_size(name, encoder, size):
    if encoder == "vit" and size % 4:
        size = 12
    method = tiny.method(name, encoder=encoder, size=size)
    x = torch.randn(2, 1, size, size)
    assert method.decoder(method.encoder, x).shape == x.shape


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("rotation", {"copies": 5}, "between 1 and 4"),
        ("jigsaw", {"grid": 8}, "leaves less than 2"),
        ("jigsaw", {"permutations": 1}, "2 or more"),
        ("relative_patch", {"keep": 0.0}, "keep"),
        ("jigsaw", {"edge": 0.0}, "method.edge is a share"),
        ("relative_patch", {"edge": 1.5}, "method.edge is a share"),
        ("inpainting", {"smallest": 0.6}, "smallest <= method.largest"),
        ("denoising", {"sigma": 0.0}, "sigma"),
        ("colour", {"channels": 1}, "these scans have one"),
        ("context_restoration", {"patch": 0.6}, "patch"),
        ("models_genesis", {"paint": 1.5}, "method.paint is a probability"),
        ("models_genesis", {"window": 1}, "window"),
        ("slice_order", {"slabs": 6}, "between 2 and 5"),
        ("slice_position", {"share": 0.01}, "share"),
        ("slice_neighbours", {"share": 0.6}, "share"),
    ],
)
def test_impossible_options_are_refused_at_construction(name, options, words):
    with pytest.raises(UserError, match=words):
        tiny.method(name, **options)
