"""The family of models: its configuration, and `HQVAE`, which is any member of it."""

from hqvae.objective import ElboSample, Losses
from hqvae.tokens import LayerPlace

from .config import HQVAEConfig, LevelConfig
from .hqvae import HQVAE

__all__ = ["HQVAE", "ElboSample", "HQVAEConfig", "LayerPlace", "LevelConfig", "Losses"]
