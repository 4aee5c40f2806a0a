"""The family of models: its configuration, and `HQVAE`, which is any member of it."""

from hqvae.objective import ElboSample, Losses
from hqvae.tokens import LayerPlace

from .config import HQVAEConfig, LevelConfig
from .hqvae import HQVAE
from .prior_fit import fit_prior, learned_priors

__all__ = [
    "HQVAE",
    "ElboSample",
    "HQVAEConfig",
    "LayerPlace",
    "LevelConfig",
    "Losses",
    "fit_prior",
    "learned_priors",
]
