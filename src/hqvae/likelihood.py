"""p(x | z): what a squared error costs.

FittedGaussian:  −log N(x; x̂, σ²I) with σ² = mean over the batch of ‖x − x̂‖²/D      →  (D/2) log σ²      (arXiv 2102.08663)
MeanSquare:      ‖x − x̂‖²/D, as the deterministic systems' papers train

A sound may be observed in further views, its log spectra y_v(x): + w/V · Σ_v of FittedGaussian or MeanSquare, with the mean over the
elements of (y_v(x) − y_v(x̂))² for ‖x − x̂‖²/D and the signal's own D.
"""

import torch
from jaxtyping import Float
from pydantic import ConfigDict, Field, field_validator
from pydantic.dataclasses import dataclass as config
from torch import Tensor

from hqvae.errors import InputError
from hqvae.ranks import all_mean
from hqvae.spectra import log_mel, log_spectrum


@config(frozen=True, config=ConfigDict(extra="forbid"))
class SpectralConfig:
    """Views of a sound beside its waveform: for every window length, the log of its STFT's magnitudes, and of its mel bands.

    A waveform's squared error asks for the phase and forgives quiet bands that an ear hears; these views ask for the bands.

    Args:
        weight: of all views together, against the waveform's own cost; 0 for no views
        rate: samples per second, that of the sounds
        n_ffts: window lengths in samples; hops are a quarter of them
        floor: magnitudes below it count as it; those of mel bands are weighted sums per hertz, about n_fft/rate times a bin's
    """

    weight: float = Field(default=0.0, ge=0)
    rate: int = Field(default=16_000, ge=100)
    n_ffts: tuple[int, ...] = Field(default=(2048, 512, 128), min_length=1)
    floor: float = Field(default=1e-3, gt=0)

    @field_validator("n_ffts")
    @classmethod
    def _windows(cls, n_ffts: tuple[int, ...]) -> tuple[int, ...]:
        if any(n < 16 or n % 4 for n in n_ffts):
            raise ValueError(f"window lengths are multiples of 4 from 16 on, not {list(n_ffts)}")
        return n_ffts

    @property
    def weights(self) -> list[float]:
        """Of every view, beside the waveform's own of 1."""
        count = 2 * len(self.n_ffts)
        return [self.weight / count] * count if self.weight else []

    def views(self, x: Float[Tensor, "B C *S"]) -> list[Float[Tensor, "B F N"]]:
        """The views of a waveform [B, 1, T], float32 under any autocast; none where they have no weight, as for every other signal."""
        if not self.weight:
            return []
        seen, sound = [], x[:, 0].float()
        with torch.autocast(x.device.type, enabled=False):
            for n in self.n_ffts:
                seen.append(log_spectrum(sound, n, n // 4, self.floor))
                seen.append(log_mel(sound, self.rate, n, n // 4, max(1, min(80, n * 5 // 32)), 0.0, self.rate / 2, self.floor))
        return seen

    def refuse_unfit(self, rate: int, samples: int) -> None:
        """Raises InputError where sounds of that rate, in segments of so many samples, cannot be seen so."""
        if not self.weight:
            return
        if self.rate != rate:
            raise InputError(f"model.spectral.rate={self.rate}, but data.rate={rate}; expected the same")
        if max(self.n_ffts) >= 2 * samples:
            raise InputError(
                f"model.spectral.n_ffts: a window of {max(self.n_ffts)} needs segments of more than {max(self.n_ffts) // 2} samples, "
                f"but these have {samples}; expected a larger data.seconds"
            )


class FittedGaussian:
    """Gaussian decoder whose variance is the maximum-likelihood one of the *global* batch, in closed form."""

    @staticmethod
    def variance(distortion: Float[Tensor, "B"], size: int, everywhere: bool = True) -> Float[Tensor, ""]:
        """σ², the mean squared error of an element over this batch, or over those of all processes `everywhere`; no gradient."""
        mean = distortion.detach().float().mean()
        return ((all_mean(mean) if everywhere else mean) / size).clamp(min=torch.finfo(torch.float32).tiny)

    def __call__(self, distortion: Float[Tensor, "B"], size: int, sigma2: Tensor | None = None) -> Float[Tensor, ""]:
        """Mean over this batch, in nats per signal, constants dropped.

        Its value is (D/2) log σ², and its gradient ∇‖x − x̂‖²/2σ² with σ² held: the gradient of the global batch's
        (D/2) log σ² when averaged over processes or over accumulated batches that share `sigma2`.
        """
        sigma2 = self.variance(distortion, size) if sigma2 is None else sigma2
        slope = distortion.mean() / (2 * sigma2)
        return size / 2 * sigma2.log() + slope - slope.detach()

    @staticmethod
    def share(sigma2: Tensor, other: Tensor) -> Tensor | float:
        """What a further reconstruction's cost is multiplied by, beside that of the first: nothing, each is in its own σ² already."""
        return 1.0


class MeanSquare:
    """The mean squared error itself, no variance: `sigma2` belongs to the contract and has no effect on it."""

    def __call__(self, distortion: Float[Tensor, "B"], size: int, sigma2: Tensor | None = None) -> Float[Tensor, ""]:
        return distortion.mean() / size

    @staticmethod
    def share(sigma2: Tensor, other: Tensor) -> Tensor | float:
        """σ²/σ'², so that a further reconstruction with mean squared error σ'² has the gradient that FittedGaussian gives it beside the
        first, in the first one's unit: the worse one would else have nearly all of it."""
        return sigma2 / other
