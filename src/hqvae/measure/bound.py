"""The evidence bound by true draws and by nearest codes, and the training objective, of a split."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from hqvae.data import SignalUnit
from hqvae.metrics import Mean
from hqvae.model import HQVAE, Losses
from hqvae.quantize import Noise
from hqvae.ranks import rank


class Bound:
    """The bound by true draws, the one by nearest codes, and the training objective."""

    def __init__(self, model: HQVAE, seed: int):
        self.model = model
        self.noise = Noise.of(seed, rank())
        self.seen = 0
        self.size = 0
        self.mse = Mean()
        self.train_mse = Mean()
        self.drawn_mse = Mean()
        self.latent = Mean()
        self.rate = Mean()
        self.latent_loss = Mean()
        self.entropy = Mean()
        self.spectral_mse = [Mean() for _ in model.config.spectral.weights]

    def add(self, x: Tensor, losses: Losses, features: Sequence[Tensor], error: Tensor) -> None:
        self.size = losses.size
        self.mse.add(error)
        self.train_mse.add(losses.distortion / losses.size)  # not clamped
        self.rate.add(losses.rate.sum(1))
        self.latent_loss.add(losses.latent_loss.sum(1))
        self.entropy.add(losses.entropy.sum(1))
        for mean, spectral in zip(self.spectral_mse, losses.spectral_mse.T):
            mean.add(spectral)
        drawn = self.model.elbo_sample(x, self.noise._replace(samples=self.seen), features)
        self.latent.add(drawn.latent)
        self.drawn_mse.add(drawn.distortion / losses.size)
        self.seen += len(x)

    def bits_per_dim(self, mse: float, nats: float, unit: SignalUnit) -> float:
        """[(D/2) log 2πeσ² + nats] per stored value, σ² with uniform dequantization."""
        sigma2 = mse + unit.step**2 / 12
        gaussian = self.size / 2 * math.log(2 * math.pi * math.e * sigma2)
        return (gaussian + nats) / (self.size * math.log(2)) + math.log2(unit.per_unit)

    def loss(self) -> float:
        """The objective with σ² of the whole split, without progressive reconstructions."""
        likelihood = self.model.objective.likelihood
        size = self.size
        total = 0.0
        weights = [1.0, *self.model.config.spectral.weights]
        for weight, mean in zip(weights, [self.train_mse, *self.spectral_mse]):
            mse = torch.tensor(mean.value()).clamp(min=torch.finfo(torch.float32).tiny)
            total += weight * float(likelihood.cost(mse.view(1) * size, size, mse))
        sigma2 = torch.tensor(self.train_mse.value()).clamp(min=torch.finfo(torch.float32).tiny)
        in_nats = self.model.levels[0].quantizer.posterior.in_nats
        commitment = 1.0 if in_nats else float(likelihood.commitment_weight(size, sigma2))
        paid = self.model.objective.paid(torch.tensor([[self.rate.value()]]), size, sigma2)
        return total + commitment * self.latent_loss.value() - self.entropy.value() + float(paid)
