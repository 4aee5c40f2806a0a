"""A learned prior's fit to every rate: how often codes are chosen there, of signals."""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from hqvae.quantize import RATE_WEIGHTS, LearnedPrior
from hqvae.topdown import NearestCodes, walk

from .hqvae import HQVAE

_ROUNDS = 3  # of choosing codes by a prior and fitting it to them


@torch.no_grad()
def fit_prior(model: HQVAE, x: Float[Tensor, "B C *S"], at_once: int = 32) -> None:
    """Fit a learned prior to each of RATE_WEIGHTS on these signals; changes state.

    Codes are chosen by the prior and the prior is fitted to them, in turns: each is to lower
    ‖z̃ − Σ_l z_l‖² − 2s² w log p (Chou, Lookabaugh and Gray, 1989). A weight begins with the prior
    of the one before it, from the model's own on. Training, which has no other weight, goes on as
    if nothing had been fitted. Nothing happens where the prior is uniform.

    Args:
        model: whose codebooks have had their start
        x: signals in [−1, 1]
        at_once: so many of them are encoded at a time

    Raises ValueError for no signals.

    >>> from hqvae.model import HQVAEConfig
    >>> model = HQVAE(HQVAEConfig(prior="learned"))
    >>> fit_prior(model, torch.rand(4, 3, 16, 16))
    """
    priors = learned_priors(model)
    if not priors:
        return
    if not len(x):
        raise ValueError("no signals; expected some to fit a prior to")
    training = model.training
    model.eval()  # networks of one's own may have batch norm or dropout
    features = [model.features(part) for part in x.split(at_once)]
    for weight, before in _in_turn(priors[0].weight):
        for prior in priors:
            prior.begin_fit(weight, before)
        for _ in range(_ROUNDS if weight not in (0.0, priors[0].weight) else 1):
            for prior, counts in zip(priors, _counts(model, features, weight)):
                prior.fit(weight, counts)
    model.train(training)


def learned_priors(model: HQVAE) -> list[LearnedPrior]:
    """Of every level, coarse first; none where they are uniform."""
    priors = [level.quantizer.posterior.prior for level in model.levels]
    return [prior for prior in priors if prior is not None]


def _in_turn(own: float) -> Iterator[tuple[float, float]]:
    """(weight, the one before it): from its own on, up and down."""
    for away in (
        [weight for weight in RATE_WEIGHTS if weight >= own],
        [weight for weight in reversed(RATE_WEIGHTS) if weight < own],
    ):
        yield from zip(away, [own, *away])


def _counts(model: HQVAE, features: list[tuple[Tensor, ...]], weight: float) -> list[Tensor]:
    """[L, K] of every level: how often each code is chosen."""
    priors = learned_priors(model)
    found = [torch.zeros_like(prior.counts) for prior in priors]
    for part in features:
        _, outputs = walk(model.levels, NearestCodes(part, weight))
        for prior, counts, output in zip(priors, found, outputs):
            counts += prior.count(output.quantized.codes)
    return found
