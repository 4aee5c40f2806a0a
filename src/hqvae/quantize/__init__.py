"""Quantizers: useful inside `HQVAE`, and alone in anybody's network."""

from .base import (
    AsTriple,
    DataStart,
    NormalStart,
    OwnStart,
    Quantized,
    Quantizer,
    Start,
    grid_of,
    rows_of,
)
from .ema import EMAConfig, EMAQuantizer, rows_and_codes
from .noise import Noise, Stream
from .kernels import LOG_S2_RANGE, beam_search
from .others import OtherConfig, OtherQuantizer
from .stochastic import StochasticConfig, StochasticQuantizer

AnyQuantizer = StochasticQuantizer | EMAQuantizer | OtherQuantizer
QUANTIZERS: dict[str, type] = {"stochastic": StochasticQuantizer, "ema": EMAQuantizer, "other": OtherQuantizer}

__all__ = [
    "LOG_S2_RANGE",
    "QUANTIZERS",
    "AnyQuantizer",
    "AsTriple",
    "DataStart",
    "EMAConfig",
    "EMAQuantizer",
    "Noise",
    "NormalStart",
    "OtherConfig",
    "OtherQuantizer",
    "OwnStart",
    "Quantized",
    "Quantizer",
    "Start",
    "StochasticConfig",
    "StochasticQuantizer",
    "Stream",
    "grid_of",
    "beam_search",
    "rows_and_codes",
    "rows_of",
]
