"""Methods for volumes: what is fused, cut, hidden and paired, each against its definition."""

import copy
import itertools
import math

import pytest
import torch

import tiny
from medssl.errors import UserError
from medssl.losses.dice import dice_cross_entropy
from medssl.losses.local_global import partition_contrast, place_contrast
from medssl.losses.overlap import distinct_bases, overlap_loss
from medssl.methods.base import Clock
from medssl.rng import normal_field, uniform

CLOCK = Clock(0, 10)


def shown_to_stages(method):
    """Record what the encoder's stages are given."""
    seen, stages = [], method.encoder.stages
    method.encoder.stages = lambda x: seen.append(x) or stages(x)
    return seen


@pytest.mark.parametrize(("dims", "channels"), [(2, 3), (3, 1)])
def test_volume_fusion_blends_each_scan_with_the_one_before_it_by_its_coefficients(dims, channels):
    method = tiny.method("volume_fusion", dims, channels)
    batch = tiny.batch_for(method, n=4)
    seen, scores = shown_to_stages(method), []
    method.decoder.register_forward_hook(lambda m, given, out: scores.append(out))
    loss = method(batch, CLOCK)["loss"]
    classes = method.coefficients(batch["key"], (16,) * dims)
    (x,) = batch["views"]
    for i in range(4):
        for at in itertools.product(range(0, 16, 5), repeat=dims):
            share = int(classes[(i, *at)]) / 4
            expected = share * x[(i, slice(None), *at)] + (1 - share) * x[(i - 1, slice(None), *at)]
            torch.testing.assert_close(seen[0][(i, slice(None), *at)], expected)
    assert loss.item() == pytest.approx(dice_cross_entropy(scores[0], classes).item())


def test_coefficients_are_boxes_laid_over_each_other_in_order():
    """In a loop over the boxes of each scan, with their edges and corners drawn as `random_boxes` says."""
    method = tiny.method("volume_fusion", fewest=2, most=5, smallest=0.2, largest=0.5)
    key, size = tiny.key(6), (16, 16)
    found = method.coefficients(key, size)
    counts = 2 + (uniform(key, 0, 1000)[:, 0] * 4).long()
    levels = (uniform(key, 0, 1001, 5) * 5).long()
    assert len(set(counts.tolist())) > 1
    for scan in range(6):
        expected = torch.zeros(size, dtype=torch.int64)
        for box in range(int(counts[scan])):
            u = uniform(key, 0, 1002 + box, 4)[scan]
            edges = [max(1, round(float((0.2 + 0.3 * u[2 * a]) * 16))) for a in range(2)]
            starts = [math.floor(float(u[2 * a + 1]) * (17 - edges[a])) for a in range(2)]
            where = tuple(slice(s, s + e) for s, e in zip(starts, edges, strict=True))
            expected[where] = levels[scan, box]
        assert torch.equal(found[scan], expected)
    assert set(method.coefficients(tiny.key(64), size).unique().tolist()) == set(range(5))


def test_volume_fusion_keeps_its_decoder_and_others_do_not():
    for name in ("volume_fusion", "global_local"):
        method = tiny.method(name)
        assert method.kept_decoder() is method.decoder
    assert tiny.method("inpainting").kept_decoder() is None


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"levels": 0}, r"method\.levels must be 1 or more"),
        ({"fewest": 5, "most": 4}, r"method\.fewest <= method\.most"),
        ({"smallest": 0.0}, r"0 < method\.smallest"),
        ({"largest": 1.5}, r"method\.largest <= 1"),
        ({"width": 0}, "width of a decoder"),
    ],
)
def test_volume_fusion_refuses(options, says):
    with pytest.raises(UserError, match=says):
        tiny.method("volume_fusion", **options)


def test_methods_with_a_decoder_refuse_an_encoder_without_maps():
    for name in ("volume_fusion", "global_local"):
        with pytest.raises(UserError, match="feature maps"):
            tiny.method(name, encoder="mlp")


@pytest.mark.parametrize("dims", [2, 3])
def test_voco_measures_overlaps_as_counted_on_a_fine_grid(dims):
    method = tiny.method("voco", dims, grid=3)
    starts = torch.rand(2, 4, dims, generator=torch.Generator().manual_seed(0)) * (1 - method.share)
    starts[0, 0] = method.corners[4]  # a crop that is a base crop
    found = method.overlaps(starts)
    fine = (torch.arange(600) + 0.5) / 600
    for scan, crop, base in itertools.product(range(2), range(4), range(9)):
        share = 1.0
        for axis in range(dims):
            start, corner, edge = (float(v[axis]) for v in (starts[scan, crop], method.corners[base], method.share))
            crossing = (fine >= start) & (fine < start + edge) & (fine >= corner) & (fine < corner + edge)
            share *= float(crossing.sum()) / 600 / edge
        assert float(found[scan, crop, base]) == pytest.approx(share, abs=0.02)
    torch.testing.assert_close(found.sum(2), torch.ones(2, 4), rtol=1e-4, atol=1e-4)
    assert torch.equal(found[0, 0], torch.eye(9)[4])


def test_voco_compares_crops_of_the_student_with_bases_of_the_teacher_and_the_reverse():
    method = tiny.method("voco", grid=2, crops=3).double().eval()
    with torch.no_grad():
        for p in method.teacher.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1), dtype=p.dtype))
    batch = tiny.batch_for(method, n=2)
    batch["views"] = [batch["views"][0].double()]
    shown = []
    method.encoder.register_forward_pre_hook(lambda m, given: shown.append(given[0]))
    loss = method(batch, CLOCK)["loss"].item()
    student = method.projector(method.encoder(shown[0])).view(2, 7, -1)
    teacher = method.teacher(shown[0]).view(2, 7, -1)
    p = torch.zeros(2, 3, 4, dtype=torch.float64)
    for scan, crop, base in itertools.product(range(2), range(3), range(4)):
        for a, b in ((student, teacher), (teacher, student)):
            p[scan, crop, base] += torch.cosine_similarity(a[scan, crop], b[scan, 3 + base], dim=0).relu() / 2
    starts = uniform(batch["key"], 0, 1000, 6).view(2, 3, 2).double() / 2
    expected = overlap_loss(p, method.overlaps(starts)) + distinct_bases(student[:, 3:])
    assert loss == pytest.approx(expected.item(), rel=1e-5)


def test_voco_shows_base_crops_as_they_are():
    method = tiny.method("voco", grid=2, crops=1)
    batch = tiny.batch_for(method, n=2)
    ramp = torch.arange(16.0)
    batch["views"] = [(ramp[:, None] * 100 + ramp).expand(2, 1, 16, 16)]
    shown = []
    method.encoder.register_forward_pre_hook(lambda m, given: shown.append(given[0]))
    method(batch, CLOCK)
    bases = shown[0].view(2, 5, 16, 16)[0, 1:]
    assert bases.mean((1, 2)).tolist() == pytest.approx([353.5, 361.5, 1153.5, 1161.5], abs=3)


@pytest.mark.parametrize(
    ("options", "says"),
    [({"grid": 1}, "grid"), ({"grid": 17}, "grid"), ({"crops": 0}, "crops"), ({"momentum": 1.1}, "momentum")],
)
def test_voco_refuses(options, says):
    with pytest.raises(UserError, match=rf"method\.{says}"):
        tiny.method("voco", **options)


def test_global_local_contrasts_slabs_at_their_positions():
    method = tiny.method("global_local", partitions=4).double()
    batch = tiny.batch_for(method, n=3)
    batch["views"] = [v.double() for v in batch["views"]]
    for _ in range(50):  # statistics of norms that do not depend on the batch, and do depend on the slab
        method.train()(batch, CLOCK)
    method.eval()
    rows = torch.zeros(3, 4, 2, 16, dtype=torch.float64)
    for scan, place, view in itertools.product(range(3), range(4), range(2)):
        band = batch["views"][view][scan : scan + 1, :, 4 * place : 4 * place + 4]
        # linear interpolation with the edge repeated, as everywhere in the package
        shown = torch.nn.functional.interpolate(band, (16, 16), mode="bilinear", align_corners=False)
        rows[scan, place, view] = method.projector(method.encoder(shown))[0]
    loss = method(batch, Clock(0, 10))["loss"].item()
    assert loss == pytest.approx(partition_contrast(rows, 0.1, True).item(), rel=1e-6)
    elsewhere = torch.cat([rows[:1].roll(1, 1), rows[1:]])  # one scan with its slabs at other positions
    assert loss != pytest.approx(partition_contrast(elsewhere, 0.1, True).item(), rel=1e-3)


def test_global_local_trains_the_encoder_first_and_then_the_decoder_alone():
    method = tiny.method("global_local").train()
    batch = tiny.batch_for(method)
    for step, trained in ((0, {"encoder", "projector"}), (5, {"decoder", "embed"})):
        method.zero_grad(set_to_none=True)
        before = copy.deepcopy(method.encoder.state_dict())
        method.train()
        method(batch, Clock(step, 10))["loss"].backward()
        assert {n.split(".")[0] for n, p in method.named_parameters() if p.grad is not None} == trained
        moved = any(not torch.equal(v, before[k]) for k, v in method.encoder.state_dict().items())
        assert moved == (step == 0), "statistics of a frozen encoder stay"


def test_global_local_compares_places_of_two_contrasts_of_one_view():
    method = tiny.method("global_local", contrast=0.5, brightness=0.4).train()
    batch = tiny.batch_for(method, n=3)
    seen, maps = shown_to_stages(method), []
    method.decoder.register_forward_hook(lambda m, given, out: maps.append(out))
    loss = method(batch, Clock(9, 10))["loss"].item()
    u = uniform(batch["key"], 0, 1000, 4) * 2 - 1
    for scan in range(3):
        for version in range(2):
            c, b = u[scan, 2 * version], u[scan, 2 * version + 1]
            expected = batch["views"][0][scan] * (1 + 0.5 * c) + 0.4 * b
            torch.testing.assert_close(seen[0][3 * version + scan], expected)
    places = method.embed(maps[0].unfold(2, 2, 2).unfold(3, 2, 2).mean((4, 5)).flatten(2).transpose(1, 2))
    assert places.shape[1] == 64
    assert loss == pytest.approx(place_contrast(places[:3], places[3:], 0.1).item(), rel=1e-5)


@pytest.mark.parametrize(
    ("options", "says"),
    [({"partitions": 1}, "partitions"), ({"partitions": 17}, "partitions"), ({"temperature": 0.0}, "temperature"),
     ({"contrast": 1.0}, "contrast"), ({"brightness": -0.1}, "brightness")],
)  # fmt: skip
def test_global_local_refuses(options, says):
    with pytest.raises(UserError, match=rf"method\.{says}"):
        tiny.method("global_local", **options)


def rebuild(method, own, other):
    """Return the scan decoded from the sequence code of `own` and the anatomy code of `other`, with the noise of each."""
    anatomy = method.codes[0]
    return method.decoder(torch.cat([other[:, :anatomy], own[:, anatomy:]], 1))


@pytest.mark.parametrize("dims", [2, 3])
def test_session_vae_rebuilds_each_scan_from_both_anatomy_codes(dims):
    method = tiny.method("session_vae", dims, anatomy=5, sequence=3, beta=0.7).double().eval()
    batch = tiny.batch_for(method, n=3)
    batch["views"] = [v.double() for v in batch["views"]]
    z, kl = [], 0.0
    for i, x in enumerate(batch["views"]):
        mean, log_variance = method.code(method.encoder(x * method.visible(batch, i))).chunk(2, 1)
        z.append(mean + (log_variance / 2).exp() * normal_field(batch["key"], 0, 1000 + i, (8,)))
        kl += 0.5 * (mean**2 + log_variance.exp() - log_variance - 1).sum().item() / 6
    error = 0.0
    for i, j in itertools.product(range(2), repeat=2):
        error += (batch["views"][i] - rebuild(method, z[i], z[j])).square().sum().item() / 2 / 12
    assert method(batch, CLOCK)["loss"].item() == pytest.approx(error + 0.7 * kl, rel=1e-6)


def test_session_vae_hides_other_boxes_of_each_scan_from_the_encoder():
    method = tiny.method("session_vae", boxes=2)
    batch = tiny.batch_for(method, n=4)
    shown = []
    method.encoder.register_forward_pre_hook(lambda m, given: shown.append(given[0]))
    method(batch, CLOCK)
    seen = [method.visible(batch, i) for i in range(2)]
    assert torch.equal(shown[0], torch.cat([x * s for x, s in zip(batch["views"], seen, strict=True)]))
    assert not torch.equal(*seen)
    for hidden in (1 - torch.cat(seen)).flatten(1).mean(1).tolist():
        assert 0.15**2 * 0.8 < hidden < 2 * 0.45**2
    assert method.visible(batch, 0).dtype == torch.float32
    assert tiny.method("session_vae", boxes=0).visible(batch, 0).min() == 1


@pytest.mark.parametrize(
    ("options", "says"),
    [({"anatomy": 0}, "anatomy"), ({"beta": -1.0}, "beta"), ({"boxes": -1}, "boxes"), ({"largest": 1.0}, "largest")],
)
def test_session_vae_refuses(options, says):
    with pytest.raises(UserError, match=rf"method\.{says}"):
        tiny.method("session_vae", **options)
