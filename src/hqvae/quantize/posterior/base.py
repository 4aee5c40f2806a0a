"""What every posterior can do, and how codebooks and s² start."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from hqvae.config_class import config_class

from ..codebook import Codebook
from ..noise import Noise
from ..prior import LearnedPrior


class Choice(NamedTuple):
    """What one layer chose.

    Shape:
        z: [B, D, *S], what flows on
        codes: [B, *S] int64
        entropy: [B], H(P̂) summed over the positions, in nats; None where nobody asks for it
        cost: [B], what the quantizer adds to the objective by itself (external ones only)
        rate: [B], −log p(Z) summed over the positions, in nats; None where the prior is uniform
    """

    z: Tensor
    codes: Tensor
    entropy: Tensor | None = None
    cost: Tensor | None = None
    rate: Tensor | None = None


class InitPlace(NamedTuple):
    """Where `Posterior.init` stands.

    noise: the layer's stream
    keep_vectors: whether the codebook is shared and has had its start
    steps: of how many steps' batches the features are
    """

    noise: Noise
    keep_vectors: bool = False
    steps: int = 1


class Posterior(nn.Module):
    """The contract. `layer` counts the layers of the stack; only `init` changes state.

    Attributes:
        prior: p(Z) where it is learned; None where it is uniform
        name: as weights on disk record it
        stochastic: whether codes have a distribution to draw from; else they are certain
        in_nats: whether the latent loss is in nats per signal; else in mean squared error
        gradient_moves_codes: whether codebooks learn by gradient; else by `Codebook.update`
        detach_residual: whether a layer takes the codes before it as constants
        supports_beam: whether codes can be searched through vectors of the codebooks
    """

    name: str
    stochastic: bool
    in_nats: bool
    gradient_moves_codes: bool
    detach_residual = False
    supports_beam = True

    def __init__(self) -> None:
        super().__init__()
        self.prior: LearnedPrior | None = None

    def prices(self, weight: float | None = None) -> Sequence[Tensor | None]:
        """What codes pay when they are encoded, [K] of every layer; None where nothing is paid.

        It is 2s² w (−log p_k), with s² that of the level: its layers share one quadratic term.
        `weight` is in place of the prior's own w. Raises ValueError for one below 0 or not finite,
        and for any where the prior is uniform.
        """
        prior = self.prior
        if prior is None:
            if weight is not None:
                raise ValueError("the prior is uniform, so all codes have as many bits; no weight")
            return [None] * len(self.variance)
        return prior.prices(self.variance.sum() if self.stochastic else prior.s2, weight)

    def rate(self, layer: int, codes: Tensor) -> Float[Tensor, "B"] | None:
        """−log p of codes, nats of each sample; None where the prior is uniform."""
        return None if self.prior is None else self.prior.rate(layer, codes)

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
    def init(self, layer: int, z_e: Tensor, codebook: Codebook, place: InitPlace) -> None:
        """Give codebook (unless its vectors are kept) and s² their start; changes state."""

    def limit(self, layers_per_level: Sequence[int]) -> "Posterior | None":
        """The posterior for s² → 0, in a model of such levels; None where codes are certain."""
        return None

    def update(self, codebook: Codebook, rows: Tensor, codes: Tensor, noise: Noise) -> int:
        """Move a codebook of running averages; returns how many codes were restarted."""
        return 0


# -------------------------------------------------------------------------- initialisation


@config_class
class RandomInit:
    """Codes ~ N(0, I), as in the official single-layer code."""

    kind: Literal["random"] = "random"
    s2: float = Field(default=21.0, gt=0)
    """s² at the start, of stochastic quantizers"""


@config_class
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
