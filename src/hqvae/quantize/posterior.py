"""How the layers of a stack choose from their codebooks, and what that costs.

    GumbelSoftmax   relaxed samples of P̂_{s²}, a learned s² per layer          (SQ-VAE, HQ-VAE)
    NearestCode     the nearest code, straight-through gradient, commitment β   (VQ-VAE, RQ-VAE)

A phase of training replaces one by the other; the codebooks stay what they are.
"""

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as config
from torch import Tensor, nn

from .codebook import Codebook, flatten_positions, unflatten_positions
from .kernels import LOG_S2_RANGE, assign, quantize, sample
from .noise import Noise, Stream


class Choice(NamedTuple):
    """What one layer chose.

    Shape:
        z: [B, D, *S], what flows on
        codes: [B, *S] int64
        entropy: [B], H(P̂) summed over the positions, in nats; None where nobody asks for it
        cost: [B], what the quantizer adds to the objective by itself (external ones only)
    """

    z: Tensor
    codes: Tensor
    entropy: Tensor | None = None
    cost: Tensor | None = None


class Posterior(nn.Module):
    """The contract. `layer` counts the layers of the stack; only `init` changes state.

    Attributes:
        name: as weights on disk record it
        in_nats: whether the latent loss is in nats per signal; else in mean squared error
        gradient_moves_codes: whether codebooks learn by gradient; else by `Codebook.update`
        detach_residual: whether a layer takes the codes before it as constants
        supports_beam: whether codes can be searched through vectors of the codebooks
    """

    name: str
    in_nats: bool
    gradient_moves_codes: bool
    detach_residual = False
    supports_beam = True

    @property
    @abstractmethod
    def variance(self) -> Float[Tensor, "L"]:
        """s_l², with its gradient; zeros where the choice is deterministic."""

    @abstractmethod
    def relax(
        self, layer: int, z_e: Tensor, codebook: Codebook, temperature: Tensor | float, noise: Noise
    ) -> Choice:
        """What flows on in training."""

    @abstractmethod
    def nearest(
        self, layer: int, z_e: Tensor, codebook: Codebook, codes: Tensor | None = None
    ) -> Choice:
        """The nearest code, or the given one, and the entropy of P̂ there; without gradient."""

    @abstractmethod
    def sample(self, layer: int, z_e: Tensor, codebook: Codebook, noise: Noise) -> Choice:
        """A hard draw from P̂, and its entropy; without gradient."""

    @abstractmethod
    def latent_loss(self, z_e: Tensor, choices: Sequence[Choice]) -> Float[Tensor, "B"]:
        """What training pays for what the layers together miss of z_e."""

    def perturb(self, z_e: Tensor, noise: Noise) -> Tensor:
        """A draw of Z̃ from its Gaussian around z_e; z_e itself where there is none."""
        return z_e

    def kl_continuous(self, z_e: Tensor, choices: Sequence[Choice]) -> Float[Tensor, "B"]:
        """E log q(Z̃|x) − log p(Z̃|Z) of the evidence bound, in nats, at a drawn z_e.

        Zero for a deterministic choice: its latent costs its rate alone.
        """
        return z_e.new_zeros(len(z_e), dtype=torch.float32)

    @abstractmethod
    def init(self, layer: int, z_e: Tensor, codebook: Codebook, place: "InitPlace") -> None:
        """Give codebook (unless its vectors are kept) and s² their start; changes state."""

    def update(self, codebook: Codebook, rows: Tensor, codes: Tensor, noise: Noise) -> int:
        """Move a codebook of running averages; returns how many codes were restarted."""
        return 0


class InitPlace(NamedTuple):
    """Where `Posterior.init` stands.

    noise: the layer's stream
    keep_vectors: whether the codebook is shared and has had its start
    steps: of how many steps' batches the features are
    """

    noise: Noise
    keep_vectors: bool = False
    steps: int = 1


# -------------------------------------------------------------------------- initialisation


@config(frozen=True, config=ConfigDict(extra="forbid"))
class RandomInit:
    """Codes ~ N(0, I), as in the official single-layer code."""

    kind: Literal["random"] = "random"
    s2: float = Field(default=21.0, gt=0)
    """s² at the start, of stochastic quantizers"""


@config(frozen=True, config=ConfigDict(extra="forbid"))
class KMeansInit:
    """Codes are the k-means of the features, and s² = mean ‖z̃ − b‖² / (2 · sharpness).

    A code at the mean distance starts exp(−sharpness) times as likely as one on the spot, in any
    dimension. Too soft (4) learns slowly or lets the posterior become uniform. Too hard (600) is
    one-hot from the first step and collapses as a deterministic quantizer does.
    """

    kind: Literal["kmeans"] = "kmeans"
    sharpness: float = Field(default=16.0, gt=0)
    """how hard the posterior starts, of stochastic quantizers"""


Init = RandomInit | KMeansInit


# ------------------------------------------------------------------------------- stochastic


@config(frozen=True, config=ConfigDict(extra="forbid"))
class GumbelSoftmaxConfig:
    """Stochastic quantization, of SQ-VAE, SQ-VAE-2, RSQ-VAE and HQ-VAE."""

    kind: Literal["stochastic"] = "stochastic"
    init: Init = Field(default_factory=KMeansInit, discriminator="kind")
    """how codebooks and s² start"""
    variance: Literal["exp", "one_plus_exp"] = "exp"
    """s² = exp θ, or 1 + exp θ as in the official single-layer code"""
    beta: float | None = Field(default=None, ge=0)
    """commitment in the nearest-code phase; None: 0.25 for one or two layers in all, else 0.025"""

    def make_codebook(self, dim: int, codebook_size: int) -> Codebook:
        return Codebook(dim, codebook_size)

    def make_posterior(self, dim: int, layers: int) -> "GumbelSoftmax":
        return GumbelSoftmax(dim, layers, self)

    def nearest(self, all_layers: int) -> "NearestCodeConfig":
        """The quantizer of the nearest-code phase, in a model of so many layers in all.

        With few layers nothing comes after that could code what they miss, so features commit as
        strongly as published. In deeper stacks that shrinks features onto a few codes.
        """
        by_depth = 0.25 if all_layers <= 2 else 0.025
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
        self.theta[layer] = (s2 - 1).clamp(min=1e-6).log() if one_plus else s2.log()

    def relax(
        self, layer: int, z_e: Tensor, codebook: Codebook, temperature: Tensor | float, noise: Noise
    ) -> Choice:
        z, entropy, codes = quantize(
            flatten_positions(z_e),
            codebook.vectors,
            self.log_s2[layer],
            temperature,
            noise.seed,
            _first_row(z_e, noise),
        )
        z = z.to(codebook.vectors.dtype)  # of a model that is cast as a whole
        codes = codes.reshape(z_e.shape[0], *z_e.shape[2:])
        return Choice(unflatten_positions(z, z_e), codes, _per_sample(entropy, z_e))

    @torch.no_grad()
    def nearest(
        self, layer: int, z_e: Tensor, codebook: Codebook, codes: Tensor | None = None
    ) -> Choice:
        rows = flatten_positions(z_e)
        found, entropy = assign(rows, codebook.vectors, self.log_s2[layer])
        if codes is None:
            codes = found.reshape(z_e.shape[0], *z_e.shape[2:])
        return Choice(codebook.lookup(codes, check=False), codes, _per_sample(entropy, z_e))

    @torch.no_grad()
    def sample(self, layer: int, z_e: Tensor, codebook: Codebook, noise: Noise) -> Choice:
        rows, first_row = flatten_positions(z_e), _first_row(z_e, noise)
        drawn = sample(rows, codebook.vectors, self.log_s2[layer], noise.seed, first_row)
        return self.nearest(layer, z_e, codebook, drawn.reshape(z_e.shape[0], *z_e.shape[2:]))

    def latent_loss(self, z_e: Tensor, choices: Sequence[Choice]) -> Float[Tensor, "B"]:
        """‖Z̃ − Σ_l Z_l‖² / (2 Σ_l s_l²), nats: one quadratic term for the stack (HQ-VAE, RSQ)."""
        error = z_e.float() - sum(choice.z.float() for choice in choices)
        return error.square().flatten(1).sum(1) / (2 * self.variance.sum())

    def perturb(self, z_e: Tensor, noise: Noise) -> Tensor:
        return z_e + self.variance.sum().sqrt() * noise.fold(Stream.GAUSSIAN).gaussian(z_e)

    def kl_continuous(self, z_e: Tensor, choices: Sequence[Choice]) -> Float[Tensor, "B"]:
        """The latent loss at a drawn Z̃, less the d|S|/2 that q's own noise accounts for."""
        return self.latent_loss(z_e, choices) - z_e[0].numel() / 2

    @torch.no_grad()
    def init(self, layer: int, z_e: Tensor, codebook: Codebook, place: InitPlace) -> None:
        if isinstance(self.config.init, RandomInit):
            return
        if not place.keep_vectors:
            codebook.init_kmeans(z_e, place.noise)
        rows, vectors = flatten_positions(z_e).float(), codebook.vectors
        offset = rows.mean(0) - vectors.mean(0)
        spread = rows.var(0, correction=0) + vectors.var(0, correction=0) + offset.square()
        self._set_variance(layer, spread.sum() / (2 * self.config.init.sharpness))


# ---------------------------------------------------------------------------- deterministic


@config(frozen=True, config=ConfigDict(extra="forbid"))
class NearestCodeConfig:
    """Deterministic quantization with codebooks by moving averages: VQ-VAE, VQ-VAE-2, RQ-VAE."""

    kind: Literal["deterministic"] = "deterministic"
    beta: float = Field(default=0.25, ge=0)
    """weight of the commitment"""
    decay: float = Field(default=0.99, gt=0, lt=1)
    """γ of the moving averages"""
    restart: bool = False
    """whether unused codes are put back on features of the batch"""
    init: Init = Field(default_factory=RandomInit, discriminator="kind")
    """how codebooks start"""

    def make_codebook(self, dim: int, codebook_size: int) -> Codebook:
        return Codebook(dim, codebook_size)

    def make_posterior(self, dim: int, layers: int) -> "NearestCode":
        return NearestCode(layers, self)


class NearestCode(Posterior):
    """The nearest code with a straight-through gradient; codebooks move by `Codebook.update`.

    It is the limit s² → 0 of `GumbelSoftmax`. The latent loss is in mean squared error:

        β/L Σ_l mean ‖z̃ − sg[Σ_{l'≤l} z_l']‖²      (RQ-VAE, eq. 7; one layer: VQ-VAE, eq. 3)

    The mean over the layers is what the RQ-VAE authors' code trains. By the equation's plain sum
    deep stacks commit so hard that features of little variance follow their codes to a point.

    >>> codebook, posterior = Codebook(4, 16), NearestCode(layers=1)
    >>> choice = posterior.nearest(0, torch.randn(2, 4, 8), codebook)
    >>> torch.equal(choice.z, codebook.lookup(choice.codes))
    True
    """

    name = "nearest_code"
    in_nats = False
    gradient_moves_codes = False

    no_variance: Tensor

    def __init__(self, layers: int, config: NearestCodeConfig = NearestCodeConfig()):
        super().__init__()
        self.config = config
        self.register_buffer("no_variance", torch.zeros(layers), persistent=False)

    @property
    def variance(self) -> Float[Tensor, "L"]:
        """s² = 0: the choice is deterministic."""
        return self.no_variance

    def relax(
        self, layer: int, z_e: Tensor, codebook: Codebook, temperature: Tensor | float, noise: Noise
    ) -> Choice:
        choice = self.nearest(layer, z_e, codebook)
        return choice._replace(z=z_e + (choice.z - z_e).detach())

    @torch.no_grad()
    def nearest(
        self, layer: int, z_e: Tensor, codebook: Codebook, codes: Tensor | None = None
    ) -> Choice:
        codes = codebook.nearest(z_e) if codes is None else codes
        no_entropy = z_e.new_zeros(len(z_e), dtype=torch.float32)
        return Choice(codebook.lookup(codes, check=False), codes, no_entropy)

    def sample(self, layer: int, z_e: Tensor, codebook: Codebook, noise: Noise) -> Choice:
        """The nearest code: a posterior with all its mass on one code has one draw."""
        return self.nearest(layer, z_e, codebook)

    def latent_loss(self, z_e: Tensor, choices: Sequence[Choice]) -> Float[Tensor, "B"]:
        partial_sum = torch.zeros_like(z_e)
        total = z_e.new_zeros(len(z_e), dtype=torch.float32)
        for choice in choices:
            partial_sum = partial_sum + choice.z.detach()
            total = total + (z_e - partial_sum).float().square().flatten(1).mean(1)
        return self.config.beta * total / len(choices)

    @torch.no_grad()
    def init(self, layer: int, z_e: Tensor, codebook: Codebook, place: InitPlace) -> None:
        if isinstance(self.config.init, KMeansInit) and not place.keep_vectors:
            codebook.init_kmeans(z_e, place.noise)
            codebook.set_counts(codebook.nearest(z_e), place.steps)

    def update(self, codebook: Codebook, rows: Tensor, codes: Tensor, noise: Noise) -> int:
        return codebook.update(rows, codes, self.config.decay, self.config.restart, noise)


def _first_row(z_e: Tensor, noise: Noise) -> int:
    """How many rows of the global batch come before these."""
    return noise.samples * math.prod(z_e.shape[2:])


def _per_sample(values: Float[Tensor, "N"], z_e: Tensor) -> Float[Tensor, "B"]:
    """Sums over the positions of each sample."""
    return values.reshape(len(z_e), math.prod(z_e.shape[2:])).sum(1)
