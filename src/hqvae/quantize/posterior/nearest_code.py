"""The nearest code, with a straight-through gradient: VQ-VAE, VQ-VAE-2, RQ-VAE."""

from collections.abc import Sequence
from itertools import accumulate
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from hqvae.config_class import config_class

from ..codebook import Codebook
from ..noise import Noise
from .base import Choice, Init, InitPlace, KMeansInit, Posterior, RandomInit


@config_class
class NearestCodeConfig:
    """Deterministic quantization with codebooks by moving averages: VQ-VAE, VQ-VAE-2, RQ-VAE."""

    stochastic: ClassVar[bool] = False
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
    stochastic = False
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
        z = z_e + (choice.z - z_e).detach()
        return choice._replace(z=z, rate=self.rate(layer, choice.codes))

    @torch.no_grad()
    def nearest(
        self, layer: int, z_e: Tensor, codebook: Codebook, codes: Tensor | None = None
    ) -> Choice:
        codes = codebook.nearest(z_e, self.prices()[layer]) if codes is None else codes
        no_entropy = z_e.new_zeros(len(z_e), dtype=torch.float32)
        z = codebook.lookup(codes, check=False)
        return Choice(z, codes, no_entropy, rate=self.rate(layer, codes))

    def sample(self, layer: int, z_e: Tensor, codebook: Codebook, noise: Noise) -> Choice:
        """The nearest code: a posterior with all its mass on one code has one draw."""
        return self.nearest(layer, z_e, codebook)

    def latent_loss(self, z_e: Tensor, choices: Sequence[Choice]) -> Float[Tensor, "B"]:
        total = z_e.new_zeros(len(z_e), dtype=torch.float32)
        for partial_sum in accumulate(choice.z.detach() for choice in choices):
            total = total + (z_e - partial_sum).float().square().flatten(1).mean(1)
        return self.config.beta * total / len(choices)

    @torch.no_grad()
    def init(self, layer: int, z_e: Tensor, codebook: Codebook, place: InitPlace) -> None:
        if isinstance(self.config.init, KMeansInit) and not place.keep_vectors:
            codebook.init_kmeans(z_e, place.noise)
            codebook.set_counts(codebook.nearest(z_e), place.steps)

    def update(self, codebook: Codebook, rows: Tensor, codes: Tensor, noise: Noise) -> int:
        return codebook.update(rows, codes, self.config.decay, self.config.restart, noise)
