"""Networks between signals, features and latents."""

from .conv import Decoder, Encoder, TopDown
from .layers import ConvConfig, NetConfig, WaveConvConfig, conv
from .masks import CONVOLUTIONS, mask_padding, size_mask

__all__ = [
    "CONVOLUTIONS",
    "ConvConfig",
    "Decoder",
    "Encoder",
    "NetConfig",
    "TopDown",
    "WaveConvConfig",
    "conv",
    "mask_padding",
    "size_mask",
]
