"""Networks of a user's own in place of ours: trained, saved, loaded, and refused where they err."""

import copy

import pytest
import torch
from torch import nn

from conftest import QUANTIZERS, signals
from hqvae import HQVAE, HQVAEConfig, LevelConfig
from hqvae.quantize import Noise

ONE = (LevelConfig(stride=4, layers=2, codebook_size=16, dim=6),)
TWO = (LevelConfig(8, 1, 16, 6), LevelConfig(4, 1, 8, 5))


def own_encoder(width: int = 10) -> nn.Sequential:
    """Stride 4, with batch norm; nothing of it is ours."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 4, stride=4), nn.BatchNorm2d(8), nn.SiLU(), nn.Conv2d(8, width, 1)
    )


def own_decoder(dim: int = 6, channels: int = 3) -> nn.Sequential:
    """From a latent at stride 4."""
    return nn.Sequential(
        nn.Conv2d(dim, 12, 3, padding=1),
        nn.SiLU(),
        nn.Upsample(scale_factor=4),
        nn.Conv2d(12, channels, 3, padding=1),
    )


class TwoFeatureMaps(nn.Module):
    """Strides 8 and 4, of 7 and 9 channels, coarse first."""

    def __init__(self):
        super().__init__()
        self.fine = nn.Conv2d(3, 9, 4, stride=4)
        self.coarse = nn.Conv2d(9, 7, 2, stride=2)

    def forward(self, x):
        fine = torch.tanh(self.fine(x))
        return self.coarse(fine), fine


OWN = {
    "one": (ONE, own_encoder, own_decoder),
    "two": (TWO, TwoFeatureMaps, lambda: own_decoder(dim=5)),
}


def build(name: str, **config) -> HQVAE:
    torch.manual_seed(0)
    levels, encoder, decoder = OWN[name]
    model = HQVAE(HQVAEConfig(levels=levels, **config), encoder=encoder(), decoder=decoder())
    model.init_scale(signals())
    model.init_codebooks(signals(), Noise(1))
    return model


def take_step(model: HQVAE) -> None:
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    out = model.train()(signals(), 0.7, Noise(2))
    out.loss.backward()
    optimizer.step()
    model.update_codebooks(out.z_e, out.codes, Noise(3))


@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize("quantizer", QUANTIZERS)
@pytest.mark.parametrize("injection", ["prediction", "concat"])
def test_a_step_trains_every_network(name, quantizer, injection):
    model = build(name, quantizer=QUANTIZERS[quantizer], injection=injection)
    before = copy.deepcopy(model.state_dict())
    take_step(model)
    for part in ("encoder", "decoder"):
        for key, parameter in getattr(model, part).named_parameters():
            assert not torch.equal(parameter, before[f"{part}.{key}"]), key


@pytest.mark.parametrize("name", OWN)
def test_codes_have_the_strides_of_the_levels_and_decode_to_signals(name):
    model, x = build(name).eval(), signals(size=24)
    codes = model.encode(x)
    for place, layer in zip(model.config.layers, codes, strict=True):
        assert layer.shape == (4, 24 // place.stride, 24 // place.stride)
    assert torch.equal(model.decode(codes), model(x).reconstruction)
    assert model.decode(codes, layers=1).shape == x.shape


@pytest.mark.parametrize("size", [(13, 16), (5, 5)])
def test_sizes_that_are_no_multiple_of_the_stride_are_padded_for_them_too(size):
    x = signals(size=32)[..., : size[0], : size[1]]
    assert build("two").eval()(x).reconstruction.shape == x.shape


@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize("nearest", [False, True])
def test_saved_and_loaded_with_the_same_networks_is_the_same(name, nearest, tmp_path):
    model = build(name)
    take_step(model)
    if nearest:
        model.use_nearest()
    model.eval().save_pretrained(tmp_path)
    _, encoder, decoder = OWN[name]
    loaded = HQVAE.from_pretrained(tmp_path, encoder=encoder(), decoder=decoder())
    assert loaded.config == model.config and not loaded.training
    assert torch.equal(loaded(signals()).reconstruction, model(signals()).reconstruction)


@pytest.mark.parametrize("forgotten", [("encoder", "decoder"), ("encoder",), ("decoder",)])
def test_forgotten_networks_are_asked_for(forgotten, tmp_path):
    build("one").save_pretrained(tmp_path)
    given = {"encoder": own_encoder(), "decoder": own_decoder()}
    with pytest.raises(ValueError) as error:
        HQVAE.from_pretrained(tmp_path, **{k: v for k, v in given.items() if k not in forgotten})
    sentence = str(error.value)
    assert "\n" not in sentence and "do not fit its config.json" in sentence
    assert any(f"{part}." in sentence for part in forgotten) or "describes at least" in sentence
    assert "networks of your own needs them again (encoder=…, decoder=…)" in sentence


def test_networks_of_another_width_are_named_with_both_shapes(tmp_path):
    build("one").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"size mismatch for encoder.*\[10.*\[11") as error:
        HQVAE.from_pretrained(tmp_path, encoder=own_encoder(11), decoder=own_decoder())
    assert "\n" not in str(error.value)


class Named(nn.Module):
    """Features in a dictionary, which is not the contract."""

    def __init__(self):
        super().__init__()
        self.net = own_encoder()

    def forward(self, x):
        return {"features": self.net(x)}


@pytest.mark.parametrize(
    ("levels", "encoder", "decoder", "message"),
    [
        (ONE, nn.Conv2d(3, 8, 2, stride=2), None, r"sizes \[\(2, 2\)\].*\[4\] expect \[\(1, 1\)\]"),
        (TWO, own_encoder(), None, r"sizes \[\(2, 2\)\].*\[8, 4\] expect \[\(1, 1\), \(2, 2\)\]"),
        (ONE, nn.Conv2d(1, 8, 4, stride=4), None, r"encoder cannot take .*\[1, 3, 4, 4\]"),
        (ONE, Named(), None, "encoder gives a dict; expected a tuple of tensors"),
        (ONE, None, own_decoder(dim=5), r"decoder cannot take .*\[1, 6, 1, 1\]"),
        # One channel would be spread over three without a word.
        (ONE, None, own_decoder(channels=1), r"decoder makes \[1, 1, 4, 4\].*\[1, 3, 4, 4\]"),
        (TWO, None, nn.Conv2d(5, 3, 1), r"decoder makes \[1, 3, 2, 2\].*\[1, 3, 8, 8\]"),
    ],
)
def test_networks_of_wrong_sizes_end_in_one_sentence(levels, encoder, decoder, message):
    with pytest.raises(ValueError, match=message) as error:
        HQVAE(HQVAEConfig(levels=levels), encoder=encoder, decoder=decoder)
    assert "\n" not in str(error.value)


def test_construction_changes_nothing_of_the_networks():
    """Neither weights nor the statistics of batch norm, nor the mode of any part, nor the draws."""
    encoder, decoder = own_encoder(), nn.Sequential(own_decoder(), nn.BatchNorm2d(3))
    encoder[1].eval()  # a norm that its owner holds fixed
    networks = nn.ModuleList([encoder, decoder])
    before = copy.deepcopy(networks.state_dict())
    modes = [module.training for module in networks.modules()]
    HQVAE(HQVAEConfig(levels=ONE), encoder=encoder, decoder=decoder)
    after = networks.state_dict()
    assert all(torch.equal(before[key], values) for key, values in after.items())
    assert [module.training for module in networks.modules()] == modes
    with pytest.raises(ValueError):
        HQVAE(HQVAEConfig(levels=TWO), encoder=encoder, decoder=decoder)
    assert [module.training for module in networks.modules()] == modes


def test_networks_are_looked_at_in_their_own_dtype():
    model = HQVAE(HQVAEConfig(levels=ONE), encoder=own_encoder().double())
    assert model.levels[0].project.weight.shape[1] == 10
