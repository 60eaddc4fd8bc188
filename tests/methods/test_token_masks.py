"""Masks on a grid of patches, against the same numbers placed one by one in loops."""

import itertools
import math

import pytest
import torch

import tiny
from medssl.methods.parts.context_blocks import Blocks, context_and_targets
from medssl.methods.parts.token_masks import BLOCKS, hide_blocks, hide_squares, hide_tokens
from medssl.rng import uniform

GRIDS = [(7, 7), (4, 6), (4, 4, 5)]


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("edge", [1, 2, 3])
def test_squares_are_hidden_as_a_whole(grid, edge):
    hidden = hide_squares(tiny.key(5), 0, 1000, grid, 0.6, edge).unflatten(1, grid)
    squares = [range(math.ceil(n / edge)) for n in grid]
    chosen = hide_tokens(tiny.key(5), 0, 1000, math.prod(map(len, squares)), torch.full((5,), 0.6))
    assert chosen.sum(1).tolist() == [int(0.6 * chosen.shape[1])] * 5
    for scan, kept in zip(hidden, chosen, strict=True):
        for k, square in enumerate(itertools.product(*squares)):
            part = scan[tuple(slice(edge * at, edge * at + edge) for at in square)]
            assert part.all() if kept[k] else not part.any()


@pytest.mark.parametrize("grid", GRIDS)
def test_blocks_are_added_until_the_share_is_hidden(grid):
    """From the same numbers, in loops: edges by area and ratios, blocks one after another, the last one cut at random."""
    dims, n, aspect, smallest, share = len(grid), math.prod(grid), 3.0, 0.08, 0.6
    hidden = hide_blocks(tiny.key(6), 0, 1000, grid, share, smallest, aspect)
    numbers = uniform(tiny.key(6), 0, 1000, BLOCKS * 2 * dims + n).double()
    cut = 0
    for mask, u in zip(hidden, numbers, strict=True):
        found: set[int] = set()
        for b in range(BLOCKS):
            drawn = u[b * 2 * dims : (b + 1) * 2 * dims].tolist()
            area = smallest + (share - smallest) * drawn[0]
            ratios = [1.0, *(aspect ** (2 * r - 1) for r in drawn[1:dims])]  # of the first edge to each
            unit = (area * math.prod(ratios)) ** (1 / dims)
            edges = [min(max(1, round(g * unit / r)), g) for g, r in zip(grid, ratios, strict=True)]
            start = [int(p * (g - e + 1)) for p, g, e in zip(drawn[dims:], grid, edges, strict=True)]
            block = set()
            for place in itertools.product(*(range(s, s + e) for s, e in zip(start, edges, strict=True))):
                block.add(sum(p * math.prod(grid[a + 1 :]) for a, p in enumerate(place)))
            new, missing = block - found, int(share * n) - len(found)
            if len(new) > missing:
                cut += 1
                order = u[BLOCKS * 2 * dims :]
                found |= set(sorted(new, key=lambda i: order[i].item())[:missing])
                break
            found |= new
        assert set(mask.nonzero()[:, 0].tolist()) == found
    assert cut == 6


@pytest.mark.parametrize("grid", GRIDS)
def test_contexts_hold_no_target_and_targets_are_blocks_of_one_size(grid):
    blocks = Blocks(3, (0.15, 0.2), (0.75, 1.5), (0.85, 1.0))
    whole, dims, n = tiny.key(20), len(grid), math.prod(grid)
    for step in range(4):
        of_step = tiny.key(1, start=step)
        context, targets = context_and_targets(whole, of_step, 0, 1000, grid, blocks)
        sizes = uniform(of_step, 0, 1001, dims + 1)[0].double().tolist()
        area = 0.15 + 0.05 * sizes[0]
        ratios = [1.0, *(0.75 * 2**r for r in sizes[1:dims])]
        unit = (area * math.prod(ratios)) ** (1 / dims)
        edges = [max(1, int(g * unit / r)) for g, r in zip(grid, ratios, strict=True)]
        outer = [round(g * (0.85 + 0.15 * sizes[dims]) ** (1 / dims)) for g in grid]
        numbers, free = uniform(whole, 0, 1000, 4 * dims + n).double(), []
        for u, target in zip(numbers, targets, strict=True):
            places = torch.stack(torch.unravel_index(target, grid), -1)  # (count, P, axes)
            assert (places.amax(1) - places.amin(1) + 1).tolist() == [edges] * 3
            assert all(len(set(t.tolist())) == math.prod(edges) for t in target)
            corner = [int(p * (g - e + 1)) for p, g, e in zip(u[:dims].tolist(), grid, edges, strict=True)]
            assert places[0].amin(0).tolist() == corner
            first = [int(p * (g - e + 1)) for p, g, e in zip(u[3 * dims : 4 * dims].tolist(), grid, outer, strict=True)]
            inside = {
                sum(p * math.prod(grid[a + 1 :]) for a, p in enumerate(place))
                for place in itertools.product(*(range(s, s + e) for s, e in zip(first, outer, strict=True)))
            }
            free.append(inside - set(target.flatten().tolist()))
        assert context.shape[1] == min(map(len, free))
        for row, allowed in zip(context.tolist(), free, strict=True):
            assert len(set(row)) == len(row)
            assert set(row) <= allowed


def test_a_scan_whose_context_is_all_target_keeps_one_other_patch():
    """Of 8 patches 4 targets of one can cover all of a small context; what is shown is still never a target."""
    blocks = Blocks(4, (0.15, 0.2), (0.75, 1.5), (0.3, 0.3))
    context, targets = context_and_targets(tiny.key(300), tiny.key(1), 0, 1000, (2, 2, 2), blocks)
    assert context.shape == (300, 1)
    assert not (context[:, None] == targets.flatten(1)[:, None]).any()


@pytest.mark.parametrize(("grid", "most"), [((14, 14), 39), ((2, 2), 1), ((8, 8, 8), 102), ((1, 49), 25)])
def test_the_most_patches_of_a_target_are_those_of_its_share_or_of_edges_of_one(grid, most):
    assert Blocks(4, (0.15, 0.2), (0.75, 1.5), (0.85, 1.0)).most_patches(grid) == most
