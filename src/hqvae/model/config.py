"""What a member of the family is: its levels, how they are quantized, with which networks."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

from pydantic import Field, field_validator, model_validator

from hqvae.config_class import config_class
from hqvae.likelihood import SpectralConfig
from hqvae.nets import ConvConfig, MLPConfig, WaveConvConfig
from hqvae.quantize import ExternalConfig, GumbelSoftmaxConfig, NearestCodeConfig
from hqvae.tokens import LayerPlace, Layout

_MOST_POINTS = 2**22  # of the signal, for one code; a look at so many takes a second


@config_class
class LevelConfig:
    """One resolution of the hierarchy: an injected layer and `layers` − 1 residual ones."""

    stride: int = Field(default=4, ge=1, le=2**16)
    """signal samples per latent position, along every axis"""
    layers: int = Field(default=1, ge=1, le=1024)
    """number of quantization layers"""
    codebook_size: int = Field(default=512, ge=2, le=2**24)
    """K of each layer"""
    dim: int = Field(default=64, ge=1, le=2**16)
    """width D of a code"""
    shared_codebook: bool = False
    """whether the layers hold one codebook"""


@config_class
class HQVAEConfig:
    """A member of the family: what is quantized, how, and with which networks."""

    kind: Literal["hqvae"] = "hqvae"
    levels: tuple[LevelConfig, ...] = Field(default=(LevelConfig(),), min_length=1, max_length=16)
    """resolutions, coarse first"""
    quantizer: GumbelSoftmaxConfig | NearestCodeConfig | ExternalConfig = Field(
        default=GumbelSoftmaxConfig(), discriminator="kind"
    )
    """how codes are chosen"""
    likelihood: Literal["gaussian", "mse"] = "gaussian"
    """unit of the objective: nats with a fitted variance, or the mean squared error of papers"""
    prior: Literal["uniform", "learned"] = "uniform"
    """p(Z): uniform as in the papers, or learned, one log-probability per code and layer (ours)"""
    rate_weight: float = Field(default=0.0, ge=0, le=1e6)
    """of a learned prior's −log p, which codes pay where they are chosen; 1 is the bound"""
    injection: Literal["prediction", "concat"] = "prediction"
    """how a level sees those above: less a learned prediction (ours), or concatenated"""
    net: ConvConfig | WaveConvConfig | MLPConfig = Field(default=ConvConfig(), discriminator="kind")
    """encoder, decoder and top-down networks"""
    channels: int = Field(default=3, ge=0, le=2**16)
    """of the signal; 0: as many as the arrays have that it is trained on"""
    axes: int = Field(default=2, ge=0, le=2)
    """of the signal's space: 2 for images and spectra, 1 for waveforms and series, 0 for vectors"""
    progressive: float = Field(default=0.0, ge=0)
    """weight of reconstructions from the first layers only"""
    prefixes: Literal["random", "all"] = "random"
    """which of them: a random number of layers at each step (ours), or the sum over all"""
    spectral: SpectralConfig = SpectralConfig()
    """log spectra in the objective, for waveforms"""
    beam_size: int = Field(default=1, ge=1, le=1024)
    """partial sums kept when `encode` looks for a level's codes together; 1: layer by layer"""

    @field_validator("levels")
    @classmethod
    def _check_nested(cls, levels: tuple[LevelConfig, ...]) -> tuple[LevelConfig, ...]:
        for coarse, fine in pairwise(levels):
            if coarse.stride <= fine.stride or coarse.stride % fine.stride:
                raise ValueError(
                    "strides go coarse to fine and each is a multiple of the next, "
                    f"but {fine.stride} follows {coarse.stride}"
                )
        return levels

    @model_validator(mode="after")
    def _check_together(self) -> "HQVAEConfig":
        if self.levels[0].stride ** self.axes > _MOST_POINTS:
            raise ValueError(
                f"levels.0.stride={self.levels[0].stride} along {self.axes} axes makes one code of "
                f"more than {_MOST_POINTS:,} points; expected less"
            )
        if not self.axes and [level.stride for level in self.levels] != [1]:
            raise ValueError(
                f"axes=0 is for vectors, which have one position: levels of stride "
                f"{[level.stride for level in self.levels]}; expected one level of stride 1"
            )
        if self.spectral.weight and (self.axes, self.channels) != (1, 1):
            raise ValueError(
                f"spectral.weight={self.spectral.weight:g} is for waveforms, with axes=1 and "
                f"channels=1, but axes={self.axes} and channels={self.channels}; expected weight=0"
            )
        self._check_prior()
        if self.likelihood == "mse" and isinstance(self.quantizer, GumbelSoftmaxConfig):
            raise ValueError(
                "likelihood=mse has no unit for a stochastic quantizer, whose latent loss is in "
                "nats; expected likelihood=gaussian, or quantizer.kind=deterministic"
            )
        return self

    def _check_prior(self) -> None:
        if self.prior == "uniform":
            if self.rate_weight:
                raise ValueError(
                    f"rate_weight={self.rate_weight:g} is of a learned prior, and prior=uniform; "
                    "expected prior=learned"
                )
            return
        if isinstance(self.quantizer, ExternalConfig):
            raise ValueError(
                f"prior=learned is for codes that are chosen by distance, and those of "
                f"quantizer.name={self.quantizer.name} are not; expected prior=uniform"
            )
        restart = isinstance(self.quantizer, NearestCodeConfig) and self.quantizer.restart
        if restart and self.rate_weight:
            raise ValueError(
                "prior=learned lets codes fall silent that cost more than they give, and "
                "quantizer.restart=true puts them back at every step; expected restart=false, or "
                "rate_weight=0"
            )

    @property
    def layers(self) -> tuple[LayerPlace, ...]:
        """All layers, coarse to fine, as `encode` gives their codes."""
        return tuple(
            LayerPlace(r, layer, level.stride, level.codebook_size)
            for r, level in enumerate(self.levels)
            for layer in range(level.layers)
        )

    @property
    def needs_sigma2(self) -> bool:
        """Whether gradients depend on σ², which is that of the global batch."""
        return self.likelihood == "gaussian" or self.pays_for_bits

    @property
    def pays_for_bits(self) -> bool:
        """Whether codes are chosen by what they cost too; few of them are then no collapse."""
        return self.prior == "learned" and self.rate_weight > 0

    @property
    def layout(self) -> Layout:
        """Where codes stand, for whoever reads them without a model."""
        return Layout(self.layers, self.axes)

    @property
    def bits_per_point(self) -> float:
        """The rate Σ_l log2 K_l / stride_l^axes, in bits per pixel, before entropy coding."""
        bits = (math.log2(layer.codebook_size) / layer.stride**self.axes for layer in self.layers)
        return sum(bits)

    def positions(self, space: Sequence[int]) -> tuple[int, ...]:
        """|S| of every layer: how many codes it has for a signal of such a size.

        >>> HQVAEConfig(levels=(LevelConfig(stride=8), LevelConfig(stride=4))).positions((32, 30))
        (16, 64)
        """
        return self.layout.positions(self.layout.coarsest(space))
