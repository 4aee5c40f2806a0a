"""p(x | z): what a squared error costs, and what a commitment weighs beside it.

    FittedGaussian  −log N(x; x̂, σ²I), σ² = mean over the batch of ‖x − x̂‖²/D  →  (D/2) log σ²
                    (arXiv 2102.08663)
    MSE             ‖x − x̂‖²/D, as the deterministic systems' papers train

An audio signal may also be compared by its log spectra y_v(x). Each adds w/V of the same cost, with
the mean over the elements of (y_v(x) − y_v(x̂))² for ‖x − x̂‖²/D, and the signal's own D.
"""

from typing import Protocol

import torch
from jaxtyping import Float
from pydantic import Field, field_validator
from torch import Tensor

from hqvae.config_class import config_class
from hqvae.errors import InputError
from hqvae.ranks import all_mean
from hqvae.spectra import log_mel, log_spectrum


def fitted_variance(
    distortion: Float[Tensor, "B"], size: int, over_ranks: bool = True
) -> Float[Tensor, ""]:
    """σ², the mean squared error of an element over this batch; no gradient.

    `over_ranks` averages over the batches of all processes.
    """
    mean = distortion.detach().float().mean()
    mean = all_mean(mean) if over_ranks else mean
    return (mean / size).clamp(min=torch.finfo(torch.float32).tiny)


def running_variance(
    mean: Float[Tensor, ""], sigma2: Float[Tensor, ""], decay: float
) -> Float[Tensor, ""]:
    """γ σ̄² + (1 − γ) σ², the mean over recent batches; σ² itself where σ̄² is 0, of none yet."""
    return torch.where(mean > 0, decay * mean + (1 - decay) * sigma2, sigma2)


class Likelihood(Protocol):
    """The contract: both costs in one unit, with σ² held constant for the step."""

    def cost(self, distortion: Float[Tensor, "B"], size: int, sigma2: Tensor) -> Float[Tensor, ""]:
        """What ‖x − x̂‖² costs, mean over this batch."""

    def commitment_weight(self, size: int, sigma2: Tensor) -> Tensor | float:
        """What a latent loss in mean squared error is multiplied by."""

    def batch_weight(self, sigma2: Tensor, mean_sigma2: Tensor) -> Tensor | float:
        """What gradients are multiplied by, so that batches weigh as their errors do."""


class FittedGaussian:
    """Gaussian decoder with the maximum-likelihood variance of the *global* batch. In nats."""

    def cost(self, distortion: Float[Tensor, "B"], size: int, sigma2: Tensor) -> Float[Tensor, ""]:
        """(D/2) log σ², constants dropped.

        Its gradient is ∇‖x − x̂‖²/2σ² with σ² held. Averaged over processes, or over accumulated
        batches that share σ², it is the gradient of the global batch's (D/2) log σ².
        """
        weighted = distortion.mean() / (2 * sigma2)
        return size / 2 * sigma2.log() + weighted - weighted.detach()

    def commitment_weight(self, size: int, sigma2: Tensor) -> Tensor | float:
        """D/2σ²: a commitment keeps its weight beside the mean squared error ‖x − x̂‖²/D."""
        return size / (2 * sigma2)

    def batch_weight(self, sigma2: Tensor, mean_sigma2: Tensor) -> Tensor | float:
        """σ²/σ̄²: of ‖x − x̂‖²/2σ̄², σ² as one parameter of the decoder (ours); 1 while σ̄² is 0.

        With a variance fitted to each batch, hard batches count no more than easy ones.
        """
        return torch.where(mean_sigma2 > 0, sigma2 / mean_sigma2, 1.0)


class MSE:
    """The mean squared error itself, without a variance."""

    def cost(self, distortion: Float[Tensor, "B"], size: int, sigma2: Tensor) -> Float[Tensor, ""]:
        return distortion.mean() / size

    def commitment_weight(self, size: int, sigma2: Tensor) -> Tensor | float:
        return 1.0

    def batch_weight(self, sigma2: Tensor, mean_sigma2: Tensor) -> Tensor | float:
        return 1.0


LIKELIHOODS: dict[str, type[FittedGaussian] | type[MSE]] = {"gaussian": FittedGaussian, "mse": MSE}


@config_class
class SpectralConfig:
    """Log spectra of a waveform, compared beside its samples: STFT magnitudes and mel bands.

    A waveform's squared error asks for the phase and forgives quiet bands that an ear hears; log
    spectra ask for the bands.
    """

    weight: float = Field(default=0.0, ge=0)
    """of all spectra together, against the waveform's own cost; 0 for none"""
    rate: int = Field(default=16_000, ge=100)
    """samples per second, that of the data"""
    n_ffts: tuple[int, ...] = Field(default=(2048, 512, 128), min_length=1, max_length=64)
    """window lengths in samples; hops are a quarter of them"""
    floor: float = Field(default=1e-3, gt=0)
    """magnitudes below it count as it"""

    @field_validator("n_ffts")
    @classmethod
    def _check_windows(cls, n_ffts: tuple[int, ...]) -> tuple[int, ...]:
        if any(not 16 <= n <= 2**20 or n % 4 for n in n_ffts):
            raise ValueError(f"windows are multiples of 4 from 16 to 2^20, not {list(n_ffts)}")
        return n_ffts

    @property
    def weights(self) -> list[float]:
        """Of every spectrum, beside the waveform's own of 1."""
        count = 2 * len(self.n_ffts)
        return [self.weight / count] * count if self.weight else []

    def spectra(self, x: Float[Tensor, "B C *S"]) -> list[Float[Tensor, "B F N"]]:
        """Log spectra of a waveform [B, 1, T], float32 under any autocast; [] at weight 0."""
        if not self.weight:
            return []
        spectra = []
        waveform = x[:, 0].float()
        with torch.autocast(x.device.type, enabled=False):
            for n_fft in self.n_ffts:
                hop = n_fft // 4
                mels = max(1, min(80, n_fft * 5 // 32))
                spectra.append(log_spectrum(waveform, n_fft, hop, self.floor))
                spectra.append(
                    log_mel(waveform, self.rate, n_fft, hop, mels, 0.0, self.rate / 2, self.floor)
                )
        return spectra

    def check_fits(self, rate: int | None, samples: int) -> None:
        """Raises InputError where signals of that rate and length have no such spectra."""
        if not self.weight:
            return
        if self.rate != rate:
            raise InputError(f"spectral.rate={self.rate}, but the data's rate is {rate}")
        if max(self.n_ffts) >= 2 * samples:
            raise InputError(
                f"spectral.n_ffts: a window of {max(self.n_ffts)} needs segments of more than "
                f"{max(self.n_ffts) // 2} samples, but these have {samples}"
            )
