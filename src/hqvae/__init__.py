"""hqvae: hierarchical discrete representation learning, watched layer by layer."""

from importlib.metadata import version

from hqvae.model import HQVAE, HQVAEConfig, LevelConfig, Losses
from hqvae.nets import ConvConfig, WaveConvConfig
from hqvae.quantize import (
    Codebook,
    ExternalConfig,
    GumbelSoftmax,
    GumbelSoftmaxConfig,
    KMeansInit,
    NearestCode,
    NearestCodeConfig,
    Quantized,
    RandomInit,
    ResidualQuantizer,
    ResidualVQ,
    VectorQuantize,
)
from hqvae.tokenizer import Tokenizer

__version__ = version("hqvae")
__all__ = [
    "HQVAE",
    "Codebook",
    "ConvConfig",
    "ExternalConfig",
    "GumbelSoftmax",
    "GumbelSoftmaxConfig",
    "HQVAEConfig",
    "KMeansInit",
    "LevelConfig",
    "Losses",
    "NearestCode",
    "NearestCodeConfig",
    "Quantized",
    "RandomInit",
    "ResidualQuantizer",
    "ResidualVQ",
    "Tokenizer",
    "VectorQuantize",
    "WaveConvConfig",
    "preset",
]


def preset(name: str):  # type: ignore[no-untyped-def]
    """The whole config of a preset: model, data, phases and training.

    Raises InputError for a name that is none, with the nearest.

    >>> preset("rsqvae").train.beta2
    0.95
    """
    from hqvae.presets import preset as by_name  # late: data and plots need not be imported

    return by_name(name)
