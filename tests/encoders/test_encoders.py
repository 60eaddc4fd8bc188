"""Every encoder of configs/encoder in 2D and 3D, and the definitions of those implemented here."""

import itertools
import math
import sys

import numpy as np
import pytest
import torch
from torch import nn

from medssl import catalog
from medssl.encoders.cnn import CNN
from medssl.encoders.mlp import MLP
from medssl.encoders.monai3d import ResNet3d
from medssl.encoders.patch_bank import PatchBank
from medssl.encoders.patch_pyramid import PatchPyramid
from medssl.encoders.small_resnet import Block, SmallResNet
from medssl.encoders.timm2d import TimmEncoder, resnet
from medssl.encoders.vit import ViT, sincos
from medssl.errors import UserError

SIZES = ((32, 40), (16, 24, 16))
TWO_D_ONLY, THREE_D_ONLY = {"timm"}, {"resnet18_3d"}
ONCE = {
    "resnet50",
    "resnet18_3d",
    "timm",
    "resenc",
}  # deep, or of the class of another choice: one number of channels is enough


def build(name: str, channels: int, size: tuple[int, ...]) -> nn.Module:
    torch.manual_seed(0)
    return catalog.build(catalog.load("encoder", name), channels=channels, size=size)


def able(name: str, dims: int) -> bool:
    return name not in (TWO_D_ONLY if dims == 3 else THREE_D_ONLY)


CASES = [
    pytest.param(name, channels, size, id=f"{name}-{channels}-{len(size)}D")
    for name, size, channels in itertools.product(catalog.choices("encoder"), SIZES, (1, 3, 4))
    if able(name, len(size)) and (channels == 3 or name not in ONCE)
]


def test_the_choices_are_listed():
    assert set(catalog.choices("encoder")) == {
        "resnet18",
        "resnet50",
        "vit",
        "cnn",
        "mlp",
        "resnet18_3d",
        "timm",
        "patch_bank",
        "patch_pyramid",
        "layer",
        "hourglass",
        "small_resnet",
        "resenc",
    }


@pytest.mark.parametrize(("name", "channels", "size"), CASES)
def test_contract(name, channels, size):
    encoder = build(name, channels, size)
    assert (encoder.channels, encoder.size) == (channels, size)
    x = torch.randn(3, channels, *size)
    y = encoder(x)
    assert y.shape == (3, encoder.dim)
    assert y.dtype == torch.float32

    if name in ("patch_bank", "patch_pyramid"):
        assert not list(encoder.parameters())
    else:
        for p in encoder.parameters():  # timm starts residual branches at zero, where no gradient passes at first
            p.data.add_(0.01 * torch.randn_like(p))
        (encoder(x) * torch.randn_like(y)).sum().backward()
        dead = [n for n, p in encoder.named_parameters() if p.grad is None or not p.grad.any()]
        assert not dead

    encoder.eval()
    with torch.no_grad():
        y = encoder(x)
        assert torch.equal(y, encoder(x))
        torch.testing.assert_close(encoder(x[1:2]), y[1:2], rtol=1e-5, atol=1e-5)
        if hasattr(encoder, "maps"):
            maps = encoder.maps(x)
            assert maps.shape[:2] == (3, encoder.dim)
            assert maps.ndim == 2 + len(size)
            torch.testing.assert_close(maps.flatten(2).mean(2), y, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["resnet18", "vit", "cnn", "mlp", "patch_bank", "patch_pyramid"])
@pytest.mark.parametrize("size", SIZES, ids=["2D", "3D"])
def test_options_reconstruct_the_same_encoder(name, size):
    a = build(name, 1, size)
    b = type(a)(a.channels, a.size, **a.options)
    b.load_state_dict(a.state_dict())
    x = torch.randn(2, 1, *size)
    assert torch.equal(a.eval()(x), b.eval()(x))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: TimmEncoder(1, (32, 32), "resnt18"), "resnet18"),
        (lambda: TimmEncoder(1, (32, 32), "hf-hub:someone/model"), "has no model"),
        (lambda: TimmEncoder(1, (16, 16, 16), "resnet18"), "encoder=resnet18"),
        (lambda: TimmEncoder(1, (28, 28), "vit_tiny_patch16_224"), "not a multiple"),
        (lambda: TimmEncoder(1, (28, 28), "convnext_atto"), "cannot take size"),
        (lambda: resnet(1, (16, 16, 16), pretrained=True), "no pretrained 3D weights"),
        (lambda: ResNet3d(1, (32, 32)), "encoder=resnet18"),
        (lambda: ResNet3d(1, (16, 16, 16), "resnet81"), "resnet18"),
        (lambda: ViT(1, (32, 30), patch=8), "(32, 32)"),
        (lambda: ViT(1, (31, 31)), "encoder.patch"),
        (lambda: ViT(1, (32, 32), patch=[8, 8, 8]), "3 numbers"),
        (lambda: ViT(1, (32, 32), dim=100, heads=3), "encoder.heads"),
        (lambda: CNN(1, (32, 32), norm="layer"), "batch"),
        (lambda: CNN(1, (32, 32), widths=(12,), norm="group"), "multiples of 8"),
        (lambda: MLP(1, (32, 32), activation="sigmoit"), "sigmoid"),
        (lambda: MLP(1, (32, 32), widths=()), "empty"),
        (lambda: PatchBank(1, (7, 32)), "smaller patch"),
        (lambda: PatchPyramid(1, (32, 32), ()), "[4,8] for example"),
        (lambda: PatchPyramid(1, (9, 32), (8,)), "smaller patch"),
    ],
)
def test_impossible_encoders_are_refused_with_a_remedy(make, says):
    with pytest.raises(UserError) as e:
        make()
    assert says in str(e.value)


def test_a_missing_monai_is_an_error_with_a_remedy(monkeypatch):
    for name in [m for m in sys.modules if m.split(".")[0] == "monai"] or ["monai"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=r"medssl\[monai\]"):
        resnet(1, (16, 16, 16))


def test_weights_that_cannot_be_fetched_are_a_user_error(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match="not available offline"):
        TimmEncoder(1, (32, 32), "resnet18", pretrained=True)


def test_building_a_timm_model_leaves_it_in_train_mode_with_fresh_statistics():
    encoder = TimmEncoder(1, (32, 32))
    assert all(m.training for m in encoder.modules())
    assert encoder.net.bn1.num_batches_tracked == 0


@pytest.mark.parametrize("model", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"])
def test_maps_of_timm_transformers_keep_the_axes_apart(model):
    encoder = TimmEncoder(1, (64, 96), model).eval()
    with torch.no_grad():
        maps = encoder.maps(torch.randn(1, 1, 64, 96))
    assert maps.shape == (1, encoder.dim, *((4, 6) if "vit" in model else (2, 3)))


def test_a_layer_after_pooling_means_no_maps():
    encoder = TimmEncoder(1, (32, 32), "mobilenetv3_small_050")
    with pytest.raises(UserError, match="encoder=resnet18"):
        encoder.maps(torch.zeros(2, 1, 32, 32))


@pytest.mark.parametrize("name", ["cnn", "mlp"])
def test_layers_in_order_are_the_encoder(name):
    encoder = build(name, 2, (16, 16)).eval()
    x = torch.randn(3, 2, 16, 16)
    h = x
    for layer in encoder.layers:
        h = layer(h)
    assert torch.equal(h if name == "mlp" else h.flatten(2).mean(2), encoder(x))


def test_small_scans_keep_their_resolution_in_the_first_stage():
    assert {n: ResNet3d(1, (n, n, n), "resnet10").net.conv1.stride for n in (32, 40)} == {32: (1, 1, 1), 40: (2, 2, 2)}
    assert {n: CNN(1, (n, n)).maps(torch.zeros(2, 1, n, n)).shape[-1] for n in (28, 64)} == {28: 4, 64: 4}


# ViT -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("grid", "dim"), [((3, 5), 16), ((2, 3, 4), 24), ((2, 3, 4), 32)])
def test_sincos_matches_the_closed_form(grid, dim):
    pos, k = sincos(grid, dim), dim // (2 * len(grid))
    for row, at in enumerate(itertools.product(*map(range, grid))):
        want = [f(a * 10_000 ** (-i / k)) for a in at for f in (math.sin, math.cos) for i in range(k)]
        want += [0.0] * (dim - len(want))
        np.testing.assert_allclose(pos[row], want, atol=1e-6)
    assert len(pos.unique(dim=0)) == math.prod(grid)


@pytest.mark.parametrize("size", [(8, 12), (4, 8, 12)])
def test_patchify_matches_slicing(size):
    encoder = ViT(2, size, patch=4, dim=24, depth=0, heads=2)
    x = torch.randn(2, 2, *size)
    got = encoder.patchify(x)
    for row, at in enumerate(itertools.product(*map(range, encoder.grid))):
        box = tuple(slice(4 * a, 4 * a + 4) for a in at)
        assert torch.equal(got[:, row], x[(slice(None), slice(None), *box)].flatten(1))


@pytest.mark.parametrize("size", SIZES, ids=["2D", "3D"])
def test_kept_tokens_are_the_rows_of_all_tokens(size):
    """Without blocks, tokens do not mix, so keeping some equals gathering their rows: content and position."""
    encoder = ViT(1, size, dim=24, depth=0, heads=2).eval()
    x = torch.randn(2, 1, *size)
    keep = torch.stack([torch.randperm(len(encoder.pos))[:7] for _ in x])
    rows = encoder.tokens(x).gather(1, keep[..., None].expand(-1, -1, 24))
    torch.testing.assert_close(encoder.tokens(x, keep), rows, rtol=1e-5, atol=1e-6)


def test_dropped_patches_are_not_read_and_order_does_not_matter():
    encoder = ViT(1, (16, 16), dim=24, depth=2, heads=2, patch=4).eval()
    x = torch.randn(2, 1, 16, 16)
    every = torch.stack([torch.randperm(16) for _ in x])
    rows = encoder.tokens(x).gather(1, every[..., None].expand(-1, -1, 24))
    torch.testing.assert_close(encoder.tokens(x, every), rows, rtol=1e-4, atol=1e-5)
    keep = torch.tensor([[0, 3], [0, 3]])
    poisoned = x.clone()
    poisoned[:, :, 4:] = torch.nan
    assert torch.equal(encoder.tokens(poisoned, keep), encoder.tokens(x, keep))


def test_default_patches():
    patch = {n: ViT(1, (n, n), depth=0).patch[0] for n in (28, 32, 64, 96, 128, 224, 256)}
    assert patch == {28: 4, 32: 4, 64: 8, 96: 12, 128: 16, 224: 16, 256: 16}
    assert ViT(1, (20, 64, 96), depth=0).patch == (2, 8, 12)


# Patch bank ----------------------------------------------------------------------------------------------------


def naive_bank(bank: PatchBank, x: np.ndarray) -> np.ndarray:
    """Encode one scan (C, *size) patch by patch, as in the paper."""
    p, n = bank.patch, len(bank.size)
    mean, whiten, centroids = (t.double().numpy() for t in (bank.mean, bank.whiten, bank.centroids))
    edges = [[round(i * m / bank.pool) for i in range(bank.pool + 1)] for m in bank.positions]
    cells: dict[tuple[int, ...], list[np.ndarray]] = {}
    for at in itertools.product(*map(range, bank.positions)):
        patch = x[(slice(None), *(slice(a, a + p) for a in at))].ravel().astype(np.float64)
        patch = (patch - patch.mean()) / np.sqrt(patch.var() + bank.contrast)
        y = whiten @ (patch - mean)
        z = np.array([np.sqrt(((y - c) ** 2).sum()) for c in centroids])
        cell = tuple(int(np.searchsorted(edges[i], at[i], side="right")) - 1 for i in range(n))
        cells.setdefault(cell, []).append(np.maximum(0, z.mean() - z))
    return np.concatenate([np.mean(cells[c], 0) for c in itertools.product(range(bank.pool), repeat=n)])


def bank_of(channels: int, size: tuple[int, ...]) -> PatchBank:
    torch.manual_seed(1)
    bank = PatchBank(channels, size, patch=3, centroids=5, pool=2)
    P = channels * 3 ** len(size)
    seen = torch.randn(200, P) @ torch.randn(P, P)
    bank.set_whitening(seen.mean(0), torch.cov(seen.T))
    return bank


@pytest.mark.parametrize(("channels", "size"), [(1, (9, 8)), (3, (7, 8)), (2, (6, 7, 5))])
@pytest.mark.parametrize("budget", [1, 1 << 22], ids=["row by row", "at once"])
def test_bank_matches_its_definition_in_loops(channels, size, budget, monkeypatch):
    monkeypatch.setattr("medssl.encoders.patch_bank.BUDGET", budget)
    bank = bank_of(channels, size)
    x = torch.randn(3, channels, *size)
    want = np.stack([naive_bank(bank, scan.numpy()) for scan in x])
    assert want.any()
    np.testing.assert_allclose(bank(x).numpy(), want, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("size", [(9, 8), (6, 7, 5)], ids=["2D", "3D"])
def test_patches_at_the_uniforms(size):
    bank = bank_of(2, size)
    x, n = torch.randn(2, 2, *size), math.prod(bank.positions)
    u = torch.tensor([[0.0, 0.5, 1 - 2**-24], [0.25, 0.999, 0.1]])
    got = bank.patches_at(x, u)
    where = list(itertools.product(*map(range, bank.positions)))
    for row, (b, j) in enumerate(itertools.product(range(2), range(3))):
        at = where[int(float(u[b, j]) * n)]
        patch = x[(b, slice(None), *(slice(a, a + 3) for a in at))].flatten()
        want = (patch - patch.mean()) / (patch.var(correction=0) + bank.contrast).sqrt()
        torch.testing.assert_close(got[row], want)


def test_whitening_whitens():
    bank = PatchBank(1, (8, 8), patch=3)
    seen = torch.randn(4000, 9) @ torch.randn(9, 9) + 3
    bank.set_whitening(seen.mean(0), torch.cov(seen.T), eps=0.0)
    white = bank.whitened(seen)
    torch.testing.assert_close(white.mean(0), torch.zeros(9), atol=1e-3, rtol=0)
    torch.testing.assert_close(torch.cov(white.T), torch.eye(9), atol=1e-3, rtol=0)
    torch.testing.assert_close(bank.whiten, bank.whiten.T, atol=1e-4, rtol=0)


def test_a_pyramid_concatenates_its_banks():
    pyramid = PatchPyramid(2, (12, 13), patches=(3, 6), centroids=5, pool=2)
    x = torch.randn(3, 2, 12, 13)
    assert [(b.patch, b.dim) for b in pyramid.banks] == [(3, 20), (6, 20)]
    want = np.stack([np.concatenate([naive_bank(b, scan.numpy()) for b in pyramid.banks]) for scan in x])
    np.testing.assert_allclose(pyramid(x).numpy(), want, rtol=1e-3, atol=1e-4)


def test_patches_of_a_pyramid_scale_with_the_image():
    of = {
        size: PatchPyramid(1, size).options["patches"] for size in ((28, 28), (64, 80), (32, 40), (28,) * 3, (64,) * 3)
    }
    assert list(of.values()) == [[4, 8], [9, 18], [5, 9], [3, 4], [5, 9]]


def test_bank_features_predict_pneumonia(shared):
    """The defaults (contrast, whitening, pooling) work: on all images they reach an AUC of .967."""
    from sklearn.cluster import MiniBatchKMeans
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.preprocessing import StandardScaler

    with np.load(shared / "medmnist" / "pneumoniamnist_rebuilt.npz", allow_pickle=False) as d:
        x, y, x_test, y_test = (d[k] for k in ("train_images", "train_labels", "test_images", "test_labels"))
    x, y = x[::3], y[::3].ravel()  # a third of the training images, to keep this short
    train, test = (((torch.tensor(a).float() - x.mean()) / x.std()).float()[:, None] for a in (x, x_test))
    torch.manual_seed(0)
    bank = PatchBank(1, (28, 28))
    patches = bank.patches_at(train, torch.rand(len(train), 30))
    bank.set_whitening(patches.mean(0), torch.cov(patches.T))
    means = MiniBatchKMeans(256, batch_size=4096, n_init=1, max_iter=10, random_state=0).fit(bank.whitened(patches))
    bank.centroids.copy_(torch.tensor(means.cluster_centers_))
    scale = StandardScaler().fit(bank(train))
    reader = LogisticRegression(C=0.01, max_iter=200).fit(scale.transform(bank(train)), y)
    auc = roc_auc_score(y_test.ravel(), reader.decision_function(scale.transform(bank(test))))
    assert auc > 0.955, auc


@pytest.mark.parametrize("size", [(28, 30), (12, 16, 20)])
def test_small_resnet_is_its_definition(size):
    """A stem at half the resolution, each stage after the first at half of the last, the mean of the last map."""
    torch.manual_seed(0)
    encoder = SmallResNet(2, size, (8, 12, 16), blocks=2).eval()
    x = torch.randn(3, 2, *size)
    maps = encoder.stages(x)
    half = tuple((n - 2) // 2 + 1 for n in size)
    sizes = [half, tuple((n + 1) // 2 for n in half), tuple(((n + 1) // 2 + 1) // 2 for n in half)]
    assert [m.shape[1:] for m in maps] == [(w, *s) for w, s in zip((8, 12, 16), sizes, strict=True)]
    torch.testing.assert_close(encoder(x), maps[-1].flatten(2).mean(2))
    torch.testing.assert_close(maps[0], encoder.layers[1](encoder.layers[0](x)))
    assert sum(len(group) for group in encoder.by_depth()) == len(list(encoder.parameters()))


def test_a_residual_block_adds_its_input():
    block = Block(2, 4, 4, 1).eval()
    x = torch.randn(2, 4, 5, 5).abs()
    torch.nn.init.zeros_(block.second[1].weight)
    torch.testing.assert_close(block(x), x)
    narrower = Block(2, 4, 6, 2).eval()
    torch.nn.init.zeros_(narrower.second[1].weight)
    torch.testing.assert_close(narrower(x), narrower.shortcut(x).relu())


def test_small_resnet_refuses_what_it_cannot_be():
    with pytest.raises(UserError, match="small_resnet"):
        SmallResNet(1, (3, 8))
    with pytest.raises(UserError, match=r"encoder\.widths"):
        SmallResNet(1, (8, 8), ())
    with pytest.raises(UserError, match=r"encoder\.blocks"):
        SmallResNet(1, (8, 8), blocks=0)
