"""Facts about a model's folder: what is refused, in one sentence, and what is never lost."""

import json

import pytest
import torch
from torch import nn

from conftest import SMALL, build, signals
from hqvae.model import HQVAE, HQVAEConfig, LevelConfig
from hqvae.presets import preset
from hqvae.quantize import GumbelSoftmaxConfig, KMeansInit, Noise, RandomInit, ResidualQuantizer
from hqvae.run import Run


def test_a_model_does_not_overwrite_a_run(tmp_path):
    run = Run.create(tmp_path / "run", preset("sqvae"))
    before = (run.path / "config.json").read_text()
    with pytest.raises(ValueError, match="is a run's folder; expected another one"):
        build("ema", "one").save_pretrained(run.path)
    assert (run.path / "config.json").read_text() == before


def test_names_that_are_not_ascii_are_saved(tmp_path):
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.größe = nn.Conv2d(3, 8, 4, 4)

        def forward(self, x):
            return self.größe(x)

    config = HQVAEConfig(levels=(LevelConfig(stride=4, dim=8),), net=SMALL)
    HQVAE(config, encoder=Own()).save_pretrained(tmp_path)
    assert HQVAE.from_pretrained(tmp_path, encoder=Own()).config == config


def test_a_model_is_saved_again_into_its_own_folder(tmp_path):
    model, x = build("ema", "one").eval(), signals()
    for _ in range(2):
        model.save_pretrained(tmp_path)
    assert torch.equal(HQVAE.from_pretrained(tmp_path)(x).codes[0], model(x).codes[0])


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({}, "of an unknown version"),
        ({"model": {"search": 8}, "versions": {"hqvae": "0.1.0"}}, "0.1.0"),
    ],
)
def test_a_config_of_another_version_is_refused_in_one_sentence(config, said, tmp_path):
    build("ema", "one").save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=rf"written by hqvae {said}$") as error:
        HQVAE.from_pretrained(tmp_path)
    assert "\n" not in str(error.value)


def test_a_variance_above_one_cannot_start_below():
    with pytest.raises(ValueError, match=r"one_plus_exp keeps s² above 1, but init\.s2=0\.5"):
        HQVAEConfig(quantizer=GumbelSoftmaxConfig(variance="one_plus_exp", init=RandomInit(s2=0.5)))


def test_where_features_ask_for_less_it_starts_just_above():
    """And goes on learning: θ is not at minus infinity."""
    config = GumbelSoftmaxConfig(variance="one_plus_exp", init=KMeansInit())
    quantizer = ResidualQuantizer(4, 8, config=config)
    quantizer.init(0.1 * torch.randn(64, 4), Noise(1))
    theta = quantizer.posterior.theta
    torch.testing.assert_close(quantizer.posterior.variance, torch.tensor([1.001]))
    quantizer(0.1 * torch.randn(64, 4), 1.0, Noise(2)).latent_loss.sum().backward()
    assert theta.grad.abs() > 1e-6
