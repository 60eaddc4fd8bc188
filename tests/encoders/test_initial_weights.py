"""Weights from a run or a local file: what fits, what is changed to fit, and what is refused."""

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.models import adapt_input_conv
from timm.models.vision_transformer import checkpoint_filter_fn

import tiny
from medssl import catalog
from medssl.encoders.config import EncoderConfig
from medssl.encoders.export import save_encoder
from medssl.encoders.initial_weights import Weights
from medssl.errors import UserError


def build(name="cnn", channels=1, size=(16, 16), seed=0, **options):
    torch.manual_seed(seed)
    return catalog.build(
        catalog.spec("encoder", name, **(tiny.SMALL.get(name, {}) | options)), channels=channels, size=size
    )


def saved(folder: Path, encoder) -> Path:
    """Write an encoder's tensors as a bare file, and return it."""
    net = getattr(encoder, "net", encoder)
    save_file({k: v.contiguous() for k, v in net.state_dict().items()}, folder / "bare.safetensors")
    return folder / "bare.safetensors"


def scans(encoder, channels=None, n=3) -> torch.Tensor:
    return torch.randn(n, channels or encoder.channels, *encoder.size, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("name", ["cnn", "vit", "mlp"])
@pytest.mark.parametrize("size", [(16, 16), (16, 16, 16)])
def test_an_encoder_becomes_the_one_in_the_file(tmp_path, name, size):
    old, new = build(name, size=size).eval(), build(name, size=size, seed=1).eval()
    x = scans(old)
    assert not torch.allclose(old(x), new(x))
    assert Weights.read(saved(tmp_path, old)).load_into(new, name) == []
    torch.testing.assert_close(new(x), old(x), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["cnn", "vit", "mlp", "resnet18"])
def test_weights_of_three_channels_on_a_grey_scan_equal_themselves_on_three_equal_channels(tmp_path, name):
    old, grey = build(name, channels=3, size=(32, 32)).eval(), build(name, size=(32, 32), seed=1).eval()
    (words,) = Weights.read(saved(tmp_path, old)).load_into(grey, name)
    assert words.endswith("summed over 3 input channels")
    x = scans(grey)
    torch.testing.assert_close(grey(x), old(x.expand(-1, 3, -1, -1)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["cnn", "vit"])
def test_weights_of_one_channel_are_shared_so_that_three_equal_channels_give_the_same(tmp_path, name):
    grey, colour = build(name).eval(), build(name, channels=3, seed=1).eval()
    (words,) = Weights.read(saved(tmp_path, grey)).load_into(colour, name)
    assert "shared among 3" in words
    x = scans(grey)
    torch.testing.assert_close(colour(x.expand(-1, 3, -1, -1)), grey(x), rtol=1e-5, atol=1e-5)


def test_a_vit_of_ours_takes_any_grid_since_its_positions_are_fixed(tmp_path):
    old, larger = build("vit"), build("vit", size=(24, 24), seed=1).eval()
    assert Weights.read(saved(tmp_path, old)).load_into(larger, "vit") == []
    assert torch.equal(larger.blocks[0].qkv.weight, old.blocks[0].qkv.weight)
    assert larger(scans(larger)).isfinite().all()


def test_a_timm_file_with_its_classifier_three_channels_and_another_grid(tmp_path):
    """As timm itself loads it: the same image in both gives the same features, up to the interpolation of positions."""
    torch.manual_seed(2)
    whole = timm.create_model("vit_tiny_patch16_224", num_classes=5).eval()
    save_file(whole.state_dict(), tmp_path / "model.safetensors")
    same = build("timm", size=(224, 224), channels=3, model="vit_tiny_patch16_224").eval()
    weights = Weights.read(tmp_path / "model.safetensors")
    assert weights.load_into(same, "vit") == []
    x = scans(same, n=2)
    torch.testing.assert_close(same(x), whole.forward_head(whole.forward_features(x), pre_logits=True))
    small = build("timm", size=(64, 48), model="vit_tiny_patch16_224").eval()
    words = weights.load_into(small, "vit")
    assert words == [
        "patch_embed.proj.weight: summed over 3 input channels",
        "pos_embed: 14x14 positions interpolated to 4x3",
    ]
    by_timm = timm.create_model("vit_tiny_patch16_224", img_size=(64, 48), in_chans=1, num_classes=0)
    state = checkpoint_filter_fn(whole.state_dict(), by_timm)
    state["patch_embed.proj.weight"] = adapt_input_conv(1, state["patch_embed.proj.weight"])
    by_timm.load_state_dict({k: v for k, v in state.items() if not k.startswith("head.")})
    torch.testing.assert_close(dict(small.net.state_dict()), dict(by_timm.state_dict()))


@pytest.mark.parametrize(
    ("there", "here", "words"),
    [
        ([8, 16], [8, 24], r"layers\.1\.0\.weight is \(24, 8, 3, 3\) in the encoder and \(16, 8, 3, 3\)"),
        ([8, 16], [8, 16, 16], r"layers\.2\.0\.weight is \(16, 16, 3, 3\) in the encoder and missing"),
        ([8, 16, 16], [8, 16], r"layers\.2\.0\.weight is missing in the encoder and \(16"),
    ],
)
def test_another_architecture_is_refused_with_its_first_key_and_how_many_match(tmp_path, there, here, words):
    encoder = build(widths=here)
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    weights = Weights.read(saved(tmp_path, build(seed=1, widths=there)))
    all_keys = set(before) | set(weights.tensors)
    matching = sum(
        k in before and k in weights.tensors and before[k].shape == weights.tensors[k].shape for k in all_keys
    )
    with pytest.raises(UserError, match=f"{words}.*; {matching} of {len(all_keys)} tensors match") as refused:
        weights.load_into(encoder, "cnn")
    assert "\n" not in str(refused.value)
    assert 0 < matching < len(all_keys)
    assert all(torch.equal(v, before[k]) for k, v in encoder.state_dict().items())


def test_two_channels_from_three_have_no_standard_way(tmp_path):
    with pytest.raises(UserError, match=r"layers\.0\.0\.weight is \(8, 2, 3, 3\) in the encoder and \(8, 3, 3, 3\)"):
        Weights.read(saved(tmp_path, build(channels=3))).load_into(build(channels=2), "cnn")


def test_values_that_are_not_finite_are_refused(tmp_path):
    encoder = build(seed=1)
    with torch.no_grad():
        encoder.layers[1][0].weight[0, 0, 0, 0] = torch.nan
    with pytest.raises(UserError, match=r"layers\.1\.0\.weight has values that are not finite"):
        Weights.read(saved(tmp_path, encoder)).load_into(build(), "cnn")


def test_an_encoder_that_is_not_trained_by_gradient_is_refused(tmp_path):
    bank = build("patch_bank")
    with pytest.raises(UserError, match="encoder=patch_bank has no weights trained by gradient"):
        Weights.read(saved(tmp_path, bank)).load_into(bank, "patch_bank")


def test_files_that_cannot_be_used_are_refused_in_one_line(tmp_path):
    torch.save(build().state_dict(), tmp_path / "model.pth")
    (tmp_path / "other.safetensors").write_bytes(b"not numbers")
    (tmp_path / "empty").mkdir()
    save_encoder(tmp_path / "unlisted", build(), EncoderConfig())
    save_encoder(tmp_path / "tuned", build(), EncoderConfig(fine_tuned={"store": "x"}))
    for path, words in {
        "model.pth": "is a pickled file, which may hold code; convert it",
        "other.safetensors": "is not a safetensors file",
        "empty": "is not a finished run: it has no encoder.safetensors",
        "nowhere": "does not exist; give a run's folder or a safetensors file",
        "unlisted": "has no pretrained_on.parquet, the list of its patients",
        "unlisted/encoder.safetensors": "has no pretrained_on.parquet, the list of its patients",
        "tuned": "was fine-tuned on labels",
    }.items():
        with pytest.raises(UserError, match=words) as refused:
            Weights.read(tmp_path / path)
        assert "\n" not in str(refused.value), path


def test_a_bare_file_is_described_by_its_digest_and_name(tmp_path):
    weights = Weights.read(saved(tmp_path, build()))
    again = load_file(tmp_path / "bare.safetensors")
    save_file(again, tmp_path / "copy.safetensors")
    assert weights.described() == {"weights": weights.digest, "file": "bare.safetensors"}
    assert Weights.read(tmp_path / "copy.safetensors").digest == weights.digest
    save_file({k: v + 1 for k, v in again.items()}, tmp_path / "copy.safetensors")
    assert Weights.read(tmp_path / "copy.safetensors").digest != weights.digest
