"""How close waveforms are: SI-SDR, and distances of their spectra."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from hqvae.spectra import default_mel, log_mel, stft

from .base import Mean, Metric, measured

_LARGEST_SI_SDR = 100.0  # dB, either way


def stft_distance(
    x: Float[Tensor, "B T"], x_hat: Float[Tensor, "B T"], rate: int
) -> Float[Tensor, "B"]:
    """Multi-resolution STFT distance: spectral convergence plus log-magnitude distance,

        ‖|X| − |X̂|‖ / ‖|X|‖  +  mean |ln|X| − ln|X̂||,  magnitudes from 1e-5 on

    mean over windows half, once and twice that of `default_mel`
    (Yamamoto, Song and Kim, ICASSP 2020, equations 4 to 6).
    """
    middle = default_mel(rate)["n_fft"]
    distances = []
    for n_fft in (middle // 2, middle, middle * 2):
        hop = n_fft // 4
        magnitude, magnitude_hat = (
            stft(signal, n_fft, hop).abs().clamp(min=1e-5) for signal in (x, x_hat)
        )
        difference = (magnitude - magnitude_hat).square().sum((1, 2)).sqrt()
        convergence = difference / magnitude.square().sum((1, 2)).sqrt()
        log_distance = (magnitude.log() - magnitude_hat.log()).abs().mean((1, 2))
        distances.append(convergence + log_distance)
    return torch.stack(distances).mean(0)


class AudioQuality(Metric):
    """How close waveforms `[B, 1, T]` are.

    si_sdr: scale-invariant signal-to-distortion ratio in dB, within ±100 (Le Roux et al., 2019);
        a silent reconstruction has −100
    stft_distance: see `stft_distance`
    mel_distance, log_mel_rmse: mean absolute and root mean squared difference of log-mel
        magnitudes (natural log, `default_mel`)

    The first two skip silent segments, where they are undefined. Segments shorter than the
    windows of spectra have an SI-SDR only.

    >>> quality, waveforms = AudioQuality(16_000), torch.randn(2, 1, 16_000)
    >>> quality.add(waveforms, 2 * waveforms)
    >>> figures = quality.values()
    >>> figures["si_sdr"] > 60, round(figures["mel_distance"], 3)
    (True, 0.693)
    """

    def __init__(self, rate: int):
        self.rate = rate
        self.mel_config = default_mel(rate)
        self.si_sdr = Mean()
        self.stft_distance = Mean()
        self.mel_distance = Mean()
        self.log_mel_mse = Mean()

    def add(self, x: Float[Tensor, "B 1 T"], x_hat: Float[Tensor, "B 1 T"]) -> None:
        """Originals and reconstructions in [−1, 1]."""
        waveform = x[:, 0].float()
        waveform_hat = x_hat[:, 0].float()
        has_spectra = waveform.shape[1] > self.mel_config["n_fft"]
        audible = waveform.square().sum(1) > 0
        if audible.any():
            self._add_audible(waveform[audible], waveform_hat[audible], has_spectra)
        if has_spectra:
            mel = log_mel(waveform, self.rate, **self.mel_config)
            difference = mel - log_mel(waveform_hat, self.rate, **self.mel_config)
            self.mel_distance.add(difference.abs().mean((1, 2)))
            self.log_mel_mse.add(difference.square().mean((1, 2)))

    def _add_audible(self, waveform: Tensor, waveform_hat: Tensor, has_spectra: bool) -> None:
        from torchmetrics.functional.audio import scale_invariant_signal_distortion_ratio

        ratio = scale_invariant_signal_distortion_ratio(waveform_hat, waveform)
        ratio = ratio.where(waveform_hat.square().sum(1) > 0, -_LARGEST_SI_SDR)
        self.si_sdr.add(ratio.clamp(-_LARGEST_SI_SDR, _LARGEST_SI_SDR))
        if has_spectra:
            self.stft_distance.add(stft_distance(waveform, waveform_hat, self.rate))

    def values(self) -> dict[str, float]:
        """`si_sdr`, `stft_distance`, `mel_distance` and `log_mel_rmse`."""
        figures = {
            "si_sdr": self.si_sdr.value(),
            "stft_distance": self.stft_distance.value(),
            "mel_distance": self.mel_distance.value(),
            "log_mel_rmse": math.sqrt(self.log_mel_mse.value()),
        }
        return measured(figures)
