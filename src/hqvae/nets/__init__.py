"""Networks between signals, features and latents."""

from .conv import Decoder, Encoder, TopDown
from .layers import ConvConfig, NetConfig, WaveConvConfig, conv
from .masks import CONVOLUTIONS, length_mask, mask_padding

__all__ = [
    "CONVOLUTIONS",
    "ConvConfig",
    "Decoder",
    "Encoder",
    "NetConfig",
    "TopDown",
    "WaveConvConfig",
    "conv",
    "length_mask",
    "mask_padding",
]
