"""Quantizers: useful inside `HQVAE`, and alone in anybody's network."""

from .adapter import ResidualVQ, VectorQuantize
from .codebook import Codebook, flatten_positions, unflatten_positions
from .external import ExternalConfig
from .kernels import LOG_S2_RANGE, beam_search
from .noise import Noise, Stream
from .posterior import (
    GumbelSoftmax,
    GumbelSoftmaxConfig,
    KMeansInit,
    NearestCode,
    NearestCodeConfig,
    Posterior,
    RandomInit,
)
from .prior import RATE_WEIGHTS, LearnedPrior, check_weight
from .quantized import Quantized, pool_layers
from .residual import QuantizerConfig, ResidualQuantizer

__all__ = [
    "LOG_S2_RANGE",
    "RATE_WEIGHTS",
    "Codebook",
    "ExternalConfig",
    "GumbelSoftmax",
    "GumbelSoftmaxConfig",
    "KMeansInit",
    "LearnedPrior",
    "NearestCode",
    "NearestCodeConfig",
    "Noise",
    "Posterior",
    "Quantized",
    "QuantizerConfig",
    "RandomInit",
    "ResidualQuantizer",
    "ResidualVQ",
    "Stream",
    "VectorQuantize",
    "beam_search",
    "check_weight",
    "flatten_positions",
    "pool_layers",
    "unflatten_positions",
]
