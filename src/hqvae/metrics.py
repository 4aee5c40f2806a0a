"""Figures that say how close signals are and how codes are used: streaming, summed over batches and processes, then divided.

Means are over the whole split, weighted by the number of signals, never means of batch means with a short last batch.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torchmetrics.functional.audio import scale_invariant_signal_distortion_ratio
from torchmetrics.functional.image import structural_similarity_index_measure

from hqvae.ranks import all_sum
from hqvae.spectra import default_mel, log_mel, stft


def psnr(mean_square: Float[Tensor, "B"]) -> Float[Tensor, "B"]:
    """Peak signal-to-noise ratio in dB of signals in [−1, 1] (peak to peak 2) from their mean squared error."""
    return 10 * torch.log10(4 / mean_square.clamp(min=1e-12))


def ssim(x: Float[Tensor, "B C H W"], x_hat: Float[Tensor, "B C H W"]) -> Float[Tensor, "B"] | None:
    """Structural similarity of each image in [−1, 1] (Gaussian window 11, σ 1.5); None for images smaller than the window."""
    if min(x.shape[2:]) < 11:
        return None
    pair = [signal.contiguous(memory_format=torch.channels_last) for signal in (x_hat, x)]  # three times faster on a CPU
    similar = structural_similarity_index_measure(pair[0], pair[1], data_range=2.0, reduction="none")
    assert isinstance(similar, Tensor)
    return similar.reshape(len(x))


class Mean:
    """A mean over signals, fed batch by batch; `value()` sums over processes."""

    def __init__(self) -> None:
        self.total, self.count = 0.0, 0

    def add(self, values: Float[Tensor, "B"]) -> None:
        self.total += float(values.double().sum())
        self.count += len(values)

    def value(self) -> float:
        total, count = all_sum(torch.tensor([self.total, self.count], dtype=torch.float64)).tolist()
        return total / count if count else math.nan

    def everywhere(self) -> int:
        """Number of signals seen by all processes."""
        return int(all_sum(torch.tensor(self.count)))


def stft_distance(x: Float[Tensor, "B T"], x_hat: Float[Tensor, "B T"], rate: int) -> Float[Tensor, "B"]:
    """Multi-resolution STFT distance: over windows half, once and twice `default_mel`'s, the mean of convergence and log difference,

    ‖|X| − |X̂|‖ / ‖|X|‖  +  mean |ln|X| − ln|X̂||,  magnitudes from 1e-5 on  (Yamamoto, Song and Kim, ICASSP 2020, equations 4 to 6).
    """
    middle, parts = default_mel(rate)["n_fft"], []
    for n_fft in (middle // 2, middle, middle * 2):
        one, other = (stft(signal, n_fft, n_fft // 4).abs().clamp(min=1e-5) for signal in (x, x_hat))
        convergence = (one - other).square().sum((1, 2)).sqrt() / one.square().sum((1, 2)).sqrt()
        parts.append(convergence + (one.log() - other.log()).abs().mean((1, 2)))
    return torch.stack(parts).mean(0)


class SoundQuality:
    """How close waveforms are, fed batch by batch; `values` sums over processes.

    si_sdr: scale-invariant signal-to-distortion ratio, dB within ±100 (Le Roux et al., 2019); a silent reconstruction has −100
    stft_distance: `stft_distance`
    mel_distance, log_mel_rmse: mean absolute and root mean squared difference of log-mel magnitudes (natural log, `default_mel`)

    The first two are means over the segments that are not silent, which have no such ratio, the others over all. None for what no
    segment has: spectra where segments are shorter than their windows.
    """

    def __init__(self, rate: int):
        self.rate, self.setting = rate, default_mel(rate)
        self.si_sdr, self.stft_distance, self.mel_distance, self.mel_square = Mean(), Mean(), Mean(), Mean()

    def add(self, x: Float[Tensor, "B 1 T"], x_hat: Float[Tensor, "B 1 T"]) -> None:
        """Originals and reconstructions in [−1, 1]."""
        one, other = x[:, 0].float(), x_hat[:, 0].float()
        heard = one.square().sum(1) > 0
        long = one.shape[1] > self.setting["n_fft"]
        if heard.any():
            ratio = scale_invariant_signal_distortion_ratio(other[heard], one[heard])
            self.si_sdr.add(ratio.where(other[heard].square().sum(1) > 0, -100.0).clamp(-100, 100))
            if long:
                self.stft_distance.add(stft_distance(one[heard], other[heard], self.rate))
        if long:
            apart = log_mel(one, self.rate, **self.setting) - log_mel(other, self.rate, **self.setting)
            self.mel_distance.add(apart.abs().mean((1, 2)))
            self.mel_square.add(apart.square().mean((1, 2)))

    def values(self) -> dict[str, float | None]:
        """The figures by name."""
        figures = {"si_sdr": self.si_sdr.value(), "stft_distance": self.stft_distance.value()}
        figures |= {"mel_distance": self.mel_distance.value(), "log_mel_rmse": math.sqrt(self.mel_square.value())}
        return {name: None if math.isnan(figure) else figure for name, figure in figures.items()}


class Usage:
    """How often each of K codes was chosen.

    perplexity: exp of the entropy of the *hard* choices' histogram; a perplexity of soft probabilities reads near K for a layer
    whose posterior has gone uniform, and is not used here.
    """

    def __init__(self, codebook_size: int, counts: Tensor | None = None):
        self.counts = torch.zeros(codebook_size, dtype=torch.long) if counts is None else counts

    def add(self, codes: Int[Tensor, "..."]) -> None:
        self.counts = self.counts.to(codes.device)
        self.counts.index_add_(0, codes.flatten(), torch.ones_like(codes.flatten()))

    def perplexity(self) -> float:
        counts = all_sum(self.counts).double()
        p = counts / counts.sum().clamp(min=1)
        return float(torch.exp(-(p * p.clamp(min=1e-300).log()).sum()))

    def used(self) -> int:
        """Number of codes chosen at least once."""
        return int((all_sum(self.counts) > 0).sum())
