"""Presets: each makes a model and a config that go together; the papers' are as in the papers."""

import math
from dataclasses import replace

import pytest
import torch

import hqvae
from hqvae.config import Config, PhaseConfig, check_together
from hqvae.errors import InputError
from hqvae.model import HQVAE
from hqvae.model.presets import MODELS
from hqvae.overrides import from_dict, to_dict
from hqvae.presets import PRESETS, preset
from hqvae.quantize import GumbelSoftmaxConfig, KMeansInit, NearestCodeConfig, Noise, RandomInit
from hqvae.topdown import ConcatLevel
from hqvae.train.state import make_schedule

STOCHASTIC_PAPER = ["sqvae-paper", "sqvae2-paper", "rsqvae-paper", "hqvae-paper"]
VQ_PAPER = ["vqvae-paper", "vqvae2-paper"]
PAPER = [*STOCHASTIC_PAPER, *VQ_PAPER, "rqvae-paper"]
TWO_LEVELS = ["sqvae2-paper", "hqvae-paper", "vqvae2-paper"]


# ----------------------------------------------------------------------------------- by name


def test_every_model_has_data_phases_and_training():
    assert PRESETS.keys() == MODELS.keys()
    assert all(config.model == MODELS[name] for name, config in PRESETS.items())


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_makes_a_config_and_a_model(name):
    config = hqvae.preset(name)
    assert isinstance(config, Config) and config == preset(name) == PRESETS[name]
    check_together(config)
    assert from_dict(to_dict(config)) == config
    data = config.data
    data.modality.check_model(data, config.model.channels, config.model.axes)
    channels = config.model.channels or 6  # of arrays it is the data's
    model = HQVAE.from_preset(name, channels=channels)
    assert model.config == replace(config.model, channels=channels)
    assert sum(len(level.quantizer.codebooks) for level in model.levels) == len(config.model.layers)


@pytest.mark.parametrize("name", ["rsqvae", "hqvae", "rqvae-paper"])
def test_changes_are_to_fields_of_the_model(name):
    model = HQVAE.from_preset(name, channels=1, beam_size=3)
    assert model.config.channels == 1 and model.config.beam_size == 3
    assert model.config.levels == MODELS[name].levels
    codes = model.eval().encode(torch.zeros(1, 1, 16, 16))
    assert model.decode(codes).shape == (1, 1, 16, 16)


@pytest.mark.parametrize("make", [hqvae.preset, preset, HQVAE.from_preset])
@pytest.mark.parametrize(
    ("name", "words"),
    [("sqvea", "did you mean 'sqvae'"), ("rsqvae-papper", "did you mean 'rsqvae-paper'")],
)
def test_a_wrong_name_gives_the_nearest(make, name, words):
    with pytest.raises(InputError, match=f"preset '{name}' does not exist; {words}"):
        make(name)


def test_a_field_that_does_not_exist_is_named_with_the_nearest():
    with pytest.raises(InputError, match="no field 'chanels'; did you mean 'channels'"):
        HQVAE.from_preset("sqvae", chanels=1)


@pytest.mark.parametrize("name", ["rsqvae-audio", "rqvae-audio", "hqvae-audio"])
def test_the_default_codecs_have_the_rate_they_name(name):
    """8 kbit/s at 16 kHz."""
    config = preset(name)
    assert config.model.bits_per_point * config.data.rate == 8000


# --------------------------------------------------------------------------- as in the papers


@pytest.mark.parametrize("name", STOCHASTIC_PAPER)
def test_codes_are_standard_normal_and_s2_starts_at_21(name):
    """s² = 1 + exp θ, as the official single-layer code has it."""
    config = preset(name).model
    assert config.quantizer == GumbelSoftmaxConfig(
        init=RandomInit(s2=21.0), variance="one_plus_exp"
    )
    torch.manual_seed(0)
    model = HQVAE(config)
    x = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    vectors = [codebook.vectors for level in model.levels for codebook in level.quantizer.codebooks]
    before = [v.clone() for v in vectors]
    model.init_scale(x)
    model.init_codebooks(x, Noise(1))
    for now, then in zip(vectors, before):
        assert torch.equal(now, then)  # a random start looks at no data
        assert abs(float(now.detach().mean())) < 0.05
        assert abs(float(now.detach().std()) - 1) < 0.05
    for level in model.levels:
        posterior = level.quantizer.posterior
        torch.testing.assert_close(posterior.variance, torch.full_like(posterior.variance, 21.0))
        torch.testing.assert_close(1 + posterior.theta.exp(), posterior.variance)


@pytest.mark.parametrize("name", STOCHASTIC_PAPER)
@pytest.mark.parametrize("step", [0, 1, 1000, 150_000])
@pytest.mark.parametrize("total", [1000, 150_000])
def test_the_temperature_falls_by_the_step_whatever_the_length_of_the_run(name, step, total):
    temperature = preset(name).phases.temperature.at(step, total)
    assert temperature == pytest.approx(math.exp(-1e-5 * step))


@pytest.mark.parametrize(
    ("name", "betas"),
    [*((name, (0.9, 0.999)) for name in STOCHASTIC_PAPER), (PAPER[-1], (0.5, 0.9))],
)
def test_adam_has_the_papers_betas(name, betas):
    train = preset(name).train
    assert (train.beta1, train.beta2) == betas


@pytest.mark.parametrize("name", STOCHASTIC_PAPER)
def test_the_rate_is_halved_after_the_fourth_validation_without_improvement(name):
    """One validation for each pass over the data."""
    train = preset(name).train
    assert train.schedule == "plateau" and train.validate_epochs == 1 and train.warmup == 0
    assert train.validation_interval(320) == 320 // train.batch_size
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], train.lr)
    schedule = make_schedule(optimizer, train, 1000)
    rates = []
    for loss in (-5.0, -6.0, -6.0, -5.0, -6.0, -5.9, -6.0):  # -6 is the best, then five worse
        schedule.step(loss)
        rates.append(optimizer.param_groups[0]["lr"] / train.lr)
    assert rates == [1, 1, 1, 1, 1, 0.5, 0.5]


@pytest.mark.parametrize("name", PAPER)
def test_nothing_of_ours_is_used(name):
    """No pretraining, no nearest-code phase, no k-means, no beam, no random prefix."""
    config = preset(name)
    assert config.phases.pretrain_fraction == 0 and config.phases.nearest_fraction == 0
    assert config.phases.lr_log_s2 == 1
    assert config.phases.quantize_from(1000) == 0 and config.phases.nearest_from(1000) == 1000
    assert not isinstance(config.model.quantizer.init, KMeansInit)
    assert config.model.beam_size == 1
    assert config.model.progressive == 0
    assert config.train.clip is None and config.train.weight_ema is None


@pytest.mark.parametrize("name", TWO_LEVELS)
def test_two_levels_are_injected_by_concatenation(name):
    assert preset(name).model.injection == "concat"
    model = HQVAE.from_preset(name)
    assert isinstance(model.levels[1], ConcatLevel)


@pytest.mark.parametrize("name", TWO_LEVELS)
def test_progressive_coding_by_the_sum_over_all_prefixes_is_a_variant(name):
    model = HQVAE.from_preset(name, progressive=1.0, prefixes="all").train()
    out = model(torch.rand(2, 3, 16, 16))
    assert out.sigma2.shape == (len(model.config.layers), 1)


def test_rqvae_trains_in_mean_squared_errors_with_restarts_and_one_codebook():
    model = preset("rqvae-paper").model
    assert model.likelihood == "mse"
    assert model.quantizer == NearestCodeConfig(beta=0.25, decay=0.99, restart=True)
    assert model.levels[0].shared_codebook


@pytest.mark.parametrize("name", STOCHASTIC_PAPER)
def test_stochastic_papers_fit_the_variance_of_the_decoder(name):
    assert preset(name).model.likelihood == "gaussian"


@pytest.mark.parametrize("name", PAPER)
def test_a_paper_preset_has_the_levels_of_ours(name):
    ours = preset(name.removesuffix("-paper")).model.levels
    shared = name == "rqvae-paper"
    assert preset(name).model.levels == tuple(
        replace(level, shared_codebook=shared) for level in ours
    )


@pytest.mark.parametrize(("name", "lr"), zip(VQ_PAPER, (2e-4, 3e-4)))
def test_vqvae_papers_train_in_mean_squared_errors_without_restarts(name, lr):
    config = preset(name)
    assert config.model.likelihood == "mse"
    assert config.model.quantizer == NearestCodeConfig(beta=0.25, decay=0.99, restart=False)
    train = config.train
    assert (train.lr, train.batch_size, train.schedule) == (lr, 128, "constant")


@pytest.mark.parametrize(
    ("name", "stochastic"), [("vqvae", "sqvae"), ("vqvae2", "sqvae2"), ("rqvae", "rsqvae")]
)
def test_deterministic_presets_for_images_start_as_the_stochastic_ones(name, stochastic):
    config = preset(name)
    assert config.model.quantizer.init == KMeansInit() and config.model.quantizer.restart
    assert config.phases == PhaseConfig(pretrain_fraction=0.1)
    assert config.model.levels == preset(stochastic).model.levels
