"""The stochastic quantizer of SQ-VAE and HQ-VAE: codes drawn from a posterior whose width s² is learned.

    P̂_{s²}(z = b_k | z̃) ∝ exp(−‖z̃ − b_k‖² / 2s²)                                             (SQ-VAE, eq. 7; HQ-VAE, sec. 3)

Training passes on the relaxed Gumbel-softmax sample, with no straight-through and no stop-gradient; evaluation passes on the
nearest code. s² is one learned scalar per layer and falls by itself as the decoder gets better (self-annealing).
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as config
from torch import Tensor, nn

from .base import DataStart, NormalStart, OwnStart, Quantized, Quantizer, Start, grid_of, rows_of
from .ema import EMAConfig, EMAQuantizer
from .noise import Noise
from .kernels import LOG_S2_RANGE, assign, quantize, sample


@config(frozen=True, config=ConfigDict(extra="forbid"))
class StochasticConfig:
    """`start` fills codebook and s² before the first step that quantizes; `beta` weighs the commitment once the posterior is hard."""

    kind: Literal["stochastic"] = "stochastic"
    beta: float = Field(default=0.025, ge=0)  # in a stack the published 0.25 has features shrink onto a few codes (docs/levers.md)
    start: Start = Field(default_factory=DataStart, discriminator="kind")

    @property
    def limit(self) -> EMAConfig:
        """The deterministic system that s² → 0 leads to.

        Codes of a mixture are not the means of what is nearest to them, which in a stack leaves the next layer other residuals: without
        k-means from where they are, and without restart, many of them would lose all their features at once.
        """
        return EMAConfig(beta=self.beta, restart=True, start=OwnStart())


class StochasticQuantizer(Quantizer):
    """Stochastic quantization with codebook B (parameter [K, D]) and variance s² = exp(`log_s2`).

    Args:
        dim: width D of a code
        codebook_size: K ≥ 2
        config: how codebook and s² start, and the commitment in the limit

    Shape:
        z_e [B, D, *S] → z [B, D, *S], codes [B, *S], entropy [B] in nats, variance []
    """

    def __init__(self, dim: int, codebook_size: int, config: StochasticConfig = StochasticConfig()):
        super().__init__(dim, codebook_size)
        self.config = config
        self.codebook = nn.Parameter(torch.randn(codebook_size, dim))
        s2 = config.start.s2 if isinstance(config.start, NormalStart) else dim / config.start.sharpness  # of unit features and codes
        self.log_s2 = nn.Parameter(torch.tensor(float(s2)).log())

    @property
    def variance(self) -> Tensor:
        """s², a scalar that carries gradient; between e⁻³⁵ and e³⁵, where float32 still bears it."""
        return self.log_s2.clamp(-LOG_S2_RANGE, LOG_S2_RANGE).exp()

    def sibling(self) -> "StochasticQuantizer":
        """A quantizer for another layer over the same codebook, with an s² of its own."""
        other = StochasticQuantizer(self.dim, self.codebook_size, self.config)
        other.codebook = self.codebook
        return other

    def forward(self, z_e: Float[Tensor, "B D *S"], temperature: Tensor | float = 1.0, noise: Noise | None = None) -> Quantized:
        """Quantize; `noise` (drawn from torch's generator when not given) matters in training mode only."""
        self._check(z_e)
        rows, variance = rows_of(z_e), self.variance
        if not self.training:
            codes, entropy = assign(rows, self.codebook, self.log_s2)
            codes = codes.reshape(z_e.shape[0], *z_e.shape[2:])
            return Quantized(self.embed(codes), codes, entropy.reshape(len(z_e), math.prod(z_e.shape[2:])).sum(1), variance)
        seed, first_row = self._place(z_e, noise or Noise.draw())
        z, entropy, codes = quantize(rows, self.codebook, self.log_s2, temperature, seed, first_row)
        codes = codes.reshape(z_e.shape[0], *z_e.shape[2:])
        if torch.finfo(self.codebook.dtype).bits < 32:  # a model that is cast as a whole, and goes on in that; autocast casts by itself
            z = z.to(self.codebook.dtype)
        return Quantized(grid_of(z, z_e), codes, entropy.reshape(len(z_e), math.prod(z_e.shape[2:])).sum(1), variance)

    def draw(self, z_e: Float[Tensor, "B D *S"], noise: Noise) -> Quantized:
        """A hard draw of every position from P̂, and the entropy of P̂ there: the evidence bound's expectation is over these."""
        self._check(z_e)
        rows, (seed, first_row) = rows_of(z_e), self._place(z_e, noise)
        codes = sample(rows, self.codebook, self.log_s2, seed, first_row).reshape(z_e.shape[0], *z_e.shape[2:])
        entropy = assign(rows, self.codebook, self.log_s2)[1].reshape(len(z_e), math.prod(z_e.shape[2:])).sum(1)
        return Quantized(self.embed(codes), codes, entropy, self.variance)

    def fit(self, target: Float[Tensor, "B D *S"], layers: Sequence[Quantized]) -> Float[Tensor, "B"]:
        """‖Z̃ − Σ_l Z_l‖² / (2 Σ_l s_l²), nats: one quadratic term for all the layers of a level  (HQ-VAE, RSQ objective)."""
        missed = target.float() - sum(layer.z.float() for layer in layers)
        return missed.square().flatten(1).sum(1) / (2 * sum(layer.variance for layer in layers))

    def surplus(self, target: Float[Tensor, "B D *S"], layers: Sequence[Quantized]) -> Float[Tensor, "B"]:
        """E log q(Z̃|x) − log p(Z̃|Z), nats: the fit at a drawn Z̃, less the d|S|/2 that q's own noise accounts for."""
        return self.fit(target, layers) - target[0].numel() / 2

    def start_from(self, z_e: Float[Tensor, "B D *S"], noise: Noise, keep_codes: bool = False, steps: int = 1) -> None:
        """With a `DataStart`: codes (unless kept) and s² from this batch; with a `NormalStart`, nothing."""
        if isinstance(self.config.start, DataStart):
            with torch.no_grad():
                if not keep_codes:
                    self.codebook.copy_(self._data_codes(z_e, self.config.start, noise)[0])
                rows, codes = rows_of(z_e).float(), self.codebook
                spread = rows.var(0, correction=0) + codes.var(0, correction=0) + (rows.mean(0) - codes.mean(0)).square()
                self.log_s2.copy_((spread.sum() / (2 * self.config.start.sharpness)).log())

    def hardened(self, count: float = 1.0) -> EMAQuantizer:
        """The limit s² → 0: the same codebook with the nearest code for certain, every code as if chosen `count` times a step."""
        limit = EMAQuantizer(self.dim, self.codebook_size, self.config.limit).to(self.codebook).train(self.training)
        with torch.no_grad():
            limit.codebook.copy_(self.codebook)
            limit.counts.fill_(count)
            limit.sums.copy_(self.codebook * count)
        return limit

    @staticmethod
    def _place(z_e: Tensor, noise: Noise) -> tuple[Tensor | int, int]:
        return noise.seed, noise.samples * math.prod(z_e.shape[2:])
