"""The hand-over pair: what goes in comes out bit for bit, timm and MONAI read it, and nothing else gets in."""

import json
from dataclasses import replace

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from medssl.encoders.cnn import CNN
from medssl.encoders.config import EncoderConfig
from medssl.encoders.export import CLASSES, digest_of, load_decoder, load_encoder, save_encoder
from medssl.encoders.mlp import MLP
from medssl.encoders.monai3d import ResNet3d
from medssl.encoders.patch_bank import PatchBank
from medssl.encoders.patch_pyramid import PatchPyramid
from medssl.encoders.resenc import ResEnc
from medssl.encoders.small_resnet import SmallResNet
from medssl.encoders.timm2d import TimmEncoder
from medssl.encoders.unet_decoder import UNetDecoder
from medssl.encoders.vit import ViT
from medssl.errors import UserError

MADE = [
    lambda: TimmEncoder(2, (32, 40), "resnet18"),
    lambda: TimmEncoder(2, (32, 48), "vit_tiny_patch16_224"),
    lambda: ResNet3d(2, (16, 16, 16), "resnet10"),
    lambda: ViT(2, (16, 24), patch=[4, 8], dim=24, depth=1),
    lambda: ViT(2, (8, 8, 8), dim=24, depth=1),
    lambda: CNN(2, (16, 16), widths=(8, 16), norm="group"),
    lambda: CNN(2, (8, 8, 8), widths=(8, 16)),
    lambda: SmallResNet(2, (16, 16), widths=(4, 6), blocks=2),
    lambda: SmallResNet(2, (8, 8, 8), widths=(4, 6)),
    lambda: ResEnc(2, (16, 16), features=(4, 8), blocks=(1, 1)),
    lambda: ResEnc(2, (8, 8, 8), features=(4, 8), blocks=(1, 1)),
    lambda: MLP(2, (8, 8), widths=(12, 6), activation="tanh"),
    lambda: PatchBank(2, (12, 12), patch=4, centroids=7, pool=2, contrast=0.1),
    lambda: PatchPyramid(2, (12, 12), patches=(3, 5), centroids=7, pool=2, contrast=0.1),
]


def moved(make):
    """An encoder whose every buffer and weight differs from a fresh one's."""
    torch.manual_seed(5)
    encoder = make()
    with torch.no_grad():
        for t in encoder.state_dict().values():
            t.add_(0.01 * torch.rand_like(t) if t.is_floating_point() else 3)
    return encoder


@pytest.mark.parametrize("make", MADE)
def test_round_trip_is_bit_identical(make, tmp_path):
    encoder = moved(make)
    x = torch.randn(2, 2, *encoder.size)
    config = EncoderConfig(mean=0.1, std=0.2, modality="DX", spacing=None, method="simclr")
    save_encoder(tmp_path / "run", encoder, config)
    for path in (tmp_path / "run", tmp_path / "run" / "encoder.json", tmp_path / "run" / "encoder.safetensors"):
        again, read = load_encoder(path)
        assert type(again) is type(encoder)
        assert not any(m.training for m in again.modules())
        assert torch.equal(again(x), encoder.eval()(x))
    architecture = {k: getattr(read, k) for k in ("name", "options", "channels", "size", "dim", "weights")}
    assert read == replace(config, **architecture)
    assert (read.channels, read.size, read.dim) == (2, tuple(encoder.size), encoder.dim)
    assert json.loads((tmp_path / "run" / "encoder.json").read_text())["format"] == 2
    assert not list((tmp_path / "run").glob(".*"))


def test_every_class_is_covered():
    assert {type(make()).__name__ for make in MADE} == set(CLASSES)


@pytest.mark.parametrize(
    ("model", "more"), [("resnet18", {}), ("vit_tiny_patch16_224", {"img_size": (32, 48)}), ("efficientnet_b0", {})]
)
def test_timm_loads_the_file(model, more, tmp_path):
    encoder = moved(lambda: TimmEncoder(1, (32, 48), model)).eval()
    save_encoder(tmp_path, encoder, EncoderConfig())
    net = timm.create_model(
        model, in_chans=1, num_classes=0, checkpoint_path=str(tmp_path / "encoder.safetensors"), **more
    )
    x = torch.randn(2, 1, 32, 48)
    assert torch.equal(net.eval()(x), encoder(x))


@pytest.mark.parametrize("side", [16, 40])
def test_monai_loads_the_file(side, tmp_path):
    resnet = pytest.importorskip("monai.networks.nets.resnet")
    encoder = moved(lambda: ResNet3d(1, (side,) * 3, "resnet10")).eval()
    save_encoder(tmp_path, encoder, EncoderConfig())
    net = resnet.resnet10(
        spatial_dims=3, n_input_channels=1, feed_forward=False, conv1_t_stride=encoder.net.conv1.stride
    )
    net.load_state_dict(load_file(tmp_path / "encoder.safetensors"))
    x = torch.randn(1, 1, side, side, side)
    torch.testing.assert_close(net.eval()(x), encoder(x))


def test_loading_never_fetches_weights_and_keeps_the_options_in_the_config(tmp_path):
    encoder = TimmEncoder(1, (32, 32))
    encoder.options["pretrained"] = True
    save_encoder(tmp_path, encoder, EncoderConfig())
    again, config = load_encoder(tmp_path)  # would be a UserError or a download if it did
    assert again.options == config.options == {"model": "resnet18", "pretrained": True}


def test_a_second_save_replaces_the_first(tmp_path):
    for seed in (1, 2):
        torch.manual_seed(seed)
        encoder = MLP(1, (4, 4), widths=(3,))
        save_encoder(tmp_path, encoder, EncoderConfig(step=seed))
    again, config = load_encoder(tmp_path)
    assert torch.equal(again.state_dict()["layers.0.1.weight"], encoder.state_dict()["layers.0.1.weight"])
    assert config.step == 2


def edit(folder, **changes):
    card = json.loads((folder / "encoder.json").read_text()) | changes
    (folder / "encoder.json").write_text(json.dumps({k: v for k, v in card.items() if v is not None}))


def rewrite(folder, change):
    """Other weights, with a digest that fits them."""
    file = folder / "encoder.safetensors"
    save_file(change(load_file(file)), file)
    edit(folder, weights=digest_of(file))


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (lambda f: (f / "encoder.json").unlink(), "is missing"),
        (lambda f: (f / "encoder.safetensors").unlink(), "is missing"),
        (lambda f: (f / "encoder.json").write_text("{"), "cannot read"),
        (lambda f: (f / "encoder.json").write_text("[]"), "format None"),
        (lambda f: edit(f, format=1), "format 1"),
        (lambda f: edit(f, dim=None), "lacks dim"),
        (lambda f: edit(f, dim=4), "has 3"),
        (lambda f: edit(f, name="MLB"), "'MLP'"),
        (lambda f: edit(f, name="os.system"), "unknown encoder"),
        (lambda f: edit(f, options={"widths": [3], "depth": 2}), "cannot be built"),
        (lambda f: edit(f, options={"widths": [3], "activation": "x"}), "activation"),
        (lambda f: edit(f, size=[4, 5]), "does not fit"),
        (lambda f: edit(f, size=4), "list of pixels"),
        (lambda f: rewrite(f, lambda t: {k: v for k, v in t.items() if "bias" not in k}), "does not fit"),
        (lambda f: rewrite(f, lambda t: t | {"more": torch.zeros(1)}), "does not fit"),
        (lambda f: (f / "encoder.safetensors").write_bytes(b"\x80\x04K\x01."), "damaged"),
    ],
)
def test_a_pair_that_is_not_right_is_a_user_error(harm, says, tmp_path):
    save_encoder(tmp_path, MLP(1, (4, 4), widths=(3,)), EncoderConfig())
    harm(tmp_path)
    with pytest.raises(UserError) as e:
        load_encoder(tmp_path)
    assert says in str(e.value)


def test_a_pickle_is_refused_even_with_the_right_digest(tmp_path):
    save_encoder(tmp_path, MLP(1, (4, 4), widths=(3,)), EncoderConfig())
    file = tmp_path / "encoder.safetensors"
    torch.save({"layers.0.1.weight": torch.zeros(3, 16), "layers.0.1.bias": torch.zeros(3)}, file)
    edit(tmp_path, weights=digest_of(file))
    with pytest.raises(UserError, match="not a safetensors file"):
        load_encoder(tmp_path)


def with_decoder(folder, classes=5, seed=0):
    """Save a small encoder with a decoder; return the decoder."""
    torch.manual_seed(seed)
    decoder = UNetDecoder([4, 8], 1, 2, classes, 4)
    save_encoder(folder, CNN(1, (48, 48), widths=(4, 8)), EncoderConfig(), decoder)
    return decoder


def test_a_decoder_comes_back_bit_for_bit_with_a_new_last_layer(tmp_path):
    decoder = with_decoder(tmp_path)
    config = load_encoder(tmp_path)[1]
    assert {k: config.decoder[k] for k in ("stages", "image", "dims", "width")} == decoder.options
    again = load_decoder(tmp_path, config, classes=3)
    kept, found = decoder.state_dict(), again.state_dict()
    assert all(torch.equal(found[k], v) for k, v in kept.items() if not k.startswith("head."))
    assert len(found) == len(kept)
    assert found["head.weight"].shape == (3, 4, 1, 1)
    assert not any(k.startswith("head.") for k in load_file(tmp_path / "decoder.safetensors"))
    assert again(torch.zeros(1, 1, 8, 8), [torch.zeros(1, 4, 4, 4), torch.zeros(1, 8, 2, 2)]).shape == (1, 3, 8, 8)


def test_an_encoder_saved_without_a_decoder_says_so(tmp_path):
    with_decoder(tmp_path)
    encoder, config = load_encoder(tmp_path)
    save_encoder(tmp_path / "tuned", encoder, config)
    config = load_encoder(tmp_path / "tuned")[1]
    assert config.decoder is None
    assert "decoder" not in json.loads((tmp_path / "tuned" / "encoder.json").read_text())
    with pytest.raises(UserError, match="has no decoder; pretrain with a method that trains one"):
        load_decoder(tmp_path / "tuned", config, 3)


def described(folder, **changes):
    card = json.loads((folder / "encoder.json").read_text())["decoder"]
    edit(folder, decoder=card | changes)


def another(folder):
    """Return the weights of another decoder."""
    with_decoder(folder / "other", seed=1)
    return folder / "other" / "decoder.safetensors"


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (lambda f: (f / "decoder.safetensors").unlink(), "decoder.safetensors is missing"),
        (lambda f: (f / "decoder.safetensors").write_bytes(b"\x80\x04K\x01."), "damaged"),
        (lambda f: edit(f, decoder=[4, 8]), "must describe a decoder"),
        (lambda f: described(f, width=8), "does not fit encoder.json"),
        (lambda f: described(f, stages=[]), "does not fit encoder.json"),
        (lambda f: described(f, stages="os.system"), "does not fit encoder.json"),
        (lambda f: described(f, classes=3), "does not fit encoder.json"),
        (lambda f: another(f).replace(f / "decoder.safetensors"), "belongs to another"),
    ],
)  # fmt: skip
def test_a_decoder_that_is_not_right_is_a_user_error(harm, says, tmp_path):
    with_decoder(tmp_path)
    harm(tmp_path)
    with pytest.raises(UserError) as e:
        load_decoder(tmp_path, load_encoder(tmp_path)[1], 3)
    assert says in str(e.value)
    assert "\n" not in str(e.value)
