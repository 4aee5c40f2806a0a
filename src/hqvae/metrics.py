"""Figures that say how close signals are and how codes are used: streaming, summed over batches and processes, then divided.

Means are over the whole split, weighted by the number of signals, never means of batch means with a short last batch.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from hqvae.ranks import all_sum


def psnr(mean_square: Float[Tensor, "B"]) -> Float[Tensor, "B"]:
    """Peak signal-to-noise ratio in dB of signals in [−1, 1] (peak to peak 2) from their mean squared error."""
    return 10 * torch.log10(4 / mean_square.clamp(min=1e-12))


def ssim(x: Float[Tensor, "B C H W"], x_hat: Float[Tensor, "B C H W"]) -> Float[Tensor, "B"] | None:
    """Structural similarity of each image in [−1, 1] (Gaussian window 11, σ 1.5); None for images smaller than the window."""
    if x.ndim != 4 or min(x.shape[2:]) < 11:
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
