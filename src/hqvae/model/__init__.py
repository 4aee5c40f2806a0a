"""The family of models: its configuration, and `HQVAE`, which is any member of it."""

from hqvae.objective import Bound, Elbo

from .family import HQVAEConfig, Level
from .hqvae import HQVAE

__all__ = ["HQVAE", "Bound", "Elbo", "HQVAEConfig", "Level"]
