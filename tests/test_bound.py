"""Facts about the evidence bound that is reported, and what deterministic codes pay."""

import itertools
import math

import pytest
import torch

from conftest import SMALL, build, signals
from hqvae.model import HQVAE, HQVAEConfig, LevelConfig
from hqvae.quantize import GumbelSoftmaxConfig, Noise, RandomInit

TOYS = {
    "one": (LevelConfig(4, 1, 3, 2),),
    "residual": (LevelConfig(4, 2, 3, 2),),
    "injected": (LevelConfig(8, 1, 3, 2), LevelConfig(4, 1, 2, 2)),
}
PAPER = GumbelSoftmaxConfig(init=RandomInit(s2=1.5), variance="one_plus_exp")
KINDS = {
    "ours": {},
    "paper": {"quantizer": PAPER, "injection": "concat"},
    "learned prior": {"prior": "learned", "rate_weight": 1.0},
}


def toy(levels: str, **config) -> HQVAE:
    torch.manual_seed(3)
    return HQVAE(HQVAEConfig(levels=TOYS[levels], net=SMALL, axes=1, channels=1, **config)).eval()


def teach(model: HQVAE, batch: torch.Tensor, steps: int = 30) -> None:
    """A few steps of training: until then the bound is loose, and says little."""
    model.init_scale(batch)
    model.init_codebooks(batch, Noise(1))
    optimizer = torch.optim.Adam(model.train().parameters(), 1e-2)
    for step in range(steps):
        optimizer.zero_grad()
        losses = model(batch, 0.5, Noise(step))
        losses.loss.backward()
        optimizer.step()
        model.update_codebooks(losses.z_e, losses.codes, Noise(step))
    model.eval()


def log_prior(model: HQVAE, choices: list) -> torch.Tensor:
    """log p(Z) of choices of codes, position by position."""
    priors = [level.quantizer.posterior.prior for level in model.levels]
    if priors[0] is None:
        return torch.tensor(-math.log(len(choices)))
    nats = [prior.nats(layer).detach() for prior in priors for layer in range(len(prior.counts))]
    pays = [[sum(own[k] for k in codes) for own, codes in zip(nats, choice)] for choice in choices]
    return -torch.tensor(pays).sum(1)


@pytest.mark.parametrize("levels", TOYS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_bound_is_above_the_exact_negative_log_likelihood(levels, kind):
    """All codes of a toy are summed; the mean of −ELBO over true draws is above, not absurdly."""
    model = toy(levels, **KINDS[kind])
    x = torch.linspace(-0.5, 0.5, 8).reshape(1, 1, 8)
    teach(model, torch.randn(16, 1, 8, generator=torch.Generator().manual_seed(0)))
    shapes = [codes.shape[1:] for codes in model.encode(x)]
    spaces = [
        list(itertools.product(range(place.codebook_size), repeat=shape.numel()))
        for place, shape in zip(model.config.layers, shapes)
    ]
    choices = list(itertools.product(*spaces))
    codes = [
        torch.tensor([choice[i] for choice in choices]).reshape(-1, *shape)
        for i, shape in enumerate(shapes)
    ]
    sigma2, size = 0.3, 8
    squares = (x - model.decode(codes)).square().sum((1, 2))
    log_p = -squares / (2 * sigma2) - size / 2 * math.log(2 * math.pi * sigma2)
    exact = -torch.logsumexp(log_p + log_prior(model, choices), 0)
    batch = x.expand(256, -1, -1)
    draws = torch.cat(
        [model.elbo_sample(batch, Noise(seed)).nats(sigma2, size) for seed in range(8)]
    )
    error = draws.std() / len(draws) ** 0.5
    assert draws.mean() > exact + 3 * error
    assert draws.mean() < exact + 8


@pytest.mark.parametrize("quantizer", ["ema", "stochastic"])
def test_the_bound_of_a_deterministic_model_is_its_rate_and_its_gaussian(quantizer):
    model, x = build(quantizer, "hybrid", beam_size=4).eval(), signals()
    model.use_nearest()
    sample = model.elbo_sample(x, Noise(1))
    rate = sum(
        codes[0].numel() * math.log(place.codebook_size)
        for place, codes in zip(model.config.layers, model.encode(x))
    )
    assert torch.allclose(sample.latent, torch.full((4,), rate))
    distortion = (x - model(x).reconstruction).square().flatten(1).sum(1)
    assert torch.allclose(sample.distortion, distortion)
