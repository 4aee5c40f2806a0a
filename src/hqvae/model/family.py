"""What a member of the family is: its levels, how they are quantized, with which networks."""

import math
from itertools import pairwise

from pydantic import ConfigDict, Field, field_validator, model_validator
from pydantic.dataclasses import dataclass as config

from hqvae.likelihood import SpectralConfig
from hqvae.nets import NetConfig
from hqvae.quantize import EMAConfig, OtherConfig, StochasticConfig


@config(frozen=True, config=ConfigDict(extra="forbid"))
class Level:
    """One resolution of the hierarchy: one injected layer and `layers` − 1 residual ones.

    Args:
        stride: signal samples per latent position, along every axis
        layers: number of quantization layers, ≥ 1
        codebook_size: K of each layer
        dim: width of a code
        shared: whether the layers share one codebook
    """

    stride: int = Field(default=4, ge=1)
    layers: int = Field(default=1, ge=1)
    codebook_size: int = Field(default=512, ge=2)
    dim: int = Field(default=64, ge=1)
    shared: bool = False


@config(frozen=True, config=ConfigDict(extra="forbid"))
class HQVAEConfig:
    """A member of the family: what is quantized (`levels`, coarse first), how (`quantizer`), and with which networks.

    `progressive` weighs a second reconstruction, from a random number of first layers, in the training objective; `spectral`
    adds costs of log spectra, for waveforms. `search` is the width of the beam in which `encode` and evaluation look for codes of a
    level's layers that are nearest together; with 1, in training, and with the quantizers of others each layer takes what is
    nearest to it.
    """

    levels: tuple[Level, ...] = Field(default=(Level(),), min_length=1)
    quantizer: StochasticConfig | EMAConfig | OtherConfig = Field(default=StochasticConfig(), discriminator="kind")
    net: NetConfig = NetConfig()
    channels: int = Field(default=3, ge=1)
    axes: int = Field(default=2, ge=1, le=2)
    progressive: float = Field(default=0.0, ge=0)
    spectral: SpectralConfig = SpectralConfig()
    search: int = Field(default=1, ge=1)

    @model_validator(mode="after")
    def _spectra_of_waves(self) -> "HQVAEConfig":
        if self.spectral.weight and (self.axes, self.channels) != (1, 1):
            raise ValueError(
                f"spectral.weight={self.spectral.weight:g} is for waveforms, with axes=1 and channels=1, "
                f"but axes={self.axes} and channels={self.channels}; expected weight=0"
            )
        return self

    @field_validator("levels")
    @classmethod
    def _nested(cls, levels: tuple[Level, ...]) -> tuple[Level, ...]:
        for coarse, fine in pairwise(levels):
            if coarse.stride <= fine.stride or coarse.stride % fine.stride:
                raise ValueError(f"strides go coarse to fine and each is a multiple of the next, but {fine.stride} follows {coarse.stride}")
        return levels

    @property
    def bits_per_point(self) -> float:
        """The rate: Σ_l log2 K_l / stride_l^axes, bits per pixel or sample point, before any entropy coding."""
        return sum(level.layers * math.log2(level.codebook_size) / level.stride**self.axes for level in self.levels)
