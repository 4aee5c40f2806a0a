"""hqvae: hierarchical discrete representation learning that does not collapse."""

from importlib.metadata import version

from hqvae.model import HQVAE, Elbo, HQVAEConfig, Level
from hqvae.quantize import (
    AsTriple,
    DataStart,
    EMAConfig,
    EMAQuantizer,
    NormalStart,
    Quantized,
    StochasticConfig,
    StochasticQuantizer,
)

__version__ = version("hqvae")
__all__ = [
    "HQVAE", "AsTriple", "DataStart", "EMAConfig", "EMAQuantizer", "Elbo", "HQVAEConfig", "Level", "NormalStart", "Quantized",
    "StochasticConfig", "StochasticQuantizer",
]  # fmt: skip
