"""How the layers of a stack choose from their codebooks, and what that costs.

    GumbelSoftmax   relaxed samples of P̂_{s²}, a learned s² per layer          (SQ-VAE, HQ-VAE)
    NearestCode     the nearest code, straight-through gradient, commitment β   (VQ-VAE, RQ-VAE)

A phase of training replaces one by the other; the codebooks stay what they are.
"""

from .base import Choice, Init, InitPlace, KMeansInit, Posterior, RandomInit
from .gumbel_softmax import GumbelSoftmax, GumbelSoftmaxConfig
from .nearest_code import NearestCode, NearestCodeConfig

__all__ = [
    "Choice",
    "GumbelSoftmax",
    "GumbelSoftmaxConfig",
    "Init",
    "InitPlace",
    "KMeansInit",
    "NearestCode",
    "NearestCodeConfig",
    "Posterior",
    "RandomInit",
]
