"""What a batch costs: the objective's terms, from reconstructions and a walk's outputs."""

import math
from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from hqvae.likelihood import LIKELIHOODS, fitted_variance
from hqvae.objective import Losses
from hqvae.quantize import Noise, Quantized, Stream
from hqvae.topdown import Level, LevelOutput

from .config import HQVAEConfig


class Objective:
    """J of HQ-VAE (`hqvae.objective` has the formula), and of the deterministic systems.

    It knows levels and reconstructions, no network.

    >>> objective = Objective(HQVAEConfig())
    >>> x = torch.zeros(2, 3, 8, 8)
    >>> objective.distortions(x, objective.spectra(x), x + 0.1).shape  # of the signal alone
    torch.Size([1, 2])
    """

    def __init__(self, config: HQVAEConfig):
        self.config = config
        self.likelihood = LIKELIHOODS[config.likelihood]()

    def spectra(self, x: Float[Tensor, "B C *S"]) -> list[Float[Tensor, "B F N"]]:
        """What is compared beside the samples, of waveforms."""
        return self.config.spectral.spectra(x)

    def distortions(
        self, x: Float[Tensor, "B C *S"], spectra: Sequence[Tensor], x_hat: Float[Tensor, "B C *S"]
    ) -> Float[Tensor, "V1 B"]:
        """Squared errors of the signal and its spectra, each as if of the signal's elements."""
        size = x[0].numel()
        errors = [square_error(x, x_hat)]
        for theirs, ours in zip(spectra, self.spectra(x_hat)):
            errors.append(square_error(theirs, ours) * (size / theirs[0].numel()))
        return torch.stack(errors)

    def prefixes(self, noise: Noise, device: torch.device) -> list[Float[Tensor, "L"]]:
        """Masks over the layers, of the coarser reconstructions that training adds."""
        layers = len(self.config.layers)
        if not self.config.progressive or layers == 1:
            return []
        order = torch.arange(layers, device=device)
        if self.config.prefixes == "all":
            return [(order < count).float() for count in range(1, layers)]
        seed = torch.as_tensor(noise.fold(Stream.PREFIX).seed, device=device)
        return [(order <= seed % (layers - 1)).float()]

    def sigma2(
        self, distortions: Float[Tensor, "P V1 B"], size: int, over_ranks: bool
    ) -> Float[Tensor, "P V1"]:
        """Decoder variances, fitted to this batch, or to the batches of all processes."""
        flat = distortions.flatten(0, 1)
        variances = [fitted_variance(d, size, over_ranks) for d in flat]
        return torch.stack(variances).view(distortions.shape[:2])

    def losses(
        self,
        x_hat: Float[Tensor, "B C *S"],
        distortions: Float[Tensor, "P V1 B"],
        sigma2: Float[Tensor, "P V1"],
        levels: Iterable[Level],
        outputs: Sequence[LevelOutput],
        mean_sigma2: Float[Tensor, ""] | None = None,
    ) -> Losses:
        """The terms of one batch, σ² held constant.

        With `mean_sigma2` gradients are of ‖x − x̂‖² / 2σ̄² in place of the batch's own σ².
        """
        size = x_hat[0].numel()
        own = sigma2[0, 0]
        weight = 1.0 if mean_sigma2 is None else self.likelihood.batch_weight(own, mean_sigma2)
        quantized = [output.quantized for output in outputs]
        latent_loss = torch.stack([q.latent_loss for q in quantized], 1)
        entropy = torch.cat([q.entropy for q in quantized], 1)
        posteriors = [level.quantizer.posterior for level in levels]
        in_nats = posteriors[0].in_nats
        latent = latent_loss.sum(1).mean() - entropy.sum(1).mean()
        rate = self.rate(quantized)
        errors = self._reconstruction_cost(distortions, size, sigma2)
        if not in_nats:  # a squared error too, and a deterministic choice has no entropy
            errors = errors + self.likelihood.commitment_weight(size, own) * latent
            latent = torch.zeros_like(latent)
        codes = tuple(layer for q in quantized for layer in q.codes.unbind(1))
        variance = torch.cat([posterior.variance for posterior in posteriors])
        return Losses(
            loss=_weigh_gradient(errors, weight) + latent + self.paid(rate, size, own),
            distortion=distortions[0, 0].detach(),
            spectral_mse=distortions[0, 1:].detach().T / size,
            latent_loss=latent_loss.detach(),
            entropy=entropy.detach(),
            variance=variance.detach(),
            sigma2=sigma2,
            reconstruction=x_hat.detach(),
            codes=codes,
            z_e=tuple(output.z_e.detach() for output in outputs),
            size=size,
            rate=rate.detach(),
            in_nats=in_nats,
        )

    def _reconstruction_cost(self, distortions: Tensor, size: int, sigma2: Tensor) -> Tensor:
        """(D/2) log σ² of the reconstruction, and of its spectra and prefixes by their weights."""
        total = distortions.new_zeros(())
        for p, reconstruction in enumerate(distortions):
            progressive = 1.0 if p == 0 else self.config.progressive
            for v, weight in enumerate([1.0, *self.config.spectral.weights]):
                cost = self.likelihood.cost(reconstruction[v], size, sigma2[p, v])
                total = total + progressive * weight * cost
        return total

    def rate(self, quantized: Sequence[Quantized]) -> Float[Tensor, "B L"]:
        """−log p(Z_l) in nats: learned, or |S_l| log K_l."""
        rates = []
        for q, level in zip(quantized, self.config.levels):
            uniform = q.codes[0, 0].numel() * math.log(level.codebook_size)
            rates.append(torch.full_like(q.entropy, uniform) if q.rate is None else q.rate)
        return torch.cat(rates, 1)

    def paid(self, rate: Float[Tensor, "B L"], size: int, sigma2: Tensor) -> Tensor | float:
        """What the objective pays for the rate; nothing where no gradient could come from it."""
        if not self.config.pays_for_bits:
            return 0.0
        nat = self.likelihood.commitment_weight(size, sigma2) * 2 * sigma2 / size
        return nat * rate.sum(1).mean()


def _weigh_gradient(value: Tensor, weight: Tensor | float) -> Tensor:
    """The value as it is, with `weight` times its gradient."""
    return value.detach() + weight * (value - value.detach())


def square_error(x: Float[Tensor, "B ..."], x_hat: Float[Tensor, "B ..."]) -> Float[Tensor, "B"]:
    """‖x − x̂‖² of each signal, in float32 under any autocast."""
    return (x.float() - x_hat.float()).square().flatten(1).sum(1)
