"""Relaxed samples of P̂_{s²}, with a learned s² per layer: SQ-VAE and HQ-VAE."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn

from hqvae.config_class import config_class

from ..codebook import Codebook, flatten_positions, unflatten_positions
from ..kernels import LOG_S2_RANGE, assign, quantize, sample
from ..noise import Noise, Stream
from .base import Choice, Init, InitPlace, KMeansInit, Posterior, RandomInit
from .nearest_code import NearestCode, NearestCodeConfig

_ABOVE_FLOOR = 1e-3  # of s² − 1, where features ask a variance of 1 + exp θ to start lower


@config_class
class GumbelSoftmaxConfig:
    """Stochastic quantization, of SQ-VAE, SQ-VAE-2, RSQ-VAE and HQ-VAE."""

    stochastic: ClassVar[bool] = True
    kind: Literal["stochastic"] = "stochastic"
    init: Init = Field(default_factory=KMeansInit, discriminator="kind")
    """how codebooks and s² start"""
    variance: Literal["exp", "one_plus_exp"] = "exp"
    """s² = exp θ, or 1 + exp θ as in the official code; k-means then starts it above 1"""
    straight_through: bool = False
    """whether hard draws flow on, with the gradients of relaxed ones (Jang et al., 2017); ours"""
    beta: float | None = Field(default=None, ge=0)
    """commitment of nearest codes; null: 0.25 for one level of one or two layers, else 0.025"""

    @model_validator(mode="after")
    def _check_floor(self) -> "GumbelSoftmaxConfig":
        init = self.init
        floor = 1.0 if self.variance == "one_plus_exp" else 0.0
        if isinstance(init, RandomInit) and init.s2 <= floor:
            raise ValueError(f"variance=one_plus_exp keeps s² above 1, but init.s2={init.s2:g}")
        return self

    def make_codebook(self, dim: int, codebook_size: int) -> Codebook:
        return Codebook(dim, codebook_size)

    def make_posterior(self, dim: int, layers: int) -> "GumbelSoftmax":
        return GumbelSoftmax(dim, layers, self)

    def nearest(self, layers_per_level: Sequence[int]) -> NearestCodeConfig:
        """The quantizer of the nearest-code phase, in a model of such levels.

        With few layers nothing comes after that could code what they miss, so features commit as
        strongly as published. In deeper stacks that shrinks features onto a few codes.
        """
        few = len(layers_per_level) == 1 and layers_per_level[0] <= 2
        by_depth = 0.25 if few else 0.025
        return NearestCodeConfig(beta=by_depth if self.beta is None else self.beta, restart=True)


class GumbelSoftmax(Posterior):
    """Stochastic quantization with a learned variance s_l² of every layer:

        P̂_{s²}(z = b_k | z̃) ∝ exp(−‖z̃ − b_k‖² / 2s²)            (SQ-VAE, eq. 7; HQ-VAE, sec. 3)

    Training passes on the relaxed Gumbel-softmax sample Σ_k y_k b_k, with no straight-through and
    no stop-gradient. s² falls by itself as the decoder gets better (self-annealing).

    >>> codebook, posterior = Codebook(4, 16), GumbelSoftmax(dim=4, layers=1)
    >>> choice = posterior.relax(0, torch.randn(2, 4, 8), codebook, 0.5, Noise(3))
    >>> choice.z.shape, choice.codes.shape, choice.entropy.shape
    (torch.Size([2, 4, 8]), torch.Size([2, 8]), torch.Size([2]))
    """

    name = "gumbel_softmax"
    stochastic = True
    in_nats = True
    gradient_moves_codes = True

    def __init__(self, dim: int, layers: int, config: GumbelSoftmaxConfig = GumbelSoftmaxConfig()):
        super().__init__()
        self.config = config
        if isinstance(config.init, RandomInit):
            s2 = config.init.s2
        else:
            s2 = dim / config.init.sharpness  # of unit features and codes
        self.theta = nn.Parameter(torch.zeros(layers))
        self._set_variance(slice(None), torch.tensor(float(s2)))

    @property
    def log_s2(self) -> Float[Tensor, "L"]:
        if self.config.variance == "one_plus_exp":
            return nn.functional.softplus(self.theta)  # log(1 + exp θ)
        return self.theta

    @property
    def variance(self) -> Float[Tensor, "L"]:
        """s_l²; between e⁻³⁵ and e³⁵, where float32 still bears it."""
        return self.log_s2.clamp(-LOG_S2_RANGE, LOG_S2_RANGE).exp()

    @torch.no_grad()
    def _set_variance(self, layer: int | slice, s2: Tensor) -> None:
        one_plus = self.config.variance == "one_plus_exp"
        self.theta[layer] = (s2 - 1).clamp(min=_ABOVE_FLOOR).log() if one_plus else s2.log()

    def relax(
        self, layer: int, z_e: Tensor, codebook: Codebook, temperature: Tensor | float, noise: Noise
    ) -> Choice:
        rows, vectors, carried = self._charged(layer, z_e, codebook)
        log_s2 = self.log_s2[layer]
        first_row = _first_row(z_e, noise)
        z, entropy, codes = quantize(rows, vectors, log_s2, temperature, noise.seed, first_row)
        if self.config.straight_through:  # the same noise: the code that weighs most in z
            hard = vectors[sample(rows, vectors, log_s2, noise.seed, first_row)]
            z = z + (hard - z).detach()
        codes = codes.reshape(z_e.shape[0], *z_e.shape[2:])
        rate = self.rate(layer, codes)
        if self.prior is not None and carried is not None:
            mixed = _per_sample(z[:, -1].float() / carried, z_e)
            rate = self.prior.relaxed_rate(mixed)
        z = z[:, : codebook.dim].to(codebook.vectors.dtype)  # of a model that is cast as a whole
        return Choice(unflatten_positions(z, z_e), codes, _per_sample(entropy, z_e), rate=rate)

    @torch.no_grad()
    def nearest(
        self, layer: int, z_e: Tensor, codebook: Codebook, codes: Tensor | None = None
    ) -> Choice:
        rows, vectors, _ = self._charged(layer, z_e, codebook)
        found, entropy = assign(rows, vectors, self.log_s2[layer])
        if codes is None:
            codes = found.reshape(z_e.shape[0], *z_e.shape[2:])
        z = codebook.lookup(codes, check=False)
        rate = self.rate(layer, codes)
        return Choice(z, codes, _per_sample(entropy, z_e), rate=rate)

    @torch.no_grad()
    def sample(self, layer: int, z_e: Tensor, codebook: Codebook, noise: Noise) -> Choice:
        rows, vectors, _ = self._charged(layer, z_e, codebook)
        first_row = _first_row(z_e, noise)
        drawn = sample(rows, vectors, self.log_s2[layer], noise.seed, first_row)
        return self.nearest(layer, z_e, codebook, drawn.reshape(z_e.shape[0], *z_e.shape[2:]))

    def _charged(
        self, layer: int, z_e: Tensor, codebook: Codebook
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Rows and vectors whose P̂ in a kernel is that of the prior, and what carries its nats."""
        rows = flatten_positions(z_e)
        if self.prior is None or self.prior.weight == 0:
            return rows, codebook.vectors, None
        return self.prior.charge(layer, rows, codebook.vectors, self.variance[layer])

    def latent_loss(self, z_e: Tensor, choices: Sequence[Choice]) -> Float[Tensor, "B"]:
        """‖Z̃ − Σ_l Z_l‖² / (2 Σ_l s_l²), nats: one quadratic term for the stack (HQ-VAE, RSQ)."""
        error = z_e.float() - sum(choice.z.float() for choice in choices)
        return error.square().flatten(1).sum(1) / (2 * self.variance.sum())

    def perturb(self, z_e: Tensor, noise: Noise) -> Tensor:
        return z_e + self.variance.sum().sqrt() * noise.fold(Stream.GAUSSIAN).gaussian(z_e)

    def kl_continuous(self, z_e: Tensor, choices: Sequence[Choice]) -> Float[Tensor, "B"]:
        """The latent loss at a drawn Z̃, less the d|S|/2 that q's own noise accounts for."""
        return self.latent_loss(z_e, choices) - z_e[0].numel() / 2

    def limit(self, layers_per_level: Sequence[int]) -> NearestCode:
        """As the base says. A learned prior goes on; restarts would put back what it silences."""
        is_paid = self.prior is not None and self.prior.weight > 0
        config = replace(self.config.nearest(layers_per_level), restart=not is_paid)
        nearest = NearestCode(len(self.theta), config)
        if self.prior is not None:
            self.prior.s2.copy_(self.variance.detach().sum())
            nearest.prior = self.prior
        return nearest

    @torch.no_grad()
    def init(self, layer: int, z_e: Tensor, codebook: Codebook, place: InitPlace) -> None:
        if isinstance(self.config.init, RandomInit):
            return
        if not place.keep_vectors:
            codebook.init_kmeans(z_e, place.noise)
        rows = flatten_positions(z_e).float()
        vectors = codebook.vectors
        offset = rows.mean(0) - vectors.mean(0)
        spread = rows.var(0, correction=0) + vectors.var(0, correction=0) + offset.square()
        self._set_variance(layer, spread.sum() / (2 * self.config.init.sharpness))


def _first_row(z_e: Tensor, noise: Noise) -> int:
    """How many rows of the global batch come before these."""
    return noise.samples * math.prod(z_e.shape[2:])


def _per_sample(values: Float[Tensor, "N"], z_e: Tensor) -> Float[Tensor, "B"]:
    """Sums over the positions of each sample."""
    return values.reshape(len(z_e), math.prod(z_e.shape[2:])).sum(1)
