"""Which weights are trained: named layers alone change, and low-rank additions end in the plain architecture."""

import copy

import pytest
import torch

import tiny
from medssl import catalog
from medssl.encoders.adaptation import adapt, merge
from medssl.encoders.config import EncoderConfig
from medssl.encoders.export import load_encoder, save_encoder
from medssl.errors import UserError
from medssl.methods.base import Clock


def build(name="cnn", size=(16, 16), **options):
    torch.manual_seed(0)
    return catalog.build(catalog.spec("encoder", name, **(tiny.SMALL.get(name, {}) | options)), channels=1, size=size)


def scans(encoder, n=6) -> torch.Tensor:
    return torch.randn(n, encoder.channels, *encoder.size, generator=torch.Generator().manual_seed(5))


def step(encoder) -> set[str]:
    """Take two steps of a loss in every feature, and return the names of the tensors that changed."""
    before = {k: v.clone() for k, v in encoder.named_parameters()}
    optimizer = torch.optim.SGD([p for p in encoder.parameters() if p.requires_grad], 0.1)
    x, wanted = scans(encoder), torch.randn(6, encoder.dim, generator=torch.Generator().manual_seed(6))
    for _ in range(2):
        optimizer.zero_grad()
        (encoder.train()(x) - wanted).square().sum().backward()
        optimizer.step()
    return {k for k, v in encoder.named_parameters() if not torch.equal(v, before[k])}


def test_norm_trains_the_norms_alone():
    cnn = build()
    adapt(cnn, "norm", 4)
    assert step(cnn) == {f"layers.{i}.{j}.{what}" for i in (0, 1) for j in (1, 4) for what in ("weight", "bias")}
    vit = build("vit")
    adapt(vit, "norm", 4)
    norms = {f"blocks.{i}.norm{j}" for i in (0, 1) for j in (1, 2)} | {"norm"}
    assert step(vit) == {f"{name}.{what}" for name in norms for what in ("weight", "bias")}
    resnet = build("resnet18", size=(32, 32))
    adapt(resnet, "norm", 4)
    changed = step(resnet)
    assert len(changed) == 40  # 20 batch normalisations of a ResNet-18
    assert all("bn" in name or "downsample.1" in name for name in changed)


def test_attention_trains_the_projections_of_attention_alone():
    vit = build("vit")
    adapt(vit, "attention", 4)
    assert step(vit) == {
        f"blocks.{i}.{layer}.{what}" for i in (0, 1) for layer in ("qkv", "proj") for what in ("weight", "bias")
    }
    of_timm = build("timm", size=(32, 32), model="vit_tiny_patch16_224")
    adapt(of_timm, "attention", 4)
    names = {n for n, p in of_timm.named_parameters() if p.requires_grad}
    assert names == {
        f"net.blocks.{i}.attn.{layer}.{what}"
        for i in range(12)
        for layer in ("qkv", "proj")
        for what in ("weight", "bias")
    }


@pytest.mark.parametrize("name", ["cnn", "vit", "mlp", "resnet18"])
def test_lora_starts_from_the_same_features_and_trains_low_rank_additions_alone(name):
    encoder = build(name, size=(32, 32))
    plain, x = copy.deepcopy(encoder).eval(), scans(encoder)
    adapt(encoder, "lora", 3)
    torch.testing.assert_close(encoder.eval()(x), plain(x), rtol=0, atol=0)
    changed = step(encoder)
    assert changed
    assert all(n.endswith((".A", ".B")) for n in changed)
    trained = {n for n, p in encoder.named_parameters() if p.requires_grad}
    # residual branches of a fresh ResNet end in a norm of weight zero, which keeps gradients from them
    assert changed == trained or (name == "resnet18" and changed < trained)
    if name == "vit":
        assert all(".qkv." in n or ".proj." in n for n in changed)


@pytest.mark.parametrize("name", ["cnn", "vit", "mlp"])
def test_merged_weights_are_the_sum_and_its_rank_is_the_one_asked_for(tmp_path, name):
    encoder = build(name)
    plain = copy.deepcopy(encoder)
    adapt(encoder, "lora", 3)
    step(encoder)
    x = scans(encoder)
    adapted = encoder.eval()(x)
    merge(encoder)
    torch.testing.assert_close(encoder(x), adapted, rtol=0, atol=0)
    before = dict(plain.named_parameters())
    assert {n: p.shape for n, p in encoder.named_parameters()} == {n: p.shape for n, p in before.items()}
    moved = {n: (p - before[n]).flatten(1) for n, p in encoder.named_parameters() if not torch.equal(p, before[n])}
    assert moved
    for n, delta in moved.items():
        size = torch.linalg.svdvals(delta.double())
        assert size[2] > 1e-6 * size[0] > (size[3] if len(size) > 3 else 0), n
    save_encoder(tmp_path, encoder, EncoderConfig())
    torch.testing.assert_close(load_encoder(tmp_path)[0](x), adapted, rtol=1e-5, atol=1e-5)


def test_bfloat16_does_not_round_the_additions():
    encoder = build("vit")
    adapt(encoder, "lora", 3)
    step(encoder)
    layer = encoder.blocks[0].qkv
    with torch.autocast("cpu", torch.bfloat16):
        assert layer.weight.dtype == torch.float32
        weight = layer.weight.clone()
    torch.testing.assert_close(weight, layer.weight, rtol=0, atol=0)


@pytest.mark.parametrize("how", ["norm", "attention", "lora"])
def test_a_method_with_a_teacher_trains_its_heads_and_the_chosen_part(how):
    """The teacher is a copy of the adapted encoder and follows it."""
    torch.manual_seed(0)
    encoder = build("vit")
    adapt(encoder, how, 2)
    method = catalog.build(catalog.spec("method", "byol", hidden=16, out=8) | {}, encoder=encoder)
    chosen = {n for n, p in encoder.named_parameters() if p.requires_grad}
    before = {n: p.clone() for n, p in method.named_parameters()}
    optimizer = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], 1e-2)
    for at in range(2):
        optimizer.zero_grad()
        method(tiny.batch(2), Clock(at, 10))["loss"].backward()
        optimizer.step()
        method.after_step(Clock(at, 10))
    moved = {n for n, p in method.named_parameters() if not torch.equal(p, before[n])}
    assert {n.removeprefix("encoder.") for n in moved if n.startswith("encoder.")} == chosen
    assert {n for n, _ in method.named_parameters() if n.startswith(("projector.", "predictor."))} <= moved
    assert {n.removeprefix("teacher.0.") for n in moved if n.startswith("teacher.0.")} == chosen


@pytest.mark.parametrize(
    ("name", "how", "words"),
    [
        ("mlp", "norm", "this MLP has none"),
        ("cnn", "attention", "needs a transformer, and this CNN has no attention"),
        ("patch_bank", "lora", "this PatchBank has none"),
    ],
)
def test_an_encoder_without_such_layers_is_refused(name, how, words):
    with pytest.raises(UserError, match=words):
        adapt(build(name), how, 4)


def test_an_encoder_with_torchs_attention_can_still_train_its_norms():
    """Its projections are not linear layers, so attention and lora refuse it, and norm does not."""

    def made():
        encoder = torch.nn.Module()
        encoder.attention, encoder.norm = torch.nn.MultiheadAttention(4, 1), torch.nn.LayerNorm(4)
        return encoder

    encoder = made()
    adapt(encoder, "norm", 2)
    assert [name for name, p in encoder.named_parameters() if p.requires_grad] == ["norm.weight", "norm.bias"]
    for how in ("attention", "lora"):
        with pytest.raises(UserError, match="use adapt=norm or all"):
            adapt(made(), how, 2)
