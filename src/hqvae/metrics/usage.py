"""How a layer's codes are used."""

import torch
from jaxtyping import Float64, Int
from torch import Tensor

from hqvae.ranks import all_sum


class Usage:
    """How often each of K codes was chosen, over all batches and all processes.

    The perplexity is exp of the entropy of the *hard* choices' histogram. A perplexity of soft
    probabilities reads near K for a layer whose posterior became uniform, and is not used here.

    >>> usage = Usage(codebook_size=8)
    >>> usage.add(torch.tensor([[0, 1], [1, 0]]))
    >>> round(usage.perplexity(), 6), usage.used()
    (2.0, 2)
    """

    def __init__(self, codebook_size: int, counts: Int[Tensor, "K"] | None = None):
        self.counts = torch.zeros(codebook_size, dtype=torch.long) if counts is None else counts

    def add(self, codes: Int[Tensor, "..."]) -> None:
        """Codes of any shape."""
        self.counts = self.counts.to(codes.device)
        self.counts.index_add_(0, codes.flatten(), torch.ones_like(codes.flatten()))

    def shares(self) -> Float64[Tensor, "K"]:
        """Of all choices, that of every code."""
        counts = all_sum(self.counts).double()
        return counts / counts.sum().clamp(min=1)

    def perplexity(self) -> float:
        """Between 1 (one code only) and K (all equally often)."""
        p = self.shares()
        return float(torch.exp(-(p * p.clamp(min=1e-300).log()).sum()))

    def used(self) -> int:
        """Number of codes chosen at least once."""
        return int((all_sum(self.counts) > 0).sum())
