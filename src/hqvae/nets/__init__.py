"""Networks between signals, features and latents."""

from .conv import Decoder, Encoder, TopDown
from .layers import ConvConfig, MLPConfig, NetConfig, WaveConvConfig, conv
from .masks import CONVOLUTIONS, mask_padding, size_mask

__all__ = [
    "CONVOLUTIONS",
    "ConvConfig",
    "Decoder",
    "Encoder",
    "MLPConfig",
    "NetConfig",
    "TopDown",
    "WaveConvConfig",
    "conv",
    "mask_padding",
    "size_mask",
]
